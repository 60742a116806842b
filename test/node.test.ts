// timeout: 420 s
import { execFile, spawn } from 'node:child_process'
import { chmod, mkdir, readFile, writeFile } from 'node:fs/promises'
import { connect, createServer, type Socket } from 'node:net'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { startDatabase } from '../hack/parts/database.ts'
import { freePort, temporaryDir, until } from '../hack/parts/process.ts'
import { startStore } from '../hack/parts/store.ts'
import { createAuthority, createServerCertificate } from '../runtime/certificates.ts'
import { generateSigningKey } from '../runtime/dsse.ts'
import { writeOverlays } from './nodeOverlays.ts'

const run = promisify(execFile)
const root = join(import.meta.dirname, '..')
const { SHOAL_TEST_NODE: bringUp, SHOAL_TEST_NODE_DOWN: takeDown, SHOAL_TEST_MKIMAGE: makeImage } = process.env

if (!bringUp || !makeImage) {
  console.log('skipped: SHOAL_TEST_NODE and SHOAL_TEST_MKIMAGE name no commands that bring up a node and make an image')
  process.exit(0)
}

/** This machine, as the node's pods reach it; the node, as this machine does. */
const hostAddress = process.env.SHOAL_TEST_NODE_HOST ?? '10.89.0.1'
const nodeAddress = process.env.SHOAL_TEST_NODE_ADDRESS ?? '10.89.0.2'
const region = 'node'
const began = performance.now()
const say = (what: string) => console.log(`  ${((performance.now() - began) / 1000).toFixed(1)} s  ${what}`)

const parts = new AsyncDisposableStack()
const dir = parts.use(await temporaryDir('shoal-node')).path
await chmod(dir, 0o755)
const dataDir = join(dir, 'machine')
await mkdir(dataDir)

say('bringing up the node, the database, the store and the image')
const building = run(join(root, 'hack/image'), [join(dir, 'image')], { maxBuffer: 64 << 20 })
const kubeconfig = (await run(bringUp, [])).stdout.trim()
parts.defer(async () => {
  if (takeDown) await run(takeDown, [])
})
const kubectlProgram = join(dirname(kubeconfig), 'kubectl')
const [database, store] = await Promise.all([startDatabase({ own: true }), startStore()])
parts.use(database)
parts.use(store)
await store.createBucket('shoal')
for (const port of [database.port, store.port]) parts.use(await forward(port))
await building
await run(makeImage, ['shoal:test', join(dir, 'image'), '/usr/bin/node', '/app/main.ts'], { maxBuffer: 64 << 20 })

async function kubectl(...args: string[]): Promise<string> {
  const { stdout } = await run(kubectlProgram, ['--kubeconfig', kubeconfig, ...args], { maxBuffer: 16 << 20 })
  return stdout.trim()
}
async function apply(...objects: object[]): Promise<void> {
  const file = join(dir, 'objects.json')
  await writeFile(file, JSON.stringify({ apiVersion: 'v1', kind: 'List', items: objects }))
  await kubectl('apply', '-f', file)
}
/** From the node's pods, what listens on this machine's loopback. */
async function forward(port: number): Promise<AsyncDisposable> {
  const clients = new Set<Socket>()
  const server = createServer((client) => {
    const there = connect(port, '127.0.0.1')
    clients.add(client)
    client.once('close', () => clients.delete(client))
    client.pipe(there).pipe(client)
    client.on('error', () => there.destroy())
    there.on('error', () => client.destroy())
  })
  await new Promise<void>((resolve, reject) => server.once('error', reject).listen(port, hostAddress, resolve))
  return {
    async [Symbol.asyncDispose]() {
      for (const client of clients) client.destroy()
      await server[Symbol.asyncDispose]()
    },
  }
}
const onNode = (url: string) => url.replace('127.0.0.1', hostAddress)

/** A bare repository that pods fetch from, and a checkout to push from. */
async function repository(): Promise<{ url: string; push: (version: string) => Promise<string> }> {
  const bare = join(dir, 'git/web.git')
  const work = join(dir, 'work')
  await run('git', ['init', '--quiet', '--bare', '--initial-branch=main', bare])
  await run('git', ['init', '--quiet', '--initial-branch=main', work])
  const port = await freePort()
  const daemon = spawn(
    'git',
    [
      'daemon',
      '--reuseaddr',
      `--listen=${hostAddress}`,
      `--port=${port}`,
      '--export-all',
      `--base-path=${join(dir, 'git')}`,
    ],
    { stdio: 'ignore', detached: true },
  )
  parts.defer(() => {
    if (daemon.pid) process.kill(-daemon.pid, 'SIGKILL')
  })
  const git = (...args: string[]) =>
    run('git', ['-C', work, '-c', 'user.name=test', '-c', 'user.email=test@example.com', ...args])
  await writeFile(
    join(work, 'build.sh'),
    `#!/bin/sh
set -eu
mkdir -p out
cp "$(command -v node)" out/node
sed "s/VERSION/$(git rev-parse HEAD)/" server.js >out/server.js
`,
    { mode: 0o755 },
  )
  await writeFile(
    join(work, 'server.js'),
    `require('node:http').createServer((request, response) => {
  response.end(request.url === '/version' ? 'VERSION' : 'ok')
}).listen(Number(process.env.PORT))
`,
  )
  return {
    url: `git://${hostAddress}:${port}/web.git`,
    async push(version) {
      await writeFile(join(work, 'VERSION.txt'), version)
      await git('add', '-A')
      await git('commit', '--quiet', '-m', version)
      await git('push', '--quiet', bare, 'HEAD:main')
      return (await git('rev-parse', 'HEAD')).stdout.trim()
    },
  }
}

