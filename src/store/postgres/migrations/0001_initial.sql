-- What the registry keeps. The tables, columns and rules are those of SQLite's schema, with two differences that come from
-- many writers: nothing counts images in a row of its own, which every push would have to lock, and every text that is
-- paged by or compared has COLLATE "C", so that its order is that of its bytes whatever the database's locale is.
--
-- Times are milliseconds since the epoch, sizes are bytes. JSON is kept as TEXT: jsonb would refuse the escaped NUL that a
-- valid document may hold.
-- What SQL enforces is what a bug must not break: a blob with a link, a link that a manifest needs and an image that an
-- index holds cannot be deleted (RESTRICT).
--
-- Who locks what, in this order: the repository's row, links in the order of their digests, manifests in the order of
-- their digests, tags in the order of their names, blobs. A blob with a link is live: whoever retires a blob must see,
-- under the lock of its row, that it has no link; whoever links one must see, under the same lock, that it is live.

CREATE TABLE repository (
    id                     BIGINT  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id             TEXT    COLLATE "C" NOT NULL,
    name                   TEXT    COLLATE "C" NOT NULL,
    created_at             BIGINT  NOT NULL,
    tag_mutability         TEXT    NOT NULL,
    exclusions             TEXT    NOT NULL, -- a JSON array of wildcards
    scan_on_push           BOOLEAN NOT NULL,
    encryption_type        TEXT    NOT NULL,
    kms_key                TEXT,
    policy                 TEXT,
    lifecycle_policy       TEXT,
    lifecycle_evaluated_at BIGINT,
    UNIQUE (account_id, name)
);
CREATE INDEX repository_with_lifecycle ON repository (id) WHERE lifecycle_policy IS NOT NULL;

CREATE TABLE account_setting (
    account_id TEXT COLLATE "C" NOT NULL,
    name       TEXT COLLATE "C" NOT NULL,
    value      TEXT NOT NULL,
    PRIMARY KEY (account_id, name)
);

CREATE TABLE resource_tag (
    repository_id BIGINT NOT NULL REFERENCES repository (id) ON DELETE CASCADE,
    key           TEXT   COLLATE "C" NOT NULL,
    value         TEXT   NOT NULL,
    PRIMARY KEY (repository_id, key)
);

-- One generation of bytes. A registry has at most one live blob of a digest under one encryption; while an old generation
-- is being deleted, a new push makes another.
CREATE TABLE blob (
    id          BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id  TEXT   COLLATE "C" NOT NULL,
    digest      TEXT   COLLATE "C" NOT NULL,
    encryption  TEXT   COLLATE "C" NOT NULL, -- the type, and behind a colon the key if there is one
    size        BIGINT NOT NULL,
    generation  TEXT   COLLATE "C" NOT NULL UNIQUE,
    state       TEXT   NOT NULL CHECK (state IN ('live', 'deleting')),
    lease_until BIGINT NOT NULL, -- not to be collected before
    created_at  BIGINT NOT NULL
);
CREATE UNIQUE INDEX blob_live ON blob (account_id, digest, encryption) WHERE state = 'live';
CREATE INDEX blob_by_lease ON blob (state, lease_until);

-- A blob is in a repository.
CREATE TABLE repository_blob (
    id            BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    repository_id BIGINT NOT NULL REFERENCES repository (id) ON DELETE CASCADE,
    digest        TEXT   COLLATE "C" NOT NULL,
    blob_id       BIGINT NOT NULL REFERENCES blob (id) ON DELETE RESTRICT,
    linked_at     BIGINT NOT NULL,
    UNIQUE (repository_id, digest)
);
CREATE INDEX repository_blob_by_blob ON repository_blob (blob_id);

CREATE TABLE manifest (
    id                BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    repository_id     BIGINT NOT NULL REFERENCES repository (id) ON DELETE CASCADE,
    digest            TEXT   COLLATE "C" NOT NULL,
    media_type        TEXT   NOT NULL,
    status            TEXT   NOT NULL CHECK (status IN ('ACTIVE', 'ARCHIVED', 'ACTIVATING')),
    payload_size      BIGINT NOT NULL,
    image_size        BIGINT NOT NULL,
    pushed_at         BIGINT NOT NULL,
    last_pulled_at    BIGINT,
    archived_at       BIGINT,
    activated_at      BIGINT,
    artifact_type     TEXT   COLLATE "C",
    config_media_type TEXT   COLLATE "C",
    subject           TEXT   COLLATE "C",
    annotations       TEXT, -- a JSON object, or NULL when there is none
    UNIQUE (repository_id, digest)
);
CREATE INDEX manifest_by_subject ON manifest (repository_id, subject, digest) WHERE subject IS NOT NULL;
CREATE INDEX manifest_not_active ON manifest (repository_id, status, digest) WHERE status <> 'ACTIVE';

