//! The contract of `store::Blobs`, the same tests on every backend.

mod contract;
mod folder;
mod interleavings;
mod s3;

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use wharfage::store::{
    BlobKey, BlobWriter, Blobs, Generation, Handover, Sealed, StoreError, StoreResult, UploadKey, WriterState,
};

/// A place that a backend keeps blobs in.
#[async_trait::async_trait]
pub trait Place: Send + Sync {
    /// The backend as a process that has just started has it.
    async fn open(&self) -> Arc<dyn Blobs>;
    /// The paths of the objects that are there, below the store's root, sorted.
    async fn objects(&self) -> Vec<String>;
}

/// Runs the contract's tests on the place that `$make` (an async function) makes.
macro_rules! on {
    ($make:path) => {
        $crate::blobs::on!(@tests $make:
            what_was_written_reads_back_at_every_size,
            frames_of_any_size_make_the_same_blob,
            a_range_reads_exactly_its_bytes,
            an_upload_goes_on_from_its_checkpoint_after_a_restart,
            a_checkpoint_without_new_bytes_changes_nothing,
            bytes_after_the_checkpoint_are_overwritten,
            finishing_again_what_was_not_committed_succeeds,
            finishing_again_with_other_bytes_leaves_only_those,
            a_late_writer_changes_nothing_that_was_finished,
            who_comes_after_a_late_writer_ends_with_its_own_bytes,
            what_a_checkpoint_left_whole_is_sealed_without_a_writer,
            nothing_but_the_blob_is_left_at_the_end,
            a_blob_of_another_size_is_never_served,
            a_missing_blob_is_inconsistent,
            a_stored_size_is_that_of_the_object,
            what_is_encrypted_is_neither_read_nor_written,
            a_writer_wants_the_acknowledged_bytes_to_be_there,
            deleting_is_idempotent,
            a_half_written_blob_is_deleted_with_what_it_left,
            every_byte_is_inspected_once_and_in_its_order,
            generations_are_written_side_by_side,
            a_blob_is_read_many_times_at_once,
            a_reader_may_stop_half_way,
            what_an_upload_must_remember_is_bounded,
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

/// Bytes that differ everywhere, so that none can stand in for another.
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

/// Goes on with an upload.
async fn resume(
    blobs: &dyn Blobs,
    offset: usize,
    state: &WriterState,
    handover: Handover,
) -> StoreResult<Box<dyn BlobWriter>> {
    blobs.writer(&UploadKey::plain(Generation::random()), offset as u64, state, handover, Arc::new(())).await
}

async fn checkpoint(writer: &mut dyn BlobWriter) -> WriterState {
    writer.checkpoint(Generation::random()).await.unwrap()
}

async fn finish(writer: Box<dyn BlobWriter>) -> BlobKey {
    key(&writer.finish().await.unwrap())
}

/// Where a finished object is.
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
        panic!("byte {:?} is the first that differs", read.iter().zip(written).position(|(a, b)| a != b));
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
