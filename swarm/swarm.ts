import { ShoalError } from '../api/errors.ts'
import { pieceSizeBytes, type Torrent } from '../api/torrent.ts'
import type { Address } from './addresses.ts'
import { BlockReader } from './blockReader.ts'
import type { PieceBuffer, PieceBuffers, PieceCache } from './buffers.ts'
import type { Clock } from './clock.ts'
import { Exchange } from './exchange.ts'
import type { FilesMode } from './files.ts'
import { LocalChunks, type LocalRelease } from './localChunks.ts'
import { LocalReader } from './localReader.ts'
import { OriginReader, type OriginSource } from './originReader.ts'
import type { Peer, PeerHost } from './peer.ts'
import { PiecePicker } from './picker.ts'
import type { RateLimit } from './rate.ts'
import type { PieceStore } from './store.ts'

const TICK_MS = 250
const SAVE_MS = 5000
/**
 * Saved sooner when so much came, and the less the less is missing: a disk that is told of 1 GiB at the end alone keeps
 * everyone waiting for it, half a second of three.
 */
const MAX_UNSAVED_BYTES = 128 << 20
const MIN_UNSAVED_BYTES = 32 << 20
const ADVANCES_MS = 1000

export interface SwarmOptions {
  torrent: Torrent
  /** The folder that the torrent's paths begin in. */
  dir: string
  /** `release` by default. */
  mode?: FilesMode
  /** Outside `dir`; without one, what is there is hashed at every start. */
  stateFile?: string
  /** The artifact's swarm key, which both ends prove before any piece is spoken of; undefined: open to anyone. */
  key: Uint8Array | undefined
  /** Where this machine is: pieces that peers of the same zone have are not taken from others. */
  zone?: string | undefined
  /** Of the swarms of a node that lack something, those with the highest begin pieces, while any come. 0 by default. */
  priority?: number
  /** 20 bytes; made up by default. */
  peerId?: Uint8Array
  origin?: OriginSource
  /** Releases on this disk: what they have of this one is not fetched. */
  local?: LocalRelease[]
  signal?: AbortSignal
  /** A piece is verified and written. */
  onHave?: (pieceIndex: number) => void
}

export interface SwarmStats {
  downloadedFromPeersBytes: number
  downloadedFromOriginBytes: number
  /** Not downloaded: releases on this disk had it. */
  takenFromLocalBytes: number
  uploadedBytes: number
  /** Came, and was of no use: wrong, or there already. */
  wastedBytes: number
  peers: number
  /** Ids and addresses of those who sent wrong bytes. */
  banned: string[]
}

/** What a swarm gets from its node. */
interface SwarmParts {
  options: SwarmOptions
  peerId: Uint8Array
  store: PieceStore
  buffers: PieceBuffers
  cache: PieceCache
  uploadLimit: RateLimit
  downloadLimit: RateLimit
  clock: Clock
  random: () => number
  log: { debug(fields: object, message: string): void; info(fields: object, message: string): void }
  listenPort: number
  dial(swarm: Swarm, address: Address): Peer
  /** Another swarm goes first. */
  yields(swarm: Swarm): boolean
  onClose(swarm: Swarm): void
}

/** One artifact among its peers: fetches what is missing, gives what it has, until disposed. */
export class Swarm implements AsyncDisposable {
  readonly infoHash: string
  readonly peerId: Uint8Array
  readonly listenPort: number
  readonly pieceCount: number
  readonly sizeBytes: number
  /** All pieces are verified, synced and protected. Rejects when the disk is full, on abort and on dispose. */
  readonly done: Promise<void>

  priority: number
  readonly #p: SwarmParts
  readonly #torrent: Torrent
  readonly #picker: PiecePicker
  readonly #blocks: BlockReader
  readonly #exchange: Exchange
  readonly #origin: OriginReader
  readonly #local: LocalChunks | undefined
  readonly #reader: LocalReader | undefined
  readonly #settle: { resolve(): void; reject(error: unknown): void }
  readonly #stopTimers: (() => void)[]
  #finishing = false
  #closing: Promise<void> | undefined

