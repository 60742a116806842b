import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { GoalState, GoalStateRevision } from '../../api/goalState.ts'
import { indexName, regionNamespace } from '../../api/regionApi.ts'
import { RegionalGoalState } from '../../api/regionalGoalState.ts'
import { until } from '../../hack/parts/process.ts'
import { openIndex, signIndex } from '../../rollout/envelope.ts'
import { core } from '../../runtime/core.ts'
import {
  apply,
  artifact,
  begun,
  cluster,
  condition,
  foundWhole,
  looksAt,
  newNamespace,
  obey,
  parts,
  read,
  reason,
  regional,
  regions,
  replicate,
  restartHub,
  rollOut,
  signingKey,
  told,
} from './fixture.ts'

const test = suite('GoalState')

test('until every region has the artifact nothing is propagated; then each region is told, wave by wave', async () => {
  const namespace = await newNamespace()
  await apply(namespace, 'web-1')
  await reason(namespace, 'Reconciling', 'WaitingForArtifact')
  await artifact(namespace, 'web-1', ['eu'])
  await until('it waits for us', async () => (await condition(namespace, 'Reconciling'))?.message.includes('us'))
  assert.is(await regional(namespace, 'eu'), undefined)
  await replicate(namespace, 'web-1', regions)
  const first = await until('eu is told to begin', () => begun(namespace, 'eu'))
  const other = await until('us is told', () => told(namespace, 'us'))
  assert.equal([first.target.percent, other.target], [0, { machines: 0, percent: 0 }])
  await obey(namespace, 'eu')
  const raised = await until('the next wave', async () => {
    const payload = await told(namespace, 'us')
    return payload?.target.percent === 100 ? payload : undefined
  })
  assert.ok(raised.sequence > other.sequence)
  assert.is(raised.revision, other.revision)
  await rollOut(namespace, 'Ready', 'RolledOut')
  const { status } = (await read(namespace)) ?? {}
  assert.equal([status?.wave, status?.healthy, status?.history?.[0]?.outcome], ['2/2', 8, 'Succeeded'])
  assert.is(status?.lastGood?.artifact, 'web-1')
})

test('no machine changes before its region looked at its copy once more', async () => {
  const namespace = await newNamespace()
  await artifact(namespace, 'web-1')
  looksAt.delete('us')
  try {
    await apply(namespace, 'web-1')
    await until('the wave of us begins, and waits', async () => {
      await obey(namespace, 'eu')
      await obey(namespace, 'us')
      return /wave 2.*the copy in us once more/.test((await condition(namespace, 'Reconciling'))?.message ?? '')
    })
    assert.equal((await told(namespace, 'eu'))?.target.percent, 100, 'other regions go on')
    assert.equal((await told(namespace, 'us'))?.target, { machines: 0, percent: 0 })
  } finally {
    looksAt.add('us')
  }
  await foundWhole(namespace, 'web-1', 'us')
  await rollOut(namespace, 'Ready', 'RolledOut')
})

test('a failure holds the template and goes back to the last that worked, as a new revision', async () => {
  const namespace = await newNamespace()
  await artifact(namespace, 'web-1')
  await artifact(namespace, 'web-2')
  await apply(namespace, 'web-1')
  await rollOut(namespace, 'Ready', 'RolledOut')
  await apply(namespace, 'web-2')
  await rollOut(namespace, 'Stalled', 'RolloutFailed', 'web-2')
  const { status, spec } = (await read(namespace)) ?? {}
  assert.is(spec?.artifactRef.name, 'web-2', 'the spec is the person’s, and stays')
  assert.equal([status?.effective?.artifact, status?.effective?.revision, status?.rollback], ['web-1', 3, true])
  assert.is(status?.failures?.[0]?.reason, 'ActivationFailed')
  assert.equal(status?.history?.map(({ artifact, outcome }) => [artifact, outcome]).slice(1), [
    ['web-2', 'Failed'],
    ['web-1', 'Succeeded'],
  ])
  const held = GoalStateRevision.parse(await cluster.get(GoalStateRevision, namespace, 'web-2'))
  assert.match(held.status?.hold?.why ?? '', /1 of \d machines failed/)
  const payload = await told(namespace, 'us')
  assert.equal([payload?.rollback, payload?.template.artifact.name], [true, 'web-1'])
  // Applying the same again doesn't redo what was undone; something else does go out.
  await artifact(namespace, 'web-3')
  await apply(namespace, 'web-3')
  await rollOut(namespace, 'Ready', 'RolledOut', 'web-2')
  assert.is((await read(namespace))?.status?.effective?.artifact, 'web-3')
})

