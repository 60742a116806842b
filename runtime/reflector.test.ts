import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { z } from 'zod'
import { startApiServer } from '../hack/parts/apiServer.ts'
import { FaultyProxy } from '../hack/parts/faultyProxy.ts'
import { until } from '../hack/parts/process.ts'
import { Cluster } from './cluster.ts'
import { core } from './core.ts'
import { createLogger } from './log.ts'
import { Metrics } from './metrics.ts'
import { Reflector, type ReflectorOptions } from './reflector.ts'

const test = suite('reflector')
const api = await startApiServer({ own: true })
const admin = Cluster.load({ kubeconfig: api.kubeconfigFile })
const log = createLogger('test', 'silent')
const schema = z.looseObject({
  metadata: z.looseObject({ name: z.string(), namespace: z.string(), resourceVersion: z.string() }),
  data: z.record(z.string(), z.string()).optional(),
})
type ConfigMap = z.infer<typeof schema>

let namespaces = 0

/** A namespace of its own, a proxy and a running reflector; stops them. */
async function start(options: Partial<ReflectorOptions<ConfigMap>> & { objects?: number } = {}) {
  const namespace = `reflector-${++namespaces}`
  await api.createNamespace(namespace)
  const set = (name: string, value: string) =>
    admin.apply(core.ConfigMap, { metadata: { namespace, name }, data: { value } } as never, { fieldManager: 'test' })
  const remove = (name: string) => admin.delete(core.ConfigMap, namespace, name)
  for (let i = 0; i < (options.objects ?? 0); i++) await set(`object-${i}`, '0')
  const proxy = await FaultyProxy.start(api)
  const cluster = Cluster.load({ kubeconfig: proxy.kubeconfigFile })
  const metrics = new Metrics()
  const reflector = new Reflector<ConfigMap>({
    cluster,
    resource: core.ConfigMap,
    selection: { namespace },
    parse: (object) => schema.parse(object),
    log,
    metrics,
    ...options,
  })
  const changes: string[] = []
  reflector.onChange((key, object, previous) => {
    const name = key.split('/')[1]
    changes.push(`${name} ${previous?.data?.value ?? 'none'}→${object?.data?.value ?? 'none'}`)
  })
  const stop = new AbortController()
  const running = reflector.run(stop.signal)
  const value = (name: string) => reflector.get(`${namespace}/${name}`)?.data?.value
  return {
    namespace,
    proxy,
    reflector,
    changes,
    metrics,
    set,
    remove,
    value,
    lists: () => proxy.requests.filter((line) => !line.includes('watch=true')).length,
    watching: () => until('it watches', () => proxy.watches > 0),
    async [Symbol.asyncDispose]() {
      stop.abort()
      await running
      await cluster[Symbol.asyncDispose]()
      await proxy[Symbol.asyncDispose]()
    },
  }
}

test('lists by pages, then follows changes in order', async () => {
  await using at = await start({ objects: 50, selection: { namespace: `reflector-${namespaces + 1}`, limit: 10 } })
  await at.reflector.synced()
  assert.is(at.reflector.list().length, 50)
  assert.is(at.proxy.count('GET'), 5)
  await at.watching()
  at.changes.length = 0
  await at.set('object-1', '1')
  await at.set('object-1', '2')
  await at.set('new', '1')
  await at.remove('object-1')
  await until('four changes', () => at.changes.length === 4)
  assert.equal(at.changes, ['object-1 0→1', 'object-1 1→2', 'new none→1', 'object-1 2→none'])
  assert.is(at.reflector.list().length, 50)
})

test('a handler added late is told what is here, and one that throws harms nobody', async () => {
  await using at = await start({ objects: 2 })
  await at.reflector.synced()
  at.reflector.onChange(() => {
    throw new Error('a bug')
  })
  at.reflector.onChange(async () => {
    throw new Error('a bug that comes later')
  })
  const late: string[] = []
  at.reflector.onChange((key) => late.push(key))
  assert.is(late.length, 2)
  await at.set('object-0', '1')
  await until('the change', () => late.length === 3)
})

