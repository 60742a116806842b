import type { ReplicaState } from '../api/artifact.ts'
import type { ReplicaReport, ReplicaWork } from '../api/regionApi.ts'

/** One artifact in one region's bucket, as the hub knows it. */
export interface Replica {
  region: string
  state: ReplicaState
  copiedBytes: number
  /** When the region last looked and found it whole, or not. */
  checkedAtMs: number | null
  /** When all bytes were last read and found right; null asks for it. */
  allBytesReadAtMs: number | null
  message: string | null
  /** Failures in a row. */
  attempts: number
  /** When there is something to do. */
  nextAtMs: number
}

export interface ReplicaTimings {
  /** A task that isn't heard of for so long is given out again. */
  leaseMs: number
  /** Between two looks at size and checksum. */
  checkEveryMs: number
  /** Between two reads of all bytes. */
  readAllEveryMs: number
  /** After a failure; doubled with each further one, up to retryMaxMs. */
  retryMs: number
  retryMaxMs: number
}

export const defaultTimings: ReplicaTimings = {
  leaseMs: 30_000,
  checkEveryMs: 300_000,
  readAllEveryMs: 7 * 86_400_000,
  retryMs: 1_000,
  retryMaxMs: 60_000,
}

/** What a region may do about a replica: a bucket that replicates by itself, and the home one, are only looked at. */
export function taskOf(
  replica: Pick<Replica, 'state' | 'allBytesReadAtMs'>,
  region: { managed: boolean; home: boolean },
  at: { nowMs: number; readAllEveryMs: number },
): ReplicaWork['task'] {
  const { state, allBytesReadAtMs } = replica
  if (state === 'Replicated') {
    const recent = allBytesReadAtMs !== null && at.nowMs - allBytesReadAtMs < at.readAllEveryMs
    return recent ? 'Check' : 'CheckAllBytes'
  }
  if (state === 'Unknown' || !region.managed || region.home) return 'CheckAllBytes'
  return 'Copy'
}

/**
 * A replica after what its region reported. The hub's own rule stands here, not in the region: Replicated is believed
 * only of a copy whose bytes were all read since it was made or its store was away.
 */
export function afterReport(
  replica: Replica,
  report: ReplicaReport,
  at: { nowMs: number; timings: ReplicaTimings; jitter: number },
): Replica {
  const { nowMs, timings } = at
  if (report.inProgress) {
    const copying = report.state === 'Copying' && replica.state !== 'Replicated'
    return {
      ...replica,
      ...(copying && {
        state: 'Copying' as const,
        copiedBytes: report.copiedBytes ?? replica.copiedBytes,
        message: null,
      }),
      nextAtMs: nowMs + timings.leaseMs,
    }
  }
  const message = report.message ?? null
  const failed = (attempts: number) => {
    // the first repair or second look comes at once
    const waitMs = attempts <= 1 ? 0 : Math.min(timings.retryMs * 2 ** Math.min(attempts - 2, 20), timings.retryMaxMs)
    return { attempts, nextAtMs: nowMs + Math.round(waitMs * (1 + at.jitter / 2)) }
  }
  switch (report.state) {
    case 'Replicated': {
      if (!report.allBytesRead && replica.allBytesReadAtMs === null) return { ...replica, nextAtMs: nowMs }
      return {
        ...replica,
        state: 'Replicated',
        copiedBytes: report.copiedBytes ?? replica.copiedBytes,
        checkedAtMs: nowMs,
        allBytesReadAtMs: report.allBytesRead ? nowMs : replica.allBytesReadAtMs,
        message: null,
        attempts: 0,
        nextAtMs: nowMs + Math.round(timings.checkEveryMs * (1 + at.jitter / 10)),
      }
    }
    case 'Missing':
    case 'Corrupt':
      return {
        ...replica,
        state: report.state,
        copiedBytes: 0,
        checkedAtMs: nowMs,
        allBytesReadAtMs: null,
        message,
        ...failed(replica.attempts + 1),
      }
    case 'Unknown':
      return { ...replica, state: 'Unknown', allBytesReadAtMs: null, message, ...failed(replica.attempts + 2) }
    default: {
      // a copy that didn't come off; a replica found Corrupt stays that, so that the next copy replaces it
      const state = replica.state === 'Corrupt' || replica.state === 'Missing' ? replica.state : 'Pending'
      return { ...replica, state, allBytesReadAtMs: null, message, ...failed(replica.attempts + 2) }
    }
  }
}
