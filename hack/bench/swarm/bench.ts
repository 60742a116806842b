/**
 * The swarm beside other clients, in one run; exits 1 when a target is missed. Flash crowds run in a harness that
 * makes a network namespace with rate-limited links for each machine; the tracker's table runs in this process.
 */
import { spawn } from 'node:child_process'
import { dirname, join } from 'node:path'
import { Command } from 'commander'
import { Tracker } from '../../../swarm/tracker.ts'
import { type OneToOne, oneToOne } from './oneToOne.ts'

const { quick } = new Command('run')
  .description(
    'Measures the swarm beside aria2 and libtorrent; prints each row with its ratio and target. Flash crowds need root, ' +
      'iproute2, and in SHOAL_SWARM_HARNESS the harness that makes the links and runs the clients side by side.',
  )
  .option('--quick', 'under a minute: the tracker, and one small crowd of our own')
  .parse()
  .opts<{ quick?: boolean }>()
const harness = process.env.SHOAL_SWARM_HARNESS
let missed = false

function row(what: string, figures: string, ok: boolean, target: string): void {
  missed ||= !ok
  console.log(`${ok ? '✓' : '✗'} ${what}: ${figures} (${target})`)
}

interface Crowd {
  /** Last machine / the least time any protocol needs. */
  ratio: number
  /** Bytes that the seed sent / size, headers included. */
  copies: number
  /** All machines ended, with the right bytes. */
  right: boolean
}

/** Runs the harness, which prints one line per client. */
async function crowd(clients: string[], args: string[]): Promise<Map<string, Crowd>> {
  const child = spawn(
    harness ?? '',
    ['--client-dir', import.meta.dirname, '--clients', clients.join(), '--timeout', '120', ...args],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  )
  const { promise: ended, resolve, reject } = Promise.withResolvers<void>()
  child.once('error', reject)
  child.once('close', resolve)
  let text = ''
  child.stdout.on('data', (chunk: Buffer) => {
    text += chunk
  })
  await ended
  const results = new Map<string, Crowd>()
  for (const line of text.split('\n')) {
    const [, client, ratio, copies, wrong] =
      /^(\w+)\s+last.*?([\d.]+)x.*?copies\s+([\d.]+).*?wrong (\d+)/.exec(line) ?? []
    if (client) results.set(client, { ratio: Number(ratio), copies: Number(copies), right: wrong === '0' })
  }
  return results
}

interface CrowdRow {
  what: string
  args: string[]
  /** Targets; `best`: no other client's ratio is lower. */
  ratio?: number
  copies?: number
  best: boolean
}

const crowds: CrowdRow[] = [
  { what: '8 machines, 100 Mbit/s, 128 MiB', args: [], ratio: 1.2, copies: 1.2, best: true },
  {
    what: '24 machines, 50 Mbit/s, 64 MiB',
    args: ['--peers', '24', '--rate', '50', '--mib', '64'],
    ratio: 1.35,
    copies: 1.2,
    best: true,
  },
  { what: '8, one link at a tenth', args: ['--slow', '1', '--timeout', '300'], ratio: 1.35, best: true },
  { what: '8, the seed’s link at half', args: ['--seed-rate', '50'], ratio: 1.35, copies: 1.2, best: true },
  // starts are up to 5 s apart, so the least time is not that of the others
  { what: '8, starts spread', args: ['--stagger', '5'], best: true },
  { what: '16, 4 of them killed half way', args: ['--peers', '16', '--kill', '4'], ratio: 1.35, best: true },
]

