import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Artifact } from '../../api/artifact.ts'
import { ReplicaGate } from './replicaGate.ts'

const test = suite('replica gate')

const digest = `sha256:${'0'.repeat(64)}`
type Replicas = NonNullable<NonNullable<Artifact['status']>['replicas']>
const artifact = (...replicas: Replicas): Artifact => {
  const made = Artifact.make(
    { name: 'web-1', namespace: 'team' },
    {
      pipelineRef: 'web',
      commit: '0'.repeat(40),
      digest,
      sizeBytes: 1,
      key: 'team/web-1/1',
      partSizeBytes: 5_242_880,
      checksum: 'x-1',
      descriptor: { infoHash: '0'.repeat(40), digest },
      regions: ['eu', 'us'],
    },
  )
  return Artifact.parse({ ...made, status: { replicas } })
}
const at = (second: number) => new Date(second * 1000).toISOString()
const eu = (second: number, state: Replicas[number]['state'] = 'Replicated') =>
  artifact({ region: 'eu', state, checkedAt: at(second) })

function gate() {
  const asked: string[] = []
  const made = new ReplicaGate(async (...of) => {
    asked.push(of.join('/'))
  })
  return { gate: made, asked }
}

test('a region lacks what it does not have whole, or was never given', () => {
  const replicas: Replicas = [
    { region: 'eu', state: 'Replicated' },
    { region: 'us', state: 'Corrupt' },
  ]
  assert.equal(gate().gate.lacking(artifact(...replicas), ['eu', 'us', 'ap']), ['us', 'ap'])
  assert.equal(gate().gate.lacking(undefined, ['eu']), ['eu'])
})

test('a region passes once it has looked again since it was asked, and is asked once', async () => {
  const { gate: it, asked } = gate()
  const passes = (seen: Artifact, revision = 1) => it.passes('uid', revision, { artifact: seen, region: 'eu' })
  assert.not(await passes(eu(1)))
  assert.not(await passes(eu(1)), 'it has not looked since')
  assert.not(await passes(eu(2, 'Missing')), 'it looked, and found nothing')
  assert.ok(await passes(eu(3)))
  assert.ok(await passes(eu(3, 'Unknown')), 'what was raised stays so when the bucket is away')
  assert.equal(asked, ['team/web-1/eu'])
  assert.not(await passes(eu(3), 2), 'the next revision looks anew')
  assert.is(asked.length, 2)
})

test('a hub that lost its memory has the region look twice', async () => {
  const before = gate()
  await before.gate.passes('uid', 1, { artifact: eu(1), region: 'eu' })
  before.gate.forget('uid')
  assert.not(await before.gate.passes('uid', 1, { artifact: eu(2), region: 'eu' }))
  assert.is(before.asked.length, 2)
})

test.run()
