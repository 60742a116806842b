/**
 * artifacts/: blobs and their descriptors in buckets. Hashing a build's output, uploading it, replicating it to every
 * region and checking the copies for as long as the artifact lives. Promises: a blob is visible in a bucket whole or
 * not at all, and nothing is called replicated before its bytes were read back from that very bucket. The worker
 * hashes and uploads, the hub receives and keeps the `replication` database, each region copies and checks its own.
 */

/** The key of an artifact's blob in every bucket. The fencing token keeps two attempts of a job apart. */
export const artifactKey = (namespace: string, artifact: string, token: string) => `${namespace}/${artifact}/${token}`

/** The key of the blob's descriptor. */
export const descriptorKey = (blobKey: string) => `${blobKey}.torrent`

/**
 * The key of the log of a job that is over, in the home bucket. It begins with what no namespace is called, so that no
 * artifact's key is below it or above; `digest` is of its bytes, so that no two writers overwrite each other.
 */
export const logKey = (job: { namespace: string; name: string; id: number }, digest: string) =>
  `_logs/${job.namespace}/${job.name}/${job.id}-${digest.slice(0, 16)}.log.gz`
