-- What later versions could not fill in for rows that are there already, and what makes decisions about images exact.
--
-- The order of locks is now: the repository's row, links in the order of their digests, tags in the order of their names,
-- manifests in the order of their digests, blobs.

-- A registry has a private and a public namespace, so a name may come once in each. `version` grows with every change of
-- the row or of its resource tags, `policy_version` with every change of the repository policy: caches compare them.
ALTER TABLE repository
    ADD COLUMN kind           TEXT   COLLATE "C" NOT NULL DEFAULT 'private' CHECK (kind IN ('private', 'public')),
    ADD COLUMN version        BIGINT NOT NULL DEFAULT 1,
    ADD COLUMN policy_version BIGINT NOT NULL DEFAULT 1;
ALTER TABLE repository DROP CONSTRAINT repository_account_id_name_key;
CREATE UNIQUE INDEX repository_by_name ON repository (account_id, name, kind);

-- `version` covers the account settings too.
ALTER TABLE registry
    ADD COLUMN version        BIGINT NOT NULL DEFAULT 1,
    ADD COLUMN policy_version BIGINT NOT NULL DEFAULT 1;

-- When the name was first set, and when it was last pointed at another image. Of older tags only the image's push is known.
ALTER TABLE tag ADD COLUMN created_at BIGINT, ADD COLUMN updated_at BIGINT;
UPDATE tag t SET created_at = m.pushed_at, updated_at = m.pushed_at FROM manifest m WHERE m.id = t.manifest_id;
ALTER TABLE tag ALTER COLUMN created_at SET NOT NULL, ALTER COLUMN updated_at SET NOT NULL;

-- Grows with every push of the image and every change of its tags or storage class.
ALTER TABLE manifest ADD COLUMN revision BIGINT NOT NULL DEFAULT 1;

-- An index that can be pulled has children that can be pulled. Where a push has broken that, the children are restored.
WITH RECURSIVE held (id) AS (
    SELECT e.child_id FROM manifest p JOIN manifest_child e ON e.parent_id = p.id WHERE p.status <> 'ARCHIVED'
    UNION
    SELECT e.child_id FROM held JOIN manifest_child e ON e.parent_id = held.id)
UPDATE manifest m SET status = 'ACTIVE', activated_at = (extract(epoch FROM now()) * 1000)::bigint
FROM held WHERE m.id = held.id AND m.status = 'ARCHIVED';

-- Since when the manifest of this edge is archived; NULL while it can be pulled. With the index it takes one look to tell
-- whether any image that can be pulled has a layer, however many images have it.
ALTER TABLE manifest_blob ADD COLUMN archived_at BIGINT;
UPDATE manifest_blob e SET archived_at = coalesce(m.archived_at, 0)
FROM manifest m WHERE m.id = e.manifest_id AND m.status = 'ARCHIVED';
DROP INDEX manifest_blob_by_link;
CREATE INDEX manifest_blob_by_link ON manifest_blob (link_id, archived_at NULLS FIRST, manifest_id);
