import type { Clock } from './clock.ts'

interface RoundsOptions {
  /** From the end of a round to the next one. */
  everyMs: number
  clock: Clock
  signal: AbortSignal
  /** A round failed, and not because of the signal. The next one comes all the same. */
  failed: (error: unknown) => void
}

/** Works again and again, until the signal. */
export async function rounds(work: () => Promise<unknown>, options: RoundsOptions): Promise<void> {
  const { everyMs, clock, signal, failed } = options
  while (!signal.aborted) {
    await work().catch((error: unknown) => {
      if (!signal.aborted) failed(error)
    })
    await clock.sleep(everyMs, signal).catch(() => undefined)
  }
}
