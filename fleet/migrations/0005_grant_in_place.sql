-- A grant is in the row of its machine and goal, so that one look at those rows counts everything. A machine holds one at
-- most: who asks anew holds a later goal, and does not begin what it was allowed under an earlier one.
ALTER TABLE machine_goal
  MODIFY COLUMN state VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT 'Waiting',
  MODIFY COLUMN template CHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT '',
  MODIFY COLUMN running CHAR(16) CHARACTER SET ascii COLLATE ascii_bin NULL,
  ADD COLUMN grant_id CHAR(32) CHARACTER SET ascii COLLATE ascii_bin NULL COMMENT 'permission to activate one revision, once',
  ADD COLUMN grant_revision INT NULL,
  ADD COLUMN grant_template CHAR(16) CHARACTER SET ascii COLLATE ascii_bin NULL,
  ADD COLUMN grant_begin_by_ms BIGINT NULL,
  ADD COLUMN grant_ends_at_ms BIGINT NULL COMMENT 'when one that was begun must be over',
  ADD COLUMN grant_begun BOOLEAN NOT NULL DEFAULT FALSE;
