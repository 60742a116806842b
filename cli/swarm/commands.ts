/** `shoal swarm`: BitTorrent in the open, without a fleet, and a look at an agent's. Each command's code is loaded when it runs. */
import { type Command, InvalidArgumentError } from 'commander'
import { parseRateSchedule, type RateSchedule } from '../../swarm/rateSchedule.ts'

export interface Listen {
  host: string
  port: number
}

/** `IP:PORT`. */
function listen(text: string): Listen {
  const [, host, port] = /^(.+):(\d+)$/.exec(text) ?? []
  if (!host || Number(port) > 65_535) throw new InvalidArgumentError('It has to be IP:PORT.')
  return { host: host.replace(/^\[(.*)\]$/, '$1'), port: Number(port) }
}

/** Bytes, or with K or M. */
function bytes(text: string): number {
  const [, number, unit] = /^(\d+)([KM]?)$/i.exec(text) ?? []
  if (!number) throw new InvalidArgumentError('It has to be a number of bytes, as 1048576, 1024K or 1M.')
  return Number(number) * { '': 1, K: 1024, M: 1 << 20 }[(unit ?? '').toUpperCase() as '' | 'K' | 'M']
}

function limit(text: string): RateSchedule {
  try {
    return parseRateSchedule(text)
  } catch (error) {
    throw new InvalidArgumentError((error as Error).message)
  }
}

/** Adds `swarm` and its commands to the program. */
export function addSwarm(program: Command): void {
  const swarm = program
    .command('swarm')
    .description('share files by BitTorrent, without a fleet; watch what an agent fetches')

  swarm
    .command('create')
    .description('make the .torrent of a file or folder')
    .argument('<path>', 'a file, or a folder with at least one file that is not empty')
    .requiredOption('-o, --output <file>', 'the .torrent to write; one that is there is not overwritten')
    .option('--piece-length <bytes>', 'a multiple of 16K up to 64M; by default as suits the size', bytes)
    .option('--announce <url>', 'the tracker that clients ask for peers')
    .action(async (path: string, options) => (await import('./create.ts')).create(path, options))

  swarm
    .command('seed')
    .description('offer files that are there, until stopped')
    .argument('<torrent>', 'the .torrent file')
    .requiredOption('--dir <folder>', 'the folder that holds the torrent’s file or folder')
    .requiredOption('--listen <ip:port>', 'where peers come in; port 0: any', listen)
    .option('--tracker <url>', 'instead of the torrent’s own')
    .option('--upload-limit <bytes>', 'a second; by hours of the clock: 8-20:1000000,5000000', limit)
    .action(async (torrent: string, options) => (await import('./seed.ts')).seed(torrent, options))

  swarm
    .command('get')
    .description('fetch files from peers; started again, it goes on where it was')
    .argument('<torrent>', 'the .torrent file')
    .requiredOption('--dir <folder>', 'the folder in which the torrent’s file or folder is made')
    .requiredOption('--listen <ip:port>', 'where peers come in; port 0: any', listen)
    .option('--tracker <url>', 'instead of the torrent’s own')
    .option('--done <file>', 'made once everything is there and verified')
    .option('--keep-seeding', 'go on offering it, until stopped')
    .option('--json', 'progress every second and the end as JSON lines on standard output')
    .option('--upload-limit <bytes>', 'a second; by hours of the clock: 8-20:1000000,5000000', limit)
    .option('--download-limit <bytes>', 'in the same form', limit)
    .action(async (torrent: string, options) => (await import('./get.ts')).get(torrent, options))

  swarm
    .command('tracker')
    .description('name peers to each other over HTTP, for anyone and any torrent, until stopped')
    .requiredOption('--listen <ip:port>', 'where announces come in; port 0: any', listen)
    .action(async (options) => (await import('./tracker.ts')).tracker(options))

  swarm
    .command('top')
    .description('what the agent of this machine fetches and gives, as it goes')
    .option('--data-dir <folder>', 'where the agent keeps its data', process.env.SHOAL_DATA_DIR ?? '/var/lib/shoal')
    .option('--agent <url>', 'where the agent answers, instead')
    .option('--once', 'look once, rather than every second until stopped')
    .option('--json', 'a JSON line each time, instead of a table')
    .action(async (options) => (await import('./top.ts')).top(options))
}
