-- Rows in every table that grows, so that the planner has reason to prefer one index to another. What a column may be and what it
-- refers to does not matter here.
SET session_replication_role = replica;
DO $$
DECLARE
    filled text;
    names text;
    texts text;
BEGIN
    FOREACH filled IN ARRAY ARRAY['repository', 'blob', 'repository_blob', 'manifest', 'manifest_payload', 'manifest_blob', 'manifest_child',
                                  'tag', 'upload', 'job', 'event', 'usage', 'usage_delta', 'resource_tag',
                                  'lifecycle_preview', 'lifecycle_preview_result'] LOOP
        SELECT string_agg(quote_ident(column_name), ', '),
               string_agg(CASE
                   WHEN column_name = 'state' THEN CASE filled WHEN 'job' THEN '''waiting''' WHEN 'blob' THEN '''live''' ELSE '''FAILED''' END
                   WHEN column_name = 'status' THEN '''ACTIVE'''
                   WHEN data_type = 'bigint' THEN 'i'
                   WHEN data_type = 'boolean' THEN 'true'
                   WHEN data_type = 'bytea' THEN '''x''::bytea'
                   ELSE '''x'' || i' END, ', ')
            INTO names, texts
            FROM information_schema.columns
            WHERE table_schema = 'public' AND table_name = filled AND is_nullable = 'NO' AND column_default IS NULL
              AND is_identity = 'NO';
        EXECUTE format('INSERT INTO %I (%s) SELECT %s FROM generate_series(1, 5000) i', filled, names, texts);
    END LOOP;
END $$;
SET session_replication_role = DEFAULT;
ANALYZE;
