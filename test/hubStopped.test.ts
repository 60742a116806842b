import { setTimeout as delay } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { GoalState } from '../api/goalState.ts'
import { until } from '../hack/parts/process.ts'
import { isTrue } from '../hack/story/kube.ts'
import { askMachines } from '../hack/story/machines.ts'
import { appName, goal } from '../hack/story/objects.ts'
import { pushAndBuild } from '../hack/story/push.ts'
import { commitNext } from '../hack/story/story.ts'
import { bringUp } from './system.ts'

const test = suite('hub stopped in the middle of a rollout')

const indexLifetimeMs = 6000

test('grants end within one index lifetime, machines run on, and it goes on when the hub is back', async () => {
  await using up = await bringUp(
    { regions: ['eu-west', 'us-east'], machinesPerRegion: 6 },
    { ownServers: ['us-east'], settings: { hub: { INDEX_RENEW: '2s' }, region: { INDEX_LIFETIME: '6s' } } },
  )
  await up.explain(async () => {
    const { system, kube, progress } = up
    const { state } = system
    const { namespace } = state
    const stage = { state, cluster: kube, progress }
    const machines = state.machines.filter((machine) => machine.region === 'us-east')
    const versions = async () => (await askMachines(machines)).map((machine) => machine.version)
    const updated = async (id: string) => (await versions()).filter((version) => version === id).length
    const deploy = async (
      artifact: string,
      { minHealthy, maxUnavailable }: { minHealthy: string; maxUnavailable: number },
    ) => {
      const wanted = goal(state, artifact)
      wanted.spec.activation.minHealthy = minHealthy
      // however busy this machine is: no version here is broken
      wanted.spec.activation.deadline = '60s'
      wanted.spec.rollout = { waves: [{ regions: ['*'], percent: 100 }], maxUnavailable }
      await kube.cluster.apply(GoalState, wanted, { fieldManager: 'test' })
    }
    const rolledOut = () =>
      kube.until(
        { kind: GoalState, namespace, name: appName },
        (it) => isTrue(it, 'Ready') && it.status?.updated === 12,
        {
          what: 'every machine is updated',
          timeoutMs: 120_000,
        },
      )

    const first = await commitNext(state, 'First version')
    const firstArtifact = await pushAndBuild(stage, first)
    await deploy(firstArtifact.metadata.name, { minHealthy: '1s', maxUnavailable: 6 })
    await rolledOut()

    const second = await commitNext(state, 'Second version')
    const secondArtifact = await pushAndBuild(stage, second)
    // One after the other, several seconds each.
    await deploy(secondArtifact.metadata.name, { minHealthy: '4s', maxUnavailable: 1 })
    await until('the rollout has begun', async () => (await updated(second)) > 0, { timeoutMs: 60_000 })
    await system.programs.get('hub')?.kill()
    await system.hubServer.stop()

    // The last grant may be given at the lifetime's end; then its machine needs minHealthy and a little to switch.
    await delay(indexLifetimeMs + 6000)
    const stopped = await versions()
    assert.ok(stopped.includes(first), 'the rollout was over before the hub’s silence could stop it')
    const end = Date.now() + 8000
    while (Date.now() < end) {
      assert.equal(await versions(), stopped, 'no machine is touched any more, and every one answers')
      await delay(500)
    }

    await system.hubServer.start()
    await system.startAgain('hub')
    await rolledOut()
    assert.is(await updated(second), machines.length)
  })
})

test.run()