test('a reset in the middle of a watch is resumed from the last version, without a list', async () => {
  await using at = await start({ objects: 1 })
  await at.watching()
  const lists = at.lists()
  await at.set('object-0', '1')
  await until('it is seen', () => at.value('object-0') === '1')
  for (let i = 2; i < 5; i++) {
    at.proxy.resetWatches()
    await at.set('object-0', String(i))
    await until('it is seen', () => at.value('object-0') === String(i))
  }
  assert.is(at.lists(), lists)
  assert.equal(at.changes.slice(1), ['object-0 0→1', 'object-0 1→2', 'object-0 2→3', 'object-0 3→4'])
})

test('a burst of clean ends loses no event and does not become a storm of requests', async () => {
  await using at = await start({ objects: 1 })
  await at.watching()
  const before = at.proxy.count('GET')
  const fromMs = performance.now()
  const storm = setInterval(() => at.proxy.endWatches(), 10)
  for (let i = 1; i <= 20; i++) await at.set(`object-${i}`, '1')
  await until('all are seen', () => at.reflector.list().length === 21)
  // long enough that one request more or less says nothing
  await until('a second is over', () => performance.now() > fromMs + 1000)
  clearInterval(storm)
  assert.is(at.changes.length, 21)
  const perSecond = (at.proxy.count('GET') - before) / ((performance.now() - fromMs) / 1000)
  assert.ok(perSecond < 40, `${perSecond} requests a second`)
})

test('after 410 Gone everything is listed again, and what was deleted meanwhile is gone', async () => {
  await using at = await start({ objects: 3 })
  await at.watching()
  at.proxy.silent = true
  await at.remove('object-1')
  await at.set('object-2', '1')
  at.proxy.refuse = (line) => (line.includes('watch=true') ? { status: 500 } : undefined)
  at.proxy.inject(
    JSON.stringify({ type: 'ERROR', object: { kind: 'Status', code: 410, reason: 'Expired', message: 'too old' } }),
  )
  await until('the deletion is found', () => at.reflector.list().length === 2)
  assert.is(at.value('object-2'), '1')
  assert.ok(at.changes.includes('object-1 0→none'))
  at.proxy.silent = false
  at.proxy.refuse = () => undefined
  await at.set('object-0', '1')
  await until('it follows again', () => at.value('object-0') === '1')
})

test('a watch that fell silent is given up', async () => {
  await using at = await start({ objects: 1, silenceMs: 200 })
  await at.watching()
  at.proxy.silent = true
  await at.set('object-0', '1')
  await until('it asks again', () => at.proxy.requests.filter((line) => line.includes('watch=true')).length > 1)
  at.proxy.silent = false
  await until('it is seen', () => at.value('object-0') === '1')
})

test('garbage, and lines cut off, change nothing', async () => {
  await using at = await start({ objects: 1 })
  for (const line of [
    '<html>',
    '{"type":"ADDED"}',
    '{"type":"ADDED","object":{}}',
    'null',
    '{"type":"MODIFIED","object":{"meta',
  ]) {
    await at.watching()
    at.proxy.inject(line)
    at.proxy.resetWatches()
    await until('it is let go', () => at.proxy.watches === 0 || at.proxy.requests.length > 0)
  }
  await at.set('object-0', '1')
  await until('it is seen', () => at.value('object-0') === '1')
  assert.is(at.reflector.list().length, 1)
})

test('a list that is refused by a busy server is asked for again, as late as the server says', async () => {
  await using at = await start({ objects: 1 })
  await at.watching()
  let refusals = 0
  at.proxy.refuse = (line) =>
    line.includes('watch=true') || ++refusals > 2
      ? undefined
      : { status: 429, retryAfter: 1, body: 'storage is (re)initializing' }
  await using cluster = Cluster.load({ kubeconfig: at.proxy.kubeconfigFile })
  const from = performance.now()
  const { items } = await cluster.list(core.ConfigMap, { namespace: at.namespace })
  const tookMs = performance.now() - from
  assert.is(items.length, 1)
  assert.ok(tookMs > 1900 && tookMs < 5000, `took ${tookMs} ms`)
})

