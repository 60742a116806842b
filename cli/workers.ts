import { readFileSync } from 'node:fs'
import { type Command, Option } from 'commander'
import { ShoalError } from '../api/errors.ts'
import { type WorkersAnswer, workersAnswer } from '../api/workersApi.ts'
import { ApiClient } from '../runtime/apiClient.ts'
import { loadKubeConfig } from './kubeconfig.ts'
import { tokenOf } from './logs.ts'

interface Options {
  output?: 'json'
  hub?: string
  ca?: string
}

/** `shoal workers`: what the hub knows of its workers and its queue, as whoever the kubeconfig says. */
export function addWorkers(program: Command): void {
  program
    .command('workers')
    .description('list the workers, what they build, and how full the queue is')
    .addOption(new Option('-o, --output <format>', 'instead of a table').choices(['json']))
    .option('--hub <url>', 'the hub; default: SHOAL_HUB_URL', process.env.SHOAL_HUB_URL)
    .option('--ca <file>', 'who signed the hub’s certificate; default: SHOAL_HUB_CA', process.env.SHOAL_HUB_CA)
    .action(async ({ output, hub, ca }: Options) => {
      if (hub === undefined) throw new ShoalError('ConfigInvalid', 'where is the hub? Give --hub or SHOAL_HUB_URL')
      const config = loadKubeConfig()
      await using client = new ApiClient({
        baseUrl: hub,
        token: () => tokenOf(config),
        ...(ca !== undefined && { ca: readFileSync(ca, 'utf8') }),
      })
      const answer = await client.request('GET', '/v1/workers', { schema: workersAnswer })
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
  const widths = (all[0] ?? []).map((_, column) => Math.max(...all.map((row) => row[column]?.length ?? 0)))
  const line = (row: string[]) => row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join('   ')
  return all.map((row) => line(row).trimEnd()).join('\n')
}

function queueLine({ queue, workers }: WorkersAnswer): string {
  const { ready, blocked, running, oldestReadySeconds, wanted } = queue
  const oldest = oldestReadySeconds === undefined ? '' : ` (the oldest for ${span(oldestReadySeconds * 1000)})`
  const sizes = Object.entries(wanted).map(([size, count]) => `${count} ${size}`)
  const workersWanted = sizes.length === 0 ? 'not scaled' : `${sizes.join(', ')} wanted`
  return `${ready} jobs ready${oldest}, ${blocked} blocked, ${running} running; ${workers.length} workers, ${workersWanted}`
}

/** As kubectl shows ages: `12s`, `3m`, `5h`, `2d`. */
function span(ms: number): string {
  const seconds = Math.max(0, Math.round(ms / 1000))
  if (seconds < 120) return `${seconds}s`
  if (seconds < 7200) return `${Math.floor(seconds / 60)}m`
  if (seconds < 172_800) return `${Math.floor(seconds / 3600)}h`
  return `${Math.floor(seconds / 86_400)}d`
}
