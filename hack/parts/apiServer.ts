import { mkdir, writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { ApiError, kubeconfigText } from './adminClient.ts'
import { givenServer } from './givenServer.ts'
import { kindKubeconfig } from './kind.ts'
import { ownServer } from './ownServer.ts'
import { temporaryDir } from './process.ts'

export interface ApiServerOptions {
  /** Keys and data, kept after dispose and used again; default: a temporary folder. */
  dir?: string
  /** Default: a random one. */
  adminToken?: string
  /** Always a server of our own, never SHOAL_KUBECONFIG's or kind's: for tests that stop it or need two. */
  own?: boolean
  /** A kind cluster may be used when Docker runs. It takes half a minute to start, so tests don't ask for it. */
  kind?: boolean
}

/** A Kubernetes API server, with RBAC and no controllers but those that it holds itself. */
export interface ApiServer extends AsyncDisposable {
  readonly url: string
  readonly caFile: string
  /** PEM. */
  readonly ca: string
  /** The administrator's. */
  readonly kubeconfigFile: string
  /** The administrator's. @throws Error when the kubeconfig that was given identifies itself in another way. */
  readonly token: string
  /** Of ServiceAccount tokens. */
  readonly issuer: string
  /** False for a server that others may use too. */
  readonly own: boolean
  readonly dir: string
  /** JSON as the administrator. @throws ApiError */
  request(method: string, path: string, body?: unknown, contentType?: string): Promise<unknown>
  /** Idempotent. */
  createNamespace(name: string): Promise<void>
  /**
   * A token for 24 hours; makes the namespace and the ServiceAccount when they are missing.
   * @param audiences default: the server's own
   */
  serviceAccountToken(namespace: string, name: string, audiences?: string[]): Promise<string>
  /** Writes a kubeconfig that uses the token; returns its path. */
  kubeconfigFor(token: string, namespace?: string): Promise<string>
  /** The public keys of ServiceAccount tokens. */
  jwks(): Promise<{ keys: object[] }>
  /** Only of an own server, as start and kill. */
  stop(): Promise<void>
  /** Same port, data and keys; returns when it is ready. */
  start(): Promise<void>
  kill(): Promise<void>
}

/**
 * In this order: SHOAL_KUBECONFIG's server; kind, if asked for and Docker runs; else kube-apiserver and etcd as processes
 * (3 to 4 s), from KUBEBUILDER_ASSETS or built by Go.
 */
export async function startApiServer(options: ApiServerOptions = {}): Promise<ApiServer> {
  const temporary = options.dir === undefined ? await temporaryDir('shoal-api') : undefined
  const dir = resolve(temporary?.path ?? options.dir ?? '.')
  await mkdir(dir, { recursive: true })
  const remove = async () => {
    await temporary?.[Symbol.asyncDispose]()
  }
  try {
    const shared = options.own
      ? undefined
      : process.env.SHOAL_KUBECONFIG || (options.kind && (await kindKubeconfig(dir)))
    if (!shared) return assemble(await ownServer(dir, options.adminToken), dir, remove)
    const server = await givenServer(shared, dir)
    process.stderr.write(`using the API server ${server.url} of ${shared}\n`)
    return assemble(server, dir, remove)
  } catch (error) {
    await remove()
    throw error
  }
}

/** What an own server and a given one differ in. */
export type Basics = Pick<
  ApiServer,
  'url' | 'caFile' | 'ca' | 'kubeconfigFile' | 'token' | 'issuer' | 'own' | 'request' | 'stop' | 'start' | 'kill'
> & { end(): Promise<void> }

function assemble(basics: Basics, dir: string, remove: () => Promise<void>): ApiServer {
  let kubeconfigs = 0
  const createNamespace = async (name: string) => {
    await create('/api/v1/namespaces', { apiVersion: 'v1', kind: 'Namespace', metadata: { name } })
  }
  const create = async (path: string, body: object) => {
    try {
      await basics.request('POST', path, body)
    } catch (error) {
      if (!(error instanceof ApiError) || error.reason !== 'AlreadyExists') throw error
    }
  }
  const own = {
    dir,
    createNamespace,
    async serviceAccountToken(namespace: string, name: string, audiences?: string[]) {
      await createNamespace(namespace)
      const accounts = `/api/v1/namespaces/${namespace}/serviceaccounts`
      await create(accounts, { apiVersion: 'v1', kind: 'ServiceAccount', metadata: { name, namespace } })
      const answer = (await basics.request('POST', `${accounts}/${name}/token`, {
        apiVersion: 'authentication.k8s.io/v1',
        kind: 'TokenRequest',
        spec: { expirationSeconds: 86_400, ...(audiences ? { audiences } : {}) },
      })) as { status: { token: string } }
      return answer.status.token
    },
    async kubeconfigFor(token: string, namespace?: string) {
      const file = join(dir, `kubeconfig-${process.pid}-${++kubeconfigs}`)
      await writeFile(file, kubeconfigText({ url: basics.url, ca: basics.ca, token, namespace }), { mode: 0o600 })
      return file
    },
    jwks: async () => (await basics.request('GET', '/openid/v1/jwks')) as { keys: object[] },
    async [Symbol.asyncDispose]() {
      await basics.end()
      await remove()
    },
  }
  // Not a spread: `token` of a given server is a getter that may throw.
  return Object.defineProperties(own, Object.getOwnPropertyDescriptors(basics)) as typeof own & Basics
}
