-- One region's fleet. Times are Unix milliseconds of the server's clock.

CREATE TABLE machine (
  name VARCHAR(253) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  public_key TEXT CHARACTER SET ascii NULL COMMENT 'PEM; null where a cluster vouches for the machine',
  labels JSON NOT NULL,
  namespaces JSON NOT NULL,
  agent_version VARCHAR(64) CHARACTER SET utf8mb4 NOT NULL DEFAULT '',
  last_seen_ms BIGINT NULL COMMENT 'null: enrolled, and never heard of',
  PRIMARY KEY (name)
) ENGINE=InnoDB;

-- What the hub has signed for this region, the latest of each goal.
CREATE TABLE goal (
  namespace VARCHAR(63) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  name VARCHAR(253) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  sequence BIGINT NOT NULL,
  revision INT NOT NULL,
  template CHAR(16) CHARACTER SET ascii NOT NULL,
  envelope MEDIUMTEXT CHARACTER SET utf8mb4 NOT NULL,
  halted_revision INT NULL COMMENT 'the revision this region halted by itself',
  withdrawn BOOLEAN NOT NULL DEFAULT FALSE COMMENT 'no longer in the hub''s index: not offered, and machines keep what they run',
  PRIMARY KEY (namespace, name)
) ENGINE=InnoDB;

-- The machines a goal selects, and what each last reported of it.
CREATE TABLE machine_goal (
  namespace VARCHAR(63) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  name VARCHAR(253) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  machine VARCHAR(253) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  state VARCHAR(16) CHARACTER SET ascii NOT NULL DEFAULT 'Waiting',
  sequence BIGINT NOT NULL DEFAULT 0,
  revision INT NOT NULL DEFAULT 0,
  template CHAR(16) CHARACTER SET ascii NOT NULL DEFAULT '',
  running CHAR(16) CHARACTER SET ascii NULL,
  reason VARCHAR(64) CHARACTER SET ascii NULL,
  message VARCHAR(1024) CHARACTER SET utf8mb4 NULL,
  reported_at_ms BIGINT NULL,
  PRIMARY KEY (namespace, name, machine),
  KEY by_machine (machine)
) ENGINE=InnoDB;

-- Permission for one machine to activate one revision, once. Open ones hold budget.
CREATE TABLE activation_grant (
  id CHAR(32) CHARACTER SET ascii NOT NULL,
  namespace VARCHAR(63) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  name VARCHAR(253) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  machine VARCHAR(253) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  sequence BIGINT NOT NULL,
  revision INT NOT NULL,
  template CHAR(16) CHARACTER SET ascii NOT NULL,
  granted_at_ms BIGINT NOT NULL,
  begin_by_ms BIGINT NOT NULL,
  ends_at_ms BIGINT NOT NULL COMMENT 'when one that was begun must be over',
  begun BOOLEAN NOT NULL DEFAULT FALSE,
  done BOOLEAN NOT NULL DEFAULT FALSE,
  PRIMARY KEY (id),
  UNIQUE KEY by_machine (namespace, name, machine, revision)
) ENGINE=InnoDB;

CREATE TABLE hub_index (
  id TINYINT NOT NULL,
  issued_at_ms BIGINT NOT NULL,
  envelope MEDIUMTEXT CHARACTER SET utf8mb4 NOT NULL,
  PRIMARY KEY (id)
) ENGINE=InnoDB;

-- Who may read an artifact from the bucket, until when.
CREATE TABLE origin_lease (
  info_hash CHAR(40) CHARACTER SET ascii NOT NULL,
  machine VARCHAR(253) CHARACTER SET ascii COLLATE ascii_bin NULL,
  expires_at_ms BIGINT NOT NULL,
  read_bytes BIGINT NOT NULL DEFAULT 0,
  PRIMARY KEY (info_hash)
) ENGINE=InnoDB;

-- The replica that is tracker and grants origin leases.
CREATE TABLE tracker (
  id TINYINT NOT NULL,
  holder VARCHAR(64) CHARACTER SET ascii NOT NULL,
  url VARCHAR(2048) CHARACTER SET ascii NOT NULL,
  since_ms BIGINT NOT NULL,
  expires_at_ms BIGINT NOT NULL,
  PRIMARY KEY (id)
) ENGINE=InnoDB;

CREATE TABLE secret (
  name VARCHAR(64) CHARACTER SET ascii NOT NULL,
  value VARBINARY(64) NOT NULL,
  PRIMARY KEY (name)
) ENGINE=InnoDB;
