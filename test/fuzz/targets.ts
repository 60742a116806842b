/** What is fuzzed: everything that takes bytes from strangers. Run a little by `test/fuzz.test.ts`, at length by `hack/fuzz`. */
import fc from 'fast-check'
import { temporaryDir } from '../../hack/parts/process.ts'
import { serveTracker } from '../../swarm/trackerServer.ts'
import { bencode, greetingOfPeer, stateFile, torrent } from './files.ts'
import { live } from './live.ts'
import { trackerRequests } from './tracker.ts'
import { wire } from './wire.ts'

export interface Target {
  name: string
  /** Runs of a second or so. */
  runs: number
  /** @returns what failed, its seed included; undefined when nothing did. The same seed and runs give the same input. */
  check(o: { seed: number; runs: number }): Promise<string | undefined>
}

function target<Input>(name: string, runs: number, property: fc.IRawProperty<Input>): Target {
  return {
    name,
    runs,
    async check({ seed, runs: numRuns }) {
      // a failing download is not made smaller: that takes as long as all the runs
      const details = await fc.check(property, { seed, numRuns, endOnFailure: name === 'live' })
      return details.failed ? fc.defaultReportMessage(details) : undefined
    },
  }
}

export async function openTargets(): Promise<AsyncDisposable & { all: Target[] }> {
  await using opened = new AsyncDisposableStack()
  const dir = opened.use(await temporaryDir('shoal-fuzz-'))
  const tracker = opened.use(await serveTracker({ host: '127.0.0.1', port: 0 }))
  const all = [
    target('bencode', 3000, bencode),
    target('torrent', 1000, torrent),
    target('greeting', 3000, greetingOfPeer),
    target('wire', 1500, wire),
    target('state file', 100, stateFile(dir.path)),
    target('tracker', 100, trackerRequests(Number(new URL(tracker.url).port))),
    target('live', 1, live),
  ]
  const open = opened.move()
  return { all, [Symbol.asyncDispose]: () => open.disposeAsync() }
}
