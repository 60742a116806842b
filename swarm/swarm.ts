import { ShoalError } from '../api/errors.ts'
import { pieceSizeBytes, type Torrent } from '../api/torrent.ts'
import type { ActivePiece } from './activePiece.ts'
import type { Address } from './addresses.ts'
import { Bitfield } from './bitfield.ts'
import type { PieceBuffer, PieceBuffers, PieceCache } from './buffers.ts'
import { chooseUnchoked } from './choker.ts'
import type { Clock } from './clock.ts'
import { Downloader, type Sender } from './downloader.ts'
import type { FilesMode } from './files.ts'
import { Neighbours } from './neighbours.ts'
import { OriginReader, type OriginSource } from './originReader.ts'
import type { Peer, PeerHost } from './peer.ts'
import { PiecePicker } from './picker.ts'
import type { RateLimit } from './rate.ts'
import { Spread } from './spread.ts'
import type { PieceStore } from './store.ts'
import { Uploader } from './uploader.ts'
import { encodeMessage, encodeNumbers, messageId, WireError } from './wire.ts'

const UPLOAD_SLOTS = 24
const TURN_MS = 10_000
const TICK_MS = 250
const SAVE_MS = 5000

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
  /** 20 bytes; made up by default. */
  peerId?: Uint8Array
  origin?: OriginSource
  signal?: AbortSignal
  /** A piece is verified and written. */
  onHave?: (pieceIndex: number) => void
}

export interface SwarmStats {
  downloadedFromPeersBytes: number
  downloadedFromOriginBytes: number
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
  onClose(swarm: Swarm): void
}

/** One artifact among its peers: fetches what is missing, gives what it has, until disposed. */
export class Swarm implements AsyncDisposable, PeerHost {
  readonly infoHash: string
  readonly peerId: Uint8Array
  readonly key: Uint8Array | undefined
  readonly pieceCount: number
  readonly sizeBytes: number
  readonly listenPort: number
  /** All pieces are verified, synced and protected. Rejects when the disk is full, on abort and on dispose. */
  readonly done: Promise<void>

  readonly #p: SwarmParts
  readonly #torrent: Torrent
  readonly #neighbours: Neighbours
  readonly #picker: PiecePicker
  readonly #downloader: Downloader
  readonly #uploader: Uploader
  /** Of one who had everything from the start, until everything is at others. */
  readonly #spread: Spread<Peer> | undefined
  readonly #origin: OriginReader
  readonly #settle: { resolve(): void; reject(error: unknown): void }
  readonly #stopTimers: (() => void)[]
  #finishing = false
  #failed = false
  #closing: Promise<void> | undefined

