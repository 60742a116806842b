/**
 * Pieces between peers. A process has one `SwarmNode`: one listening port, one hash thread, one upload limit; each
 * artifact is a `Swarm` on it. What is on disk was verified by the SHA-256 that the descriptor gives; who sends wrong
 * bytes is found and banned. The wire is BitTorrent v1; between agents with larger blocks, a proof of the swarm's key,
 * and pieces that are passed on as they come. The tracker's table is in `tracker.ts`; `announcer.ts` and
 * `trackerServer.ts` are for swarms in the open. Used by the agent, `shoal swarm` and, for the tracker, the fleet server.
 */
import { randomBytes } from 'node:crypto'
import { connect, createServer, type Server, Socket, type SocketConstructorOpts } from 'node:net'
import { setFlagsFromString } from 'node:v8'
import { ShoalError } from '../api/errors.ts'
import { type Address, plainHost } from './addresses.ts'
import { PieceBuffers, PieceCache } from './buffers.ts'
import { type Clock, systemClock } from './clock.ts'
import { Hasher } from './hasher.ts'
import { Peer } from './peer.ts'
import { RateLimit } from './rate.ts'
import type { RateSchedule } from './rateSchedule.ts'
import { PieceStore } from './store.ts'
import { Swarm, type SwarmOptions } from './swarm.ts'

const CACHE_BYTES = 16 << 20
const SPARE_BYTES = 48 << 20
const HASH_THREADS = 1
const READ_BYTES = 256 << 10
/** What a swarm moves is garbage at once: collected at a third more than was alive, it is 15 MB less, as fast. */
const HEAP_GROWING_PERCENT = 30
/** Accepted connections that have not said yet what they want. */
const MAX_HALF_OPEN = 64
const TICK_MS = 500

/** A pino logger fits. */
export interface SwarmLog {
  debug(fields: object, message: string): void
  info(fields: object, message: string): void
  error(fields: object, message: string): void
}

interface NodeOptions {
  host: string
  /** 0 for any. */
  port: number
  log: SwarmLog
  clock?: Clock
  random?: () => number
  /** For all swarms together, by the hours of this machine's clock; no limit by default. */
  uploadLimit?: RateSchedule | undefined
  downloadLimit?: RateSchedule | undefined
}

export class SwarmNode implements AsyncDisposable {
  readonly port: number
  readonly #server: Server
  readonly #log: SwarmLog
  readonly #clock: Clock
  readonly #random: () => number
  readonly #uploadLimit: RateLimit
  readonly #downloadLimit: RateLimit
  readonly #hasher = new Hasher(HASH_THREADS)
  readonly #buffers = new PieceBuffers(SPARE_BYTES)
  readonly #cache = new PieceCache(this.#buffers, CACHE_BYTES)
  readonly #swarms = new Map<string, Swarm>()
  readonly #peers = new Set<Peer>()
  readonly #stopTimer: () => void
  #halfOpen = 0

  private constructor(server: Server, o: NodeOptions) {
    this.#server = server
    const address = server.address()
    this.port = typeof address === 'object' && address ? address.port : o.port
    this.#log = o.log
    this.#clock = o.clock ?? systemClock
    this.#random = o.random ?? Math.random
    const limit = (schedule: RateSchedule | undefined) =>
      new RateLimit(() => schedule?.(new Date().getHours()) ?? Number.POSITIVE_INFINITY, this.#clock)
    this.#uploadLimit = limit(o.uploadLimit)
    this.#downloadLimit = limit(o.downloadLimit)
    server.on('connection', (socket) => this.#accept(socket))
    server.on('error', (error) => this.#log.error({ err: error }, 'swarm port failed'))
    this.#stopTimer = this.#clock.every(TICK_MS, () => {
      for (const peer of [...this.#peers]) peer.tick(this.#clock.nowMs())
    })
  }

  static async listen(o: NodeOptions): Promise<SwarmNode> {
    setFlagsFromString(`--heap-growing-percent=${HEAP_GROWING_PERCENT}`)
    const server = createServer({ pauseOnConnect: true })
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject)
      server.listen({ host: o.host, port: o.port }, () => {
        server.off('error', reject)
        resolve()
      })
    })
    return new SwarmNode(server, o)
  }

