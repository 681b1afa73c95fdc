-- No request costs more than its page.

-- A repository that was deleted keeps its row until a job has emptied it. The row belongs to no registry (`account_id` is empty)
-- and its name is its id, so that nothing finds it by name and its name is free.
ALTER TABLE repository ADD COLUMN deleted_at BIGINT;

-- What a scope holds: `repository/ID` images and their bytes, `registry/ACCOUNT` repositories. Changes are appended as deltas,
-- so that no two pushes wait for one row; a scope's usage is its row and its deltas, which are folded into it now and then.
CREATE TABLE usage (
    scope TEXT   COLLATE "C" PRIMARY KEY,
    items BIGINT NOT NULL,
    bytes BIGINT NOT NULL
);
CREATE TABLE usage_delta (
    id    BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    scope TEXT   COLLATE "C" NOT NULL,
    items BIGINT NOT NULL,
    bytes BIGINT NOT NULL
);
CREATE INDEX usage_delta_by_scope ON usage_delta (scope);
INSERT INTO usage (scope, items, bytes)
    SELECT 'repository/' || repository_id, count(*), sum(image_size) FROM manifest GROUP BY repository_id;
INSERT INTO usage (scope, items, bytes)
    SELECT 'registry/' || account_id, count(*), 0 FROM repository GROUP BY account_id;

CREATE FUNCTION count_manifests() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO usage_delta (scope, items, bytes)
            SELECT 'repository/' || repository_id, count(*), sum(image_size) FROM new_rows GROUP BY repository_id;
    ELSE
        INSERT INTO usage_delta (scope, items, bytes)
            SELECT 'repository/' || repository_id, -count(*), -sum(image_size) FROM old_rows GROUP BY repository_id;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER manifest_inserted AFTER INSERT ON manifest
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION count_manifests();
CREATE TRIGGER manifest_deleted AFTER DELETE ON manifest
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION count_manifests();

CREATE FUNCTION count_repositories() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO usage_delta (scope, items, bytes) VALUES ('registry/' || NEW.account_id, 1, 0);
    ELSE
        INSERT INTO usage_delta (scope, items, bytes) VALUES ('registry/' || OLD.account_id, -1, 0);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER repository_inserted AFTER INSERT ON repository FOR EACH ROW EXECUTE FUNCTION count_repositories();
CREATE TRIGGER repository_marked_deleted AFTER UPDATE OF deleted_at ON repository FOR EACH ROW
    WHEN (OLD.deleted_at IS NULL AND NEW.deleted_at IS NOT NULL) EXECUTE FUNCTION count_repositories();

-- How many tags an image has, kept by triggers. With the index every filter of a listing is a few ranges in the order of digests.
ALTER TABLE manifest ADD COLUMN tag_count BIGINT NOT NULL DEFAULT 0;
UPDATE manifest m SET tag_count = t.tags
    FROM (SELECT manifest_id, count(*) AS tags FROM tag GROUP BY manifest_id) t WHERE t.manifest_id = m.id;
CREATE FUNCTION count_tags() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        UPDATE manifest m SET tag_count = m.tag_count + d.tags
            FROM (SELECT manifest_id, count(*) AS tags FROM new_rows GROUP BY manifest_id) d
            WHERE m.id = d.manifest_id;
    ELSIF TG_OP = 'DELETE' THEN
        UPDATE manifest m SET tag_count = m.tag_count - d.tags
            FROM (SELECT manifest_id, count(*) AS tags FROM old_rows GROUP BY manifest_id) d
            WHERE m.id = d.manifest_id;
    ELSE
        UPDATE manifest m SET tag_count = m.tag_count + d.tags
            FROM (SELECT manifest_id, sum(tags) AS tags
                  FROM (SELECT manifest_id, 1 AS tags FROM new_rows
                        UNION ALL SELECT manifest_id, -1 FROM old_rows) c
                  GROUP BY manifest_id HAVING sum(tags) <> 0) d
            WHERE m.id = d.manifest_id;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER tag_inserted AFTER INSERT ON tag
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION count_tags();
CREATE TRIGGER tag_deleted AFTER DELETE ON tag
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION count_tags();
CREATE TRIGGER tag_updated AFTER UPDATE ON tag
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION count_tags();
CREATE INDEX manifest_listing ON manifest (repository_id, status, least(tag_count, 1), digest);
DROP INDEX manifest_not_active;

-- The referrers of a subject by status, and by status and type.
DROP INDEX manifest_by_subject;
CREATE INDEX manifest_by_subject ON manifest (repository_id, subject, status, digest) WHERE subject IS NOT NULL;
CREATE INDEX manifest_by_subject_and_type
    ON manifest (repository_id, subject, status, (coalesce(artifact_type, config_media_type)), digest)
    WHERE subject IS NOT NULL;

-- The repositories that have a blob, the one that has had it longest first.
DROP INDEX repository_blob_by_blob;
CREATE INDEX repository_blob_by_blob ON repository_blob (blob_id, id);
