import type { Peer } from './peer.ts'

/**
 * Requests under way to one peer: what it sends in this time, or more while it answers at once; between these bounds.
 * A full link delays an answer by 0.1 s and more; asked for less than that, a last sender of a last piece goes at a
 * fifth of its speed.
 */
const PIPELINE_SECONDS = 0.3
const PROMPT_MS = 20
const LAZY_MS = 150
const MIN_PIPELINE_BYTES = 64 << 10
const MAX_PIPELINE_BYTES = 8 << 20
/**
 * A block goes on only whole: asked of a slow peer in large ones, a piece that is passed on waits at each hop. 24 machines
 * that got a piece each from 23 others at once, at 50 Mbit/s, waited 1 s a hop with blocks of 128 KiB.
 */
const BLOCK_SECONDS = 0.05
const MIN_BLOCK_BYTES = 32 << 10
const MAX_HOP_BLOCK_BYTES = 128 << 10
/** Of a peer that answers promptly, as large as makes so many of what it is asked for at once: fewer messages. */
const BLOCKS_AT_ONCE = 16
/**
 * Without a block for so many times what one took lately, between these bounds, what it was asked for is asked of others:
 * a machine that lost its power says nothing, and holds pieces that others could give.
 */
const BLOCK_TIMEOUT_TIMES = 20
const MIN_BLOCK_TIMEOUT_MS = 2000
const MAX_BLOCK_TIMEOUT_MS = 15_000

/** How long it may owe us a block. */
export function blockTimeoutMs({ tookMs, receivedBytes }: Peer): number {
  if (receivedBytes === 0) return MAX_BLOCK_TIMEOUT_MS
  return Math.min(MAX_BLOCK_TIMEOUT_MS, Math.max(MIN_BLOCK_TIMEOUT_MS, BLOCK_TIMEOUT_TIMES * tookMs))
}

/** A power of two, no more than both understand. */
export function blockBytesOf(peer: Pick<Peer, 'blockBytes' | 'windowBytes' | 'received'>): number {
  const inTimeBytes = Math.min(MAX_HOP_BLOCK_BYTES, peer.received.bytesPerSecond * BLOCK_SECONDS)
  const promptBytes = peer.windowBytes / BLOCKS_AT_ONCE
  const sizeBytes = Math.min(peer.blockBytes, Math.max(MIN_BLOCK_BYTES, inTimeBytes, promptBytes))
  return 2 ** Math.floor(Math.log2(sizeBytes))
}

/** How much to ask of it at once. */
export function pipelineOf(peer: Peer): number {
  if (peer.snubbed) return 1
  const inTimeBytes = peer.received.bytesPerSecond * PIPELINE_SECONDS
  return Math.min(MAX_PIPELINE_BYTES, Math.max(MIN_PIPELINE_BYTES, inTimeBytes, peer.windowBytes))
}

/** It answered with a block after this time: promptly, it may be asked for more at once. */
export function growWindow(peer: Peer, tookMs: number, sizeBytes: number): void {
  if (tookMs < PROMPT_MS) peer.windowBytes = Math.min(MAX_PIPELINE_BYTES, peer.windowBytes + sizeBytes)
  else if (tookMs > LAZY_MS) peer.windowBytes = Math.max(0, peer.windowBytes - sizeBytes)
}
