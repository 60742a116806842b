/** As much of webtorrent as the tests use; it has no types of its own. */
declare module 'webtorrent' {
  import type { EventEmitter } from 'node:events'

  interface Torrent extends EventEmitter {
    readonly done: boolean
    addPeer(address: string): boolean
  }
  export default class WebTorrent extends EventEmitter {
    constructor(options: Record<string, unknown>)
    readonly torrentPort: number
    add(torrent: Uint8Array, options: { path: string; announce: string[] }): Torrent
    destroy(done: () => void): void
  }
}
