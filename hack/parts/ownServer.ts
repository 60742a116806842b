import { generateKeyPairSync, randomBytes } from 'node:crypto'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { AdminClient, kubeconfigText } from './adminClient.ts'
import type { Basics } from './apiServer.ts'
import { Authority } from './certificates.ts'
import { freePort, type Program, startProgram, until } from './process.ts'
import { kubernetesPrograms } from './programs.ts'

const issuer = 'https://kubernetes.default.svc.cluster.local'

interface Settings {
  port: number
  etcdPort: number
  etcdPeerPort: number
  token: string
}

/** kube-apiserver on an etcd of its own; ready in 3 to 4 s. What `dir` holds is used again. */
export async function ownServer(dir: string, adminToken?: string): Promise<Basics> {
  const [programs, authority, settings] = await Promise.all([
    kubernetesPrograms(),
    Authority.open(join(dir, 'pki')),
    settingsIn(dir, adminToken),
  ])
  const url = `https://127.0.0.1:${settings.port}`
  const kubeconfigFile = join(dir, 'kubeconfig')
  const [serving] = await Promise.all([
    authority.issue('apiserver', ['127.0.0.1', '::1', 'localhost', 'kubernetes.default.svc', '10.0.0.1']),
    writeFile(kubeconfigFile, kubeconfigText({ url, ca: authority.ca, token: settings.token }), { mode: 0o600 }),
    writeFile(join(dir, 'tokens.csv'), `${settings.token},admin,admin,system:masters\n`, { mode: 0o600 }),
    serviceAccountKeys(dir),
  ])
  const client = new AdminClient(kubeconfigFile)
  let running: Program[] = []

  const start = async () => {
    await client[Symbol.asyncDispose]()
    const etcd = startProgram(join(programs, 'etcd'), etcdArgs(dir, settings), {
      name: 'etcd',
      logFile: join(dir, 'etcd.log'),
    })
    const server = startProgram(join(programs, 'kube-apiserver'), serverArgs(dir, settings, serving), {
      name: 'kube-apiserver',
      logFile: join(dir, 'apiserver.log'),
    })
    running = [server, etcd]
    const ready = async () => (await client.request('GET', '/readyz')) === 'ok'
    await until(`API server ${url}`, ready, { timeoutMs: 60_000, unless: server })
    // The default namespace is made just after.
    await until('default namespace', () => client.request('GET', '/api/v1/namespaces/default'), { unless: server })
  }
  const kill = async () => {
    await Promise.all(running.map((program) => program.kill()))
  }
  const stop = async () => {
    // Open watches would hold the server for a minute.
    for (const program of running) await program.stop({ timeoutMs: 3000 })
  }
  try {
    await start()
  } catch (error) {
    await kill()
    await client[Symbol.asyncDispose]()
    throw error
  }
  return {
    url,
    caFile: authority.caFile,
    ca: authority.ca,
    kubeconfigFile,
    token: settings.token,
    issuer,
    own: true,
    request: client.request.bind(client),
    start,
    stop,
    kill,
    // etcd has written everything to the files before it answered, and the files outlive the process.
    async end() {
      await kill()
      await client[Symbol.asyncDispose]()
    },
  }
}

function etcdArgs(dir: string, { etcdPort, etcdPeerPort }: Settings): string[] {
  const [client, peer] = [`http://127.0.0.1:${etcdPort}`, `http://127.0.0.1:${etcdPeerPort}`]
  return [
    `--data-dir=${dir}/etcd`,
    `--listen-client-urls=${client}`,
    `--advertise-client-urls=${client}`,
    `--listen-peer-urls=${peer}`,
    `--initial-advertise-peer-urls=${peer}`,
    `--initial-cluster=default=${peer}`,
    // Safe against the death of the process, not of the machine.
    '--unsafe-no-fsync',
    '--log-level=warn',
  ]
}

function serverArgs(dir: string, settings: Settings, serving: { certFile: string; keyFile: string }): string[] {
  return [
    `--etcd-servers=http://127.0.0.1:${settings.etcdPort}`,
    '--bind-address=127.0.0.1',
    `--secure-port=${settings.port}`,
    `--tls-cert-file=${serving.certFile}`,
    `--tls-private-key-file=${serving.keyFile}`,
    `--cert-dir=${dir}/pki`,
    `--token-auth-file=${dir}/tokens.csv`,
    '--authorization-mode=RBAC',
    // The default audience stays the issuer, as in a cluster: a token made for shoal-hub can be reviewed, not used here.
    `--service-account-issuer=${issuer}`,
    `--service-account-key-file=${dir}/service-accounts.pub`,
    `--service-account-signing-key-file=${dir}/service-accounts.key`,
    // No controller makes the default ServiceAccount that this plugin would wait for.
    '--disable-admission-plugins=ServiceAccount',
    '--service-cluster-ip-range=10.0.0.0/24',
    '--endpoint-reconciler-type=none',
    '--shutdown-delay-duration=0s',
    '--profiling=false',
  ]
}

async function serviceAccountKeys(dir: string): Promise<void> {
  const [keyFile, publicFile] = [join(dir, 'service-accounts.key'), join(dir, 'service-accounts.pub')]
  try {
    await readFile(publicFile)
  } catch {
    const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
    await writeFile(keyFile, privateKey.export({ type: 'sec1', format: 'pem' }), { mode: 0o600 })
    await writeFile(publicFile, publicKey.export({ type: 'spki', format: 'pem' }))
  }
}

async function settingsIn(dir: string, adminToken: string | undefined): Promise<Settings> {
  const file = join(dir, 'settings.json')
  await mkdir(dir, { recursive: true })
  let settings: Settings
  try {
    settings = JSON.parse(await readFile(file, 'utf8')) as Settings
  } catch {
    const [port, etcdPort, etcdPeerPort] = await Promise.all([freePort(), freePort(), freePort()])
    settings = { port, etcdPort, etcdPeerPort, token: randomBytes(16).toString('hex') }
  }
  if (adminToken !== undefined) settings.token = adminToken
  await writeFile(file, JSON.stringify(settings), { mode: 0o600 })
  return settings
}
