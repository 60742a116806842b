import { createServer as createHttpServer } from 'node:http'
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net'
import { freePort } from '../parts/process.ts'

/** Bytes a region's store gave out over connections whose first request was a presigned read, and over others. */
export interface StoreCounts {
  presignedBytes: number
  otherBytes: number
}

/**
 * A TCP relay in front of each store that counts what the store gives out. It looks at the first request of a
 * connection only: agents and copying regions read by presigned URLs, each process over connections of its own, and
 * everybody else signs by header; versitygw's own access log has no sizes of reads.
 */
export class StoreMeter implements AsyncDisposable {
  readonly #counts = new Map<string, StoreCounts>()
  readonly #servers: Server[] = []
  readonly #sockets = new Set<Socket>()

  /** Relays a new port to the store at `port` and returns the new one. */
  async relay(region: string, port: number): Promise<number> {
    const counts: StoreCounts = { presignedBytes: 0, otherBytes: 0 }
    this.#counts.set(region, counts)
    const server = createServer({ allowHalfOpen: true, noDelay: true }, (client) => {
      client.on('error', () => {})
      client.once('data', (first) => {
        client.pause()
        const kind = /^GET \S*[?&]X-Amz-Signature=/.test(first.toString('latin1')) ? 'presignedBytes' : 'otherBytes'
        // One buffer, read into again when the client has taken it: an 'data' event's new 64 KiB each cost 2.5 CPU-s/GB.
        const store = connect({
          port,
          host: '127.0.0.1',
          noDelay: true,
          allowHalfOpen: true,
          onread: {
            buffer: Buffer.allocUnsafeSlow(1 << 20),
            callback: (length, buffer) => {
              counts[kind] += length
              client.write(buffer.subarray(0, length), () => store.resume())
              return false
            },
          },
        })
        store.write(first)
        client.pipe(store)
        store.once('end', () => client.end())
        this.#track(store)
        // A store that dies must look to its callers as it is: gone.
        store.once('error', () => client.resetAndDestroy())
        store.once('close', () => client.destroy())
        client.once('close', () => store.destroy())
      })
      this.#track(client)
    })
    const listening = await freePort()
    await new Promise<void>((resolve) => server.listen(listening, '127.0.0.1', resolve))
    this.#servers.push(server)
    return listening
  }

  /** Serves the counts as JSON by region; returns the URL. */
  async serve(): Promise<string> {
    const server = createHttpServer((_, response) => response.end(JSON.stringify(Object.fromEntries(this.#counts))))
    server.on('connection', (socket) => this.#track(socket))
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    this.#servers.push(server)
    return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  }

  async [Symbol.asyncDispose]() {
    const closed = this.#servers.map((server) => new Promise((resolve) => server.close(resolve)))
    for (const socket of this.#sockets) socket.destroy()
    await Promise.all(closed)
  }

  #track(socket: Socket) {
    this.#sockets.add(socket)
    socket.once('close', () => this.#sockets.delete(socket))
  }
}
