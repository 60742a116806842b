import { once } from 'node:events'
import { setTimeout as delay } from 'node:timers/promises'
import type { Command } from 'commander'
import { ShoalError, Transient, Waiting } from '../api/errors.ts'
import { type LogEvent, logEvent } from '../api/jobApi.ts'
import { readLines } from '../runtime/lines.ts'
import { type Hub, type HubOptions, openHub, withJobs } from './hub.ts'
import { atLeastOne } from './number.ts'

interface Options extends HubOptions {
  follow: boolean
  attempt?: number
}

type State = LogEvent & { type: 'state' }

/** A hub that is silent for so long is given up; until then another replica may go on with the log. */
const patienceMs = 5 * 60_000
/** The hub says something four times as often. */
const silenceMs = 60_000

/** `shoal logs JOB`: a build's output, read from the hub as whoever the kubeconfig says. */
export function addLogs(program: Command): void {
  const command = program
    .command('logs <job>')
    .description('print the log of a BuildJob’s last attempt; with -f the exit code says whether the job succeeded')
    .option('-f, --follow', 'go on until the job is over, also over attempts', false)
    .option('--attempt <n>', 'of the nth worker that had it, lost ones too; with -f, from that on', atLeastOne)
  withJobs(command).action(async (job: string, options: Options) => {
    await using hub = openHub(options)
    // As when `head` has seen enough.
    process.stdout.once('error', () => process.exit(1))
    const last = await show(hub, job, options)
    if (options.follow && last.phase !== 'Succeeded') process.exitCode = 1
  })
}

/** Prints until the end; when the connection breaks, it goes on from where that was. The job's last state. */
async function show(hub: Hub, job: string, { follow, attempt }: Options): Promise<State> {
  let place: { attempt?: number | undefined; offset?: number } = { attempt }
  let told = ''
  let heard = false
  let heardAt = performance.now()
  for (let failures = 0; ; failures++) {
    let failure: unknown
    try {
      const given = Object.entries({ ...place, follow }).filter(([, value]) => value !== undefined)
      const query = new URLSearchParams(given.map(([key, value]) => [key, String(value)]))
      for await (const event of events(hub, `${hub.jobsPath(job, 'log')}?${query}`)) {
        heard = true
        heardAt = performance.now()
        failures = 0
        if (event.type === 'log') {
          if (!process.stdout.write(event.text)) await once(process.stdout, 'drain')
          place = { attempt: event.attempt, offset: event.end }
          continue
        }
        const text = describe(job, event, follow)
        if (text !== told && text !== '') console.error(text)
        told = text
        if (!follow || isOver(event)) return event
      }
      failure = new Transient('Unavailable', 'the hub says nothing of the job')
    } catch (error) {
      // Before the first word the fault may be ours: a wrong address, a job that isn't there.
      const passes = error instanceof Transient || error instanceof Waiting
      if (!heard || !passes || error.code === 'Unauthorized') throw error
      if (failures === 0) console.error(`${error.message}; trying again`)
      failure = error
    }
    if (performance.now() - heardAt > patienceMs) throw failure
    await delay(Math.min(5000, 100 * 2 ** failures) * (0.5 + Math.random() / 2))
  }
}

async function* events(hub: Hub, path: string): AsyncGenerator<LogEvent> {
  for await (const line of readLines(hub.client.stream(path, { accept: 'application/x-ndjson', silenceMs }))) {
    let json: unknown
    try {
      json = JSON.parse(line)
    } catch (cause) {
      throw new ShoalError('ConfigInvalid', 'what answers is not a hub: look at --hub', { cause })
    }
    // A newer hub may say more.
    const { data } = logEvent.safeParse(json)
    if (data) yield data
  }
}

const isOver = ({ phase }: State) => phase === 'Succeeded' || phase === 'Failed' || phase === 'Cancelled'

/** What is to be said beside the log; nothing while the build runs. */
function describe(job: string, state: State, follow: boolean): string {
  const { phase, attempt, position, replicated, code, message } = state
  if (!follow) return phase === 'Queued' && attempt === 0 ? `${job} waits for a worker; -f waits with it` : ''
  switch (phase) {
    case 'Queued': {
      const again = attempt > 0 ? `the worker of attempt ${attempt} was lost or stopped; ` : ''
      return `${again}${job} waits for a worker${position === undefined ? '' : `, position ${position}`}`
    }
    case 'Running':
      return ''
    case 'Replicating':
      return `${job} is built, and copied to every region${replicated === undefined ? '' : ` (${replicated})`}`
    case 'Succeeded':
      return `${job} succeeded`
    default:
      return `${job} ${phase === 'Failed' ? `failed (${code})` : 'was cancelled'}: ${message?.split('\n')[0]}`
  }
}
