-- Who writes to an upload claims it first. Until when the claim holds, or NULL when the last one ended cleanly; 0 when it
-- ended otherwise.
ALTER TABLE upload ADD COLUMN claimed_until INTEGER;
-- 0 while no client knows of the session, so that nobody can go on with it.
ALTER TABLE upload ADD COLUMN announced INTEGER NOT NULL DEFAULT 1;
CREATE INDEX upload_unannounced ON upload (claimed_until) WHERE announced = 0;

-- How the bytes are stored: how many they are, and what they are encrypted with (NULL: not encrypted).
ALTER TABLE upload ADD COLUMN key_id TEXT;
ALTER TABLE upload ADD COLUMN wrapped_key BLOB;
ALTER TABLE blob ADD COLUMN stored_size INTEGER NOT NULL DEFAULT 0;
ALTER TABLE blob ADD COLUMN key_id TEXT;
ALTER TABLE blob ADD COLUMN wrapped_key BLOB;
UPDATE blob SET stored_size = size;

-- When a read found the bytes missing or of another size.
ALTER TABLE blob ADD COLUMN damaged_at INTEGER;
