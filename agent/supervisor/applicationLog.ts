import { copyFile, open, rename, stat, truncate } from 'node:fs/promises'

/**
 * Keeps the application's log within `maxBytes`, and one older file beside it. The application has the file open (for
 * append), so it is copied and cut in place; lines written in between may be lost.
 */
export async function rotate(logFile: string, maxBytes: number): Promise<void> {
  const sizeBytes = await stat(logFile).then(
    ({ size }) => size,
    () => 0,
  )
  if (sizeBytes <= maxBytes) return
  const older = `${logFile}.1`
  if (sizeBytes <= 2 * maxBytes) await copyFile(logFile, `${older}.new`)
  else await copyTail(logFile, `${older}.new`, maxBytes)
  await truncate(logFile, 0)
  await rename(`${older}.new`, older)
}

async function copyTail(from: string, to: string, bytes: number): Promise<void> {
  await using source = await open(from, 'r')
  await using target = await open(to, 'w', 0o640)
  const tail = Buffer.alloc(bytes)
  const { size } = await source.stat()
  const { bytesRead } = await source.read(tail, 0, bytes, Math.max(0, size - bytes))
  await target.write(tail.subarray(0, bytesRead))
}