test('a first deploy that fails halts everywhere, and stays', async () => {
  const namespace = await newNamespace()
  await artifact(namespace, 'web-1')
  await apply(namespace, 'web-1')
  await rollOut(namespace, 'Stalled', 'RolloutFailed', 'web-1')
  await until('every region is halted', async () => {
    const payloads = await Promise.all(regions.map((region) => told(namespace, region)))
    return payloads.every((payload) => payload?.halted)
  })
})

test('a hub that takes over goes on in the same wave, with the same revision', async () => {
  const namespace = await newNamespace()
  await artifact(namespace, 'web-1')
  await apply(namespace, 'web-1')
  await until('the second wave', async () => {
    await obey(namespace, 'eu')
    return (await told(namespace, 'us'))?.target.percent === 100
  })
  const before = await told(namespace, 'us')
  await restartHub()
  await rollOut(namespace, 'Ready', 'RolledOut')
  assert.is((await told(namespace, 'us'))?.revision, before?.revision)
  assert.is((await read(namespace))?.status?.effective?.revision, 1)
})

test('a region that does not exist, and a place that is taken, stall', async () => {
  const namespace = await newNamespace()
  await artifact(namespace, 'web-1')
  await apply(namespace, 'web-1', { rollout: { waves: [{ regions: ['nowhere'], percent: 100 }] } })
  await reason(namespace, 'Stalled', 'RegionUnknown')
  const [first, second] = [await newNamespace(), await newNamespace()]
  for (const each of [first, second]) {
    await artifact(each, 'web-1')
    await apply(each, 'web-1', { place: 'shared' })
    await until('it was looked at', async () => (await condition(each, 'Ready')) !== undefined)
  }
  await until('one of both is refused', async () => {
    const found = await Promise.all([first, second].map((each) => condition(each, 'Stalled')))
    return found.filter((each) => each?.reason === 'PlaceConflict').length === 1
  })
})

test('what is wrong in itself is refused before it is kept', async () => {
  const namespace = await newNamespace()
  const command = ['./server']
  const port = 80
  for (const [wrong, why] of [
    [{ rollout: { maxUnavailable: 0 } }, /none can be updated/],
    [{ rollout: { maxUnavailable: '0%' } }, /none can be updated/],
    [{ rollout: { waves: [] } }, /at least 1 item/],
    [{ rollout: { waves: [{ regions: ['eu'], machines: 1, percent: 5 }] } }, /either machines or percent/],
    [{ activation: { command, user: 'root' } }, /does not run as root/],
    [{ activation: { command, health: { tcp: { port }, http: { port } } } }, /give one probe/],
  ] as const)
    await apply(namespace, 'web-1', wrong).then(
      () => assert.unreachable(JSON.stringify(wrong)),
      (error: unknown) => assert.match((error as Error).message, why),
    )
  assert.is(await read(namespace), undefined)
})

test('after a restore the regions, which know more, are told anew, and no number of theirs is used again', async () => {
  const namespace = await newNamespace()
  await artifact(namespace, 'web-1')
  await artifact(namespace, 'web-2')
  await apply(namespace, 'web-1')
  await rollOut(namespace, 'Ready', 'RolledOut')
  const before = await told(namespace, 'eu')
  assert.ok(before)
  // What the region was told after the backup, it still has.
  const later = before.sequence + 1_000_000
  const status = { observedRevision: 7, observedSequence: later, desired: 4 }
  const object = { metadata: { name: `${namespace}.web`, namespace: regionNamespace('eu') }, status }
  await cluster.apply(RegionalGoalState, object, { fieldManager: 'shoal-region', subresource: 'status' })
  const anew = await until('it is told anew', async () => {
    const payload = await told(namespace, 'eu')
    return payload && payload.sequence > later ? payload : undefined
  })
  assert.equal([anew.revision, anew.templateHash], [before.revision, before.templateHash])
  await cluster.apply(RegionalGoalState, object, { fieldManager: 'shoal-region', subresource: 'status' })
  await apply(namespace, 'web-2')
  // Ready is still said of the one before.
  await until('it is taken up', async () => (await read(namespace))?.status?.effective?.artifact === 'web-2')
  await rollOut(namespace, 'Ready', 'RolledOut')
  assert.is((await told(namespace, 'eu'))?.revision, 8)
})

