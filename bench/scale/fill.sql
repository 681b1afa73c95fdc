-- Fills a database that a registry has made: :repositories repositories, the first with :images images. An image has a config and
-- three layers of its own and three that all images share; every second image is archived. One in five has a tag, those of archived
-- images before all others; one in five refers to the second image; one in five is an index of the second and the fourth image, but
-- only archived indexes hold the fourth. The blob 1, whose bytes are there, is in every repository.
--
-- SQLite and PostgreSQL both take it; databases.py makes the tables new_… beforehand.
INSERT INTO repository (account_id, name, created_at, tag_mutability, exclusions, scan_on_push, encryption_type)
    SELECT '000000000000', name, 0, 'MUTABLE', '[]', FALSE, 'AES256' FROM new_repository ORDER BY number;
INSERT INTO blob (account_id, digest, encryption, size, stored_size, generation, state, lease_until, created_at)
    SELECT '000000000000', digest, 'AES256', 1000, 1000, generation, 'live', 0, 0 FROM new_blob ORDER BY number;
INSERT INTO repository_blob (repository_id, digest, blob_id, linked_at)
    SELECT r.id, b.digest, b.id, 0 FROM repository r CROSS JOIN blob b
    WHERE r.name = 'r/000001' AND (b.generation LIKE '00000000%' OR b.id = (SELECT min(id) FROM blob));
INSERT INTO repository_blob (repository_id, digest, blob_id, linked_at)
    SELECT r.id, b.digest, b.id, 0 FROM repository r CROSS JOIN (SELECT id, digest FROM blob ORDER BY id LIMIT 1) b
    WHERE r.name LIKE 'r/%' AND r.name <> 'r/000001';
INSERT INTO manifest (repository_id, digest, media_type, status, payload_size, image_size, pushed_at, config_media_type,
                      subject, artifact_type, archived_at)
    SELECT r.id, n.digest, CASE WHEN n.number % 10 IN (8, 9) THEN 'application/vnd.oci.image.index.v1+json'
                                ELSE 'application/vnd.oci.image.manifest.v1+json' END,
           CASE WHEN n.number % 2 = 1 THEN 'ARCHIVED' ELSE 'ACTIVE' END,
           1000, 7000, n.number, 'application/vnd.oci.image.config.v1+json',
           CASE WHEN n.number % 10 IN (6, 7) THEN n.subject END, CASE WHEN n.number % 10 IN (6, 7) THEN 'application/x' END,
           CASE WHEN n.number % 2 = 1 THEN 1 END
    FROM new_image n CROSS JOIN repository r WHERE r.name = 'r/000001' ORDER BY n.number;
INSERT INTO manifest_payload (manifest_id, payload)
    SELECT m.id, n.payload FROM new_image n
    JOIN manifest m ON m.digest = n.digest AND m.repository_id = (SELECT id FROM repository WHERE name = 'r/000001');
INSERT INTO manifest_blob (manifest_id, link_id, media_type, archived_at)
    SELECT m.id, l.id, 'application/vnd.oci.image.layer.v1.tar+gzip', m.archived_at
    FROM new_edge e JOIN manifest m ON m.digest = e.image AND m.repository_id = (SELECT id FROM repository WHERE name = 'r/000001')
    JOIN repository_blob l ON l.repository_id = m.repository_id AND l.digest = e.blob;
INSERT INTO manifest_child (parent_id, child_id, archived_at)
    SELECT m.id, c.id, m.archived_at
    FROM new_image n JOIN manifest m ON m.digest = n.digest AND m.repository_id = (SELECT id FROM repository WHERE name = 'r/000001')
    JOIN manifest c ON c.repository_id = m.repository_id AND c.digest IN (n.subject, n.fourth)
    WHERE n.number % 10 = 9 OR (n.number % 10 = 8 AND c.digest = n.subject);
INSERT INTO tag (repository_id, name, manifest_id, created_at, updated_at, archived_at)
    SELECT m.repository_id, CASE WHEN n.number % 2 = 1 THEN 'a' ELSE 't' END || n.number, m.id, 0, 0, m.archived_at
    FROM new_image n JOIN manifest m ON m.digest = n.digest AND m.repository_id = (SELECT id FROM repository WHERE name = 'r/000001')
    WHERE n.number % 5 = 0;
UPDATE repository SET lifecycle_due_at = 9000000000000,
    lifecycle_policy = '{"rules":[{"rulePriority":1,"selection":{"tagStatus":"untagged","countType":"sinceImagePushed","countUnit":"days","countNumber":30000},"action":{"type":"expire"}}]}'
    WHERE name LIKE 'r/%' AND name <> 'r/000001';
