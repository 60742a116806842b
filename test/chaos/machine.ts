/** A machine, as far as fetching one artifact goes: the agent's own fetch, and the swarm on a real disk. */
import { readFile } from 'node:fs/promises'
import { Socket } from 'node:net'
import { join } from 'node:path'
import { ReleaseFetch } from '../../agent/fetch.ts'
import { Release } from '../../agent/releases.ts'
import { announceAnswer } from '../../api/fleetApi.ts'
import { ApiClient } from '../../runtime/apiClient.ts'
import { systemClock as clock } from '../../runtime/clock.ts'
import { createLogger } from '../../runtime/log.ts'
import { SwarmNode } from '../../swarm/node.ts'
import { STANDARD_BLOCK_BYTES } from '../../swarm/request.ts'
import type { CrowdFiles } from './crowd.ts'

const { CHAOS_NAME: name = '', CHAOS_DIR: dir = '', CHAOS_TRACKERS: trackers = '' } = process.env
const { CHAOS_FILES: files = '', CHAOS_UPLOAD: uploadBytesPerSecond, CHAOS_CORRUPTS: corrupts = '0' } = process.env
const { artifact } = JSON.parse(await readFile(files, 'utf8')) as CrowdFiles
const log = createLogger('chaos', 'info')

/** So many of the blocks it sends are wrong, as from a machine whose memory is bad. */
if (Number(corrupts) > 0) {
  const write = Socket.prototype.write as (this: Socket, ...args: unknown[]) => boolean
  Socket.prototype.write = function (this: Socket, ...args: unknown[]) {
    const [bytes, ...rest] = args
    if (!(bytes instanceof Uint8Array) || bytes.length < STANDARD_BLOCK_BYTES || Math.random() > Number(corrupts))
      return write.apply(this, args)
    const wrong = Uint8Array.from(bytes)
    const at = Math.floor(Math.random() * wrong.length)
    wrong[at] = (wrong[at] ?? 0) ^ 1
    return write.call(this, wrong, ...rest)
  } as Socket['write']
}

const clients = trackers.split(',').map((baseUrl) => new ApiClient({ baseUrl, timeoutMs: 2000 }))
/** Of whichever replica is the tracker. */
async function ask<T>(question: (client: ApiClient) => Promise<T>): Promise<T> {
  let failure: unknown
  for (const client of clients)
    try {
      return await question(client)
    } catch (error) {
      failure = error
    }
  throw failure
}

const node = await SwarmNode.listen({
  ...{ host: '127.0.0.1', port: 0, log, uploadLimit: () => Number(uploadBytesPerSecond) },
})
new ReleaseFetch({
  ...{ namespace: 'team', node, address: '127.0.0.1', location: {}, clock, log, priority: 0 },
  release: new Release(join(dir, 'releases'), artifact),
  fleet: {
    announce: (body, signal) =>
      ask((client) => client.request('POST', `/announce/${name}`, { body, schema: announceAnswer, signal })),
    descriptor: (_namespace, _artifact, signal) => ask((client) => client.bytes('GET', '/descriptor', { signal })),
  },
  makeRoom: async () => {},
  onChange: () => {},
})
