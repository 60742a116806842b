/** Shoal's one program: `shoal hub`, `worker`, `region` and `agent` run a role; the rest is for people. */
import { enableCompileCache, flushCompileCache } from 'node:module'
import { Command } from 'commander'
import { errorCodes, ShoalError } from './api/errors.ts'
import type { Logger } from './runtime/log.ts'

// A start costs 1.3 s of CPU without it and 0.5 s with it.
enableCompileCache()
// Node writes it when a process ends by itself: one that is killed would start as slowly the next time. What was compiled
// by then is kept, once, so not too soon.
setTimeout(flushCompileCache, 60_000).unref()

type Role = (log: Logger, signal: AbortSignal) => Promise<void>

/** A role's code is loaded when it runs: an agent does not carry the hub's libraries in memory. */
const roles: [name: string, description: string, load: () => Promise<Role>][] = [
  [
    'hub',
    'queue, controllers, and what webhooks, workers and regions talk to',
    async () => (await import('./roles/hub.ts')).hubRole,
  ],
  ['worker', 'build one job at a time', async () => (await import('./roles/worker.ts')).workerRole],
  [
    'region',
    'mirror goals, replicate artifacts, serve a region’s machines',
    async () => (await import('./roles/region.ts')).regionRole,
  ],
  ['agent', 'fetch, activate and supervise on one machine', async () => (await import('./roles/agent.ts')).agentRole],
]

const program = new Command('shoal')
  .description('From a pushed commit to a running binary on every machine of a fleet.')
  .showHelpAfterError('(shoal --help says what there is)')
for (const [name, description, load] of roles) {
  program
    .command(name)
    .description(`${description} (settings: SHOAL_…, see docs/guides/install.md)`)
    .action(async () => {
      const { createLogger } = await import('./runtime/log.ts')
      const { runRole } = await import('./runtime/shutdown.ts')
      const log = createLogger(name)
      await runRole(log, async (signal) => (await load())(log, signal))
    })
}
// a swarm's commands alone start in half the time
if (process.argv[2] === 'swarm') (await import('./cli/swarm/commands.ts')).addSwarm(program)
else if (!roles.some(([name]) => name === process.argv[2])) (await import('./cli/commands.ts')).addCommands(program)
try {
  await program.parseAsync()
} catch (error) {
  if (!(error instanceof ShoalError)) throw error
  console.error(`shoal: ${error.message} (${error.code}: ${errorCodes[error.code].action})`)
  process.exitCode = 1
}
