import { join } from 'node:path'
import { runGroup } from './group.ts'
import type { Outcome } from './testFile.ts'

const tools = {
  'format and lint (biome)': ['@biomejs/biome/bin/biome', 'ci', '--error-on-warnings'],
  'types (tsc)': ['typescript/bin/tsc', '--noEmit', '-p', '.'],
  'unused code (knip)': ['knip/bin/knip.js', '--no-progress'],
}

/** The checks of the whole checkout; each counts as one test. */
export function checks(root: string): ((signal: AbortSignal) => Promise<Outcome>)[] {
  return Object.entries(tools).map(([name, [script = '', ...args]]) => async (signal) => {
    const env: NodeJS.ProcessEnv = { ...process.env, FORCE_COLOR: '0' }
    const command = [join(root, 'node_modules', script), ...args]
    const result = await runGroup(process.execPath, command, { cwd: root, timeoutMs: 300_000, env, signal })
    const failed = result.end === 'code 0' ? 0 : 1
    const { output, seconds } = result
    return {
      name,
      passed: 1 - failed,
      failed,
      skipped: 0,
      seconds,
      output,
      failures: [],
      notes: failed ? [`ended with ${result.end}`] : [],
    }
  })
}
