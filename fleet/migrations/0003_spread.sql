-- How long a machine took to get the release of the template it reports of; kept while the template stays.
ALTER TABLE machine_goal ADD COLUMN fetch_ms BIGINT NULL AFTER message;

-- How far each artifact has come among the region's machines, as the tracker last saw it.
CREATE TABLE artifact_spread (
  info_hash CHAR(40) CHARACTER SET ascii NOT NULL,
  reach JSON NOT NULL,
  seen_at_ms BIGINT NOT NULL,
  PRIMARY KEY (info_hash)
) ENGINE=InnoDB;
