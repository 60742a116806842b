import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { ReplicaReport } from '../api/regionApi.ts'
import { afterReport, defaultTimings, type Replica, taskOf } from './replicaState.ts'

const test = suite('a replica’s state')

const pending: Replica = {
  region: 'far',
  state: 'Pending',
  copiedBytes: 0,
  checkedAtMs: null,
  allBytesReadAtMs: null,
  message: null,
  attempts: 0,
  nextAtMs: 0,
}
const whole: Replica = { ...pending, state: 'Replicated', checkedAtMs: 900, allBytesReadAtMs: 900, copiedBytes: 10 }
const at = { nowMs: 1000, timings: defaultTimings, jitter: 0 }
const report = (fields: Partial<ReplicaReport> & Pick<ReplicaReport, 'state'>): ReplicaReport => ({
  namespace: 'tenant',
  name: 'web-1',
  allBytesRead: false,
  inProgress: false,
  ...fields,
})
const task = (replica: Replica, region = { managed: true, home: false }) =>
  taskOf(replica, region, { nowMs: 1000, readAllEveryMs: defaultTimings.readAllEveryMs })

test('what is not there is copied where Shoal copies, and looked for where it does not', () => {
  for (const state of ['Pending', 'Copying', 'Missing', 'Corrupt'] as const) {
    assert.is(task({ ...pending, state }), 'Copy')
    assert.is(task({ ...pending, state }, { managed: false, home: false }), 'CheckAllBytes')
    assert.is(task({ ...pending, state }, { managed: true, home: true }), 'CheckAllBytes')
  }
})

test('all bytes are read first, after an outage, and once in a long while; else size and checksum do', () => {
  assert.is(task(whole), 'Check')
  assert.is(task({ ...whole, allBytesReadAtMs: null }), 'CheckAllBytes')
  assert.is(task({ ...whole, allBytesReadAtMs: 1000 - defaultTimings.readAllEveryMs }), 'CheckAllBytes')
  const away = afterReport(whole, report({ state: 'Unknown' }), at)
  assert.is(task(away), 'CheckAllBytes')
  assert.is(afterReport(away, report({ state: 'Replicated' }), at).state, 'Unknown')
  assert.is(afterReport(away, report({ state: 'Replicated', allBytesRead: true }), at).state, 'Replicated')
})

test('progress of a copy shows and keeps its lease; progress of a check changes nothing else', () => {
  const copying = afterReport(pending, report({ state: 'Copying', copiedBytes: 5, inProgress: true }), at)
  assert.equal([copying.state, copying.copiedBytes, copying.nextAtMs], ['Copying', 5, 1000 + defaultTimings.leaseMs])
  const checking = afterReport(whole, report({ state: 'Replicated', inProgress: true }), at)
  assert.equal(checking, { ...whole, nextAtMs: 1000 + defaultTimings.leaseMs })
})

test('a loss is repaired at once, and then ever more seldom', () => {
  const waits: number[] = []
  let replica = whole
  for (let n = 0; n < 12; n++) {
    replica = afterReport(replica, report({ state: 'Missing' }), at)
    waits.push(replica.nextAtMs - at.nowMs)
  }
  assert.equal(waits.slice(0, 4), [0, 1000, 2000, 4000])
  assert.is(waits.at(-1), defaultTimings.retryMaxMs)
  assert.is(afterReport(replica, report({ state: 'Replicated', allBytesRead: true }), at).attempts, 0)
})

test('a corrupt copy stays that until a good one is in its place', () => {
  const corrupt = afterReport(whole, report({ state: 'Corrupt', message: 'flipped' }), at)
  assert.is(afterReport(corrupt, report({ state: 'Pending', message: 'no source' }), at).state, 'Corrupt')
})

test.run()