-- Apart from the manifest, so that neither listings nor recorded pulls drag payloads along.
CREATE TABLE manifest_payload (
    manifest_id BIGINT PRIMARY KEY REFERENCES manifest (id) ON DELETE CASCADE,
    payload     BYTEA  NOT NULL
);

CREATE TABLE tag (
    repository_id BIGINT NOT NULL REFERENCES repository (id) ON DELETE CASCADE,
    name          TEXT   COLLATE "C" NOT NULL,
    manifest_id   BIGINT NOT NULL REFERENCES manifest (id) ON DELETE CASCADE,
    PRIMARY KEY (repository_id, name)
);
CREATE INDEX tag_by_manifest ON tag (manifest_id, name);

-- A manifest needs a blob of its repository: its config or one of its layers.
CREATE TABLE manifest_blob (
    manifest_id BIGINT NOT NULL REFERENCES manifest (id) ON DELETE CASCADE,
    link_id     BIGINT NOT NULL REFERENCES repository_blob (id) ON DELETE RESTRICT,
    media_type  TEXT   NOT NULL,
    PRIMARY KEY (manifest_id, link_id)
);
CREATE INDEX manifest_blob_by_link ON manifest_blob (link_id, manifest_id);

-- An index holds a manifest of its repository.
CREATE TABLE manifest_child (
    parent_id BIGINT NOT NULL REFERENCES manifest (id) ON DELETE CASCADE,
    child_id  BIGINT NOT NULL REFERENCES manifest (id) ON DELETE RESTRICT,
    PRIMARY KEY (parent_id, child_id)
);
CREATE INDEX manifest_child_by_child ON manifest_child (child_id, parent_id);

-- RESTRICT: what deletes a repository has to hand the generations to jobs first.
CREATE TABLE upload (
    id            TEXT   COLLATE "C" PRIMARY KEY,
    repository_id BIGINT NOT NULL REFERENCES repository (id) ON DELETE RESTRICT,
    generation    TEXT   COLLATE "C" NOT NULL UNIQUE,
    algorithm     TEXT   NOT NULL,
    started_at    BIGINT NOT NULL,
    version       BIGINT NOT NULL,
    byte_offset   BIGINT NOT NULL,
    updated_at    BIGINT NOT NULL,
    hash_state    BYTEA  NOT NULL,
    door_state    BYTEA  NOT NULL,
    writer_state  BYTEA  NOT NULL
);
CREATE INDEX upload_by_repository ON upload (repository_id);
CREATE INDEX upload_by_age ON upload (updated_at);

CREATE TABLE lifecycle_preview (
    repository_id BIGINT PRIMARY KEY REFERENCES repository (id) ON DELETE CASCADE,
    policy        TEXT   NOT NULL,
    started_at    BIGINT NOT NULL,
    state         TEXT   NOT NULL CHECK (state IN ('IN_PROGRESS', 'COMPLETE', 'FAILED')),
    completed_at  BIGINT,
    summary       TEXT -- JSON
);

CREATE TABLE lifecycle_preview_result (
    repository_id BIGINT NOT NULL REFERENCES lifecycle_preview (repository_id) ON DELETE CASCADE,
    position      BIGINT NOT NULL,
    digest        TEXT   NOT NULL,
    tags          TEXT   NOT NULL, -- a JSON array
    pushed_at     BIGINT NOT NULL,
    action        TEXT   NOT NULL,
    rule_priority BIGINT NOT NULL,
    status        TEXT   NOT NULL,
    PRIMARY KEY (repository_id, position)
);

-- One job of a kind and key waits at most, and one runs at most.
CREATE TABLE job (
    id          BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind        TEXT   COLLATE "C" NOT NULL,
    key         TEXT   COLLATE "C" NOT NULL,
    state       TEXT   NOT NULL CHECK (state IN ('waiting', 'running', 'dead')),
    run_at      BIGINT NOT NULL,
    lease_until BIGINT, -- while it runs
    attempts    BIGINT NOT NULL,
    last_error  TEXT,
    payload     TEXT   NOT NULL -- JSON
);
CREATE UNIQUE INDEX job_waiting ON job (kind, key) WHERE state = 'waiting';
CREATE UNIQUE INDEX job_running ON job (kind, key) WHERE state = 'running';
CREATE INDEX job_due ON job (run_at, id) WHERE state IN ('waiting', 'running');

CREATE TABLE event (
    id         BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         BIGINT NOT NULL,
    account_id TEXT   COLLATE "C" NOT NULL,
    repository TEXT,
    kind       TEXT   NOT NULL,
    detail     TEXT   NOT NULL -- JSON
);
CREATE INDEX event_by_account ON event (account_id, id);
