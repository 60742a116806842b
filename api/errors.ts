/**
 * Every error Shoal reports: one code each, with its meaning and what to do about it. The code is also the
 * condition's reason, the metric's label and the `code` field of an HTTP answer, so it never changes its meaning.
 */
export const errorCodes = {
  // requests
  Unauthorized: {
    status: 401,
    meaning: 'The caller did not prove who it is.',
    action: 'Check the token or signature the caller sends.',
  },
  Forbidden: {
    status: 403,
    meaning: 'The caller is known but may not do this.',
    action: 'Use an identity that may, or grant the right.',
  },
  NotFound: { status: 404, meaning: 'What was asked for does not exist.', action: 'Check the name.' },
  Invalid: { status: 422, meaning: 'The input is not valid.', action: 'Correct what the message names.' },
  TooLarge: { status: 413, meaning: 'The input is larger than the limit.', action: 'Send less.' },
  Conflict: {
    status: 409,
    meaning: 'Someone changed the same thing at the same time.',
    action: 'Read it again and retry.',
  },
  Unavailable: {
    status: 503,
    meaning: 'A part this depends on does not answer.',
    action: 'Nothing: it is retried. If it lasts, look at the part the message names.',
  },
  Timeout: { status: 504, meaning: 'There was no answer in time.', action: 'Nothing: it is retried.' },
  Internal: { status: 500, meaning: 'A fault of Shoal itself.', action: 'Look at the log, and report it.' },
  ConfigInvalid: {
    status: 500,
    meaning: 'A setting of this process is missing or wrong.',
    action: 'Correct the setting the message names and start again.',
  },
  // databases
  SchemaTooNew: {
    status: 500,
    meaning: 'The database was migrated by a newer version.',
    action: 'Run that version or a newer one.',
  },
  ServerUnsupported: {
    status: 500,
    meaning: 'The database server lacks what Shoal needs.',
    action: 'Use MySQL 8.0.1+ or MariaDB 10.6+, with binlog_format=ROW.',
  },
  // signatures
  SignatureInvalid: {
    status: 400,
    meaning: 'Signed bytes did not verify with any key that is trusted.',
    action: 'Check that the hub signs with an enrolled key.',
  },
  // queue and worker
  Fenced: {
    status: 409,
    meaning: 'Someone else owns this now; the token is not the latest.',
    action: 'Stop. Nothing else.',
  },
  WorkerLost: {
    status: 500,
    meaning: 'Three workers in turn were lost while building this job.',
    action: 'Look at the build’s use of memory and disk, then rebuild.',
  },
  CommitNotFound: {
    status: 404,
    meaning: 'The repository does not have this commit.',
    action: 'Push the commit, or correct the job.',
  },
  SourceUnreachable: {
    status: 503,
    meaning: 'The repository does not answer or refuses the credentials.',
    action: 'Check source.url and credentialsSecretRef.',
  },
  BuildFailed: {
    status: 500,
    meaning: 'The build command ended with an error.',
    action: 'Read the log, correct the build and push.',
  },
  BuildTimeout: {
    status: 500,
    meaning: 'The build ran longer than build.timeout.',
    action: 'Make the build faster or raise build.timeout.',
  },
  BuildLimit: {
    status: 500,
    meaning: 'The build reached a limit of its worker: processes, memory or disk.',
    action: 'Make the build take less, or raise the worker’s SHOAL_MAX_PROCESSES, SHOAL_MAX_MEMORY or SHOAL_MAX_DISK.',
  },
  OutputMissing: {
    status: 500,
    meaning: 'The build left nothing at build.output.',
    action: 'Correct build.output or the build.',
  },
  OutputOutside: {
    status: 500,
    meaning: 'build.output points outside the workspace.',
    action: 'Name a path inside the checkout, without symlinks out of it.',
  },
  Cancelled: { status: 409, meaning: 'A person cancelled the job.', action: 'Nothing, or rebuild.' },
  // artifacts
  ChecksumMismatch: {
    status: 422,
    meaning: 'The bytes read back are not the bytes that were built.',
    action: 'Nothing: the copy is made again. If it lasts, check the store’s disks.',
  },
  StoreUnreachable: {
    status: 503,
    meaning: 'The region’s store does not answer.',
    action: 'Check the store and its credentials.',
  },
  ReplicaMissing: {
    status: 404,
    meaning: 'The region’s store lacks the blob.',
    action: 'Nothing where replication is Managed; else look at the bucket’s own replication.',
  },
  ReplicaCorrupt: {
    status: 422,
    meaning: 'The region’s copy differs from what was built.',
    action: 'Nothing where replication is Managed; else delete the copy and let the bucket replicate again.',
  },
  RegionSilent: {
    status: 503,
    meaning: 'The region’s replicator has not asked for work lately.',
    action: 'Check that the region role runs and reaches the hub.',
  },
  WaitingForReplicas: {
    status: 503,
    meaning: 'Not every region has the artifact yet.',
    action: 'Wait, or look at the regions the message names.',
  },
  DescriptorInvalid: {
    status: 422,
    meaning: 'The artifact’s descriptor is malformed or unsafe.',
    action: 'Rebuild the artifact.',
  },
  // rollouts
  WaitingForArtifact: {
    status: 503,
    meaning: 'The goal’s artifact is not deployable yet.',
    action: 'Wait, or look at the Artifact.',
  },
  ArtifactNotFound: {
    status: 404,
    meaning: 'The goal names an artifact that does not exist.',
    action: 'Correct artifactRef.',
  },
  RegionUnknown: {
    status: 422,
    meaning: 'A wave or pipeline names a region that does not exist.',
    action: 'Correct the name, or create the Region.',
  },
  RolloutFailed: {
    status: 500,
    meaning: 'More machines failed than failureThreshold allows; the rollout was halted.',
    action: 'Read status.failures, correct the application, deploy again.',
  },
  ProgressDeadlineExceeded: {
    status: 504,
    meaning: 'The rollout made no progress for progressDeadline.',
    action: 'Look at the regions and machines that are not updated.',
  },
  PlaceConflict: {
    status: 409,
    meaning: 'Another GoalState holds this place on the same machines.',
    action: 'Give this goal another place, or delete the other goal.',
  },
  // configuration repositories
  ConfigRepoInvalid: {
    status: 422,
    meaning: 'A file in the configuration repository can’t be applied.',
    action: 'Correct the file the message names and merge.',
  },
  // machines
  ActivationFailed: {
    status: 500,
    meaning: 'The application did not start or did not become healthy.',
    action: 'Read the application’s log on the machine.',
  },
  DiskFull: {
    status: 507,
    meaning: 'The machine’s disk has no room for the release.',
    action: 'Free space; the agent retries by itself.',
  },
  DiskReadOnly: {
    status: 503,
    meaning: 'The machine’s disk is mounted read-only, as kernels do after errors.',
    action: 'Look at the kernel’s log, repair the file system and mount it writable; the agent retries by itself.',
  },
  DiskDenied: {
    status: 503,
    meaning: 'A file or folder can’t be written, by its owner, mode or attributes.',
    action: 'Give the data folder back to the user the agent runs as; the agent retries by itself.',
  },
  DiskFault: {
    status: 503,
    meaning: 'The machine’s disk can’t be read or written.',
    action: 'Replace the disk; what is on it is not trusted.',
  },
} as const satisfies Record<string, { status: number; meaning: string; action: string }>