  constructor(p: SwarmParts) {
    this.#p = p
    this.#torrent = p.options.torrent
    this.infoHash = this.#torrent.infoHash
    this.priority = p.options.priority ?? 0
    this.peerId = p.peerId
    this.listenPort = p.listenPort
    this.pieceCount = this.#torrent.pieceCount
    this.sizeBytes = this.#torrent.sizeBytes
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    this.done = promise
    this.done.catch(() => {})
    this.#settle = { resolve, reject }

    this.#blocks = new BlockReader({ torrent: this.#torrent, cache: p.cache, store: p.store })
    this.#picker = new PiecePicker(this.pieceCount, p.random)
    for (let i = 0; i < this.pieceCount; i++) if (p.store.pieces.has(i)) this.#picker.gained(i)
    const shared = {
      picker: this.#picker,
      buffers: p.buffers,
      clock: p.clock,
      verify: (index: number, buffer: PieceBuffer) => p.store.verify(index, buffer),
      failed: (error: unknown) => this.#fail(error),
      yields: () => p.yields(this),
    }
    if (p.options.local && !this.#picker.had.full)
      this.#local = new LocalChunks(this.#torrent, p.options.local, (pieceIndex, error) =>
        p.log.info({ infoHash: this.infoHash, pieceIndex, err: error }, 'local release is not as described'),
      )
    this.#exchange = new Exchange({
      ...shared,
      local: this.#local,
      torrent: this.#torrent,
      key: p.options.key,
      zone: p.options.zone,
      keep: (index, buffer) => this.#keep(index, buffer, false),
      peerId: p.peerId,
      listenPort: p.listenPort,
      uploadLimit: p.uploadLimit,
      downloadLimit: p.downloadLimit,
      random: p.random,
      dial: (address) => p.dial(this, address),
      load: async (block) => {
        const loaded = await this.#blocks.read(block)
        if (!loaded) this.#lost(block.pieceIndex)
        return loaded
      },
      banned: (sender, pieceIndex) =>
        p.log.info({ infoHash: this.infoHash, peer: sender.address, pieceIndex }, 'peer banned for wrong bytes'),
      refused: (sender, pieceIndex) =>
        p.log.info(
          { infoHash: this.infoHash, peer: sender.address, pieceIndex },
          'peer passed on wrong bytes too often',
        ),
      filled: () => this.#origin.fill(),
    })
    this.#origin = new OriginReader({
      ...shared,
      pieces: this.#exchange.downloader.pieces,
      keep: (index, buffer) => this.#keep(index, buffer, true),
      limit: p.downloadLimit,
      pieceSizeBytes: (index) => pieceSizeBytes(this.#torrent, index),
      promised: () => this.#exchange.promised,
      fault: (pieceIndex, error) =>
        p.log.info({ infoHash: this.infoHash, pieceIndex, err: error }, 'origin read failed'),
    })
    if (this.#local)
      this.#reader = new LocalReader({
        ...shared,
        keep: (index, buffer) => this.#keep(index, buffer, false),
        local: this.#local,
        pieceSizeBytes: (index) => pieceSizeBytes(this.#torrent, index),
      })
    this.#stopTimers = [
      p.clock.every(TICK_MS, () => this.#exchange.tick(p.clock.nowMs())),
      p.clock.every(SAVE_MS, () => this.#save()),
    ]
    this.#origin.set(p.options.origin)
    if (this.#picker.had.full) void this.#finish()
    const { signal } = p.options
    // what could not be saved is hashed again the next time; whoever disposes hears of it
    const abort = () => void this[Symbol.asyncDispose]().catch(() => {})
    signal?.addEventListener('abort', abort, { once: true })
    this.#stopTimers.push(() => signal?.removeEventListener('abort', abort))
  }

  /** @internal What its connections stand on. */
  get host(): PeerHost {
    return this.#exchange
  }

  /** Peers to try; those known already are not added again. Call it with every announce. */
  addPeers(addresses: Address[]): void {
    this.#exchange.neighbours.add(addresses)
    this.#exchange.dialMore()
  }

  /** Offers or withdraws the bucket; withdrawing aborts reads under way. */
  setOrigin(origin: OriginSource | undefined): void {
    if (this.#closing) return
    this.#origin.set(origin)
    if (!origin) this.#exchange.endFirstCopies()
  }

  have(): { pieces: number; total: number; bytes: number } {
    const { had } = this.#picker
    const last = this.pieceCount - 1
    const short = had.has(last) ? this.#torrent.pieceLengthBytes - pieceSizeBytes(this.#torrent, last) : 0
    return { pieces: had.count, total: had.size, bytes: had.count * this.#torrent.pieceLengthBytes - short }
  }

  /** The pieces we have, as a BEP 3 bitfield. */
  bitfield(): Uint8Array {
    return this.#picker.had.bytes
  }

  get missingCount(): number {
    return this.pieceCount - this.#picker.had.count
  }

  /** Indexes of the pieces we lack. */
  missing(): number[] {
    return this.#picker.missing()
  }

  stats(): SwarmStats {
    const { downloader, uploader, neighbours } = this.#exchange
    return {
      downloadedFromPeersBytes: downloader.downloadedBytes,
      downloadedFromOriginBytes: this.#origin.downloadedBytes,
      takenFromLocalBytes: this.#local?.takenBytes ?? 0,
      uploadedBytes: uploader.uploadedBytes,
      wastedBytes: downloader.wastedBytes + this.#origin.wastedBytes,
      peers: neighbours.joined.size,
      banned: neighbours.banned,
    }
  }

  /** @internal It lacks pieces, and gets them. */
  get advances(): boolean {
    const lastMs = Math.max(this.#exchange.downloader.lastBlockMs, this.#origin.lastGainMs)
    return !this.#picker.had.full && this.#p.clock.nowMs() - lastMs < ADVANCES_MS
  }

  /** @internal A connection we dialled is over, joined or not. */
  hungUp(peer: Peer, reason: string): void {
    this.#exchange.neighbours.hungUp(peer)
    this.#p.log.debug({ infoHash: this.infoHash, peer: peer.address, reason }, 'peer left')
  }

  /** Saves what is there and leaves. */
  [Symbol.asyncDispose](): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    for (const stop of this.#stopTimers) stop()
    // #closing is set once this yields
    await Promise.resolve()
    this.#settle.reject(new ShoalError('Cancelled', 'The swarm was closed.'))
    await Promise.all([this.#exchange.close(), this.#origin.stop(), this.#reader?.stop()])
    await this.#local?.[Symbol.asyncDispose]()
    this.#blocks.forget()
    this.#p.onClose(this)
    await this.#p.store[Symbol.asyncDispose]()
  }

  /** A verified piece: to disk, then to everyone's knowledge. */
  async #keep(index: number, buffer: PieceBuffer, fromOrigin: boolean): Promise<void> {
    await this.#p.store.write(index, buffer)
    if (!this.#closing && this.#exchange.neighbours.lackSomething) this.#blocks.keep(index, buffer)
    const missingBytes = this.missingCount * this.#torrent.pieceLengthBytes
    const most = Math.max(MIN_UNSAVED_BYTES, Math.min(MAX_UNSAVED_BYTES, missingBytes))
    if (this.#p.store.unsavedBytes >= most) this.#save()
    this.#origin.gained()
    this.#exchange.gained(index, fromOrigin)
    this.#p.options.onHave?.(index)
    if (!this.#picker.had.full) return
    this.#exchange.endFirstCopies()
    void this.#finish()
  }

  #save(): void {
    void this.#p.store.save().catch((error) => this.#fail(error))
  }

  async #finish(): Promise<void> {
    if (this.#finishing) return
    this.#finishing = true
    try {
      await this.#p.store.finish()
      this.#settle.resolve()
      await this.#local?.[Symbol.asyncDispose]()
    } catch (error) {
      this.#fail(error)
    }
  }

  #fail(error: unknown): void {
    this.#exchange.pause()
    this.#settle.reject(error)
    this.#p.log.info({ infoHash: this.infoHash, err: error }, 'swarm failed')
  }

  /** The disk lost a piece. */
  #lost(index: number): void {
    if (!this.#picker.had.has(index)) return
    this.#p.log.info({ infoHash: this.infoHash, pieceIndex: index }, 'piece changed on disk')
    this.#finishing = false
    this.#exchange.lost(index)
  }
}
