-- The build queue. Times are Unix milliseconds of the server's clock. Workers' polls touch only `ready`. What many jobs go
-- through is a row inserted, or one changed in place: a row that grows costs the server four times as much.

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
  cancel BOOLEAN NOT NULL DEFAULT FALSE,
  lost_workers INT NOT NULL DEFAULT 0,
  handed_back INT NOT NULL DEFAULT 0,
  facts JSON NULL COMMENT 'the blob, once it was read back',
  updated_at_ms BIGINT NOT NULL COMMENT 'before it was over; outcome has its own',
  PRIMARY KEY (id),
  UNIQUE KEY by_commit (namespace, pipeline, commit_id, n),
  UNIQUE KEY by_name (namespace, name),
  KEY by_update (updated_at_ms),
  -- Written at the insert alone, for pages of the history, newest first: InnoDB appends the id.
  KEY by_namespace (namespace),
  KEY by_pipeline (namespace, pipeline)
) ENGINE=InnoDB;

-- What came of a job whose build is over; one without it is queued, or runs when its slot has a worker.
CREATE TABLE outcome (
  job_id BIGINT NOT NULL,
  phase ENUM('Replicating', 'Succeeded', 'Failed', 'Cancelled') NOT NULL,
  worker VARCHAR(191) CHARACTER SET ascii COLLATE ascii_bin NULL,
  token CHAR(40) CHARACTER SET ascii COLLATE ascii_bin NULL COMMENT 'of the finish that was accepted, which may be repeated',
  target BINARY(16) NULL COMMENT 'of the claim that was finished',
  started_at_ms BIGINT NULL,
  built_at_ms BIGINT NULL COMMENT 'when its worker was done; replication goes on after it',
  finished_at_ms BIGINT NULL,
  code VARCHAR(64) CHARACTER SET ascii NULL,
  message VARCHAR(4096) CHARACTER SET utf8mb4 NULL,
  replicated VARCHAR(16) CHARACTER SET ascii NULL,
  updated_at_ms BIGINT NOT NULL,
  PRIMARY KEY (job_id),
  KEY by_phase (phase, updated_at_ms)
) ENGINE=InnoDB;

-- What claims fix of their pipelines: each once, however many jobs have it. There are as many as pipelines were changed.
CREATE TABLE target (
  digest BINARY(16) NOT NULL COMMENT 'of the value: the first half of its SHA-256',
  value JSON NOT NULL,
  PRIMARY KEY (digest)
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
-- that a claim changes one row, in place, and no slot outlives its lease. The token is `counter-random`.
CREATE TABLE slot (
  namespace VARCHAR(63) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  pipeline VARCHAR(253) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  slot INT NOT NULL,
  job_id BIGINT NOT NULL,
  worker BIGINT NOT NULL DEFAULT 0 COMMENT 'its id; 0 while no worker has the job, and then the rest is 0 or empty too',
  poll_id BIGINT NOT NULL COMMENT 'that was answered with the job; the id of the job while no worker has it',
  token CHAR(40) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT '',
  target BINARY(16) NOT NULL DEFAULT '' COMMENT 'as the pipeline was at the claim',
  claimed_at_ms BIGINT NOT NULL DEFAULT 0,
  seen_at_ms BIGINT NOT NULL DEFAULT 0 COMMENT 'last heartbeat, or probe that listed it',
  PRIMARY KEY (namespace, pipeline, slot),
  UNIQUE KEY by_job (job_id),
  UNIQUE KEY by_poll (worker, poll_id)
) ENGINE=InnoDB;

CREATE TABLE worker (
  id BIGINT NOT NULL AUTO_INCREMENT,
  name VARCHAR(191) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  probe_url VARCHAR(2048) CHARACTER SET utf8mb4 NOT NULL,
  probe_secret VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  class VARCHAR(63) CHARACTER SET ascii COLLATE ascii_bin NOT NULL COMMENT 'its size: the label of its Deployment',
  isolation VARCHAR(255) CHARACTER SET utf8mb4 NOT NULL COMMENT 'what keeps its builds in bounds, for people',
  draining BOOLEAN NOT NULL DEFAULT FALSE COMMENT 'gets no more jobs: it is about to be stopped',
  first_seen_ms BIGINT NOT NULL,
  last_seen_ms BIGINT NOT NULL,
  PRIMARY KEY (id),
  UNIQUE KEY by_name (name),
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
