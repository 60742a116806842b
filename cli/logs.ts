import { readFileSync } from 'node:fs'
import type { KubeConfig } from '@kubernetes/client-node'
import type { Command } from 'commander'
import { ShoalError } from '../api/errors.ts'
import { ApiClient } from '../runtime/apiClient.ts'
import { currentNamespace, loadKubeConfig } from './kubeconfig.ts'

interface Options {
  namespace?: string
  hub?: string
  ca?: string
}

/** `shoal logs JOB`: a build's output, read from the hub as whoever the kubeconfig says. */
export function addLogs(program: Command): void {
  program
    .command('logs <job>')
    .description('print the log of a BuildJob')
    .option('-n, --namespace <name>', 'of the job; default: the kubeconfig’s')
    .option('--hub <url>', 'the hub; default: SHOAL_HUB_URL', process.env.SHOAL_HUB_URL)
    .option('--ca <file>', 'who signed the hub’s certificate; default: SHOAL_HUB_CA', process.env.SHOAL_HUB_CA)
    .action(async (job: string, { namespace, hub, ca }: Options) => {
      if (hub === undefined) throw new ShoalError('ConfigInvalid', 'where is the hub? Give --hub or SHOAL_HUB_URL')
      const config = loadKubeConfig()
      const inNamespace = namespace ?? currentNamespace(config)
      await using client = new ApiClient({
        baseUrl: hub,
        token: () => tokenOf(config),
        ...(ca !== undefined && { ca: readFileSync(ca, 'utf8') }),
      })
      const path = `/v1/jobs/${encodeURIComponent(inNamespace)}/${encodeURIComponent(job)}/log`
      process.stdout.write(await client.bytes('GET', path))
    })
}

/** The bearer token kubectl would send. Client certificates end at the API server: the hub can't check them. */
export async function tokenOf(config: KubeConfig): Promise<string> {
  const options: { headers: Record<string, string> } = { headers: {} }
  await config.applyToHTTPSOptions(options as never)
  const [, token] = /^Bearer (.+)$/.exec(options.headers.Authorization ?? '') ?? []
  if (token === undefined)
    throw new ShoalError(
      'Unauthorized',
      'the kubeconfig has no token; try kubectl create token and kubectl config set-credentials',
    )
  return token
}