  constructor(p: SwarmParts) {
    this.#p = p
    this.#torrent = p.options.torrent
    this.infoHash = this.#torrent.infoHash
    this.peerId = p.peerId
    this.key = p.options.key
    this.pieceCount = this.#torrent.pieceCount
    this.sizeBytes = this.#torrent.sizeBytes
    this.listenPort = p.listenPort
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    this.done = promise
    this.done.catch(() => {})
    this.#settle = { resolve, reject }

    this.#neighbours = new Neighbours({
      ownId: p.peerId,
      random: p.random,
      clock: p.clock,
      dial: (address) => p.dial(this, address),
    })
    this.#picker = new PiecePicker(this.pieceCount, p.random)
    for (let i = 0; i < this.pieceCount; i++) if (p.store.pieces.has(i)) this.#picker.gained(i)
    const verify = (index: number, buffer: PieceBuffer) => p.store.verify(index, buffer)
    const keep = (index: number, buffer: PieceBuffer) => this.#keep(index, buffer)
    const failed = (error: unknown) => this.#fail(error)
    const sizeOf = (index: number) => (index < this.pieceCount ? pieceSizeBytes(this.#torrent, index) : 0)
    this.#downloader = new Downloader({
      torrent: this.#torrent,
      picker: this.#picker,
      buffers: p.buffers,
      limit: p.downloadLimit,
      peers: () => this.#neighbours.joined,
      verify,
      keep,
      failed,
      ban: (sender, pieceIndex) => this.#ban(sender, pieceIndex),
      passOn: (piece) => this.#passOn(piece),
      progressed: (piece) => this.#uploader.progressed(piece),
      dropped: (piece) => this.#uploader.dropped(piece),
      refill: () => this.#fillAll(),
    })
    this.#uploader = new Uploader({
      buffers: p.buffers,
      limit: p.uploadLimit,
      pieceSizeBytes: sizeOf,
      nowMs: p.clock.nowMs(),
      has: (index) => this.#picker.had.has(index),
      passedOn: (index) => this.#downloader.passedOn(index),
      sentWhole: (peer, index) => {
        if (!this.#spread || peer.isAgent) return
        this.#spread.arrived(peer, index)
        this.#offer(peer)
      },
      load: (index) => this.#load(index),
    })
    this.#origin = new OriginReader({
      picker: this.#picker,
      buffers: p.buffers,
      downloader: this.#downloader,
      limit: p.downloadLimit,
      clock: p.clock,
      pieceSizeBytes: sizeOf,
      verify,
      keep,
      failed,
      promised: () => [...this.#neighbours.joined].some((peer) => peer.spreads),
      fault: (pieceIndex, error) =>
        p.log.info({ infoHash: this.infoHash, pieceIndex, err: error }, 'origin read failed'),
    })
    this.#stopTimers = [
      p.clock.every(TICK_MS, () => this.#tick()),
      p.clock.every(SAVE_MS, () => void p.store.save().catch(failed)),
    ]
    if (this.#picker.had.full)
      this.#spread = new Spread<Peer>({
        pieceCount: this.pieceCount,
        random: p.random,
        isWithPeers: (index) => [...this.#neighbours.joined].some((peer) => peer.has.has(index)),
        has: (peer, index) => peer.has.has(index),
        tell: (peer, index) => peer.write(encodeNumbers(messageId.have, index)),
      })
    this.#origin.set(p.options.origin)
    if (this.#picker.had.full) void this.#finish()
    const { signal } = p.options
    // what could not be saved is hashed again the next time; whoever disposes hears of it
    const abort = () => void this[Symbol.asyncDispose]().catch(() => {})
    signal?.addEventListener('abort', abort, { once: true })
    this.#stopTimers.push(() => signal?.removeEventListener('abort', abort))
  }

  /** Peers to try; those known already are not added again. Call it with every announce. */
  addPeers(addresses: Address[]): void {
    this.#neighbours.add(addresses)
    this.#dialMore()
  }

  /** Offers or withdraws the bucket; withdrawing aborts reads under way. */
  setOrigin(origin: OriginSource | undefined): void {
    if (!this.#closing) this.#origin.set(origin)
  }

  /** @internal */
  get spreads(): boolean {
    return this.#spread?.over === false
  }

  have(): { pieces: number; total: number; bytes: number } {
    const { had } = this.#picker
    const last = this.pieceCount - 1
    const short = had.has(last) ? this.#torrent.pieceLengthBytes - pieceSizeBytes(this.#torrent, last) : 0
    return { pieces: had.count, total: had.size, bytes: had.count * this.#torrent.pieceLengthBytes - short }
  }

  get missingCount(): number {
    return this.pieceCount - this.#picker.had.count
  }

  /** Indexes of the pieces we lack. */
  missing(): number[] {
    return this.#picker.missing()
  }

  stats(): SwarmStats {
    return {
      downloadedFromPeersBytes: this.#downloader.downloadedBytes,
      downloadedFromOriginBytes: this.#origin.downloadedBytes,
      uploadedBytes: this.#uploader.uploadedBytes,
      wastedBytes: this.#downloader.wastedBytes + this.#origin.wastedBytes,
      peers: this.#neighbours.joined.size,
      banned: this.#neighbours.banned,
    }
  }

  /** @internal */
  joined(peer: Peer): boolean {
    if (this.#closing || !this.#neighbours.admit(peer)) return false
    const { had } = this.#picker
    if (this.#spread && this.spreads) {
      if (peer.fast) peer.write(encodeMessage(messageId.haveNone))
      this.#spread.joined(peer)
      // who has pieces says so first
      this.#p.clock.after(0, () => this.#offer(peer))
    } else if (peer.fast && had.full) peer.write(encodeMessage(messageId.haveAll))
    else if (peer.fast && had.count === 0) peer.write(encodeMessage(messageId.haveNone))
    else if (had.count > 0) peer.write(encodeMessage(messageId.bitfield, had.bytes))
    return true
  }

  /** @internal */
  left(peer: Peer): void {
    this.#neighbours.left(peer)
    this.#picker.peerLeft(peer.has)
    this.#picker.peerLeft(peer.begun)
    this.#downloader.release(peer)
    this.#uploader.drop(peer)
    this.#spread?.left(peer)
    if (this.#closing) return
    this.#rechoke()
    this.#fillAll()
  }

  /** @internal A connection we dialled is over, joined or not. */
  hungUp(peer: Peer, reason: string): void {
    this.#neighbours.hungUp(peer)
    this.#p.log.debug({ infoHash: this.infoHash, peer: peer.address, reason }, 'peer left')
  }

  /** @internal */
  message(peer: Peer, id: number, payload: Buffer): void {
    const numbers = () => {
      if (payload.length !== 12) throw new WireError(`message ${id} of ${payload.length} bytes`)
      return { pieceIndex: payload.readUInt32BE(0), begin: payload.readUInt32BE(4), sizeBytes: payload.readUInt32BE(8) }
    }
    switch (id) {
      case messageId.choke:
        peer.peerChoking = true
        // with BEP 6 what it drops it rejects, one by one, and the rest still comes
        if (!peer.fast) this.#downloader.release(peer)
        this.#fillAll()
        break
      case messageId.unchoke:
        peer.peerChoking = false
        this.#downloader.fill(peer, this.#p.clock.nowMs())
        break
      case messageId.interested:
      case messageId.notInterested:
        peer.interested = id === messageId.interested
        peer.waitingSinceMs = this.#p.clock.nowMs()
        this.#rechoke()
        break
      case messageId.have: {
        const index = payload.length === 4 ? payload.readUInt32BE(0) : this.pieceCount
        if (index >= this.pieceCount) throw new WireError('has a piece that does not exist')
        this.#peerHas(peer, index)
        this.#offer(peer)
        this.#peerHasMore(peer)
        break
      }
      case messageId.bitfield:
      case messageId.haveAll:
        this.#setPieces(peer, id === messageId.bitfield ? payload : undefined)
        break
      case messageId.request:
        this.#uploader.request(peer, numbers())
        break
      case messageId.cancel:
        this.#uploader.cancel(peer, numbers())
        break
      case messageId.reject: {
        const { pieceIndex, begin } = numbers()
        const ours = this.#downloader.rejected(peer, pieceIndex, begin)
        // it has not got that piece, whatever it said
        const not = ours && !peer.peerChoking && (peer.has.remove(pieceIndex) || peer.begun.remove(pieceIndex))
        if (not) this.#withdrawn(peer, pieceIndex)
        this.#fillAll()
        break
      }
    }
  }

  /** @internal */
  begun(peer: Peer, pieceIndex: number): void {
    if (pieceIndex >= this.pieceCount) throw new WireError('began a piece that does not exist')
    if (peer.has.has(pieceIndex) || !peer.begun.add(pieceIndex)) return
    this.#offered(peer, pieceIndex)
    this.#peerHasMore(peer)
  }

  /** @internal */
  greeted(peer: Peer): void {
    for (const piece of this.#downloader.allPassedOn()) this.#tellBegun(peer, piece)
  }

  /** @internal */
  blockTarget(peer: Peer, pieceIndex: number, begin: number, sizeBytes: number): Uint8Array | undefined {
    return this.#downloader.target(peer, pieceIndex, begin, sizeBytes)
  }

  /** @internal */
  blockEnd(peer: Peer, pieceIndex: number, begin: number, sizeBytes: number, kept: boolean): void {
    this.#downloader.received(peer, { pieceIndex, begin, sizeBytes, kept }, this.#p.clock.nowMs())
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
    this.#neighbours.close('we leave')
    this.#settle.reject(new ShoalError('Cancelled', 'The swarm was closed.'))
    await Promise.all([this.#origin.stop(), this.#downloader.stop()])
    this.#p.cache.forget(this.infoHash)
    this.#p.onClose(this)
    await this.#p.store[Symbol.asyncDispose]()
  }

  /** Its bitfield; aria2 sends another one instead of many a `have`. */
  #setPieces(peer: Peer, bits: Buffer | undefined): void {
    const pieces = bits ? Bitfield.parse(this.pieceCount, bits) : new Bitfield(this.pieceCount)
    if (!pieces) throw new WireError('a malformed bitfield')
    if (!bits) pieces.addAll()
    for (let i = 0; i < this.pieceCount; i++) if (pieces.has(i)) this.#peerHas(peer, i)
    this.#peerHasMore(peer)
  }

  #peerHas(peer: Peer, index: number): void {
    if (!peer.has.add(index)) return
    peer.nothingAt = undefined
    if (!peer.begun.remove(index)) this.#offered(peer, index)
    this.#spread?.gained(peer, index)
  }

  /** It offers one piece more. */
  #offered(peer: Peer, index: number): void {
    this.#picker.peerHas(index)
    peer.nothingAt = undefined
    if (!this.#picker.had.has(index)) peer.wanted++
  }

  #withdrawn(peer: Peer, index: number): void {
    this.#picker.peerLacks(index)
    if (!this.#picker.had.has(index)) peer.wanted--
  }

  #passOn(piece: ActivePiece): void {
    for (const peer of this.#neighbours.joined) this.#tellBegun(peer, piece)
  }

  #tellBegun(peer: Peer, piece: ActivePiece): void {
    if (piece.owner !== peer && !peer.offers(piece.index)) peer.tellBegun(piece.index)
  }

  /** Tells it of pieces that it may have from us. */
  #offer(peer: Peer): void {
    if (!this.#closing) this.#spread?.offer(peer, this.#uploader.spare)
  }

  #peerHasMore(peer: Peer): void {
    if (peer.has.full && this.#picker.had.full) peer.close('both complete')
    else if (!peer.amInterested && peer.wanted > 0) {
      peer.amInterested = true
      peer.write(encodeMessage(messageId.interested))
    } else this.#downloader.fill(peer, this.#p.clock.nowMs())
  }

  /** A verified piece: to disk, then to everyone's knowledge. */
  async #keep(index: number, buffer: PieceBuffer): Promise<void> {
    await this.#p.store.write(index, buffer)
    if (!this.#closing) this.#p.cache.put(this.#cacheKey(index), buffer)
    this.#picker.gained(index)
    this.#origin.gained()
    const have = encodeNumbers(messageId.have, index)
    for (const peer of [...this.#neighbours.joined]) {
      // also who gave it to us: it learns how far its pieces have spread
      if (!peer.has.full) peer.write(have)
      if (!peer.offers(index)) continue
      peer.wanted--
      if (this.#picker.had.full && peer.has.full) peer.close('both complete')
      else if (peer.wanted === 0) {
        peer.amInterested = false
        peer.write(encodeMessage(messageId.notInterested))
      }
    }
    this.#p.options.onHave?.(index)
    if (this.#picker.had.full) void this.#finish()
  }

  async #finish(): Promise<void> {
    if (this.#finishing) return
    this.#finishing = true
    try {
      await this.#p.store.finish()
      this.#settle.resolve()
    } catch (error) {
      this.#fail(error)
    }
  }

  #fail(error: unknown): void {
    this.#failed = true
    this.#settle.reject(error)
    this.#p.log.info({ infoHash: this.infoHash, err: error }, 'swarm failed')
  }

  /** A piece for uploading: from memory, or from disk once for all who ask. */
  async #load(index: number): Promise<PieceBuffer | undefined> {
    try {
      return await this.#p.cache.get(this.#cacheKey(index), async () => {
        const buffer = await this.#p.store.read(index)
        if (buffer) return buffer
        throw new ShoalError('ChecksumMismatch', `Piece ${index} changed on disk.`)
      })
    } catch (error) {
      if (!(error instanceof ShoalError && error.code === 'ChecksumMismatch')) throw error
      this.#lost(index)
      return undefined
    }
  }

  /** The disk lost a piece: fetch it again. */
  #lost(index: number): void {
    if (!this.#picker.had.has(index)) return
    this.#p.log.info({ infoHash: this.infoHash, pieceIndex: index }, 'piece changed on disk')
    this.#picker.lost(index)
    this.#spread?.abandon()
    this.#finishing = false
    for (const peer of [...this.#neighbours.joined]) {
      if (!peer.offers(index)) continue
      peer.wanted++
      this.#peerHasMore(peer)
    }
  }

  #ban(sender: Sender, pieceIndex: number): void {
    this.#p.log.info({ infoHash: this.infoHash, peer: sender.address, pieceIndex }, 'peer banned for wrong bytes')
    this.#neighbours.ban(sender)
  }

  #tick(): void {
    const nowMs = this.#p.clock.nowMs()
    this.#downloader.tick([...this.#neighbours.joined], nowMs)
    this.#uploader.tick(nowMs)
    for (const peer of this.#neighbours.joined) this.#offer(peer)
    this.#rechoke()
    this.#dialMore()
    this.#fillAll()
  }

  #fillAll(): void {
    if (this.#closing || this.#failed) return
    const nowMs = this.#p.clock.nowMs()
    // those with little to offer first: what only the seeds have is left to the seeds
    for (const peer of [...this.#neighbours.joined].sort((a, b) => a.has.count - b.has.count))
      this.#downloader.fill(peer, nowMs)
    this.#origin.fill()
  }

  #rechoke(): void {
    const nowMs = this.#p.clock.nowMs()
    const chosen = chooseUnchoked([...this.#neighbours.joined], { slots: UPLOAD_SLOTS, turnMs: TURN_MS, nowMs })
    for (const peer of this.#neighbours.joined) {
      const unchoked = peer.unchokedSinceMs !== undefined
      if (chosen.has(peer) === unchoked) continue
      peer.unchokedSinceMs = unchoked ? undefined : nowMs
      peer.waitingSinceMs = nowMs
      peer.write(encodeMessage(unchoked ? messageId.choke : messageId.unchoke))
      if (unchoked) this.#uploader.drop(peer)
    }
  }

  /** Who has all waits to be dialled. */
  #dialMore(): void {
    if (!this.#closing && !this.#failed && !this.#picker.had.full) this.#neighbours.dialMore()
  }

  #cacheKey(index: number): string {
    return `${this.infoHash}/${index}`
  }
}
