import { rm, writeFile } from 'node:fs/promises'
import { flushCompileCache } from 'node:module'
import type { Swarm } from '../../swarm/swarm.ts'
import { aborted, openSession, type SessionOptions, stateFileOf, stopSignal } from './session.ts'

const PROGRESS_MS = 1000
/** Where nobody watches, a line now and then. */
const LINE_MS = 10_000

interface GetOptions extends SessionOptions {
  done?: string
  keepSeeding?: boolean
  json?: boolean
}

/** Exits with 130 when stopped before everything is there. @throws ShoalError as `openSession`, and as `diskErrors`. */
export async function get(torrentPath: string, options: GetOptions): Promise<void> {
  const signal = stopSignal()
  const startedMs = performance.now()
  await using session = await openSession(torrentPath, options, { seed: false, signal })
  const { swarm, torrent } = session
  const seconds = () => Number(((performance.now() - startedMs) / 1000).toFixed(3))
  {
    using _progress = showProgress(swarm, { json: options.json === true, seconds })
    try {
      await swarm.done
    } catch (error) {
      if (!signal.aborted) throw error
      console.error(`stopped at ${percent(swarm)} %; the same command goes on from there`)
      process.exitCode = 130
      return
    }
  }
  await rm(stateFileOf(torrent, options.dir), { force: true })
  if (options.done !== undefined) await writeFile(options.done, '')
  if (options.json) console.log(JSON.stringify({ done: true, seconds: seconds(), ...swarm.stats() }))
  else console.error(`${torrent.name} is there and verified, after ${seconds()} s`)
  if (!options.keepSeeding) return
  // as main.ts does, now that the code of a whole download is compiled
  flushCompileCache()
  await aborted(signal)
}

function showProgress(swarm: Swarm, o: { json: boolean; seconds: () => number }): Disposable {
  const terminal = process.stderr.isTTY
  let lastBytes = swarm.have().bytes
  let lastMs = performance.now()
  const everyMs = o.json || terminal ? PROGRESS_MS : LINE_MS
  const timer = setInterval(() => {
    const nowMs = performance.now()
    const { bytes } = swarm.have()
    const bytesPerSecond = Math.round(((bytes - lastBytes) / (nowMs - lastMs)) * 1000)
    lastBytes = bytes
    lastMs = nowMs
    const { peers, wastedBytes } = swarm.stats()
    if (o.json)
      console.log(
        JSON.stringify({ done: false, seconds: o.seconds(), haveBytes: bytes, bytesPerSecond, peers, wastedBytes }),
      )
    else {
      const line = `${percent(swarm)} %  ${(bytesPerSecond / 1e6).toFixed(1)} MB/s  ${peers} peers`
      process.stderr.write(terminal ? `\r${line}\x1b[K` : `${line}\n`)
    }
  }, everyMs)
  return {
    [Symbol.dispose]() {
      clearInterval(timer)
      if (terminal && !o.json) process.stderr.write('\r\x1b[K')
    },
  }
}

function percent(swarm: Swarm): string {
  return ((100 * swarm.have().bytes) / swarm.sizeBytes).toFixed(1)
}
