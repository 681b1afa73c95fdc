-- What a registry as a whole is set to; a registry that has no row has the defaults.
CREATE TABLE registry (
    account_id TEXT NOT NULL PRIMARY KEY,
    policy     TEXT,
    scanning   TEXT -- JSON
) STRICT, WITHOUT ROWID;
