import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { playStory } from '../hack/story/story.ts'
import { bringUp } from './system.ts'

const test = suite('story')

test('three pushes reach every machine, or go back by themselves', async () => {
  await using up = await bringUp({ regions: ['eu-west', 'us-east'], machinesPerRegion: 2 })
  const { system, kube, progress, told } = up
  await up.explain(async () => {
    const report = await playStory({ state: system.state, cluster: kube, progress })
    assert.ok(report.ok)
    assert.ok(report.rolledBack)
    assert.is(report.machines.length, 4)
    assert.is(new Set(report.machines.map((machine) => machine.version)).size, 1)
    for (const region of report.regions) {
      assert.ok(region.replicated, region.name)
      assert.ok(region.originCopies >= 0.9 && region.originCopies <= 1.2, `${region.name}: ${region.originCopies}`)
    }
    const text = told.join('\n')
    assert.match(text, /\$ kubectl get buildjobs,artifacts/)
    assert.match(text, /buildjob\.shoal\.dev\/web-[0-9a-f]{12} +Succeeded/)
  })
})

test.run()
