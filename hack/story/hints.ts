import { writeFileSync } from 'node:fs'
import { delimiter, dirname, join } from 'node:path'
import { appName } from './objects.ts'
import { logsDir, type SystemState } from './state.ts'

const root = join(import.meta.dirname, '../..')
const environmentFile = (dir: string) => join(dir, 'env')

/** Writes `env`, to be sourced by a shell: kubectl and shoal in PATH, KUBECONFIG, and where things are. */
export function writeEnvironment(state: SystemState) {
  const path = [join(root, 'bin'), dirname(state.kubectl)].join(delimiter)
  const values: Record<string, string> = {
    KUBECONFIG: state.kubeconfig,
    SHOAL_HUB_URL: state.hub.url,
    SHOAL_HUB_CA: state.hub.ca,
  }
  const lines = Object.entries(values).map(([name, value]) => `export ${name}=${quote(value)}`)
  writeFileSync(environmentFile(state.dir), `export PATH=${quote(path)}:"$PATH"\n${lines.join('\n')}\n`)
}

const quote = (text: string) => `'${text.replaceAll("'", "'\\''")}'`

/** What to try while it is up. */
export function hints(state: SystemState): string {
  const [machine] = state.machines
  const commands = [
    [`. ${environmentFile(state.dir)}`],
    [`kubectl config set-context --current --namespace ${state.namespace}`],
    ['kubectl get shoal', 'everything of Shoal in this namespace'],
    ['kubectl get regionalgoalstates -A', 'what each region was told, and how far it is'],
    [`kubectl get goalstates ${appName} -o yaml`],
    ['shoal workers', 'who builds what, and how full the queue is'],
    ['shoal jobs', 'every build; shoal logs -f NAME follows one'],
    [`curl ${machine?.url}/version`, 'one machine’s application'],
    [`cd ${state.repositories.app.work} && git add . && git commit --allow-empty -m 'Try it' && git push origin main`],
    ['kubectl get buildjobs,artifacts -w'],
  ]
  const lines = commands.map(([command = '', what]) => (what ? `  ${command.padEnd(42)}# ${what}` : `  ${command}`))
  return `
It is up. To try, in another shell:
${lines.join('\n')}
Stores, databases, ports and pids are in ${join(state.dir, 'state.json')}; logs in ${logsDir(state.dir)}.
Take it down with ./hack/demo down, or Ctrl-C where ./hack/demo is still running.`
}
