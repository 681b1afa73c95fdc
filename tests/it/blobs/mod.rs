//! The contract of `store::Blobs`: the same tests on every backend.

mod contract;
mod folder;
mod interleavings;
mod s3;

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use wharfage::store::{
    BlobKey, BlobWriter, Blobs, Generation, Handover, Sealed, StoreError, StoreResult, UploadKey,
    WriterState,
};

/// A location where a backend stores blobs.
#[async_trait::async_trait]
pub trait BackendFixture: Send + Sync {
    /// Opens the backend, as a process does at its start.
    async fn open(&self) -> Arc<dyn Blobs>;
    /// Lists the paths of all objects below the store's root, sorted.
    async fn objects(&self) -> Vec<String>;
}

/// Runs the contract's tests on the fixture that `$make` (an async function) creates.
macro_rules! on {
    ($make:path) => {
        $crate::blobs::on!(@tests $make:
            written_bytes_read_back_at_every_size,
            frames_of_any_size_make_the_same_blob,
            a_range_reads_exactly_its_bytes,
            an_upload_continues_at_its_checkpoint_after_a_restart,
            a_checkpoint_without_new_bytes_changes_nothing,
            bytes_after_the_checkpoint_are_overwritten,
            finishing_an_uncommitted_upload_again_succeeds,
            finishing_again_with_other_bytes_leaves_only_those,
            a_late_writer_changes_no_finished_object,
            a_takeover_finishes_with_its_own_bytes,
            a_complete_checkpoint_is_sealed_without_a_writer,
            only_the_blob_is_left_at_the_end,
            a_blob_of_another_size_is_never_served,
            a_missing_blob_is_inconsistent,
            a_stored_size_is_that_of_the_object,
            encrypted_blobs_are_neither_read_nor_written,
            a_writer_requires_the_acknowledged_bytes,
            deleting_is_idempotent,
            an_unfinished_blob_is_deleted_with_its_leftovers,
            every_byte_is_inspected_once_and_in_order,
            generations_are_written_concurrently,
            a_blob_is_read_concurrently,
            a_reader_may_stop_half_way,
            the_writer_state_is_bounded,
            an_open_store_is_ready,
        );
    };
    (@tests $make:path: $($test:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                $crate::blobs::contract::$test(&$make().await).await;
            }
        )*
    };
}
use on;

/// Returns bytes without repetition, so that no range equals another.
fn content(seed: u64, len: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = vec![0; len];
    for word in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
    }
    bytes.into()
}

/// Writes `bytes` in frames of `frame` bytes.
async fn write(writer: &mut dyn BlobWriter, bytes: &Bytes, frame: usize) {
    let mut rest = bytes.clone();
    while !rest.is_empty() {
        writer.write(rest.split_to(frame.min(rest.len()))).await.unwrap();
    }
}

/// Begins an upload.
async fn begin(blobs: &dyn Blobs) -> Box<dyn BlobWriter> {
    resume(blobs, 0, &WriterState::default(), Handover::Clean).await.unwrap()
}

/// Continues an upload.
async fn resume(
    blobs: &dyn Blobs,
    offset: usize,
    state: &WriterState,
    handover: Handover,
) -> StoreResult<Box<dyn BlobWriter>> {
    blobs
        .writer(
            &UploadKey::plain(Generation::random()),
            offset as u64,
            state,
            handover,
            Arc::new(()),
        )
        .await
}

async fn checkpoint(writer: &mut dyn BlobWriter) -> WriterState {
    writer.checkpoint(Generation::random()).await.unwrap()
}

async fn finish(writer: Box<dyn BlobWriter>) -> BlobKey {
    key(&writer.finish().await.unwrap())
}

/// Returns the key of a finished object.
fn key(sealed: &Sealed) -> BlobKey {
    BlobKey::plain(sealed.generation, sealed.stored_size)
}

/// Writes a whole blob.
async fn put(blobs: &dyn Blobs, bytes: &Bytes) -> BlobKey {
    let mut writer = begin(blobs).await;
    write(writer.as_mut(), bytes, 100_000).await;
    finish(writer).await
}

async fn get(blobs: &dyn Blobs, key: &BlobKey, range: Range<u64>) -> StoreResult<Bytes> {
    let chunks: Vec<Bytes> = blobs.read(key, range).await?.try_collect().await?;
    for chunk in &chunks {
        assert!(chunk.len() <= 512 * 1024, "a chunk of {} bytes", chunk.len());
    }
    Ok(chunks.concat().into())
}

async fn get_whole(blobs: &dyn Blobs, key: &BlobKey) -> StoreResult<Bytes> {
    get(blobs, key, 0..key.size).await
}

/// Asserts equality without printing megabytes.
#[track_caller]
fn same(read: &Bytes, written: &[u8]) {
    assert_eq!(read.len(), written.len(), "length");
    if read != written {
        panic!(
            "byte {:?} is the first that differs",
            read.iter().zip(written).position(|(a, b)| a != b)
        );
    }
}

#[track_caller]
fn inconsistent<T>(outcome: StoreResult<T>) {
    match outcome {
        Err(StoreError::Inconsistent(_)) => {}
        Err(other) => panic!("failed otherwise: {other:?}"),
        Ok(_) => panic!("succeeded"),
    }
}
