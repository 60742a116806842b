import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
export async function startStore(): Promise<{
  endpoint: string
  accessKeyId: string
  secretAccessKey: string
  dataDir: string
  kill(): Promise<void>
  restart(): Promise<void>
  stop(): Promise<void>
}> {
  const dir = await mkdtemp(join(tmpdir(), 'shoal-store-'))
  const dataDir = join(dir, 'data')
  await mkdir(dataDir)
  const s = createServer()
  s.listen(0, '127.0.0.1')
  await once(s, 'listening')
  const port = (s.address() as { port: number }).port
  s.close()
  await once(s, 'close')
  const endpoint = `http://127.0.0.1:${port}`
  let child: ChildProcess
  const start = async () => {
    child = spawn('/tmp/vgw/versitygw', ['--quiet', '--keep-alive', '-p', `127.0.0.1:${port}`, 'posix', dataDir], {
      env: { ROOT_ACCESS_KEY: 'key', ROOT_SECRET_KEY: 'secretsecret' },
      stdio: 'ignore',
    })
    for (;;) {
      try {
        await fetch(endpoint)
        break
      } catch {
        await delay(10)
      }
    }
  }
  const kill = async () => {
    if (child.exitCode === null && child.signalCode === null) {
      child.kill('SIGKILL')
      await once(child, 'exit')
    }
  }
  await start()
  return {
    endpoint,
    accessKeyId: 'key',
    secretAccessKey: 'secretsecret',
    dataDir,
    kill,
    restart: start,
    stop: async () => {
      await kill()
      await rm(dir, { recursive: true, force: true })
    },
  }
}