const authority = await createAuthority('shoal-test')
const hubCertificate = await createServerCertificate(authority, ['shoal-hub.shoal-system.svc'])
const fleetCertificate = await createServerCertificate(authority, ['shoal-fleet.shoal-region.svc'])
const keys = generateSigningKey()
const port = await freePort()
const source = await repository()

const hub = {
  secret: {
    'builds-database-url': onNode(await database.createSchema('builds')),
    'replication-database-url': onNode(await database.createSchema('replication')),
    'signing-key.pem': keys.privateKeyPem,
  },
  tls: { 'tls.crt': hubCertificate.certificate, 'tls.key': hubCertificate.key, 'ca.crt': authority.certificate },
}
const hubToken = async (...audience: string[]) =>
  kubectl('create', 'token', 'region', '-n', `shoal-region-${region}`, '--duration', '2h', ...audience)

async function install(): Promise<void> {
  const installation = {
    dir: join(dir, 'overlays'),
    root,
    image: { name: 'shoal', tag: 'test' },
    region,
    hub,
    fleet: { settings: {}, secret: {}, tls: {} },
    agent: { enrolment: {}, dataDir },
  }
  await writeOverlays(installation)
  await kubectl('apply', '-k', join(installation.dir, 'hub'), '--server-side')
  await kubectl('wait', '--for=condition=Established', 'crd', '--all', '--timeout=30s')
  say('hub and workers are applied')
  const jwks = await kubectl('get', '--raw', '/openid/v1/jwks')
  const { issuer } = JSON.parse(await kubectl('get', '--raw', '/.well-known/openid-configuration'))
  await apply(
    {
      apiVersion: 'v1',
      kind: 'Secret',
      metadata: { name: 'home-store', namespace: 'shoal-system' },
      stringData: { accessKeyId: store.accessKeyId, secretAccessKey: store.secretAccessKey },
    },
    {
      apiVersion: 'shoal.dev/v1alpha1',
      kind: 'Region',
      metadata: { name: region },
      spec: {
        home: true,
        store: {
          endpoint: onNode(store.endpoint),
          bucket: 'shoal',
          credentialsSecretRef: { namespace: 'shoal-system', name: 'home-store' },
        },
        clusters: [{ name: 'test', issuer, jwks }],
      },
    },
  )
  await kubectl('rollout', 'status', '-n', 'shoal-system', 'deployment/shoal-hub', '--timeout=120s')
  say('hub is Ready')
  const token = await until('the hub lets the region in', () => hubToken('--audience', 'shoal-hub'), {
    timeoutMs: 60_000,
  })
  const config = JSON.parse(await kubectl('config', 'view', '--raw', '-o', 'json'))
  config.users = [{ name: config.users[0].name, user: { token: await hubToken() } }]
  installation.fleet = {
    settings: {
      SHOAL_REGION: region,
      SHOAL_HUB_URL: 'https://shoal-hub.shoal-system.svc',
      SHOAL_AGENT_POLL: '1s',
      SHOAL_ANNOUNCE: '2s',
    },
    secret: {
      'database-url': onNode(await database.createSchema('fleet')),
      'access-key-id': store.accessKeyId,
      'secret-access-key': store.secretAccessKey,
      kubeconfig: JSON.stringify(config),
      'hub-token': token,
      'hub-ca.crt': authority.certificate,
      'hub-keys.pem': keys.publicKeyPem,
    },
    tls: { 'tls.crt': fleetCertificate.certificate, 'tls.key': fleetCertificate.key },
  }
  installation.agent.enrolment = {
    region,
    cluster: 'test',
    namespaces: ['default'],
    labels: { app: 'web' },
    env: { PORT: String(port) },
    fleetUrls: ['https://shoal-fleet.shoal-region.svc'],
    fleetCa: authority.certificate,
    hubKeys: [keys.publicKeyPem],
  }
  await writeOverlays(installation)
  await kubectl('apply', '-k', join(installation.dir, 'region'), '--server-side')
  await kubectl('apply', '-k', join(installation.dir, 'agent'), '--server-side')
  await kubectl('rollout', 'status', '-n', 'shoal-region', 'deployment/shoal-region', '--timeout=120s')
  say('region is Ready')
  await kubectl('rollout', 'status', '-n', 'shoal-agent', 'daemonset/shoal-agent', '--timeout=120s')
  say('agent is Ready')
}

