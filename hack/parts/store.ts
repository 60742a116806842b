import { mkdir } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { CreateBucketCommand, S3Client } from '@aws-sdk/client-s3'
import { freePort, type Program, startProgram, temporaryDir, until } from './process.ts'
import { versitygw } from './programs.ts'

export interface StoreOptions {
  /** Kept after dispose; default: a temporary folder. */
  dir?: string
  /** Default: a free one. */
  port?: number
  /** In messages. */
  name?: string
}

/** One S3 server with its own data, as a region has it. */
export interface StoreServer extends AsyncDisposable {
  readonly endpoint: string
  readonly accessKeyId: string
  readonly secretAccessKey: string
  readonly region: string
  /** Objects are files in it: `<bucket>/<key>`. */
  readonly dataDir: string
  readonly port: number
  readonly pid: number
  /** Idempotent. */
  createBucket(name: string): Promise<void>
  stop(): Promise<void>
  /** Same port, same data; returns when it answers. */
  start(): Promise<void>
  kill(): Promise<void>
  /** Alive but answering nobody, as behind a cut line. */
  pause(): Promise<void>
  resume(): void
}

/** Starts versitygw on files; about 50 ms. */
export async function startStore(options: StoreOptions = {}): Promise<StoreServer> {
  const [program, port, temporary] = await Promise.all([
    versitygw(),
    options.port ?? freePort(),
    options.dir === undefined ? temporaryDir('shoal-store') : undefined,
  ])
  const dir = resolve(temporary?.path ?? options.dir ?? '.')
  const dataDir = join(dir, 'data')
  const credentials = { accessKeyId: 'shoal', secretAccessKey: 'shoal-secret' }
  const endpoint = `http://127.0.0.1:${port}`
  await mkdir(dataDir, { recursive: true })

  let server: Program
  const start = async () => {
    const args = ['--quiet', '--keep-alive', '-p', `127.0.0.1:${port}`, 'posix', dataDir]
    const env = { ROOT_ACCESS_KEY: credentials.accessKeyId, ROOT_SECRET_KEY: credentials.secretAccessKey }
    server = startProgram(program, args, { name: options.name ?? 'versitygw', logFile: join(dir, 'log'), env })
    await until(`S3 server on ${endpoint}`, () => fetch(endpoint), { intervalMs: 10, unless: server })
  }
  await start()
  return {
    endpoint,
    ...credentials,
    region: 'us-east-1',
    dataDir,
    port,
    get pid() {
      return server.pid
    },
    async createBucket(name) {
      const client = new S3Client({ endpoint, credentials, region: 'us-east-1', forcePathStyle: true })
      try {
        await client.send(new CreateBucketCommand({ Bucket: name }))
      } catch (error) {
        if (!(error instanceof Error) || error.name !== 'BucketAlreadyOwnedByYou') throw error
      } finally {
        client.destroy()
      }
    },
    start,
    stop: () => server.stop(),
    kill: () => server.kill(),
    pause: () => server.pause(),
    resume: () => server.resume(),
    async [Symbol.asyncDispose]() {
      await server.kill()
      await temporary?.[Symbol.asyncDispose]()
    },
  }
}
