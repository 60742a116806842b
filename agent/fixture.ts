/** For the tests of this folder: a region of one fleet server, releases with a seed, and machines. */
import { randomBytes } from 'node:crypto'
import { chmod, cp, mkdir, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type Activation, activation } from '../api/activation.ts'
import { parseDescriptor } from '../api/descriptor.ts'
import {
  type AnnounceRequest,
  announceRequest,
  type GoalReport,
  type PollAnswer,
  pollRequest,
} from '../api/fleetApi.ts'
import { hashOutput } from '../artifacts/hashOutput.ts'
import { freePort, temporaryDir, until } from '../hack/parts/process.ts'
import { reachableNode } from '../hack/parts/reachableNode.ts'
import { type GoalPayload, hashTemplate, signGoal, signIndex, type Template } from '../rollout/envelope.ts'
import { createAuthority, createServerCertificate } from '../runtime/certificates.ts'
import { generateSigningKey, loadSigningKey } from '../runtime/dsse.ts'
import { verifyMachineToken } from '../runtime/identity.ts'
import { createLogger } from '../runtime/log.ts'
import { Metrics } from '../runtime/metrics.ts'
import { bearerToken, createServer, listen } from '../runtime/server.ts'
import { SwarmNode } from '../swarm/node.ts'
import { TestMachine } from './testMachine.ts'

export { until }

const region = 'eu-west'
const quiet = { debug() {}, info() {}, error() {} }
const swarmKey = randomBytes(32)

/** A release that is built, described and seeded. */
export interface TestRelease {
  name: string
  template: Template
  templateHash: string
  dir: string
}

/** The test's own hub, fleet server and seed. */
export class TestRegion implements AsyncDisposable {
  readonly dir: string
  readonly #parts = new AsyncDisposableStack()
  readonly hubKey = loadSigningKey(generateSigningKey().privateKeyPem)
  readonly hubPublicKey = this.hubKey.publicKey.export({ type: 'spki', format: 'pem' }) as string
  readonly #machineKeys = new Map<string, string>()
  readonly #descriptors = new Map<string, Uint8Array>()
  readonly machines = new Map<string, TestMachine>()
  readonly announces: AnnounceRequest[] = []
  /** What agents are answered. */
  goals: string[] = []
  index: string | undefined
  /** Grants what is reported as fetched. */
  granting = true
  beginWithinMs = 60_000
  seeding = true
  url = ''
  ca = ''
  seed!: SwarmNode

  private constructor(dir: string) {
    this.dir = dir
  }

  static async create(uploadBytesPerSecond?: number): Promise<TestRegion> {
    const dir = await temporaryDir('shoal-agent-')
    // Applications run as nobody and must reach their releases.
    await chmod(dir.path, 0o755)
    const test = new TestRegion(dir.path)
    test.#parts.use(dir)
    await test.#serve()
    const limit = uploadBytesPerSecond === undefined ? {} : { uploadLimit: () => uploadBytesPerSecond }
    test.seed = test.#parts.use(await SwarmNode.listen({ host: '127.0.0.1', port: 0, log: quiet, ...limit }))
    test.sign([])
    return test
  }

