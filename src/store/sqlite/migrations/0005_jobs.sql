-- When a repository's lifecycle policy is evaluated next. The oldest comes first, so none starves.
ALTER TABLE repository ADD COLUMN lifecycle_due_at INTEGER;
UPDATE repository SET lifecycle_due_at = coalesce(lifecycle_evaluated_at, 0) WHERE lifecycle_policy IS NOT NULL;
DROP INDEX IF EXISTS repository_with_lifecycle;
CREATE INDEX repository_lifecycle_due ON repository (lifecycle_due_at, id) WHERE lifecycle_due_at IS NOT NULL;

-- One dead job of a kind and key at most: the latest failure.
DELETE FROM job WHERE state = 'dead'
    AND id NOT IN (SELECT max(id) FROM job WHERE state = 'dead' GROUP BY kind, key);
CREATE UNIQUE INDEX job_dead ON job (kind, key) WHERE state = 'dead';
