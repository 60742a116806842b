import { randomBytes } from 'node:crypto'
import { mkdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { ConfigRepo } from '../../api/configRepo.ts'
import { Pipeline } from '../../api/pipeline.ts'
import { Region } from '../../api/region.ts'
import { mirrorNamespace } from '../../api/regionApi.ts'
import { Cluster } from '../../runtime/cluster.ts'
import { generateSigningKey } from '../../runtime/dsse.ts'
import type { ApiServer } from '../parts/apiServer.ts'
import type { DatabaseServer } from '../parts/database.ts'
import { freePort, type Program, until } from '../parts/process.ts'
import { findProgram, kubernetesPrograms } from '../parts/programs.ts'
import type { StoreServer } from '../parts/store.ts'
import { hubNamespace, makeTenant, putSecret, regionAccess } from './access.ts'
import { enrol, machinesDir } from './enrolment.ts'
import { isTrue } from './kube.ts'
import { appName, configRepo, pipeline } from './objects.ts'
import { allOf, bucket, type Parts, startParts } from './parts.ts'
import { endDemoProcesses, marker } from './processes.ts'
import { Programs } from './programs.ts'
import type { Progress } from './progress.ts'
import { addHook, makeRepositories } from './repositories.ts'
import type { RoleOptions } from './roleProcess.ts'
import { logsDir, type MachineState, type Shape, type SystemState } from './state.ts'
import { WorkerPods } from './workerPods.ts'

export interface SystemOptions {
  /** Everything is written below it; what is there of an earlier system is ended and removed. Absolute. */
  dir: string
  shape: Shape
  progress: Progress
  /** Regions with an API server of their own; all others share the hub's. */
  ownServers?: string[]
  /** Replicas of the hub; the first is the one that the state names. Default: 1. */
  hubs?: number
  /** How many workers there may be; `min` from the start. Default: 2 to 4. */
  workers?: { min: number; max: number }
  /** The state is another: workers came or went. */
  changed?: (state: SystemState) => void
  /** More settings for a role, as LEASE: '6s'. */
  settings?: Partial<Record<RoleOptions['role'], Record<string, string>>>
}

/** All of Shoal and what it stands on, as processes of this machine. Disposing ends them and removes what they wrote. */
export interface System extends AsyncDisposable {
  readonly state: SystemState
  readonly hubServer: ApiServer
  readonly database: DatabaseServer
  readonly stores: Map<string, StoreServer>
  /** Of `ownServers`. */
  readonly regionServers: Map<string, ApiServer>
  /** `hub`, `worker-1` and so on as they come and go, `region-<name>`, and agents by their machine's name. */
  readonly programs: Map<string, Program>
  /** Starts a program that has ended anew, with the same settings; returns when it is ready. */
  startAgain(name: string): Promise<void>
}

const namespace = 'demo'

/** Ends every process of the system in `dir`, however it was started, and removes its files but the logs. */
export async function removeSystem(dir: string): Promise<void> {
  await endDemoProcesses(dir)
  await rm(machinesDir(dir), { recursive: true, force: true, maxRetries: 5 })
  await rm(dir, { recursive: true, force: true, maxRetries: 5 })
}

/** Brings up everything, in parallel where nothing waits for another; ends it again if one part can't be had. */
export async function startSystem(options: SystemOptions): Promise<System> {
  const { dir, shape, progress, ownServers = [] } = options
  const begun = performance.now()
  await removeSystem(dir)
  await rm(logsDir(dir), { recursive: true, force: true })
  await mkdir(dir, { recursive: true, mode: 0o711 })
  // What this process starts inherits the mark.
  process.env[marker] = dir
  await using stack = new AsyncDisposableStack()
  stack.defer(() => removeSystem(dir))
  const parts = await startParts({ dir, regions: shape.regions, ownServers, progress }, stack)
  const { hubServer, database, stores, regionServers } = parts
  const programs = new Programs(parts.authority.ca)
  stack.use(programs)
  const state = await new Assembly(options, parts, programs).assemble(stack)
  state.startSeconds = Math.round((performance.now() - begun) / 10) / 100
  const owned = stack.move()
  return {
    state,
    hubServer,
    database,
    stores,
    regionServers,
    programs: programs.running,
    startAgain: (name) => programs.startAgain(name),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}

/** Puts identities, databases, certificates and the roles' settings together. */
class Assembly {
  readonly #options: SystemOptions
  readonly #parts: Parts
  readonly #programs: Programs
  readonly #keys = generateSigningKey()
  #state: SystemState | undefined
  readonly #workers: SystemState['workers'] = []

  constructor(options: SystemOptions, parts: Parts, programs: Programs) {
    this.#options = options
    this.#parts = parts
    this.#programs = programs
  }

  async assemble(stack: AsyncDisposableStack): Promise<SystemState> {
    const { dir, shape, progress } = this.#options
    const { hubServer, database, stores, storeEndpoints, meter, authority } = this.#parts
    const [repositories, kubectl] = await allOf([
      makeRepositories(join(dir, 'git'), shape.own?.repository),
      kubernetesPrograms().then((folder) => findProgram(join(folder, 'kubectl')) ?? join(folder, 'kubectl')),
      this.#regionObjects(),
      makeTenant(hubServer, namespace),
    ])
    const hub = await progress.step('hub', () => this.#startHub())
    const webhook = await this.#webhook(hub.url, repositories.app.bare)
    const { workers = { min: 2, max: 4 } } = this.#options
    const pods = stack.use(
      new WorkerPods({
        kubeconfig: hubServer.kubeconfigFile,
        workers,
        start: (name) => this.#startWorker(name, hub.url),
        stop: (name) => this.#endWorker(name),
      }),
    )
    const [, regions] = await allOf([
      progress.step(`${workers.min} workers`, () => pods.begin()),
      progress.step(`${shape.regions.length} regions`, () =>
        allOf(shape.regions.map((region) => this.#startRegion(region, hub.url))),
      ),
    ])
    const machines = await progress.step(`${shape.regions.length * shape.machinesPerRegion} machines`, () =>
      allOf(regions.flatMap((region) => this.#startMachines(region))),
    )
    const state: SystemState = {
      dir,
      shape,
      namespace,
      kubeconfig: hubServer.kubeconfigFile,
      kubectl,
      databaseUrl: database.url('builds'),
      hub: { ...hub, ca: authority.caFile },
      webhook,
      workers: this.#workers,
      regions,
      stores: [...stores].map(([region, store]) => ({
        region,
        endpoint: storeEndpoints.get(region) ?? '',
        bucket,
        accessKeyId: store.accessKeyId,
        secretAccessKey: store.secretAccessKey,
        pid: store.pid,
        dir: store.dataDir,
      })),
      storeCountsUrl: await meter.serve(),
      machines,
      repositories,
      startSeconds: 0,
    }
    this.#state = state
    await using cluster = Cluster.load({ kubeconfig: hubServer.kubeconfigFile })
    await cluster.apply(Pipeline, pipeline(state), { fieldManager: 'demo' })
    await cluster.apply(ConfigRepo, configRepo(state), { fieldManager: 'demo' })
    // From now on the hub knows the webhook's secret.
    await until('the pipeline is ready', async () =>
      isTrue(Pipeline.parse(await cluster.get(Pipeline, namespace, appName)), 'Ready'),
    )
    return state
  }

  /** The Regions, the first of them home, and the one Secret the hub needs of them. */
  async #regionObjects() {
    const { hubServer, stores, storeEndpoints } = this.#parts
    const [home = ''] = this.#options.shape.regions
    await using cluster = Cluster.load({ kubeconfig: hubServer.kubeconfigFile })
    const secret = { namespace: hubNamespace, name: 'home-store' }
    const { accessKeyId = '', secretAccessKey = '' } = stores.get(home) ?? {}
    await putSecret(hubServer, secret, { accessKeyId, secretAccessKey })
    for (const [name, endpoint] of storeEndpoints) {
      const credentials = name === home ? { credentialsSecretRef: secret } : {}
      const region = Region.make({ name }, { home: name === home, store: { endpoint, bucket, ...credentials } })
      await cluster.apply(Region, region, { fieldManager: 'demo' })
    }
  }

  async #startHub() {
    const { hubServer, database, authority } = this.#parts
    const [token, builds, replication, certificate, listen, signingKey] = await allOf([
      hubServer.serviceAccountToken(hubNamespace, 'shoal-hub'),
      database.createSchema('builds'),
      database.createSchema('replication'),
      authority.issue('hub'),
      freeAddress(),
      this.#write('signing-key.pem', this.#keys.privateKeyPem),
    ])
    const url = `https://${listen}`
    const settings = {
      KUBECONFIG: await hubServer.kubeconfigFor(token, hubNamespace),
      NAMESPACE: hubNamespace,
      BUILDS_DATABASE_URL: builds,
      REPLICATION_DATABASE_URL: replication,
      LISTEN: listen,
      TLS_CERT: certificate.certFile,
      TLS_KEY: certificate.keyFile,
      SIGNING_KEY: signingKey,
    }
    const { pid } = await this.#run('hub', 'hub', settings, url)
    const urls = [url]
    for (let n = 2; n <= (this.#options.hubs ?? 1); n++) {
      const other = await freeAddress()
      urls.push(`https://${other}`)
      await this.#run('hub', `hub-${n}`, { ...settings, LISTEN: other }, `https://${other}`)
    }
    return { url, urls, pid }
  }

  async #webhook(hubUrl: string, bare: string) {
    const secret = randomBytes(24).toString('hex')
    const secretFile = await this.#write('webhook-secret', secret)
    await putSecret(this.#parts.hubServer, { namespace, name: 'web-webhook' }, { secret })
    const url = `${hubUrl}/webhooks/${namespace}/web`
    await addHook(bare, { url, secretFile, caFile: this.#parts.authority.caFile })
    return { url, secretFile }
  }

  async #startWorker(name: string, hubUrl: string) {
    const { hubServer, authority } = this.#parts
    const [token, listen] = await allOf([
      hubServer.serviceAccountToken(hubNamespace, 'shoal-worker', ['shoal-hub']),
      freeAddress(),
    ])
    const url = `http://${listen}`
    const settings = {
      HUB_URL: hubUrl,
      HUB_CA: authority.caFile,
      TOKEN_FILE: await this.#write(`${name}.token`, token),
      WORKSPACE: join(this.#options.dir, name),
      WORKER_NAME: name,
      LISTEN: listen,
      PROBE_URL: url,
    }
    const { pid } = await this.#run('worker', name, settings, url)
    this.#workers.push({ name, url, pid })
    this.#changed()
  }

  async #endWorker(name: string) {
    const index = this.#workers.findIndex((worker) => worker.name === name)
    if (index >= 0) this.#workers.splice(index, 1)
    this.#changed()
    await this.#programs.end(name)
  }

  #changed() {
    if (this.#state) this.#options.changed?.(this.#state)
  }

  async #startRegion(region: string, hubUrl: string) {
    const { hubServer, regionServers, database, stores, authority } = this.#parts
    const own = regionServers.get(region) ?? hubServer
    const [access, fleet, certificate, listen, hubKeys] = await allOf([
      regionAccess(hubServer, own, region),
      database.createSchema(`fleet_${region.replaceAll('-', '_')}`),
      authority.issue(`region-${region}`),
      freeAddress(),
      this.#write('hub-keys.pem', this.#keys.publicKeyPem),
    ])
    const url = `https://${listen}`
    const store = stores.get(region)
    const settings = {
      REGION: region,
      HUB_KUBECONFIG: access.hubKubeconfig,
      KUBECONFIG: access.kubeconfig,
      HUB_URL: hubUrl,
      HUB_CA: authority.caFile,
      HUB_TOKEN_FILE: await this.#write(`region-${region}.token`, access.hubToken),
      HUB_KEYS: hubKeys,
      FLEET_DATABASE_URL: fleet,
      STORE_ACCESS_KEY_ID: store?.accessKeyId ?? '',
      STORE_SECRET_ACCESS_KEY: store?.secretAccessKey ?? '',
      LISTEN: listen,
      ADVERTISE_URL: url,
      // Someone is watching: 20 machines may ask more often than 20,000.
      AGENT_POLL: '2s',
      ANNOUNCE: '3s',
      TLS_CERT: certificate.certFile,
      TLS_KEY: certificate.keyFile,
    }
    const { pid } = await this.#run('region', `region-${region}`, settings, url)
    return { name: region, fleetUrl: url, pid, mirrorNamespace: mirrorNamespace(region), databaseUrl: fleet }
  }

  #startMachines(region: { name: string; fleetUrl: string; databaseUrl: string }): Promise<MachineState>[] {
    const count = this.#options.shape.machinesPerRegion
    return Array.from({ length: count }, async (_, n) => {
      const name = `${region.name}-${n + 1}`
      const dataDir = join(machinesDir(this.#options.dir), name)
      const [port, swarm, listen] = await allOf([freePort(), freePort(), freeAddress()])
      const enrolmentFile = await enrol({
        databaseUrl: region.databaseUrl,
        dataDir,
        enrolment: {
          region: region.name,
          machine: name,
          namespaces: [namespace],
          labels: { app: 'web' },
          env: { PORT: String(port), [marker]: this.#options.dir },
          fleetUrls: [region.fleetUrl],
          fleetCa: this.#parts.authority.ca,
          hubKeys: [this.#keys.publicKeyPem],
        },
      })
      const settings = {
        ENROLMENT: enrolmentFile,
        DATA_DIR: dataDir,
        SWARM_LISTEN: `127.0.0.1:${swarm}`,
        ADDRESS: '127.0.0.1',
        LISTEN: listen,
      }
      const agentUrl = `http://${listen}`
      const { pid } = await this.#run('agent', name, settings, agentUrl)
      const url = `http://127.0.0.1:${port}`
      return { name, region: region.name, port, url, agentPid: pid, dataDir, agentUrl }
    })
  }

  #run(role: RoleOptions['role'], name: string, settings: Record<string, string>, url: string): Promise<Program> {
    const { dir, settings: more } = this.#options
    return this.#programs.start({ role, name, dir, settings: { ...settings, ...more?.[role] } }, url)
  }

  async #write(name: string, text: string): Promise<string> {
    const path = join(this.#options.dir, name)
    await writeFile(path, text, { mode: 0o600 })
    return path
  }
}

const freeAddress = async () => `127.0.0.1:${await freePort()}`
