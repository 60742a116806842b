import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { stringify } from 'yaml'
import { GoalState } from '../../api/goalState.ts'
import { isTrue } from './kube.ts'
import { askMachines } from './machines.ts'
import { appName, goal } from './objects.ts'
import type { Report } from './report.ts'
import type { Stage } from './stage.ts'

/** Applies the GoalState with this artifact, as a person would. */
export async function applyGoal({ state, cluster }: Stage, artifact: string) {
  const file = join(state.dir, 'goal.yaml')
  await writeFile(file, stringify(goal(state, artifact)))
  await cluster.show('apply', '--server-side', '--force-conflicts', '-f', file)
}

/** Waits until the goal's rollout to `artifact` is complete, showing the waves as they go. */
export async function rolledOut({ state, cluster, progress }: Stage, artifact: string) {
  let wave: string | undefined
  await progress.step(`rolling out ${artifact}`, (say) =>
    cluster.until(
      { kind: GoalState, namespace: state.namespace, name: appName },
      (it) =>
        it.status?.effective?.artifact === artifact && allUpdated(it, state.machines.length) && isTrue(it, 'Ready'),
      {
        what: `every machine runs ${artifact}`,
        timeoutMs: 180_000,
        failed: (it) => (isTrue(it, 'Stalled') ? JSON.stringify(it.status?.failures) : undefined),
        onChange: (it) => {
          const { desired = 0, fetched = 0, healthy = 0 } = it.status ?? {}
          say(`wave ${it.status?.wave ?? '-'}, ${fetched} of ${desired} fetched, ${healthy} healthy`)
          if (it.status?.wave !== wave) {
            wave = it.status?.wave
            progress.line(`    wave ${wave ?? '-'}: ${fetched} of ${desired} fetched, ${healthy} healthy`)
          }
        },
      },
    ),
  )
  await cluster.show('get', 'goalstates')
  await cluster.show('get', 'regionalgoalstates', '--all-namespaces', '--selector', 'shoal.dev/goal-name')
}

/** Every machine runs the effective template and is well. */
export const allUpdated = (it: GoalState, machines: number) =>
  it.status?.updated === machines && it.status.healthy === machines

/** Asks every machine over HTTP; the rollout is only as true as what they answer. */
export async function everyMachineRuns({ state, progress }: Stage, id: string) {
  if (state.shape.own) return
  const deadline = Date.now() + 10_000
  for (;;) {
    const machines = await askMachines(state.machines)
    const wrong = machines.filter((machine) => machine.version !== id || !machine.healthy)
    if (wrong.length === 0) break
    if (Date.now() > deadline) {
      const list = wrong.map((machine) => `${machine.name}: ${machine.version || 'no answer'}`).join(', ')
      throw new Error(`not every machine answers with ${id.slice(0, 12)}: ${list}`)
    }
    await delay(200)
  }
  progress.line(`  every machine's /version answers ${id.slice(0, 12)}`)
}

/** The reader's application may not speak HTTP: what it runs is what its agent reported to the region. */
export async function ownMachines({ state, cluster }: Stage, id: string): Promise<Report['machines']> {
  const it = GoalState.parse(await cluster.get({ kind: GoalState, namespace: state.namespace, name: appName }))
  const all = allUpdated(it, state.machines.length)
  return state.machines.map(({ name, region }) => ({ name, region, version: all ? id : '', healthy: all }))
}
