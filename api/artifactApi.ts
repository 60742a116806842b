/** What people's tools ask the hub of artifacts, over HTTPS, with the caller's Kubernetes token. */
import { z } from 'zod'

/**
 * GET /v1/artifacts/<namespace>/<name>/fetch?onDisk=<name>,<name>: what a machine with these releases on its disk fetches.
 * One that is not there any more counts as not on the disk.
 */
export const fetchAnswer = z.object({
  sizeBytes: z.int().describe('Of the artifact.'),
  fetchBytes: z.int().describe('What is in none of the releases, in whole blocks.'),
})
export type FetchAnswer = z.infer<typeof fetchAnswer>
