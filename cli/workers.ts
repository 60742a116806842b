import { type Command, Option } from 'commander'
import { type WorkersAnswer, workersAnswer } from '../api/workersApi.ts'
import { type HubOptions, openHub, withHub } from './hub.ts'
import { lineOf, span, widthsOf } from './table.ts'

/** `shoal workers`: what the hub knows of its workers and its queue, as whoever the kubeconfig says. */
export function addWorkers(program: Command): void {
  const command = program
    .command('workers')
    .description('list the workers, what they build, and how full the queue is')
    .addOption(new Option('-o, --output <format>', 'instead of a table').choices(['json']))
  withHub(command).action(async ({ output, ...options }: HubOptions & { output?: 'json' }) => {
    await using hub = openHub(options)
    const answer = await hub.client.request('GET', '/v1/workers', { schema: workersAnswer })
    console.log(output === 'json' ? JSON.stringify(answer, undefined, 2) : `${table(answer)}\n\n${queueLine(answer)}`)
  })
}

function table({ now, workers }: WorkersAnswer): string {
  const since = (time: string) => span(Date.parse(now) - Date.parse(time))
  const rows = workers.map(({ name, state, job, isolation, firstSeen, lastSeen, ...its }) => [
    ...[name, its.class, state, job ? `${job.namespace}/${job.name}` : '-', job ? since(job.since) : '-'],
    ...[since(lastSeen), since(firstSeen), isolation || '-'],
  ])
  const all = [['NAME', 'CLASS', 'STATE', 'JOB', 'FOR', 'SEEN', 'AGE', 'ISOLATION'], ...rows]
  const widths = widthsOf(all)
  return all.map((row) => lineOf(row, widths)).join('\n')
}

function queueLine({ queue, workers }: WorkersAnswer): string {
  const { ready, blocked, running, oldestReadySeconds, wanted } = queue
  const oldest = oldestReadySeconds === undefined ? '' : ` (the oldest for ${span(oldestReadySeconds * 1000)})`
  const sizes = Object.entries(wanted).map(([size, count]) => `${count} ${size}`)
  const workersWanted = sizes.length === 0 ? 'not scaled' : `${sizes.join(', ')} wanted`
  return `${ready} jobs ready${oldest}, ${blocked} blocked, ${running} running; ${workers.length} workers, ${workersWanted}`
}
