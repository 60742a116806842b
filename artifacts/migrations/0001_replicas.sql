-- Times are Unix milliseconds by the database's clock: they mean the same in every session's time zone.
CREATE TABLE artifacts (
  id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT,
  namespace VARCHAR(63) NOT NULL,
  name VARCHAR(253) NOT NULL,
  blob_key VARCHAR(1024) NOT NULL,
  digest CHAR(71) NOT NULL,
  size_bytes BIGINT NOT NULL,
  part_size_bytes BIGINT NOT NULL,
  checksum VARCHAR(256) NOT NULL,
  descriptor_digest CHAR(71) NOT NULL,
  PRIMARY KEY (id),
  UNIQUE KEY by_name (namespace, name)
) ENGINE = InnoDB DEFAULT CHARSET = ascii COLLATE = ascii_bin;

CREATE TABLE replicas (
  artifact_id BIGINT UNSIGNED NOT NULL,
  region VARCHAR(253) NOT NULL,
  state VARCHAR(16) NOT NULL,
  copied_bytes BIGINT NOT NULL DEFAULT 0,
  checked_at_ms BIGINT NULL,
  all_bytes_read_at_ms BIGINT NULL,
  message VARCHAR(1024) CHARACTER SET utf8mb4 NULL,
  attempts INT NOT NULL DEFAULT 0,
  next_at_ms BIGINT NOT NULL,
  changed_at_ms BIGINT NOT NULL,
  PRIMARY KEY (artifact_id, region),
  KEY due (region, next_at_ms),
  KEY changed (changed_at_ms)
) ENGINE = InnoDB DEFAULT CHARSET = ascii COLLATE = ascii_bin;

CREATE TABLE region_contacts (
  region VARCHAR(253) NOT NULL,
  contacted_at_ms BIGINT NOT NULL,
  PRIMARY KEY (region)
) ENGINE = InnoDB DEFAULT CHARSET = ascii COLLATE = ascii_bin;
