import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { temporaryDir } from '../hack/parts/process.ts'
import { Kube } from '../hack/story/kube.ts'
import { progressTo } from '../hack/story/progress.ts'
import { playStory } from '../hack/story/story.ts'
import { startSystem } from '../hack/story/system.ts'

const test = suite('story')

test('three pushes reach every machine, or go back by themselves', async () => {
  await using dir = await temporaryDir('shoal-story')
  const told: string[] = []
  const progress = progressTo((line) => told.push(line))
  const shape = { regions: ['eu-west', 'us-east'], machinesPerRegion: 2, small: true }
  try {
    await using system = await startSystem({ dir: join(dir.path, 'demo'), shape, progress })
    await using cluster = new Kube(system.state, progress)
    const report = await playStory({ state: system.state, cluster, progress })
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
  } catch (error) {
    console.error(told.join('\n'))
    await printLogs(join(dir.path, 'demo-logs'))
    throw error
  }
})

/** The last lines of every process's log, since the folder is removed. */
async function printLogs(logs: string) {
  for (const name of await readdir(logs).catch(() => [])) {
    const lines = (await readFile(join(logs, name), 'utf8')).trimEnd().split('\n')
    console.error(`── ${name}\n${lines.slice(-15).join('\n')}`)
  }
}

test.run()