  /**
   * Joins an artifact's swarm: creates the folder and its files, takes over what a former process left.
   * @throws as `diskErrors`; ShoalError `Conflict` when this swarm is open already.
   */
  async open(options: SwarmOptions): Promise<Swarm> {
    const { torrent, dir, mode = 'release', stateFile, signal } = options
    const { infoHash } = torrent
    if (this.#swarms.has(infoHash)) throw new ShoalError('Conflict', `The swarm ${infoHash} is open already.`)
    this.#hasher.start()
    const store = await PieceStore.open({
      torrent,
      dir,
      mode,
      stateFile,
      signal,
      hasher: this.#hasher,
      buffers: this.#buffers,
    })
    if (signal?.aborted || this.#swarms.has(infoHash)) {
      await store[Symbol.asyncDispose]()
      signal?.throwIfAborted()
      throw new ShoalError('Conflict', `The swarm ${infoHash} is open already.`)
    }
    const swarm = new Swarm({
      options,
      peerId: options.peerId ?? Buffer.concat([Buffer.from('-SH0100-'), randomBytes(12)]),
      store,
      buffers: this.#buffers,
      cache: this.#cache,
      uploadLimit: this.#uploadLimit,
      downloadLimit: this.#downloadLimit,
      clock: this.#clock,
      random: this.#random,
      log: this.#log,
      listenPort: this.port,
      dial: (from, address) => this.#dial(from, address),
      yields: (one) => this.#goesAfter(one),
      onClose: () => this.#swarms.delete(infoHash),
    })
    this.#swarms.set(infoHash, swarm)
    return swarm
  }

  /** What is needed first is not slowed by the rest; when it stands still, the rest goes on. */
  #goesAfter(one: Swarm): boolean {
    for (const other of this.#swarms.values()) if (other.priority > one.priority && other.advances) return true
    return false
  }

  /** Leaves all swarms. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopTimer()
    await Promise.all([...this.#swarms.values()].map((swarm) => swarm[Symbol.asyncDispose]()))
    for (const peer of [...this.#peers]) peer.close('we leave')
    await new Promise((resolve) => this.#server.close(resolve))
    await this.#hasher[Symbol.asyncDispose]()
  }

  #accept(accepted: Socket): void {
    if (this.#halfOpen >= MAX_HALF_OPEN) {
      accepted.destroy()
      return
    }
    this.#halfOpen++
    let open = true
    const settled = () => {
      if (open) this.#halfOpen--
      open = false
    }
    const address = { host: plainHost(accepted.remoteAddress), port: accepted.remotePort ?? 0 }
    const socket = withReadBuffer(accepted, (chunk) => {
      peer.read(chunk)
      if (peer.joined) settled()
    })
    const peer: Peer = new Peer({
      socket,
      dialled: false,
      address,
      clock: this.#clock,
      resolve: (infoHash) => this.#swarms.get(infoHash)?.host,
      onClose: (closed, reason) => {
        settled()
        this.#peers.delete(closed)
        this.#log.debug({ peer: closed.address, reason }, 'accepted peer left')
      },
    })
    this.#peers.add(peer)
  }

  #dial(swarm: Swarm, address: Address): Peer {
    const onread = readBuffer((chunk) => peer.read(chunk))
    const socket = connect({ host: address.host, port: address.port, onread })
    const peer: Peer = new Peer({
      socket,
      dialled: true,
      address: { host: address.host, port: address.port },
      clock: this.#clock,
      resolve: (infoHash) => (infoHash === swarm.infoHash ? swarm.host : undefined),
      onClose: (closed, reason) => {
        this.#peers.delete(closed)
        swarm.hungUp(closed, reason)
      },
    })
    this.#peers.add(peer)
    socket.once('connect', () => peer.greet(swarm.host))
    return peer
  }
}

/** One buffer for all reads of a connection: blocks are copied out of it into their pieces. */
function readBuffer(read: (chunk: Buffer) => void) {
  const buffer = Buffer.allocUnsafeSlow(READ_BYTES)
  const callback = (bytes: number) => {
    read(buffer.subarray(0, bytes))
    return true
  }
  return { buffer, callback }
}

/**
 * The connection of a socket that a server accepted paused, with a read buffer. Node has that option for sockets that
 * dial only, and gives the others 64 KiB of fresh memory a read, which is most of what its collector then has to do.
 */
function withReadBuffer(
  accepted: Socket & { _handle?: SocketConstructorOpts['handle'] | null },
  read: (chunk: Buffer) => void,
): Socket {
  const handle = accepted._handle
  accepted._handle = null
  const socket = new Socket({ handle: handle ?? undefined, onread: readBuffer(read) })
  // The server counts the first one.
  return socket.once('close', () => accepted.destroy())
}
