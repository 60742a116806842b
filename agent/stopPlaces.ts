import { join } from 'node:path'
import { PlaceClient, placeDirs } from './place.ts'

const timeoutMs = 60_000

/** Ends the applications and supervisors of a machine, which otherwise outlive its agent: for taking a machine down. */
export async function stopPlaces(dataDir: string): Promise<void> {
  const dirs = await placeDirs(join(dataDir, 'places'))
  await Promise.all(
    dirs.map((dir) =>
      PlaceClient.at(dir)
        .ask({ command: 'shutdown' }, timeoutMs)
        .catch(() => {}),
    ),
  )
}