  async #serve(): Promise<void> {
    const authority = await createAuthority('test')
    const { certificate, key } = await createServerCertificate(authority, ['127.0.0.1'])
    const tls = { certFile: join(this.dir, 'tls.crt'), keyFile: join(this.dir, 'tls.key') }
    await writeFile(tls.certFile, certificate)
    await writeFile(tls.keyFile, key)
    this.ca = authority.certificate
    const server = createServer({ log: createLogger('fleet', 'silent'), metrics: new Metrics(), tls })
    const caller = (headers: { authorization?: string | undefined }) =>
      verifyMachineToken(bearerToken(headers), { region, publicKeyOf: async (name) => this.#machineKeys.get(name) })
    server.post('/v1/agent/poll', async ({ headers, body }) => {
      const machine = this.machines.get(await caller(headers))
      return this.#answer(machine as TestMachine, pollRequest.parse(body).goals)
    })
    server.post('/v1/agent/announce', async ({ headers, body }) => {
      await caller(headers)
      this.announces.push(announceRequest.parse(body))
      const peers = this.seeding ? [{ host: '127.0.0.1', port: this.seed.port }] : []
      return { key: swarmKey.toString('base64'), peers, intervalMs: 300 }
    })
    server.get<{ Params: { artifact: string } }>(
      '/v1/agent/descriptor/:namespace/:artifact',
      async (request, reply) => {
        await caller(request.headers)
        return reply.type('application/octet-stream').send(this.#descriptors.get(request.params.artifact))
      },
    )
    this.url = (await listen(server, { host: '127.0.0.1', port: 0 })).url
    this.#parts.defer(() => server.close())
  }

  #answer(machine: TestMachine, reports: GoalReport[]): PollAnswer {
    machine.polls++
    machine.reports = reports
    for (const report of reports) {
      if (
        report.state !== 'Fetched' ||
        !this.granting ||
        machine.grants.some(({ template }) => template === report.template)
      )
        continue
      const { namespace, name, sequence, revision, template } = report
      const id = `grant-${machine.name}-${revision}`
      machine.grants.push({ id, namespace, name, sequence, revision, template, beginWithinMs: this.beginWithinMs })
    }
    return {
      ...(this.index !== undefined && { index: this.index }),
      goals: this.goals,
      grants: machine.grants,
      pollAfterMs: 500,
    }
  }

  /** A release of an application that answers its version, seeded; `files` come on top. */
  async release(
    version: string,
    o: { health?: 'bad' | 'exit'; fill?: Uint8Array; activation?: Partial<Activation> } = {},
  ): Promise<TestRelease> {
    const dir = join(this.dir, `build-${version}`)
    await mkdir(join(dir, 'bin'), { recursive: true })
    await writeFile(join(dir, 'bin', 'run'), '#!/bin/sh\nexec "$NODE" app.cjs\n', { mode: 0o755 })
    await writeFile(join(dir, 'app.cjs'), application(version, o.health))
    await symlink('../app.cjs', join(dir, 'bin', 'link'))
    if (o.fill) await writeFile(join(dir, 'fill'), o.fill)
    const hashed = await hashOutput(dir, { name: 'app' })
    const seedDir = join(this.dir, `seed-${version}`)
    await cp(dir, seedDir, { recursive: true, verbatimSymlinks: true })
    const swarm = await this.seed.open({
      torrent: parseDescriptor(hashed.descriptor),
      dir: seedDir,
      stateFile: `${seedDir}.state`,
      key: swarmKey,
    })
    await swarm.done
    const name = `web-${version}`
    this.#descriptors.set(name, hashed.descriptor)
    const { digest, sizeBytes, infoHash, descriptorDigest } = hashed
    const template: Template = {
      artifact: { name, digest, sizeBytes, key: `team/${name}/1`, infoHash, descriptorDigest },
      activation: activation.parse({
        command: ['./bin/run'],
        env: [{ name: 'PORT', value: '$(WEB_PORT)' }],
        stop: { timeout: '2s' },
        health: { http: { port: '$(WEB_PORT)' } },
        minHealthy: '300ms',
        deadline: '8s',
        ...o.activation,
      }),
    }
    return { name, template, templateHash: hashTemplate(template), dir }
  }

  goal(revision: number, release: TestRelease, o: Partial<GoalPayload> & { previous?: TestRelease | undefined } = {}) {
    const { previous, ...rest } = o
    const payload: GoalPayload = {
      region,
      namespace: 'team',
      name: 'web',
      uid: 'uid',
      place: 'web',
      selector: { matchLabels: { app: 'web' } },
      template: release.template,
      templateHash: release.templateHash,
      target: { machines: 0, percent: 100 },
      halted: false,
      rollback: false,
      maxUnavailable: '100%',
      failureThreshold: '2%',
      revision,
      sequence: revision,
      issuedAt: Date.now(),
      ...(previous && { previous: { template: previous.template, templateHash: previous.templateHash } }),
      ...rest,
    }
    return payload
  }

  /** The hub says these goals, and an index that names them. */
  sign(goals: GoalPayload[]): void {
    this.goals = goals.map((goal) => signGoal(goal, this.hubKey))
    const named = goals.map(({ namespace, name, revision, sequence }) => [
      `${namespace}/${name}`,
      { revision, sequence },
    ])
    this.index = signIndex({ region, issuedAt: Date.now(), goals: Object.fromEntries(named) }, this.hubKey)
  }

  deploy(revision: number, release: TestRelease, previous?: TestRelease): void {
    this.sign([this.goal(revision, release, { previous })])
  }

  async machine(name: string, env: Record<string, string> = {}): Promise<TestMachine> {
    const keys = generateSigningKey()
    this.#machineKeys.set(name, keys.publicKeyPem)
    const dir = join(this.dir, name)
    await mkdir(dir)
    const port = await freePort()
    const enrolment = {
      region,
      machine: name,
      key: keys.privateKeyPem,
      namespaces: ['team'],
      labels: { app: 'web' },
      env: { NODE: reachableNode(), WEB_PORT: String(port), ...env },
      fleetUrls: ['https://127.0.0.1:9', this.url],
      fleetCa: this.ca,
      hubKeys: [this.hubPublicKey],
    }
    await writeFile(join(dir, 'enrolment.json'), JSON.stringify(enrolment), { mode: 0o600 })
    const machine = new TestMachine(name, dir, port)
    this.machines.set(name, machine)
    this.#parts.use(machine)
    return machine
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#parts.disposeAsync()
  }
}

function application(version: string, health: 'bad' | 'exit' | undefined): string {
  return `
const http = require('node:http')
const answers = { '/version': ${JSON.stringify(version)}, '/pid': String(process.pid), '/uid': String(process.getuid()), '/cwd': process.cwd() }
if (${health === 'exit'}) process.exit(3)
http.createServer((request, response) => {
  if (request.url === '/healthz') response.statusCode = ${health === 'bad' ? 500 : 200}
  response.end(answers[request.url] ?? 'ok')
}).listen(Number(process.env.PORT), '127.0.0.1')
process.on('SIGTERM', () => process.exit(0))
`
}
