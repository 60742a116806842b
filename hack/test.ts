import { globSync, readFileSync } from 'node:fs'
import { availableParallelism, loadavg } from 'node:os'
import { join, resolve } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { serverProgram } from './parts/databaseFiles.ts'
import { kubernetesPrograms, versitygw } from './parts/programs.ts'
import { checks } from './runner/checks.ts'
import { type Outcome, runFile } from './runner/testFile.ts'

const help = `./hack/test [options] [path…]: all checks and tests, or those tests whose path begins with one of the paths

  ./hack/test                              everything but the slow tests
  ./hack/test runtime queue/claim.test.ts  the tests of a folder, and one file
  ./hack/test checks                       formatting, linting, types, unused code

  --slow             the tests of test/slow too
  --jobs <n>         files at once (default: as many as there are cores; one more while they wait more than they compute; at most 3)
  --timeout <s>      for one file (default 600; 1200 in test/slow; or what a line "// timeout: 300 s" in it says)
  --help             this

Each check and each test counts as one. Environment: SHOAL_KUBECONFIG, SHOAL_MYSQL_URL, KUBEBUILDER_ASSETS: servers and
programs to use instead of own ones. With a server that all tests share, one file runs at a time.`

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    slow: { type: 'boolean', default: false },
    jobs: { type: 'string' },
    timeout: { type: 'string' },
    help: { type: 'boolean', default: false },
  },
})

if (values.help) {
  console.log(help)
  process.exit(0)
}

const root = resolve(import.meta.dirname, '..')
const filters = positionals.map((path) => path.replace(/^\.\//, '').replace(/\/$/, ''))
const wanted = (name: string) =>
  filters.length === 0 ||
  filters.some((path) => name === path || name.startsWith(path.endsWith('.ts') ? path : `${path}/`))
/** Brings up a whole system of programs, most of them. */
const isLarge = (file: string) => file.startsWith('test/')
const isSlow = (file: string) => file.startsWith('test/slow/')
const files = globSync('**/*.test.ts', { cwd: root, exclude: ['**/node_modules/**', '.shoal/**', '**/.*/**'] })
  .filter((file) => wanted(file) && (!isSlow(file) || values.slow || filters.some((path) => isSlow(`${path}/`))))
  .sort()
  // What takes long begins first, so that nothing long is left for the end.
  .sort((a, b) => Number(isLarge(b)) - Number(isLarge(a)) || timeoutMsOf(b) - timeoutMsOf(a))

const shared = process.env.SHOAL_KUBECONFIG || process.env.SHOAL_MYSQL_URL
const cores = availableParallelism()
const jobs = Number(values.jobs ?? (shared ? 1 : Math.min(3, cores + 1)))
const stop = new AbortController()
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => stop.abort())

/** The programs that tests start, made before the clock of any test runs; the checks go on meanwhile. */
async function prepare(): Promise<void> {
  const parts = [
    ...(process.env.SHOAL_KUBECONFIG ? [] : [kubernetesPrograms]),
    versitygw,
    ...(process.env.SHOAL_MYSQL_URL ? [] : [serverProgram]),
  ]
  for (const part of parts) {
    try {
      await part()
    } catch (error) {
      // Tests that do without it still run; the others fail and name it too.
      console.log(error instanceof Error ? error.message : error)
    }
  }
}

function timeoutMsOf(file: string): number {
  const said = /^\/\/ timeout: (\d+) s$/m.exec(readFileSync(join(root, file), 'utf8'))?.[1]
  return 1000 * Number(values.timeout ?? said ?? (isSlow(file) ? 1200 : 600))
}

interface Job {
  large: boolean
  run(): Promise<Outcome>
}

const prepared = files.length > 0 ? prepare() : undefined
const toRun: Job[] = [
  ...(filters.length === 0 || filters.includes('checks') ? checks(root) : []).map((check) => ({
    large: false,
    run: () => check(stop.signal),
  })),
  ...files.map((file) => ({
    large: isLarge(file),
    run: async () => {
      await prepared
      return runFile({ root, file, timeoutMs: timeoutMsOf(file), signal: stop.signal })
    },
  })),
]
const running = new Set<Job>()
const outcomes: Outcome[] = []

/**
 * Of large files, no more at once than there are cores. While programs queue for the cores, no more files than cores, and
 * one large one: more would make all of them late. Who says how many gets so many.
 */
function mayBegin(job: Job): boolean {
  if (values.jobs !== undefined) return true
  const large = [...running].filter(({ large }) => large).length
  const busy = (loadavg()[0] ?? 0) > 5 * cores
  return (!job.large || large < (busy ? 1 : cores)) && (!busy || running.size < cores)
}

async function runSome(): Promise<void> {
  while (toRun.length > 0 && !stop.signal.aborted) {
    const at = toRun.findIndex(mayBegin)
    const [job] = at < 0 ? [] : toRun.splice(at, 1)
    if (job) {
      running.add(job)
      print(await job.run())
      running.delete(job)
    } else await delay(1000)
  }
}

function print(outcome: Outcome): void {
  const { name, passed, failed, skipped, seconds, output, notes } = outcome
  outcomes.push(outcome)
  const counts = [
    `${passed} passed`,
    ...(failed ? [`${failed} FAILED`] : []),
    ...(skipped ? [`${skipped} skipped`] : []),
  ]
  console.log(`[${outcomes.length}/${all}] ${name}: ${counts.join(', ')} (${seconds.toFixed(1)} s)`)
  for (const note of notes) console.log(`    ${note}`)
  if (failed) console.log(output.replace(/^/gm, '    | '))
}

const all = toRun.length
if (all === 0) console.log(`no check and no test at: ${filters.join(' ')}`)
await Promise.all(Array.from({ length: Math.max(1, jobs) }, runSome))
const done = outcomes.length
const sum = (what: 'passed' | 'failed' | 'skipped') => outcomes.reduce((total, outcome) => total + outcome[what], 0)
if (stop.signal.aborted) console.log(`interrupted; ${all - done} of ${all} not run`)
for (const { name, failed, failures, notes } of outcomes) {
  if (failed) console.log(`FAILED ${name}: ${[...failures, ...notes].join('; ') || 'see above'}`)
}
console.log(`${sum('passed')} passed, ${sum('failed')} failed${sum('skipped') ? `, ${sum('skipped')} skipped` : ''}`)
process.exitCode = sum('failed') > 0 || done < all || all === 0 ? 1 : 0
