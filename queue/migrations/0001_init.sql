-- The build queue. Times are Unix milliseconds of the server's clock. Workers' polls touch only `ready`; a finished job
-- is in `job` alone. Every row is changed by its primary key.

CREATE TABLE pipeline (
  namespace VARCHAR(63) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  name VARCHAR(253) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  max_jobs INT NOT NULL,
  waits BOOLEAN NOT NULL DEFAULT FALSE COMMENT 'it may have jobs in blocked; never false while it has',
  PRIMARY KEY (namespace, name)
) ENGINE=InnoDB;

CREATE TABLE job (
  id BIGINT NOT NULL AUTO_INCREMENT,
  namespace VARCHAR(63) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  pipeline VARCHAR(253) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  commit_id CHAR(40) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  n INT NOT NULL,
  name VARCHAR(253) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  ref VARCHAR(512) CHARACTER SET utf8mb4 NOT NULL,
  priority INT NOT NULL COMMENT 'negated, so that one ascending index serves',
  created_at_ms BIGINT NOT NULL,
  phase VARCHAR(16) CHARACTER SET ascii NOT NULL COMMENT 'Queued also while it runs: then its slot has a worker',
  cancel BOOLEAN NOT NULL DEFAULT FALSE,
  lost_workers INT NOT NULL DEFAULT 0,
  handed_back INT NOT NULL DEFAULT 0,
  worker VARCHAR(191) CHARACTER SET ascii COLLATE ascii_bin NULL,
  started_at_ms BIGINT NULL,
  built_at_ms BIGINT NULL COMMENT 'when its worker was done; replication goes on after it',
  finished_at_ms BIGINT NULL,
  finished_token VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL COMMENT 'of the finish that was accepted, which may be repeated',
  code VARCHAR(64) CHARACTER SET ascii NULL,
  message VARCHAR(4096) CHARACTER SET utf8mb4 NULL,
  target JSON NULL COMMENT 'of the claim that was finished',
  facts JSON NULL COMMENT 'the blob, once it was read back',
  replicated VARCHAR(16) CHARACTER SET ascii NULL,
  updated_at_ms BIGINT NOT NULL,
  PRIMARY KEY (id),
  UNIQUE KEY by_commit (namespace, pipeline, commit_id, n),
  UNIQUE KEY by_name (namespace, name),
  KEY by_update (updated_at_ms),
  -- Written at the insert alone, for pages of the history, newest first: InnoDB appends the id.
  KEY by_namespace (namespace),
  KEY by_pipeline (namespace, pipeline)
) ENGINE=InnoDB;

-- Jobs a worker may have now, in order.
CREATE TABLE ready (
  priority INT NOT NULL,
  created_at_ms BIGINT NOT NULL,
  job_id BIGINT NOT NULL,
  PRIMARY KEY (priority, created_at_ms, job_id)
) ENGINE=InnoDB;

-- Jobs that wait for a slot of their pipeline, so that no poll passes over them.
CREATE TABLE blocked (
  namespace VARCHAR(63) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  pipeline VARCHAR(253) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  priority INT NOT NULL,
  created_at_ms BIGINT NOT NULL,
  job_id BIGINT NOT NULL,
  PRIMARY KEY (namespace, pipeline, priority, created_at_ms, job_id)
) ENGINE=InnoDB;

-- concurrency.max of a pipeline: a job that is ready or runs holds one. While a worker has it, this is the lease too, so
-- that a claim changes one row and none of `job`, and no slot outlives its lease. The token is `counter-random`.
CREATE TABLE slot (
  namespace VARCHAR(63) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  pipeline VARCHAR(253) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  slot INT NOT NULL,
  job_id BIGINT NOT NULL,
  worker VARCHAR(191) CHARACTER SET ascii COLLATE ascii_bin NULL,
  token VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL,
  poll_id BIGINT NULL,
  target JSON NULL COMMENT 'regions and replication mode, as the pipeline had them at the claim',
  claimed_at_ms BIGINT NULL,
  seen_at_ms BIGINT NULL COMMENT 'last heartbeat, or probe that listed it',
  PRIMARY KEY (namespace, pipeline, slot),
  UNIQUE KEY by_job (job_id),
  UNIQUE KEY by_poll (worker, poll_id)
) ENGINE=InnoDB;

-- Jobs that are built, until every region has them.
CREATE TABLE replicating (
  job_id BIGINT NOT NULL,
  PRIMARY KEY (job_id)
) ENGINE=InnoDB;

CREATE TABLE worker (
  name VARCHAR(191) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  probe_url VARCHAR(2048) CHARACTER SET utf8mb4 NOT NULL,
  probe_secret VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  class VARCHAR(63) CHARACTER SET ascii COLLATE ascii_bin NOT NULL COMMENT 'its size: the label of its Deployment',
  isolation VARCHAR(255) CHARACTER SET utf8mb4 NOT NULL COMMENT 'what keeps its builds in bounds, for people',
  draining BOOLEAN NOT NULL DEFAULT FALSE COMMENT 'gets no more jobs: it is about to be stopped',
  first_seen_ms BIGINT NOT NULL,
  last_seen_ms BIGINT NOT NULL,
  PRIMARY KEY (name),
  KEY by_last_seen (last_seen_ms)
) ENGINE=InnoDB;

CREATE TABLE job_log (
  job_id BIGINT NOT NULL,
  attempt INT NOT NULL COMMENT 'the counter of the token that wrote it',
  offset_bytes BIGINT NOT NULL COMMENT 'of all that was printed, also of what was left out',
  text MEDIUMBLOB NOT NULL,
  PRIMARY KEY (job_id, attempt, offset_bytes)
) ENGINE=InnoDB;

-- Where the log of a build that is over has gone: one object a job in the home bucket, each row one gzip member of it.
CREATE TABLE kept_log (
  job_id BIGINT NOT NULL,
  attempt INT NOT NULL,
  offset_bytes BIGINT NOT NULL,
  text_bytes INT NOT NULL,
  object_key VARCHAR(512) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  first_byte BIGINT NOT NULL,
  gzip_bytes INT NOT NULL,
  PRIMARY KEY (job_id, attempt, offset_bytes)
) ENGINE=InnoDB;
