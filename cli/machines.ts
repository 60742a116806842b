import { type Command, Option } from 'commander'
import { ShoalError } from '../api/errors.ts'
import { machineState } from '../api/fleetApi.ts'
import { type MachinePage, type MachineRecord, machinePage } from '../api/machinesApi.ts'
import type { ApiClient } from '../runtime/apiClient.ts'
import { openApi } from './hub.ts'
import { currentNamespace, loadKubeConfig } from './kubeconfig.ts'
import { atLeastOne } from './number.ts'
import { printerOf, span } from './table.ts'

interface Options {
  region?: string
  ca?: string
  namespace?: string
  state?: string
  silent: boolean
  limit: number
  all: boolean
  output?: 'json'
}

/** `shoal machines GOAL`: what a region knows of each of a goal's machines, as whoever the kubeconfig says. */
export function addMachines(program: Command): void {
  program
    .command('machines')
    .description('list a GoalState’s machines in a region, and how far each is')
    .argument('<goal>')
    .option('--region-url <url>', 'the region’s fleet server; default: SHOAL_REGION_URL', process.env.SHOAL_REGION_URL)
    .option('--ca <file>', 'who signed its certificate; default: SHOAL_REGION_CA', process.env.SHOAL_REGION_CA)
    .option('-n, --namespace <name>', 'of the goal; default: the kubeconfig’s')
    .addOption(new Option('--state <state>', 'only in this state').choices(machineState.options))
    .option('--silent', 'only those that are not heard any more', false)
    .option('--limit <n>', 'not more than so many', atLeastOne, 50)
    .option('--all', 'all of them', false)
    .addOption(new Option('-o, --output <format>', 'instead of a table').choices(['json']))
    .addHelpText('after', '\nThe kubeconfig is that of the region’s own API server.')
    .action(async (goal: string, { regionUrl, ...options }: Options & { regionUrl?: string }) => {
      if (regionUrl === undefined)
        throw new ShoalError('ConfigInvalid', 'where is the region? Give --region-url or SHOAL_REGION_URL')
      await using client = openApi({ url: regionUrl, ca: options.ca })
      process.stdout.once('error', () => process.exit(1))
      const print = printerOf(options.output, { head, row, none: 'there are no such machines' })
      let left = options.all ? Number.POSITIVE_INFINITY : options.limit
      for await (const { now, items } of pages(client, goal, options)) {
        print.add(items.slice(0, left).map((item) => ({ ...item, now })))
        left -= items.length
        if (left <= 0) break
      }
      print.end()
    })
}

async function* pages(client: ApiClient, goal: string, o: Options): AsyncGenerator<MachinePage> {
  const namespace = o.namespace ?? currentNamespace(loadKubeConfig())
  let token: string | undefined
  do {
    const query = new URLSearchParams({
      ...{ namespace, goal, limit: String(o.all ? 1000 : Math.min(1000, o.limit)) },
      ...(o.state !== undefined && { state: o.state }),
      ...(o.silent && { silent: 'true' }),
      ...(token !== undefined && { continue: token }),
    })
    const page = await client.request('GET', `/v1/machines?${query}`, { schema: machinePage })
    if (page.items.length > 0) yield page
    token = page.continue
  } while (token !== undefined)
}

const head = ['NAME', 'STATE', 'REVISION', 'RUNNING', 'SEEN', 'FETCHED IN', 'REASON', 'MESSAGE']

const row = ({ now, ...machine }: MachineRecord & { now: string }): string[] => [
  machine.name,
  machine.silent ? `${machine.state} (silent)` : machine.state,
  String(machine.revision),
  machine.running ?? '-',
  machine.lastSeen === undefined ? 'never' : span(Date.parse(now) - Date.parse(machine.lastSeen)),
  machine.fetchSeconds === undefined ? '-' : span(machine.fetchSeconds * 1000),
  machine.reason ?? '-',
  machine.message ?? '',
]
