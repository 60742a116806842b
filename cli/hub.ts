import { readFileSync } from 'node:fs'
import type { KubeConfig } from '@kubernetes/client-node'
import type { Command } from 'commander'
import { ShoalError } from '../api/errors.ts'
import { ApiClient } from '../runtime/apiClient.ts'
import { currentNamespace, loadKubeConfig } from './kubeconfig.ts'

export interface HubOptions {
  hub?: string
  ca?: string
  /** Of jobs; default: the kubeconfig's. */
  namespace?: string
}

/** The hub, as whoever the kubeconfig says. */
export interface Hub extends AsyncDisposable {
  client: ApiClient
  /** /v1/jobs/<namespace>, followed by these names. */
  jobsPath: (...names: string[]) => string
}

/** Adds the options of a command that asks the hub. */
export const withHub = (command: Command): Command =>
  command
    .option('--hub <url>', 'the hub; default: SHOAL_HUB_URL', process.env.SHOAL_HUB_URL)
    .option('--ca <file>', 'who signed the hub’s certificate; default: SHOAL_HUB_CA', process.env.SHOAL_HUB_CA)

/** Adds those of one that asks for jobs. */
export const withJobs = (command: Command): Command =>
  withHub(command.option('-n, --namespace <name>', 'of the jobs; default: the kubeconfig’s'))

/** Throws `ConfigInvalid` when the hub is not known; the client throws `Unauthorized` when the kubeconfig has no token. */
export function openHub({ namespace, hub, ca }: HubOptions): Hub {
  if (hub === undefined) throw new ShoalError('ConfigInvalid', 'where is the hub? Give --hub or SHOAL_HUB_URL')
  const client = openApi({ url: hub, ca })
  const inNamespace = namespace ?? currentNamespace(loadKubeConfig())
  return {
    client,
    jobsPath: (...names) => ['/v1/jobs', ...[inNamespace, ...names].map(encodeURIComponent)].join('/'),
    [Symbol.asyncDispose]: () => client[Symbol.asyncDispose](),
  }
}

/** One of our servers, as whoever the kubeconfig says; `ca`: a file. Throws as `openHub`. */
export function openApi({ url, ca }: { url: string; ca: string | undefined }): ApiClient {
  const config = loadKubeConfig()
  return new ApiClient({ baseUrl: url, token: () => tokenOf(config), ca: ca ? readAuthority(ca) : undefined })
}

function readAuthority(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch (cause) {
    throw new ShoalError('ConfigInvalid', `--ca ${path}: ${(cause as Error).message}`, { cause })
  }
}

/** The bearer token kubectl would send. Client certificates end at the API server: the hub can't check them. */
async function tokenOf(config: KubeConfig): Promise<string> {
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
