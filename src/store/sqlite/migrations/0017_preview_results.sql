-- The results of a preview are written in batches and read by filter, and those of the last preview go in batches, too. They belong
-- to the run of the job that found them: whoever ends the preview says which run's are its results. A preview that has ended is
-- started again after an upgrade.
DELETE FROM lifecycle_preview WHERE state <> 'IN_PROGRESS';
ALTER TABLE lifecycle_preview ADD COLUMN run INTEGER;
DROP TABLE lifecycle_preview_result;
CREATE TABLE lifecycle_preview_result (
    repository_id INTEGER NOT NULL REFERENCES repository (id) ON DELETE CASCADE,
    run           INTEGER NOT NULL,
    position      INTEGER NOT NULL,
    digest        TEXT    NOT NULL,
    tags          TEXT    NOT NULL, -- a JSON array
    tagged        INTEGER NOT NULL, -- 0 or 1
    pushed_at     INTEGER NOT NULL,
    action        TEXT    NOT NULL,
    rule_priority INTEGER NOT NULL,
    status        TEXT    NOT NULL,
    PRIMARY KEY (repository_id, run, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX lifecycle_preview_result_by_tagged ON lifecycle_preview_result (repository_id, run, tagged, position);
CREATE INDEX lifecycle_preview_result_by_digest ON lifecycle_preview_result (repository_id, run, digest);
