-- A grant that is over is gone: what is left is counted with every batch of grants. Grants are looked for by who polls.
DELETE FROM activation_grant WHERE done;
ALTER TABLE activation_grant DROP COLUMN done, ADD KEY by_holder (machine);
ALTER TABLE machine_goal DROP COLUMN reported_at_ms;
