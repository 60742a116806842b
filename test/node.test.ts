// timeout: 1600 s
import { execFile } from 'node:child_process'
import { chmod, mkdir, readdir, readFile, readlink } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { promisify } from 'node:util'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { startDatabase } from '../hack/parts/database.ts'
import { freePort, temporaryDir, until } from '../hack/parts/process.ts'
import { startStore } from '../hack/parts/store.ts'
import { install } from './nodeInstallation.ts'
import { RealNode } from './realNode.ts'
import { type ServedRepository, serveRepository } from './servedRepository.ts'

const run = promisify(execFile)
const root = join(import.meta.dirname, '..')
const { SHOAL_TEST_NODE: up, SHOAL_TEST_NODE_DOWN: down, SHOAL_TEST_MKIMAGE: makeImage } = process.env

if (!up || !makeImage) {
  console.log('skipped: SHOAL_TEST_NODE and SHOAL_TEST_MKIMAGE name no commands that bring up a node and make an image')
  process.exit(0)
}

const began = performance.now()
const say = (what: string) => console.log(`  ${((performance.now() - began) / 1000).toFixed(1)} s  ${what}`)

const parts = new AsyncDisposableStack()
const dir = parts.use(await temporaryDir('shoal-node')).path
await chmod(dir, 0o755)
const dataDir = join(dir, 'machine')
await mkdir(dataDir)
const port = await freePort()
/** The machine's process is found by it, whatever else this machine runs. */
const command = ['./node', 'server.js', basename(dir)]
let node: RealNode
let source: ServedRepository
let failed: string | undefined

const test = suite('on a real node')

/** A test that builds on those before it, and isn't tried when one of them failed. */
function step(name: string, run: () => Promise<void>): void {
  test(name, async () => {
    assert.is(failed, undefined, `not tried, since this failed: ${failed}`)
    failed = name
    try {
      await run()
      failed = undefined
    } finally {
      if (failed) await dump()
    }
  })
}

/** What the pods say, for whoever reads the failure. */
async function dump(): Promise<void> {
  const ask = async (...args: string[]) => console.log(await node?.kubectl(...args).catch(String))
  for (const [namespace, name] of [
    ['shoal-system', 'deployment/shoal-hub'],
    ['shoal-system', 'deployment/shoal-worker'],
    ['shoal-region', 'deployment/shoal-region'],
    ['shoal-agent', 'daemonset/shoal-agent'],
  ] as const) {
    console.log(`--- ${name}`)
    await ask('logs', '-n', namespace, name, '--tail=60', '--all-pods=true')
  }
  await ask('get', 'pods,regions,buildjobs,artifacts,goalstates', '-A', '-o', 'wide')
  for (const namespace of ['shoal-system', 'shoal-region', 'shoal-agent'])
    await ask('describe', 'pods', '-n', namespace)
}

async function deployable(commit: string): Promise<string> {
  const name = `web-${commit.slice(0, 12)}`
  const job = ['get', 'buildjob', name, '-o', 'jsonpath={.status.phase} {.status.message}']
  const artifact = ['get', 'artifact', name, '-o', 'jsonpath={.status.conditions[?(@.type=="Deployable")].status}']
  const outcome = async () => {
    const state = await node.kubectl(...job)
    return state.startsWith('Failed') ? state : await node.kubectl(...artifact)
  }
  const ended = async () => /^(True|Failed)/.exec(await outcome())?.input
  assert.is(await until(`${name} is deployable`, ended, { timeoutMs: 120_000, intervalMs: 500 }), 'True')
  say(`${name} is built and deployable`)
  return name
}

async function deploy(artifact: string): Promise<void> {
  await node.apply({
    apiVersion: 'shoal.dev/v1alpha1',
    kind: 'GoalState',
    metadata: { name: 'web', namespace: 'default' },
    spec: {
      artifactRef: { name: artifact },
      machineSelector: { matchLabels: { app: 'web' } },
      activation: {
        command,
        health: { http: { port: '$(PORT)', path: '/healthz' } },
        stop: { timeout: '5s' },
        minHealthy: '1s',
      },
    },
  })
  const ready = '{.status.effective.artifact} {.status.conditions[?(@.type=="Ready")].status}'
  const counts = '{.status.desired} {.status.updated} {.status.healthy}'
  const rolledOut = async () =>
    (await node.kubectl('get', 'goalstate', 'web', '-o', `jsonpath=${ready} ${counts}`)) === `${artifact} True 1 1 1`
  await until(`${artifact} runs on the node`, rolledOut, { timeoutMs: 90_000, intervalMs: 500 })
  say(`${artifact} runs on the node`)
}

const version = async () => (await fetch(`http://${node.address}:${port}/version`)).text()

