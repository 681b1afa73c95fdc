-- The oldest schema version whose programs can work with this schema. Programs before this version refuse every newer schema.
-- A migration that an older program cannot live with raises it to its own version.
CREATE TABLE schema_compatibility (oldest INTEGER NOT NULL);
INSERT INTO schema_compatibility (oldest) VALUES (0);
