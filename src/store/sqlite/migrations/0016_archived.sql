-- What is archived costs a listing nothing: like the edge to a layer, a tag and the edge to a child say since when their image, or
-- the index that holds the child, is archived; NULL while it can be pulled.

ALTER TABLE tag ADD COLUMN archived_at INTEGER;
UPDATE tag SET archived_at = coalesce(m.archived_at, 0)
FROM manifest m WHERE m.id = tag.manifest_id AND m.status = 'ARCHIVED';
-- The tags that `/v2/` lists, in their order. The distribution spec knows no longer ones.
CREATE INDEX tag_listed ON tag (repository_id, name) WHERE archived_at IS NULL AND length(name) <= 128;

ALTER TABLE manifest_child ADD COLUMN archived_at INTEGER;
UPDATE manifest_child SET archived_at = coalesce(m.archived_at, 0)
FROM manifest m WHERE m.id = manifest_child.parent_id AND m.status = 'ARCHIVED';
DROP INDEX manifest_child_by_child;
CREATE INDEX manifest_child_by_child ON manifest_child (child_id, archived_at, parent_id);