async function artifactOf(commit: string): Promise<string> {
  const name = `web-${commit.slice(0, 12)}`
  const deployable = async () => {
    const phase = await kubectl('get', 'buildjob', name, '-o', 'jsonpath={.status.phase} {.status.message}')
    if (phase.startsWith('Failed')) return phase
    return (
      (await kubectl(
        'get',
        'artifact',
        name,
        '-o',
        'jsonpath={.status.conditions[?(@.type=="Deployable")].status}',
      )) === 'True'
    )
  }
  assert.is(await until(`${name} is deployable`, deployable, { timeoutMs: 120_000, intervalMs: 500 }), true)
  say(`${name} is built and deployable`)
  return name
}

async function deploy(artifact: string): Promise<void> {
  await apply({
    apiVersion: 'shoal.dev/v1alpha1',
    kind: 'GoalState',
    metadata: { name: 'web', namespace: 'default' },
    spec: {
      artifactRef: { name: artifact },
      machineSelector: { matchLabels: { app: 'web' } },
      activation: {
        command: ['./node', 'server.js'],
        health: { http: { port: '$(PORT)', path: '/healthz' } },
        stop: { timeout: '5s' },
        minHealthy: '1s',
      },
    },
  })
  const rolledOut = async () =>
    (await kubectl(
      'get',
      'goalstate',
      'web',
      '-o',
      'jsonpath={.status.effective.artifact} {.status.conditions[?(@.type=="Ready")].status}',
    )) === `${artifact} True`
  await until(`${artifact} runs on the node`, rolledOut, { timeoutMs: 90_000, intervalMs: 500 })
  say(`${artifact} runs on the node`)
}

const ask = async (path: string) => (await fetch(`http://${nodeAddress}:${port}${path}`)).text()
/** The application's process, as its place has it: another process has another pid or start. */
async function application(): Promise<string> {
  const { stdout } = await run('pgrep', ['-f', '^./node server.js'])
  const pid = stdout.trim()
  const fields = (await readFile(`/proc/${pid}/stat`, 'utf8')).split(') ')[1]?.split(' ')
  return `${pid} ${fields?.[19]}`
}

const test = suite('on a real node')
const commits: string[] = []
/** Tests that are over and passed; a failed one leaves it behind. */
let passed = 0

test('hub, workers, region and agent become Ready from the kustomize bases', async () => {
  await install()
  await kubectl('rollout', 'status', '-n', 'shoal-system', 'deployment/shoal-worker', '--timeout=60s')
  passed++
})

test('a commit is built by a worker on the node, fetched and started by its agent', async () => {
  commits.push(await source.push('one'))
  await apply({
    apiVersion: 'shoal.dev/v1alpha1',
    kind: 'Pipeline',
    metadata: { name: 'web', namespace: 'default' },
    spec: { source: { url: source.url, pollInterval: '2s' }, build: { command: ['./build.sh'], output: 'out' } },
  })
  await deploy(await artifactOf(commits[0] ?? ''))
  assert.is(await ask('/version'), commits[0])
  passed++
})

test('deleting the agent’s pod does not touch the application', async () => {
  const before = await application()
  await kubectl('delete', 'pod', '-n', 'shoal-agent', '-l', 'app.kubernetes.io/name=shoal-agent', '--wait')
  await kubectl('rollout', 'status', '-n', 'shoal-agent', 'daemonset/shoal-agent', '--timeout=120s')
  assert.is(await application(), before)
  assert.is(await ask('/version'), commits[0])
  passed++
})

test('the new agent goes on: it swaps to the next commit', async () => {
  const before = await application()
  commits.push(await source.push('two'))
  await deploy(await artifactOf(commits[1] ?? ''))
  assert.is(await ask('/version'), commits[1])
  assert.is.not(await application(), before)
  passed++
})

test('every pod is still Ready', async () => {
  for (const namespace of ['shoal-system', 'shoal-region', 'shoal-agent']) {
    const ready = await kubectl(
      'get',
      'pods',
      '-n',
      namespace,
      '-o',
      'jsonpath={.items[*].status.containerStatuses[0].ready}',
    )
    assert.match(ready, /^true( true)*$/, namespace)
  }
  passed++
})

test.after(async () => {
  if (passed < 5) {
    for (const [namespace, name] of [
      ['shoal-system', 'deployment/shoal-hub'],
      ['shoal-system', 'deployment/shoal-worker'],
      ['shoal-region', 'deployment/shoal-region'],
      ['shoal-agent', 'daemonset/shoal-agent'],
    ] as const) {
      console.log(`--- ${name}`)
      console.log(await kubectl('logs', '-n', namespace, name, '--tail=60', '--all-pods=true').catch(String))
    }
    console.log(await kubectl('get', 'pods', '-A', '-o', 'wide').catch(String))
    console.log(await kubectl('describe', 'pods', '-n', 'shoal-agent').catch(String))
  }
  await parts.disposeAsync()
})
test.run()
