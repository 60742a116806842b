import { execFile } from 'node:child_process'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { rm, writeFile } from 'node:fs/promises'
import { connect, createServer, type Socket } from 'node:net'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { z } from 'zod'
import { stopPlaces } from '../agent/stopPlaces.ts'
import { until } from '../hack/parts/process.ts'

const run = promisify(execFile)
const shoals = 'app.kubernetes.io/part-of=shoal'

/** What a run keeps on the node while it uses it, for the next run to clean up after one that was killed. */
const marker = { name: 'shoal-test-run', schema: z.object({ ours: z.enum(['true', 'false']), dataDir: z.string() }) }

export interface NodeOptions {
  /** Brings the node up, or finds it up; prints its kubeconfig's path. The kubectl beside that is used, if there is one. */
  up: string
  down?: string | undefined
  /** Called as mkimage NAME:TAG FOLDER COMMAND…; prints the path of the archive it makes. */
  makeImage: string
  /** A folder for files on the way. */
  dir: string
  /** The agent's folder, which node and this machine see at the same path. */
  dataDir: string
}

/**
 * A real node for one test at a time. Disposing takes it down when it came up for this test, else takes Shoal off it.
 * What a killed run left is removed first.
 */
export class RealNode implements AsyncDisposable {
  readonly #options: NodeOptions
  readonly #kubeconfig: string
  readonly #stack = new AsyncDisposableStack()
  /** The node, as this machine reaches it; this machine, as pods do. */
  address = ''
  hostAddress = ''

  private constructor(options: NodeOptions, kubeconfig: string) {
    this.#options = options
    this.#kubeconfig = kubeconfig
  }

