-- What the registry keeps. PostgreSQL's schema has the same tables, columns and rules.
--
-- Times are milliseconds since the epoch, sizes are bytes. Digests are text ("sha256:…"), so that their order is the order
-- of listings. Row ids that callers hold are never given twice (AUTOINCREMENT): a late write hits nothing.
-- What SQL enforces is what a bug must not break: a blob with a link, a link that a manifest needs and an image that an
-- index holds cannot be deleted (RESTRICT).

CREATE TABLE repository (
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
    UNIQUE (account_id, name)
) STRICT;
CREATE INDEX repository_with_lifecycle ON repository (lifecycle_evaluated_at) WHERE lifecycle_policy IS NOT NULL;

-- Kept by the triggers below, so that neither the limit on images nor the metrics ever count rows.
CREATE TABLE repository_usage (
    repository_id INTEGER PRIMARY KEY REFERENCES repository (id) ON DELETE CASCADE,
    images        INTEGER NOT NULL,
    bytes         INTEGER NOT NULL
) STRICT;

CREATE TABLE account_setting (
    account_id TEXT NOT NULL,
    name       TEXT NOT NULL,
    value      TEXT NOT NULL,
    PRIMARY KEY (account_id, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE resource_tag (
    repository_id INTEGER NOT NULL REFERENCES repository (id) ON DELETE CASCADE,
    key           TEXT    NOT NULL,
    value         TEXT    NOT NULL,
    PRIMARY KEY (repository_id, key)
) STRICT, WITHOUT ROWID;

-- One generation of bytes. A registry has at most one live blob of a digest under one encryption; while an old generation
-- is being deleted, a new push makes another.
CREATE TABLE blob (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    account_id  TEXT    NOT NULL,
    digest      TEXT    NOT NULL,
    encryption  TEXT    NOT NULL, -- the type, and behind a colon the key if there is one
    size        INTEGER NOT NULL,
    generation  TEXT    NOT NULL UNIQUE,
    state       TEXT    NOT NULL CHECK (state IN ('live', 'deleting')),
    lease_until INTEGER NOT NULL, -- not to be collected before
    created_at  INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX blob_live ON blob (account_id, digest, encryption) WHERE state = 'live';
CREATE INDEX blob_by_lease ON blob (state, lease_until);

-- A blob is in a repository.
CREATE TABLE repository_blob (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    repository_id INTEGER NOT NULL REFERENCES repository (id) ON DELETE CASCADE,
    digest        TEXT    NOT NULL,
    blob_id       INTEGER NOT NULL REFERENCES blob (id) ON DELETE RESTRICT,
    linked_at     INTEGER NOT NULL,
    UNIQUE (repository_id, digest)
) STRICT;
CREATE INDEX repository_blob_by_blob ON repository_blob (blob_id);

CREATE TABLE manifest (
    id                INTEGER PRIMARY KEY AUTOINCREMENT,
    repository_id     INTEGER NOT NULL REFERENCES repository (id) ON DELETE CASCADE,
    digest            TEXT    NOT NULL,
    media_type        TEXT    NOT NULL,
    status            TEXT    NOT NULL CHECK (status IN ('ACTIVE', 'ARCHIVED', 'ACTIVATING')),
    payload_size      INTEGER NOT NULL,
    image_size        INTEGER NOT NULL,
    pushed_at         INTEGER NOT NULL,
    last_pulled_at    INTEGER,
    archived_at       INTEGER,
    activated_at      INTEGER,
    artifact_type     TEXT,
    config_media_type TEXT,
    subject           TEXT,
    annotations       TEXT, -- a JSON object, or NULL when there is none
    UNIQUE (repository_id, digest)
) STRICT;
CREATE INDEX manifest_by_subject ON manifest (repository_id, subject, digest) WHERE subject IS NOT NULL;
CREATE INDEX manifest_not_active ON manifest (repository_id, status, digest) WHERE status <> 'ACTIVE';

CREATE TRIGGER manifest_inserted AFTER INSERT ON manifest BEGIN
    UPDATE repository_usage SET images = images + 1, bytes = bytes + new.image_size
        WHERE repository_id = new.repository_id;
END;
CREATE TRIGGER manifest_deleted AFTER DELETE ON manifest BEGIN
    UPDATE repository_usage SET images = images - 1, bytes = bytes - old.image_size
        WHERE repository_id = old.repository_id;
END;

-- Apart from the manifest, so that listings do not drag payloads along.
CREATE TABLE manifest_payload (
    manifest_id INTEGER PRIMARY KEY REFERENCES manifest (id) ON DELETE CASCADE,
    payload     BLOB    NOT NULL
) STRICT;

CREATE TABLE tag (
    repository_id INTEGER NOT NULL REFERENCES repository (id) ON DELETE CASCADE,
    name          TEXT    NOT NULL,
    manifest_id   INTEGER NOT NULL REFERENCES manifest (id) ON DELETE CASCADE,
    PRIMARY KEY (repository_id, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX tag_by_manifest ON tag (manifest_id, name);

-- A manifest needs a blob of its repository: its config or one of its layers.
CREATE TABLE manifest_blob (
    manifest_id INTEGER NOT NULL REFERENCES manifest (id) ON DELETE CASCADE,
    link_id     INTEGER NOT NULL REFERENCES repository_blob (id) ON DELETE RESTRICT,
    media_type  TEXT    NOT NULL,
    PRIMARY KEY (manifest_id, link_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX manifest_blob_by_link ON manifest_blob (link_id, manifest_id);

-- An index holds a manifest of its repository.
CREATE TABLE manifest_child (
    parent_id INTEGER NOT NULL REFERENCES manifest (id) ON DELETE CASCADE,
    child_id  INTEGER NOT NULL REFERENCES manifest (id) ON DELETE RESTRICT,
    PRIMARY KEY (parent_id, child_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX manifest_child_by_child ON manifest_child (child_id, parent_id);

-- RESTRICT: what deletes a repository has to hand the generations to jobs first.
CREATE TABLE upload (
    id            TEXT    PRIMARY KEY,
    repository_id INTEGER NOT NULL REFERENCES repository (id) ON DELETE RESTRICT,
    generation    TEXT    NOT NULL UNIQUE,
    algorithm     TEXT    NOT NULL,
    started_at    INTEGER NOT NULL,
    version       INTEGER NOT NULL,
    byte_offset   INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL,
    hash_state    BLOB    NOT NULL,
    door_state    BLOB    NOT NULL,
    writer_state  BLOB    NOT NULL
) STRICT;
CREATE INDEX upload_by_repository ON upload (repository_id);
CREATE INDEX upload_by_age ON upload (updated_at);

CREATE TABLE lifecycle_preview (
    repository_id INTEGER PRIMARY KEY REFERENCES repository (id) ON DELETE CASCADE,
    policy        TEXT    NOT NULL,
    started_at    INTEGER NOT NULL,
    state         TEXT    NOT NULL CHECK (state IN ('IN_PROGRESS', 'COMPLETE', 'FAILED')),
    completed_at  INTEGER,
    summary       TEXT -- JSON
) STRICT;

CREATE TABLE lifecycle_preview_result (
    repository_id INTEGER NOT NULL REFERENCES lifecycle_preview (repository_id) ON DELETE CASCADE,
    position      INTEGER NOT NULL,
    digest        TEXT    NOT NULL,
    tags          TEXT    NOT NULL, -- a JSON array
    pushed_at     INTEGER NOT NULL,
    action        TEXT    NOT NULL,
    rule_priority INTEGER NOT NULL,
    status        TEXT    NOT NULL,
    PRIMARY KEY (repository_id, position)
) STRICT, WITHOUT ROWID;

-- One job of a kind and key waits at most, and one runs at most.
CREATE TABLE job (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    kind        TEXT    NOT NULL,
    key         TEXT    NOT NULL,
    state       TEXT    NOT NULL CHECK (state IN ('waiting', 'running', 'dead')),
    run_at      INTEGER NOT NULL,
    lease_until INTEGER, -- while it runs
    attempts    INTEGER NOT NULL,
    last_error  TEXT,
    payload     TEXT    NOT NULL -- JSON
) STRICT;
CREATE UNIQUE INDEX job_waiting ON job (kind, key) WHERE state = 'waiting';
CREATE UNIQUE INDEX job_running ON job (kind, key) WHERE state = 'running';
CREATE INDEX job_due ON job (kind, run_at, id) WHERE state = 'waiting';
CREATE INDEX job_leases ON job (lease_until) WHERE state = 'running';

CREATE TABLE event (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    at         INTEGER NOT NULL,
    account_id TEXT    NOT NULL,
    repository TEXT,
    kind       TEXT    NOT NULL,
    detail     TEXT    NOT NULL -- JSON
) STRICT;
CREATE INDEX event_by_account ON event (account_id, id);
