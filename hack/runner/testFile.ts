import { type GroupResult, runGroup } from './group.ts'

/** What came of one check or one test file. */
export interface Outcome {
  name: string
  passed: number
  failed: number
  skipped: number
  seconds: number
  output: string
  /** The tests that failed, each with the first line of its error. */
  failures: string[]
  /** Why something failed that no test reports, and why something was skipped. */
  notes: string[]
}

interface TestFile {
  root: string
  file: string
  timeoutMs: number
  signal: AbortSignal
}

/** What tests wait for comes later where several files and all their programs share few cores. */
const patience = 6

/** Runs one uvu file in a process of its own. */
export async function runFile({ root, file, timeoutMs, signal }: TestFile): Promise<Outcome> {
  const env: NodeJS.ProcessEnv = {
    ...process.env,
    FORCE_COLOR: '0',
    NODE_DISABLE_COLORS: '1',
    SHOAL_PATIENCE: `${patience}`,
  }
  const result = await runGroup(process.execPath, [file], { cwd: root, timeoutMs, env, signal })
  return { name: file, seconds: result.seconds, output: result.output, ...count(result, timeoutMs) }
}

/**
 * Reads uvu's totals. A file passes only when it says how many tests it ran: one that ends early, by an error or because
 * nothing was left to wait for, has failed.
 */
function count(
  { end, output, leftovers }: GroupResult,
  timeoutMs: number,
): Pick<Outcome, 'passed' | 'failed' | 'skipped' | 'failures' | 'notes'> {
  const number = (what: string) => Number(new RegExp(`^ {2}${what}: +(\\d+)$`, 'm').exec(output)?.[1] ?? Number.NaN)
  const [tests, succeeded, skips] = [number('Total'), number('Passed'), number('Skipped')]
  const reasons = [...output.matchAll(/^skipped: .*$/gm)].map(([line]) => line)
  const failures = [...output.matchAll(/^ {3}FAIL {2}(.*)\n +(.*)$/gm)].map(([, test, error]) => `${test}: ${error}`)
  const notes = [...reasons]
  let failed = Number.isNaN(tests) ? 0 : tests - succeeded
  if (end === 'timeout') notes.push(`not done within ${timeoutMs / 1000} s; killed`)
  else if (end !== 'code 0' && failed === 0) notes.push(`ended with ${end}`)
  else if (Number.isNaN(tests) && reasons.length === 0) notes.push('ended without a result')
  else if (tests === 0 && reasons.length === 0 && skips === 0) notes.push('has no tests')
  if (leftovers.length > 0) notes.push(`left running: ${leftovers.join('; ')}`)
  if (notes.length > reasons.length && failed === 0) failed = 1
  return { passed: succeeded || 0, failed, skipped: (skips || 0) + reasons.length, failures, notes }
}