test('a goal that was deleted and is applied again is another, and told with a higher sequence', async () => {
  const namespace = await newNamespace()
  await artifact(namespace, 'web-1')
  await apply(namespace, 'web-1')
  await rollOut(namespace, 'Ready', 'RolledOut')
  const before = await told(namespace, 'eu')
  await cluster.delete(GoalState, namespace, 'web')
  await until('it is gone', async () => (await read(namespace)) === undefined)
  await until('the regions are told no more', async () => (await regional(namespace, 'eu')) === undefined)
  await apply(namespace, 'web-1')
  await rollOut(namespace, 'Ready', 'RolledOut')
  const after = await told(namespace, 'eu')
  assert.ok(after && before)
  assert.ok(after.sequence > before.sequence, `${after.sequence} after ${before.sequence}`)
  assert.is.not(after.uid, before.uid)
})

test('an index is later than the one before it, whatever the clock of who wrote that', async () => {
  const ahead = Date.now() + 3_600_000
  const write = async (issuedAt: number) => {
    const envelope = signIndex({ region: 'eu', issuedAt, goals: {} }, signingKey)
    const object = { metadata: { name: indexName, namespace: regionNamespace('eu') }, data: { envelope } }
    await cluster.apply(core.ConfigMap, object, { fieldManager: 'shoal-index' })
  }
  await restartHub(() => write(ahead))
  const later = await until('a later index', async () => {
    const found = await cluster.get<{ data: { envelope: string } }>(core.ConfigMap, regionNamespace('eu'), indexName)
    const { issuedAt } = openIndex(found?.data.envelope ?? '', [signingKey])
    return issuedAt > ahead ? issuedAt : undefined
  })
  assert.ok(later < ahead + 60_000)
  await restartHub(() => write(Date.now()))
})

test('a rollout that stands still is looked at again and again, and not written', async () => {
  const namespace = await newNamespace()
  await artifact(namespace, 'web-1')
  await apply(namespace, 'web-1', { rollout: { waves: [{ regions: ['*'], percent: 100, approval: true }] } })
  await reason(namespace, 'Reconciling', 'AwaitingApproval')
  const version = async () => (await read(namespace))?.metadata.resourceVersion
  // ten steps
  await until('it is the same for half a second', async () => {
    const [first, at] = [await version(), performance.now()]
    await until('half a second', () => performance.now() - at > 500)
    return (await version()) === first
  })
  assert.ok((await read(namespace))?.status?.standsSince)
})

test('deleting a goal stops telling regions of it', async () => {
  const namespace = await newNamespace()
  await artifact(namespace, 'web-1')
  await apply(namespace, 'web-1')
  await until('both are told', async () => (await told(namespace, 'eu')) && (await told(namespace, 'us')))
  await cluster.delete(GoalState, namespace, 'web')
  await until('it is gone', async () => (await read(namespace)) === undefined)
  assert.is(await regional(namespace, 'eu'), undefined)
  assert.is(await regional(namespace, 'us'), undefined)
})

test('each region’s index names its goals as they stand, and moves on', async () => {
  const namespace = await newNamespace()
  await artifact(namespace, 'web-1')
  await apply(namespace, 'web-1')
  // Told twice: to fetch, and to begin.
  const payload = await until('eu is told to begin', () => begun(namespace, 'eu'))
  const index = async () => {
    const map = await cluster.get<{ data: { envelope: string } }>(core.ConfigMap, regionNamespace('eu'), indexName)
    return map && openIndex(map.data.envelope, [signingKey])
  }
  // The index follows what is told; until it does, it names the goal as it stood before.
  const named = await until('the index names it as it stands', async () => {
    const found = await index()
    return found?.goals[`${namespace}/web`]?.sequence === payload.sequence ? found : undefined
  })
  assert.equal(named.goals[`${namespace}/web`], { revision: payload.revision, sequence: payload.sequence })
  await until('the index moves on', async () => ((await index())?.issuedAt ?? 0) > named.issuedAt)
})

test.after(async () => {
  await parts.disposeAsync()
})
test.run()