async function crowdRow({ what, args, ratio, copies, best }: CrowdRow, clients: string[]): Promise<void> {
  const results = await crowd(clients, args)
  const ours = results.get('shoal')
  if (!ours) return row(what, 'did not finish', false, 'finish')
  const others = [...results].filter(([client]) => client !== 'shoal')
  const beside = others.map(([client, each]) => `${client} ${each.ratio}x, ${each.copies} copies`).join('; ')
  const ok =
    ours.right &&
    (ratio === undefined || ours.ratio <= ratio) &&
    (copies === undefined || ours.copies <= copies) &&
    (!best || others.every(([, each]) => ours.ratio <= each.ratio))
  const targets = [ratio && `≤ ${ratio}x`, copies && `≤ ${copies} copies`, best && 'best of all'].filter(Boolean)
  row(what, `${ours.ratio}x of the least time, the seed sent ${ours.copies} copies; ${beside}`, ok, targets.join(', '))
}

/** Announces a second, in a swarm of as many machines as said, on this thread. */
function announcesPerSecond(machines: number, seconds: number): number {
  const tracker = new Tracker()
  const infoHash = '0'.repeat(40)
  const pieces = Array.from({ length: 64 }, (_, i) => new Uint8Array(2560 / 8).fill(0xff, 0, i * 5))
  const announce = (i: number, nowMs: number) =>
    tracker.announce(
      {
        ...{ infoHash, machine: `machine-${i}`, host: '10.0.0.1', port: 1024 + (i % 60_000) },
        ...{ zone: `zone-${i % 3}`, rack: `rack-${i % 2500}`, pieces: pieces[i % pieces.length] },
        completed: i % 10 === 0,
      },
      nowMs,
    )
  for (let i = 0; i < machines; i++) announce(i, 0)
  const beganMs = performance.now()
  let count = 0
  while (performance.now() - beganMs < seconds * 1000)
    for (let i = 0; i < 100; i++) announce((count++ * 7919) % machines, 1000 + count / 1000)
  return (count / (performance.now() - beganMs)) * 1000
}

const perSecond = announcesPerSecond(100_000, quick ? 2 : 8)
row(
  'announces a second, 100,000 machines in a swarm',
  `${Math.round(perSecond)} on one core; bittorrent-tracker has 48`,
  perSecond >= 5000,
  '≥ 5,000',
)
const ours = join(import.meta.dirname, 'shoal')
if (harness) {
  const clients = [ours, join(dirname(harness), 'clients/libtorrent')]
  // what a program compiles and keeps when it runs for the first time is not measured
  await oneToOne(clients, 16)
  const [shoal, libtorrent] = await oneToOne(clients, quick ? 256 : 1024)
  if (shoal && libtorrent) {
    const ratio = shoal.megabytesPerSecond / libtorrent.megabytesPerSecond
    const figures = ({ megabytesPerSecond, cpuSecondsPerGigabyte }: OneToOne) =>
      `${Math.round(megabytesPerSecond)} MB/s, ${cpuSecondsPerGigabyte.toFixed(1)} CPU-s per GB`
    row(
      '1 → 1 over loopback, on disk and verified',
      `${figures(shoal)}; libtorrent ${figures(libtorrent)}: ${ratio.toFixed(2)}`,
      ratio >= 3 && shoal.cpuSecondsPerGigabyte <= 2.5,
      '≥ 3, ≤ 2.5 CPU-s',
    )
  }
}
const [large] = quick ? [] : await oneToOne([ours], 10 << 10)
if (large) {
  const { seed, leech } = large.peakMegabytes
  row(
    'memory for 10 GiB, at most',
    `seed ${Math.round(seed)} MB, leech ${Math.round(leech)} MB; webtorrent 250 to 900`,
    Math.max(seed, leech) <= 200,
    '≤ 200 MB',
  )
}
if (!harness) console.log('- crowds and other clients: not measured, SHOAL_SWARM_HARNESS is not set')
else if (quick)
  await crowdRow({ what: '4 machines, 100 Mbit/s, 64 MiB', args: ['--peers', '4', '--mib', '64'], best: true }, [
    'shoal',
    'aria2',
  ])
else for (const each of crowds) await crowdRow(each, ['shoal', 'aria2', 'libtorrent'])
process.exitCode = missed ? 1 : 0
