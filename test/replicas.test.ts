import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Artifact } from '../api/artifact.ts'
import { GoalState } from '../api/goalState.ts'
import { RegionalGoalState } from '../api/regionalGoalState.ts'
import { isTrue } from '../hack/story/kube.ts'
import { askMachines } from '../hack/story/machines.ts'
import { appName, goal } from '../hack/story/objects.ts'
import { commit, push } from '../hack/story/repositories.ts'
import { bringUp } from './system.ts'

const test = suite('replicas on the whole system')

test('an artifact that one region lacks is not deployable, and a goal that names it reaches nobody', async () => {
  await using up = await bringUp({ regions: ['eu-west', 'us-east'], machinesPerRegion: 1 })
  await up.explain(async () => {
    const { system, kube } = up
    const { state } = system
    const { namespace } = state
    await system.stores.get('us-east')?.kill()
    const id = await commit(state.repositories.app, 'First')
    await push(state.repositories.app)
    const name = `${appName}-${id.slice(0, 12)}`
    const artifact = { kind: Artifact, namespace, name }
    const deployable = (it: Artifact) => it.status?.conditions?.find(({ type }) => type === 'Deployable')
    const held = await kube.until(
      artifact,
      (it) => it.status?.replicated === '1/2' && deployable(it)?.message.includes('us-east') === true,
      { what: 'it is told which region lacks the artifact', timeoutMs: 60_000 },
    )
    assert.is(deployable(held)?.status, 'False')
    assert.not.match(deployable(held)?.message ?? '', /eu-west/)

    await kube.cluster.apply(GoalState, goal(state, name), { fieldManager: 'test' })
    const place = { kind: GoalState, namespace, name: appName }
    const waiting = await kube.until(place, (it) => isTrue(it, 'Reconciling'), {
      what: 'the goal waits',
      timeoutMs: 15_000,
    })
    const reconciling = waiting.status?.conditions?.find(({ type }) => type === 'Reconciling')
    assert.is(reconciling?.reason, 'WaitingForArtifact')
    assert.equal((await kube.cluster.list(RegionalGoalState)).items, [])

    await system.stores.get('us-east')?.start()
    await kube.until(artifact, (it) => isTrue(it, 'Deployable'), { what: 'it is repaired', timeoutMs: 90_000 })
    await kube.until(place, (it) => isTrue(it, 'Ready') && it.status?.updated === 2, {
      what: 'it is deployed then',
      timeoutMs: 90_000,
    })
    for (const machine of await askMachines(state.machines)) assert.is(machine.version, id, machine.name)
  })
})

test.run()
