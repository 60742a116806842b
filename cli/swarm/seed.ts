import { ShoalError } from '../../api/errors.ts'
import { aborted, openSession, type SessionOptions, stopSignal } from './session.ts'

/** @throws ShoalError `ChecksumMismatch` when files differ from the torrent, and as `openSession`. */
export async function seed(torrentPath: string, options: SessionOptions): Promise<void> {
  const signal = stopSignal()
  await using session = await openSession(torrentPath, options, { seed: true, signal })
  const { swarm, torrent, port } = session
  if (swarm.missingCount > 0)
    throw new ShoalError(
      'ChecksumMismatch',
      `${swarm.missingCount} of ${torrent.pieceCount} pieces of ${torrent.name} are not what the torrent says.`,
    )
  console.error(`seeding ${torrent.name} on port ${port}, until stopped`)
  await aborted(signal)
}