test('a deletion missed with its event is found by the relist', async () => {
  await using at = await start({ objects: 2, relistMs: 300, silenceMs: 200 })
  await at.watching()
  at.proxy.silent = true
  await at.remove('object-0')
  await until('the deletion is found', () => at.reflector.list().length === 1)
})

test('an object that does not parse is left out and reported, and what was known of it stays', async () => {
  const invalid: string[] = []
  await using at = await start({
    objects: 1,
    parse: (object) => {
      const parsed = schema.parse(object)
      if (parsed.data?.value === 'bad') throw new Error('bad')
      return parsed
    },
    onInvalid: (key) => {
      invalid.push(key)
      throw new Error('a bug')
    },
  })
  await at.watching()
  await at.set('object-0', 'bad')
  await at.set('object-1', 'bad')
  await until('both are reported', () => invalid.length === 2)
  assert.is(at.value('object-0'), '0')
  assert.is(at.value('object-1'), undefined)
  await at.set('object-1', 'good')
  await until('it is taken in', () => at.value('object-1') === 'good')
})

test('a version the server never had ends in a list', async () => {
  await using at = await start({ objects: 1, random: () => 0 })
  await at.watching()
  const future = { type: 'BOOKMARK', object: { kind: 'ConfigMap', metadata: { resourceVersion: '999999999' } } }
  at.proxy.refuse = (line) =>
    line.includes('resourceVersion=999999999') ? { status: 504, body: '{"reason":"Timeout"}' } : undefined
  at.proxy.inject(JSON.stringify(future))
  const lists = at.lists()
  await new Promise((resolve) => setTimeout(resolve, 50))
  at.proxy.resetWatches()
  await until('it lists', () => at.lists() > lists, { timeoutMs: 15_000 })
  await at.set('object-0', '1')
  await until('it is seen', () => at.value('object-0') === '1', { timeoutMs: 15_000 })
})

test('what was written is seen at once, and not taken back by events of what was before', async () => {
  await using at = await start({ objects: 1 })
  await at.reflector.synced()
  await at.watching()
  at.proxy.silent = true
  const earlier = await at.set('object-0', '1')
  at.reflector.remember(await at.set('object-0', '2'))
  assert.is(at.value('object-0'), '2')
  at.changes.length = 0
  at.proxy.silent = false
  at.proxy.inject(JSON.stringify({ type: 'MODIFIED', object: earlier }))
  at.proxy.inject(JSON.stringify({ type: 'DELETED', object: earlier }))
  await at.set('object-0', '3')
  await until('the last change', () => at.value('object-0') === '3')
  assert.equal(at.changes, ['object-0 2→3'])
  at.reflector.remember(await at.set('none', '1'))
  await until('what is new comes by the watch', () => at.value('none') === '1')
})

test('stopping before the first list tells who waits for it', async () => {
  const cluster = Cluster.load({ kubeconfig: api.kubeconfigFile })
  const reflector = new Reflector<ConfigMap>({
    cluster,
    resource: core.ConfigMap,
    parse: (object) => schema.parse(object),
    log,
  })
  const stop = new AbortController()
  stop.abort(new Error('stopped'))
  await reflector.run(stop.signal)
  const error = await reflector.synced().catch((thrown: unknown) => thrown)
  assert.is((error as Error).message, 'stopped')
  await cluster[Symbol.asyncDispose]()
})

test('an API server that is killed and started again is followed on, with what changed meanwhile', async () => {
  await using at = await start({ objects: 2 })
  await at.watching()
  await api.kill()
  await api.start()
  await at.remove('object-0')
  await at.set('object-1', '1')
  await until('both are seen', () => at.value('object-1') === '1' && at.value('object-0') === undefined, {
    timeoutMs: 20_000,
  })
  assert.match(
    await at.metrics.registry.metrics(),
    /shoal_reflector_total\{resource="configmaps",what="broken"\} [1-9]/,
  )
})

test.after(async () => {
  await admin[Symbol.asyncDispose]()
  await api[Symbol.asyncDispose]()
})

test.run()
