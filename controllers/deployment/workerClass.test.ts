import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { boundsOf, classLabel } from './workerClass.ts'

const test = suite('worker classes')

const deployment = (annotations?: Record<string, string>) => ({
  metadata: { name: 'large', labels: { [classLabel]: 'large' }, ...(annotations && { annotations }) },
  spec: { replicas: 1, selector: { matchLabels: {} } },
})
const at = (time: string) => Date.parse(time)
const noon = at('2026-07-01T12:00:00Z')

test('the annotations bound a class; without hours it is always on', () => {
  const of = deployment({ 'shoal.dev/min-workers': '0', 'shoal.dev/max-workers': '20' })
  assert.equal(boundsOf(of, noon), { name: 'large', min: 0, max: 20, on: true, hasHours: false })
  assert.is(boundsOf(deployment({ 'shoal.dev/max-workers': '5' }), noon).min, 1)
})

const isOn = (hours: string, time: string, timeZone?: string) =>
  boundsOf(
    deployment({
      'shoal.dev/max-workers': '2',
      'shoal.dev/hours': hours,
      ...(timeZone && { 'shoal.dev/time-zone': timeZone }),
    }),
    at(time),
  ).on

test('hours end where they are said to, and may pass midnight', () => {
  const hours = ['05:59', '06:00', '19:59', '20:00', '23:59', '00:00']
  assert.equal(
    hours.map((hour) => isOn('20-6', `2026-07-01T${hour}:00Z`)),
    [true, false, false, true, true, true],
  )
  assert.equal(
    hours.map((hour) => isOn('6-20', `2026-07-01T${hour}:00Z`)),
    [false, true, true, false, false, false],
  )
  assert.equal(
    hours.map((hour) => isOn('20-24', `2026-07-01T${hour}:00Z`)),
    [false, false, false, true, true, false],
  )
  assert.ok(hours.every((hour) => isOn('0-24', `2026-07-01T${hour}:00Z`)))
})

test('hours are those of the time zone, summer and winter, also by half an hour', () => {
  assert.ok(isOn('8-18', '2026-07-01T06:00:00Z', 'Europe/Paris'))
  assert.not(isOn('8-18', '2026-01-01T06:00:00Z', 'Europe/Paris'))
  assert.not(isOn('8-18', '2026-01-01T02:29:00Z', 'Asia/Kolkata'))
  assert.ok(isOn('8-18', '2026-01-01T02:30:00Z', 'Asia/Kolkata'))
})

const wrong: [annotations: Record<string, string> | undefined, named: RegExp][] = [
  [undefined, /shoal.dev\/max-workers/],
  [{ 'shoal.dev/max-workers': 'many' }, /shoal.dev\/max-workers: want a whole number/],
  [{ 'shoal.dev/max-workers': '-1' }, /shoal.dev\/max-workers/],
  [{ 'shoal.dev/max-workers': '1.5' }, /shoal.dev\/max-workers/],
  [{ 'shoal.dev/max-workers': '2', 'shoal.dev/min-workers': '3' }, /shoal.dev\/min-workers: is more than/],
  [{ 'shoal.dev/max-workers': '2', 'shoal.dev/hours': '20' }, /shoal.dev\/hours: want two hours/],
  [{ 'shoal.dev/max-workers': '2', 'shoal.dev/hours': '8-25' }, /shoal.dev\/hours/],
  [{ 'shoal.dev/max-workers': '2', 'shoal.dev/hours': '8-8' }, /shoal.dev\/hours: want two hours that differ/],
  [{ 'shoal.dev/max-workers': '2', 'shoal.dev/time-zone': 'Mars/Base' }, /shoal.dev\/time-zone/],
]
for (const [annotations, named] of wrong) {
  test(`${JSON.stringify(annotations ?? 'no annotations')} is refused by name`, () => {
    assert.throws(
      () => boundsOf(deployment(annotations), noon),
      (error: Error & { code?: string }) => error.code === 'Invalid' && named.test(error.message),
    )
  })
}

test.run()