/** The application's process; another one has another pid or another start. */
async function application(): Promise<{ pid: string; start: string | undefined }> {
  const pid = (await run('pgrep', ['-f', `^${command.join(' ')}$`])).stdout.trim()
  const fields = (await readFile(`/proc/${pid}/stat`, 'utf8')).split(') ')[1]?.split(' ')
  return { pid, start: fields?.[19] }
}

/** The first process of the pid namespace that `pid` is in, by its number here. */
async function firstProcessBeside(pid: string): Promise<string> {
  const namespace = await readlink(`/proc/${pid}/ns/pid`)
  for (const other of (await readdir('/proc')).filter((name) => /^\d+$/.test(name))) {
    const there = await readlink(`/proc/${other}/ns/pid`).catch(() => '')
    if (there === namespace && /^NSpid:.*\s1$/m.test(await readFile(`/proc/${other}/status`, 'utf8'))) return other
  }
  throw new Error(`the pid namespace of ${pid} has no first process`)
}

step('hub, workers, region and agent become Ready from the kustomize bases', async () => {
  say('bringing up the node, the database, the store and the image')
  const image = join(dir, 'image')
  const laidOut = run(join(root, 'hack/image'), [image], { maxBuffer: 64 << 20 })
  // Awaited below; when the node does not come up, that is what the test says.
  laidOut.catch(() => undefined)
  node = parts.use(await RealNode.take({ up, down, makeImage, dir, dataDir }))
  const database = parts.use(await startDatabase({ own: true }))
  const store = parts.use(await startStore())
  await store.createBucket('shoal')
  for (const server of [database, store]) await node.forward(server.port)
  await laidOut
  await node.loadImage('shoal:test', image, ['/usr/bin/node', '/app/main.ts'])
  say('node and image are there')
  const env = { PORT: String(port) }
  const its = { name: 'shoal', tag: 'test' }
  await install({ node, dir, root, image: its, database, store, bucket: 'shoal', dataDir, env, say })
})

const commits: string[] = []

step('a commit is built by a worker on the node, fetched and started by its agent', async () => {
  source = parts.use(await serveRepository(dir, node.hostAddress))
  commits.push(await source.push('one'))
  await node.apply({
    apiVersion: 'shoal.dev/v1alpha1',
    kind: 'Pipeline',
    metadata: { name: 'web', namespace: 'default' },
    spec: { source: { url: source.url, pollInterval: '2s' }, build: { command: ['./build.sh'], output: 'out' } },
  })
  await deploy(await deployable(commits[0] ?? ''))
  assert.is(await version(), commits[0])
})

step('the application runs on the host: in its namespaces, and in no pod’s cgroup', async () => {
  const { pid } = await application()
  const first = await firstProcessBeside(pid)
  for (const kind of ['mnt', 'net', 'uts', 'ipc', 'cgroup'])
    assert.is(await readlink(`/proc/${pid}/ns/${kind}`), await readlink(`/proc/${first}/ns/${kind}`), kind)
  assert.not.match(await readFile(`/proc/${pid}/cgroup`, 'utf8'), /kubepods/)
})

step('deleting the agent’s pod does not touch the application', async () => {
  const before = await application()
  const pods = ['pod', '-n', 'shoal-agent', '-l', 'app.kubernetes.io/name=shoal-agent']
  const old = await node.kubectl('get', ...pods, '-o', 'name')
  await node.kubectl('delete', ...pods, '--wait')
  await node.kubectl('rollout', 'status', '-n', 'shoal-agent', 'daemonset/shoal-agent', '--timeout=120s')
  assert.is.not(await node.kubectl('get', ...pods, '-o', 'name'), old)
  assert.equal(await application(), before)
  assert.is(await version(), commits[0])
  say('the agent’s pod is another one')
})

step('the new agent goes on: it swaps to the next commit', async () => {
  const before = await application()
  commits.push(await source.push('two'))
  await deploy(await deployable(commits[1] ?? ''))
  assert.is(await version(), commits[1])
  assert.is.not((await application()).pid, before.pid)
})

step('every pod is still Ready, and none was started again', async () => {
  const containers = '{range .items[*].status.containerStatuses[*]}{.ready} {.restartCount};{end}'
  for (const [namespace, count] of [
    ['shoal-system', 4],
    ['shoal-region', 2],
    ['shoal-agent', 1],
  ] as const)
    assert.is(
      await node.kubectl('get', 'pods', '-n', namespace, '-o', `jsonpath=${containers}`),
      'true 0;'.repeat(count),
      namespace,
    )
})

test.after(async () => {
  await parts.disposeAsync()
  say('all is taken down')
})
test.run()
