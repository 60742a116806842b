import { createHash } from 'node:crypto'
import { appendFileSync, chmodSync, openSync, readFileSync, rmSync, statSync } from 'node:fs'
import { createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import { Place } from './place.ts'
import { type Answer, type Command, placeFiles } from './protocol.ts'

/** Usage: node main.ts FOLDER-OF-THE-PLACE. Ends by itself when another supervisor has the place. */
const dir = process.argv[2] ?? ''
const control = join(dir, placeFiles.control)
const logFile = join(control, 'supervisor.log')
const maxLogBytes = 1 << 20
const maxCommandBytes = 1 << 20

function log(message: string, fields: object = {}): void {
  try {
    const size = statSync(logFile, { throwIfNoEntry: false })?.size ?? 0
    const flag = size > maxLogBytes ? 'w' : 'a'
    const line = { time: new Date().toISOString(), pid: process.pid, ...fields, msg: message }
    appendFileSync(logFile, `${JSON.stringify(line)}\n`, { flag, mode: 0o600 })
  } catch {
    // A full disk must not end the supervisor.
  }
}

process.on('uncaughtException', (error) => {
  log('ending: unexpected error', { error: error.stack })
  process.exit(1)
})

/** The kernel holds this name for as long as we live and for no one after: nothing to clean up, nothing to break. */
async function lock(secret: string): Promise<void> {
  const server = createServer((socket) => socket.destroy())
  await new Promise<void>((resolve) => {
    server.once('error', () => process.exit(0))
    server.listen(`\0shoal-${secret}`, resolve)
  })
  server.unref()
}

async function answer(place: Place, command: Command): Promise<Answer> {
  try {
    if (command.command === 'activate') await place.activate(command.request)
    if (command.command === 'shutdown') await place.shutdown()
    return { ok: true, status: place.status() }
  } catch (error) {
    return { ok: false, message: (error as Error).message }
  }
}

function serve(place: Place, socket: Socket): void {
  let text = ''
  socket.setEncoding('utf8').setTimeout(60_000, () => socket.destroy())
  socket.on('error', () => {})
  socket.on('data', async (chunk: string) => {
    text += chunk
    if (text.length > maxCommandBytes) socket.destroy()
    if (!text.endsWith('\n')) return
    const command = JSON.parse(text) as Command
    const reply = await answer(place, command)
    socket.end(`${JSON.stringify(reply)}\n`, () => {
      if (command.command === 'shutdown') process.exit(0)
    })
  })
}

const secret = readFileSync(join(control, placeFiles.lock), 'utf8').trim()
await lock(secret)
const mark = `SHOAL_MARK=${createHash('sha256').update(secret).digest('hex').slice(0, 24)}`
log('starting')
const place = await Place.open(dir, { mark, log, over: () => process.exit(0) })
const end = async () => {
  await place.shutdown()
  process.exit(0)
}
process.on('SIGTERM', end).on('SIGINT', end)

// A socket's path may have 107 bytes; by way of our open folder it is short wherever the folder is.
const folder = openSync(control, 'r')
const path = `/proc/self/fd/${folder}/${placeFiles.socket}`
rmSync(path, { force: true })
createServer((socket) => serve(place, socket)).listen(path, () => chmodSync(path, 0o600))
