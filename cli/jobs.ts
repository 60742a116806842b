import { type Command, Option } from 'commander'
import { buildJobPhase } from '../api/buildJob.ts'
import { type JobRecord, jobPage } from '../api/jobApi.ts'
import { type Hub, type HubOptions, openHub, withJobs } from './hub.ts'
import { atLeastOne } from './number.ts'
import { printerOf, span } from './table.ts'

interface Options extends HubOptions {
  pipeline?: string
  phase?: string
  limit: number
  all: boolean
  output?: 'json'
}

/** `shoal jobs`: builds, those that are over and gone from the API too. */
export function addJobs(program: Command): void {
  const command = program
    .command('jobs')
    .description('list builds, the last first, also those whose BuildJob is gone')
    .option('--pipeline <name>', 'only of this Pipeline')
    .addOption(new Option('--phase <phase>', 'only in this phase').choices(buildJobPhase.options))
    .option('--limit <n>', 'not more than so many', atLeastOne, 50)
    .option('--all', 'all of them', false)
    .addOption(new Option('-o, --output <format>', 'instead of a table').choices(['json']))
  withJobs(command).action(async (options: Options) => {
    await using hub = openHub(options)
    process.stdout.once('error', () => process.exit(1))
    const { output, all, limit } = options
    const print = printerOf(output, { head, row, none: 'there are no such builds' })
    let left = all ? Number.POSITIVE_INFINITY : limit
    for await (const jobs of pages(hub, options)) {
      print.add(jobs.slice(0, left))
      left -= jobs.length
      if (left <= 0) break
    }
    print.end()
  })
}

async function* pages(hub: Hub, { pipeline, phase, limit, all }: Options): AsyncGenerator<JobRecord[]> {
  let token: string | undefined
  do {
    const query = new URLSearchParams({
      limit: String(all ? 500 : Math.min(500, limit)),
      ...(pipeline !== undefined && { pipeline }),
      ...(phase !== undefined && { phase }),
      ...(token !== undefined && { continue: token }),
    })
    const page = await hub.client.request('GET', `${hub.jobsPath()}?${query}`, { schema: jobPage })
    if (page.items.length > 0) yield page.items
    token = page.continue
  } while (token !== undefined)
}

const head = ['NAME', 'PHASE', 'ATTEMPT', 'REF', 'COMMIT', 'QUEUED', 'WAITED', 'TOOK', 'MESSAGE']

function row({ name, phase, attempt, ref, commit, queuedAt, startedAt, finishedAt, code, message }: JobRecord) {
  const [queued, started, finished] = [queuedAt, startedAt, finishedAt].map(
    (time) => Date.parse(time ?? '') || undefined,
  )
  const until = finished ?? Date.now()
  return [
    ...[name, phase, String(attempt), ref.replace(/^refs\/(heads|tags)\//, ''), commit.slice(0, 12)],
    span(Date.now() - (queued ?? 0)),
    span((started ?? until) - (queued ?? 0)),
    started === undefined ? '' : span(until - started),
    [code, message?.split('\n')[0]]
      .filter((part) => part !== undefined)
      .join(': ')
      .slice(0, 100),
  ]
}
