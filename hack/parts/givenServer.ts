import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { AdminClient } from './adminClient.ts'
import type { Basics } from './apiServer.ts'

/** A server that runs already, used with the rights of the kubeconfig's current context. */
export async function givenServer(kubeconfigFile: string, dir: string): Promise<Basics> {
  const client = new AdminClient(kubeconfigFile)
  const cluster = client.kubeconfig.getCurrentCluster()
  const ca = cluster?.caData
    ? Buffer.from(cluster.caData, 'base64').toString()
    : cluster?.caFile
      ? await readFile(cluster.caFile, 'utf8')
      : ''
  const caFile = join(dir, 'ca.crt')
  await writeFile(caFile, ca)
  const discovery = (await client.request('GET', '/.well-known/openid-configuration')) as { issuer: string }
  const refuse = (): never => {
    throw new Error(`${client.url} is not ours to stop: start the API server with {own: true}`)
  }
  return {
    url: client.url,
    caFile,
    ca,
    kubeconfigFile,
    get token() {
      const token = client.kubeconfig.getCurrentUser()?.token
      if (!token) throw new Error(`the user of ${kubeconfigFile} has no token of its own`)
      return token
    },
    issuer: discovery.issuer,
    own: false,
    request: client.request.bind(client),
    stop: refuse,
    start: refuse,
    kill: refuse,
    end: () => client[Symbol.asyncDispose](),
  }
}
