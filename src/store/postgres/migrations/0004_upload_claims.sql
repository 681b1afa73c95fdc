-- Who writes to an upload claims it first. Until when the claim holds, or NULL when the last one ended cleanly; 0 when it
-- ended otherwise.
ALTER TABLE upload ADD COLUMN claimed_until BIGINT;
-- False while no client knows of the session, so that nobody can go on with it.
ALTER TABLE upload ADD COLUMN announced BOOLEAN NOT NULL DEFAULT true;
CREATE INDEX upload_unannounced ON upload (claimed_until) WHERE NOT announced;

-- How the bytes are stored: how many they are, and what they are encrypted with (NULL: not encrypted).
ALTER TABLE upload ADD COLUMN key_id TEXT;
ALTER TABLE upload ADD COLUMN wrapped_key BYTEA;
ALTER TABLE blob ADD COLUMN stored_size BIGINT;
ALTER TABLE blob ADD COLUMN key_id TEXT;
ALTER TABLE blob ADD COLUMN wrapped_key BYTEA;
UPDATE blob SET stored_size = size;
ALTER TABLE blob ALTER COLUMN stored_size SET NOT NULL;

-- When a read found the bytes missing or of another size.
ALTER TABLE blob ADD COLUMN damaged_at BIGINT;
