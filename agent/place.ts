import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { type FileHandle, mkdir, open, readdir, readFile, readlink } from 'node:fs/promises'
import { connect } from 'node:net'
import { basename, dirname, join } from 'node:path'
import { z } from 'zod'
import { Transient } from '../api/errors.ts'
import { readJson, syncFolder, writeDurably } from './supervisor/durable.ts'
import { type Answer, type Command, type PlaceStatus, placeFiles } from './supervisor/protocol.ts'

const answerTimeoutMs = 10_000
const startTimeoutMs = 30_000

/** Starts a supervisor for a place's folder, outliving us. */
export type StartSupervisor = (placeDir: string) => Promise<void>

/** A place's folder name: readable, one path segment whatever the place is called. */
function folderName(place: string): string {
  const escaped = encodeURIComponent(place).replace(/^\./, '%2E')
  return escaped.length <= 200 ? escaped : `~${createHash('sha256').update(place).digest('hex')}`
}

/** The agent's side of a place: its folder, and the supervisor that owns it. */
export class PlaceClient {
  readonly dir: string

  private constructor(dir: string) {
    this.dir = dir
  }

  static of(placesDir: string, place: string): PlaceClient {
    return new PlaceClient(join(placesDir, folderName(place)))
  }

  static at(dir: string): PlaceClient {
    return new PlaceClient(dir)
  }

  get exists(): boolean {
    return existsSync(join(this.dir, placeFiles.control, placeFiles.lock))
  }

  async create(): Promise<void> {
    const control = join(this.dir, placeFiles.control)
    await mkdir(this.dir, { recursive: true, mode: 0o755 })
    await mkdir(control, { recursive: true, mode: 0o700 })
    const lock = join(control, placeFiles.lock)
    if (!existsSync(lock)) await writeDurably(lock, `${randomBytes(16).toString('hex')}\n`)
    await syncFolder(dirname(this.dir))
  }

  /** The supervisor's answer; it is started when there is none. */
  async ensure(start: StartSupervisor): Promise<PlaceStatus> {
    const status = await this.status()
    if (status) return status
    await start(this.dir)
    const deadline = performance.now() + startTimeoutMs
    for (;;) {
      const started = await this.status()
      if (started) return started
      if (performance.now() > deadline) {
        const said = await readFile(join(this.dir, placeFiles.control, placeFiles.startLog), 'utf8').catch(() => '')
        throw new Transient('Unavailable', `no supervisor for ${basename(this.dir)}: ${said.trim().slice(-500)}`)
      }
      await new Promise((resolve) => setTimeout(resolve, 50))
    }
  }

  /** Undefined when no supervisor answers. */
  async status(): Promise<PlaceStatus | undefined> {
    const answer = await this.ask({ command: 'status' }).catch(() => undefined)
    return answer?.ok ? answer.status : undefined
  }

  /** One exchange with the supervisor. Throws when there is none. */
  async ask(command: Command, timeoutMs = answerTimeoutMs): Promise<Answer> {
    // By way of the open folder: a socket's path may have 107 bytes.
    await using folder: FileHandle = await open(join(this.dir, placeFiles.control), 'r')
    const socket = connect(`/proc/self/fd/${folder.fd}/${placeFiles.socket}`)
    try {
      socket.setEncoding('utf8').setTimeout(timeoutMs, () => socket.destroy(new Error('no answer in time')))
      await once(socket, 'connect')
      socket.write(`${JSON.stringify(command)}\n`)
      let text = ''
      for await (const chunk of socket) text += chunk
      return JSON.parse(text) as Answer
    } finally {
      socket.destroy()
    }
  }
}

/** The folders of all places of a machine. */
export async function placeDirs(placesDir: string): Promise<string[]> {
  const names = await readdir(placesDir).catch(() => [])
  return names.map((name) => join(placesDir, name))
}

const kept = z.looseObject({
  accepted: z.looseObject({ release: z.string() }).optional(),
  journal: z.looseObject({ request: z.looseObject({ run: z.looseObject({ release: z.string() }) }) }).optional(),
})

/** The releases a place runs, goes to or may go back to, from its disk: its supervisor need not be up. Throws when unsure. */
export async function releasesInUse(placeDir: string): Promise<string[]> {
  const state = kept.parse((await readJson(join(placeDir, placeFiles.control, placeFiles.state))) ?? {})
  const current = await readlink(join(placeDir, placeFiles.current)).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined
    throw error
  })
  const folders = [state.accepted?.release, state.journal?.request.run.release, current]
  return folders.filter((folder) => folder !== undefined).map((folder) => basename(dirname(folder)))
}
