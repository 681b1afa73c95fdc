-- The state that a protocol keeps between the chunks of an upload.
ALTER TABLE upload RENAME COLUMN door_state TO protocol_state;
