/** For tests: a peer made by hand on a socket, which says and does what the test wants. */
import { randomBytes } from 'node:crypto'
import { connect, createServer, type Server, type Socket } from 'node:net'
import type { Address } from './addresses.ts'
import { encodeBlockHeader, encodeHandshake, encodeMessage, type Handshake, messageId, WireDecoder } from './wire.ts'

export interface RawRequest {
  pieceIndex: number
  begin: number
  sizeBytes: number
}

export interface RawBehaviour {
  infoHash: string
  onJoin?(peer: RawPeer): void
  onRequest?(peer: RawPeer, request: RawRequest): void
}

export class RawPeer {
  readonly socket: Socket
  readonly peerId: Uint8Array
  readonly messages: { id: number; payload: Buffer }[] = []
  handshake: Handshake | undefined
  closed = false

  constructor(socket: Socket, behaviour: RawBehaviour, o: { peerId?: Uint8Array; greet?: boolean } = {}) {
    this.socket = socket
    this.peerId = o.peerId ?? randomBytes(20)
    const decoder = new WireDecoder({
      handshake: (handshake) => {
        this.handshake = handshake
        decoder.maxBlockBytes = 1 << 20
        if (o.greet !== false) this.greet(behaviour.infoHash)
        behaviour.onJoin?.(this)
      },
      message: (id, payload) => {
        this.messages.push({ id, payload: Buffer.from(payload) })
        if (id !== messageId.request) return
        const [pieceIndex, begin, sizeBytes] = [
          payload.readUInt32BE(0),
          payload.readUInt32BE(4),
          payload.readUInt32BE(8),
        ]
        behaviour.onRequest?.(this, { pieceIndex, begin, sizeBytes })
      },
      blockTarget: () => undefined,
      blockEnd: () => {},
    })
    socket.on('data', (chunk: Buffer) => decoder.push(chunk))
    socket.on('error', () => {})
    socket.on('close', () => {
      this.closed = true
    })
  }

  greet(infoHash: string): void {
    this.socket.write(encodeHandshake(infoHash, this.peerId))
  }

  send(id: number, payload?: Uint8Array): void {
    this.socket.write(encodeMessage(id, payload))
  }

  sendBlock(request: RawRequest, bytes: Uint8Array): void {
    this.socket.write(encodeBlockHeader(request.pieceIndex, request.begin, bytes.length))
    this.socket.write(bytes)
  }

  /** Dials, and greets at once. */
  static dial(address: Address, behaviour: RawBehaviour, peerId?: Uint8Array): RawPeer {
    const peer = new RawPeer(connect(address.port, address.host), behaviour, {
      greet: false,
      ...(peerId ? { peerId } : {}),
    })
    peer.greet(behaviour.infoHash)
    return peer
  }
}

/** Listens; every connection is a raw peer with the same id. */
export class RawListener implements AsyncDisposable {
  readonly peerId = randomBytes(20)
  readonly peers: RawPeer[] = []
  readonly address: Address
  readonly #server: Server

  private constructor(server: Server, behaviour: RawBehaviour) {
    this.#server = server
    const address = server.address()
    this.address = { host: '127.0.0.1', port: typeof address === 'object' && address ? address.port : 0 }
    server.on('connection', (socket) => this.peers.push(new RawPeer(socket, behaviour, { peerId: this.peerId })))
  }

  static async listen(behaviour: RawBehaviour): Promise<RawListener> {
    const server = createServer()
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    return new RawListener(server, behaviour)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const peer of this.peers) peer.socket.destroy()
    await new Promise((resolve) => this.#server.close(resolve))
  }
}
