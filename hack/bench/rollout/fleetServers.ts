import { type ChildProcess, fork } from 'node:child_process'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createAuthority, createServerCertificate, type KeyPair } from '../../../runtime/certificates.ts'
import { generateSigningKey } from '../../../runtime/dsse.ts'
import { type DatabaseServer, startDatabase } from '../../parts/database.ts'
import { freePort, temporaryDir } from '../../parts/process.ts'
import { end, enrolAll, startPollers } from './crowd.ts'
import type { PollersSettings } from './pollers.ts'
import { benchGoal, type ServerSettings } from './server.ts'

/** As bin/shoal and manifests/region start a fleet server. */
const execArgv = ['--max-semi-space-size=8']
const allocator = {
  ...{ MALLOC_ARENA_MAX: '2', MALLOC_MMAP_THRESHOLD_: '12288', MALLOC_TRIM_THRESHOLD_: '262144', MALLOC_TOP_PAD_: '0' },
}

export interface Started {
  process: ChildProcess
  port: number
}

/** Fleet servers, each with a schema of its own, and processes of machines that poll them. */
export class FleetServers implements AsyncDisposable {
  readonly #stack: AsyncDisposableStack
  readonly #dir: string
  readonly #authority: KeyPair
  readonly #database: DatabaseServer
  readonly #hub = generateSigningKey()
  readonly #machine = generateSigningKey()
  #schemas = 0

  private constructor(
    stack: AsyncDisposableStack,
    parts: { dir: string; authority: KeyPair; database: DatabaseServer },
  ) {
    this.#stack = stack
    this.#dir = parts.dir
    this.#authority = parts.authority
    this.#database = parts.database
  }

  static async prepare(): Promise<FleetServers> {
    const stack = new AsyncDisposableStack()
    const dir = stack.use(await temporaryDir('shoal-polls')).path
    const database = stack.use(await startDatabase({ own: true }))
    const authority = await createAuthority('bench')
    const servers = new FleetServers(stack, { dir, authority, database })
    const { certificate, key } = await createServerCertificate(authority, ['127.0.0.1'])
    await writeFile(servers.#tls.certFile, certificate)
    await writeFile(servers.#tls.keyFile, key)
    return servers
  }

  get #tls(): ServerSettings['tls'] {
    return { certFile: join(this.#dir, 'tls.crt'), keyFile: join(this.#dir, 'tls.key') }
  }

  /** A real one in which these machines are enrolled. */
  async start(names: string[], { holdMs }: Pick<ServerSettings, 'holdMs'>): Promise<Started> {
    const databaseUrl = await this.#database.createSchema(`fleet-${++this.#schemas}`)
    const started = await this.#fork('server.ts', { databaseUrl, signingKey: this.#hub.privateKeyPem, holdMs })
    await enrolAll(databaseUrl, names, this.#machine.publicKeyPem)
    return started
  }

  /** One that only answers. */
  startBare(): Promise<Started> {
    return this.#fork('bare.ts', {})
  }

  async #fork(program: string, more: object): Promise<Started> {
    const port = await freePort()
    const child = fork(join(import.meta.dirname, program), [JSON.stringify({ port, tls: this.#tls, ...more })], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
      execArgv,
      env: { ...process.env, ...allocator },
    })
    this.#stack.defer(() => end(child))
    await new Promise((resolve) => child.once('message', resolve))
    return { process: child, port }
  }

  /** Machines that run what the first goal says. */
  async poll(names: string[], at: Pick<PollersSettings, 'port' | 'waitMs' | 'connections'>): Promise<ChildProcess> {
    const child = await startPollers(this.#dir, {
      ...{ region: 'eu', ca: this.#authority.certificate, machineKey: this.#machine.privateKeyPem, names },
      ...{ running: benchGoal(1).templateHash, ...at },
    })
    this.#stack.defer(() => end(child))
    return child
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#stack.disposeAsync()
  }
}
