-- What later versions could not fill in for rows that are there already, and what makes decisions about images exact.
--
-- The table `repository` is made again, since SQLite cannot change its unique key: the foreign keys that lead to it are not
-- enforced meanwhile, and are checked before the commit.

-- A registry has a private and a public namespace, so a name may come once in each. `version` grows with every change of
-- the row or of its resource tags, `policy_version` with every change of the repository policy: caches compare them.
CREATE TABLE repository_new (
    id                     INTEGER PRIMARY KEY AUTOINCREMENT,
    account_id             TEXT    NOT NULL,
    name                   TEXT    NOT NULL,
    created_at             INTEGER NOT NULL,
    tag_mutability         TEXT    NOT NULL,
    exclusions             TEXT    NOT NULL, -- a JSON array of wildcards
    scan_on_push           INTEGER NOT NULL, -- 0 or 1
    encryption_type        TEXT    NOT NULL,
    kms_key                TEXT,
    policy                 TEXT,
    lifecycle_policy       TEXT,
    lifecycle_evaluated_at INTEGER,
    kind                   TEXT    NOT NULL DEFAULT 'private' CHECK (kind IN ('private', 'public')),
    version                INTEGER NOT NULL DEFAULT 1,
    policy_version         INTEGER NOT NULL DEFAULT 1
) STRICT;
INSERT INTO repository_new (id, account_id, name, created_at, tag_mutability, exclusions, scan_on_push, encryption_type,
                            kms_key, policy, lifecycle_policy, lifecycle_evaluated_at)
    SELECT id, account_id, name, created_at, tag_mutability, exclusions, scan_on_push, encryption_type,
           kms_key, policy, lifecycle_policy, lifecycle_evaluated_at FROM repository;
-- The id of a repository that was deleted is not given again.
DELETE FROM sqlite_sequence WHERE name = 'repository_new';
INSERT INTO sqlite_sequence (name, seq) SELECT 'repository_new', seq FROM sqlite_sequence WHERE name = 'repository';
DROP TABLE repository;
ALTER TABLE repository_new RENAME TO repository;
CREATE UNIQUE INDEX repository_by_name ON repository (account_id, name, kind);
CREATE INDEX repository_with_lifecycle ON repository (lifecycle_evaluated_at) WHERE lifecycle_policy IS NOT NULL;

-- `version` covers the account settings too.
ALTER TABLE registry ADD COLUMN version INTEGER NOT NULL DEFAULT 1;
ALTER TABLE registry ADD COLUMN policy_version INTEGER NOT NULL DEFAULT 1;

-- When the name was first set, and when it was last pointed at another image. Of older tags only the image's push is known.
ALTER TABLE tag ADD COLUMN created_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tag ADD COLUMN updated_at INTEGER NOT NULL DEFAULT 0;
UPDATE tag SET created_at = m.pushed_at, updated_at = m.pushed_at FROM manifest m WHERE m.id = tag.manifest_id;

-- Grows with every push of the image and every change of its tags or storage class.
ALTER TABLE manifest ADD COLUMN revision INTEGER NOT NULL DEFAULT 1;

-- An index that can be pulled has children that can be pulled. Where a push has broken that, the children are restored.
WITH RECURSIVE held (id) AS (
    SELECT e.child_id FROM manifest p JOIN manifest_child e ON e.parent_id = p.id WHERE p.status <> 'ARCHIVED'
    UNION
    SELECT e.child_id FROM held JOIN manifest_child e ON e.parent_id = held.id)
UPDATE manifest SET status = 'ACTIVE', activated_at = unixepoch() * 1000
WHERE status = 'ARCHIVED' AND id IN (SELECT id FROM held);

-- Since when the manifest of this edge is archived; NULL while it can be pulled. With the index it takes one look to tell
-- whether any image that can be pulled has a layer, however many images have it.
ALTER TABLE manifest_blob ADD COLUMN archived_at INTEGER;
UPDATE manifest_blob SET archived_at = coalesce(m.archived_at, 0)
FROM manifest m WHERE m.id = manifest_blob.manifest_id AND m.status = 'ARCHIVED';
DROP INDEX manifest_blob_by_link;
CREATE INDEX manifest_blob_by_link ON manifest_blob (link_id, archived_at, manifest_id);
