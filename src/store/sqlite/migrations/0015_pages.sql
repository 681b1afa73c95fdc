-- No request costs more than its page.

-- A repository that was deleted keeps its row until a job has emptied it. The row belongs to no registry (`account_id` is empty)
-- and its name is its id, so that nothing finds it by name and its name is free.
ALTER TABLE repository ADD COLUMN deleted_at INTEGER;

-- What a scope holds: `repository/ID` images and their bytes, `registry/ACCOUNT` repositories. Kept by the triggers below, so that
-- no limit ever counts rows.
CREATE TABLE usage (
    scope TEXT    NOT NULL PRIMARY KEY,
    items INTEGER NOT NULL,
    bytes INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO usage (scope, items, bytes)
    SELECT 'repository/' || repository_id, images, bytes FROM repository_usage WHERE images > 0;
INSERT INTO usage (scope, items, bytes)
    SELECT 'registry/' || account_id, count(*), 0 FROM repository GROUP BY account_id;
DROP TRIGGER IF EXISTS manifest_inserted;
DROP TRIGGER IF EXISTS manifest_deleted;
DROP TABLE repository_usage;
CREATE TRIGGER manifest_inserted AFTER INSERT ON manifest BEGIN
    INSERT INTO usage (scope, items, bytes) VALUES ('repository/' || new.repository_id, 1, new.image_size)
        ON CONFLICT (scope) DO UPDATE SET items = items + 1, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER manifest_deleted AFTER DELETE ON manifest BEGIN
    UPDATE usage SET items = items - 1, bytes = bytes - old.image_size
        WHERE scope = 'repository/' || old.repository_id;
END;
CREATE TRIGGER repository_inserted AFTER INSERT ON repository BEGIN
    INSERT INTO usage (scope, items, bytes) VALUES ('registry/' || new.account_id, 1, 0)
        ON CONFLICT (scope) DO UPDATE SET items = items + 1;
END;
CREATE TRIGGER repository_marked_deleted AFTER UPDATE OF deleted_at ON repository
WHEN old.deleted_at IS NULL AND new.deleted_at IS NOT NULL BEGIN
    UPDATE usage SET items = items - 1 WHERE scope = 'registry/' || old.account_id;
END;

-- How many tags an image has, kept by triggers. With the index every filter of a listing is a few ranges in the order of digests.
ALTER TABLE manifest ADD COLUMN tag_count INTEGER NOT NULL DEFAULT 0;
UPDATE manifest SET tag_count = (SELECT count(*) FROM tag t WHERE t.manifest_id = manifest.id);
CREATE TRIGGER tag_inserted AFTER INSERT ON tag BEGIN
    UPDATE manifest SET tag_count = tag_count + 1 WHERE id = new.manifest_id;
END;
CREATE TRIGGER tag_deleted AFTER DELETE ON tag BEGIN
    UPDATE manifest SET tag_count = tag_count - 1 WHERE id = old.manifest_id;
END;
CREATE TRIGGER tag_moved AFTER UPDATE OF manifest_id ON tag WHEN old.manifest_id <> new.manifest_id BEGIN
    UPDATE manifest SET tag_count = tag_count - 1 WHERE id = old.manifest_id;
    UPDATE manifest SET tag_count = tag_count + 1 WHERE id = new.manifest_id;
END;
CREATE INDEX manifest_listing ON manifest (repository_id, status, min(tag_count, 1), digest);
DROP INDEX manifest_not_active;

-- The referrers of a subject by status, and by status and type.
DROP INDEX manifest_by_subject;
CREATE INDEX manifest_by_subject ON manifest (repository_id, subject, status, digest) WHERE subject IS NOT NULL;
CREATE INDEX manifest_by_subject_and_type
    ON manifest (repository_id, subject, status, coalesce(artifact_type, config_media_type), digest)
    WHERE subject IS NOT NULL;
