import type { Command } from 'commander'
import { BuildJob } from '../api/buildJob.ts'
import { ShoalError } from '../api/errors.ts'
import { ApiError, Cluster } from '../runtime/cluster.ts'
import { currentNamespace, loadKubeConfig } from './kubeconfig.ts'

/** `shoal cancel JOB…`: as setting spec.cancel, with the rights of whoever the kubeconfig says. */
export function addCancel(program: Command): void {
  program
    .command('cancel <job...>')
    .description('end BuildJobs: those in the queue at once, those that run at their worker’s next heartbeat')
    .option('-n, --namespace <name>', 'of the jobs; default: the kubeconfig’s')
    .action(async (jobs: string[], options: { namespace?: string }) => {
      const kubeconfig = loadKubeConfig()
      const namespace = options.namespace ?? currentNamespace(kubeconfig)
      await using cluster = Cluster.load({ kubeconfig })
      for (const name of jobs) {
        await cluster.patch(BuildJob, { namespace, name }, { spec: { cancel: true } }).catch((error: unknown) => {
          if (!(error instanceof ApiError && error.status === 404)) throw error
          throw new ShoalError('NotFound', `there is no BuildJob ${name} in namespace ${namespace}`)
        })
        console.log(`${name} is being cancelled`)
      }
    })
}