export type ErrorCode = keyof typeof errorCodes

interface ErrorDetail {
  cause?: unknown
}

/** An error with a code of the registry above. Its class says what to do with it. */
export class ShoalError extends Error {
  readonly code: ErrorCode
  override readonly name: string = 'ShoalError'
  constructor(code: ErrorCode, message: string, detail: ErrorDetail = {}) {
    super(message, detail.cause === undefined ? undefined : { cause: detail.cause })
    this.code = code
  }
}

/** The user must act; there is no retry until something changes. */
export class Stalled extends ShoalError {
  override readonly name = 'Stalled'
}

/** Nothing is wrong; come back after `afterMs`. */
export class Waiting extends ShoalError {
  override readonly name = 'Waiting'
  readonly afterMs: number
  constructor(code: ErrorCode, message: string, detail: ErrorDetail & { afterMs: number }) {
    super(code, message, detail)
    this.afterMs = detail.afterMs
  }
}

/** Something did not work that may work next time: retry with jitter. */
export class Transient extends ShoalError {
  override readonly name = 'Transient'
}

/** Someone else owns it now: stop at once, change nothing. */
export class Fenced extends ShoalError {
  override readonly name = 'Fenced'
  constructor(message: string, detail: ErrorDetail = {}) {
    super('Fenced', message, detail)
  }
}
