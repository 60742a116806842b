-- The replica that is tracker holds the leases on the bucket in memory: it grants none until those of the one before
-- it have run out.
DROP TABLE origin_lease;
