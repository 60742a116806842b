UPDATE machine_goal mg JOIN activation_grant g ON g.namespace = mg.namespace AND g.name = mg.name AND g.machine = mg.machine
  LEFT JOIN activation_grant later ON later.namespace = g.namespace AND later.name = g.name AND later.machine = g.machine
    AND later.revision > g.revision
SET mg.grant_id = g.id, mg.grant_revision = g.revision, mg.grant_template = g.template,
  mg.grant_begin_by_ms = g.begin_by_ms, mg.grant_ends_at_ms = g.ends_at_ms, mg.grant_begun = g.begun
WHERE later.id IS NULL;