  static async take(options: NodeOptions): Promise<RealNode> {
    const lock = await alone()
    try {
      const since = Math.floor(Date.now() / 1000) * 1000
      let node = new RealNode(options, await bringUp(options.up))
      const left = await node.#left()
      if (left) await stopPlaces(left.dataDir).catch(() => {})
      let ours = left?.ours === 'true' || (await node.#createdAt()) >= since
      if (left && ours && options.down) {
        await run(options.down)
        node = new RealNode(options, await bringUp(options.up))
      } else if (left) await node.#takeShoalOff()
      else if ((await node.kubectl('get', 'crd', '-l', shoals, '-o', 'name')) !== '')
        throw new Error('Shoal is installed on the test node, and not by a test: take it off first')
      ours &&= options.down !== undefined
      await node.apply({
        apiVersion: 'v1',
        kind: 'ConfigMap',
        metadata: { name: marker.name, namespace: 'default' },
        data: { ours: String(ours), dataDir: options.dataDir },
      })
      node.address = await node.kubectl(
        'get',
        'nodes',
        '-o',
        'jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}',
      )
      node.hostAddress = await addressTowards(node.address)
      node.#stack.use(lock)
      node.#stack.defer(async () => {
        if (ours && options.down) await run(options.down)
        else await node.#takeShoalOff()
      })
      node.#stack.defer(() => stopPlaces(options.dataDir).catch(() => {}))
      return node
    } catch (error) {
      await lock[Symbol.asyncDispose]()
      throw error
    }
  }

  readonly kubectl = async (...args: string[]): Promise<string> => {
    const program = join(dirname(this.#kubeconfig), 'kubectl')
    const all = ['--kubeconfig', this.#kubeconfig, ...args]
    const { stdout } = await run(program, all, { maxBuffer: 16 << 20 }).catch((error: unknown) => {
      const missing = error instanceof Error && 'code' in error && error.code === 'ENOENT'
      if (missing) return run('kubectl', all, { maxBuffer: 16 << 20 })
      throw error
    })
    return stdout.trim()
  }

  async apply(...objects: object[]): Promise<void> {
    const file = join(this.#options.dir, 'objects.json')
    await writeFile(file, JSON.stringify({ apiVersion: 'v1', kind: 'List', items: objects }))
    await this.kubectl('apply', '-f', file)
  }

  /** Makes an image of a folder, there for the node's pods as long as the node is. */
  async loadImage(name: string, folder: string, command: string[]): Promise<void> {
    const { stdout } = await run(this.#options.makeImage, [name, folder, ...command], { maxBuffer: 16 << 20 })
    // Hundreds of megabytes that every later node would load.
    this.#stack.defer(() => rm(stdout.trim(), { force: true }))
  }

  /** Lets pods reach what listens on this machine's loopback, at `hostAddress` and the same port. */
  async forward(port: number): Promise<void> {
    const clients = new Set<Socket>()
    const server = createServer((client) => {
      const there = connect(port, '127.0.0.1')
      clients.add(client)
      client.once('close', () => clients.delete(client))
      client.pipe(there).pipe(client)
      client.on('error', () => there.destroy())
      there.on('error', () => client.destroy())
    })
    server.listen(port, this.hostAddress)
    await once(server, 'listening')
    this.#stack.defer(async () => {
      for (const client of clients) client.destroy()
      await server[Symbol.asyncDispose]()
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync()
  }

  async #left(): Promise<z.infer<typeof marker.schema> | undefined> {
    const text = await this.kubectl(
      'get',
      'configmap',
      marker.name,
      '-n',
      'default',
      '--ignore-not-found',
      '-o',
      'json',
    )
    return text === '' ? undefined : z.object({ data: marker.schema }).parse(JSON.parse(text)).data
  }

  async #createdAt(): Promise<number> {
    return Date.parse(await this.kubectl('get', 'nodes', '-o', 'jsonpath={.items[0].metadata.creationTimestamp}'))
  }

  async #takeShoalOff(): Promise<void> {
    const gone = ['--ignore-not-found', '--timeout=90s']
    await this.kubectl('delete', 'deployment,daemonset', '-A', '-l', shoals, '--cascade=foreground', ...gone)
    // With the hub gone nobody else takes its finalizer off.
    const goals = await this.kubectl(
      ...[
        'get',
        'goalstates',
        '-A',
        '-o',
        'jsonpath={range .items[*]}{.metadata.namespace} {.metadata.name}{"\\n"}{end}',
      ],
    ).catch(() => '')
    for (const [namespace = '', name = ''] of goals.split('\n').map((line) => line.split(' ')))
      if (name) await this.kubectl('patch', 'goalstate', name, '-n', namespace, '--type=merge', '-p', noFinalizers)
    await this.kubectl('delete', 'crd,clusterrole,clusterrolebinding,namespace', '-l', shoals, ...gone)
    const namespaces = (await this.kubectl('get', 'namespaces', '-o', 'name')).split('\n')
    const more = namespaces.filter((name) => /^namespace\/shoal-(region|mirror)-/.test(name))
    if (more.length > 0) await this.kubectl('delete', ...more, ...gone)
    await this.kubectl('delete', 'configmap', marker.name, '-n', 'default', ...gone)
  }
}

const noFinalizers = JSON.stringify({ metadata: { finalizers: null } })

/** A node is many processes that look for each other: one that did not come up on a busy machine is tried once more. */
async function bringUp(command: string): Promise<string> {
  const up = () => run(command, { maxBuffer: 16 << 20 })
  const { stdout } = await up().catch(up)
  return stdout.trim()
}

/** Held by one process of this machine at a time, and free when it dies: a name in the kernel, not a file. */
async function alone(): Promise<AsyncDisposable> {
  const server = createServer()
  const listening = async () => {
    server.listen('\0shoal-test-node')
    await once(server, 'listening')
    return server
  }
  return until('another test that uses the real node is over', listening, { timeoutMs: 240_000, intervalMs: 1000 })
}

/** The address of this machine from which packets to another one leave; none is sent. */
async function addressTowards(address: string): Promise<string> {
  const socket = createSocket('udp4')
  try {
    socket.connect(9, address)
    await once(socket, 'connect')
    return socket.address().address
  } finally {
    socket.close()
  }
}
