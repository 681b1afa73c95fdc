//! The contract on a folder, and what only a folder does.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use wharfage::store::blobs::folder::FolderBlobs;
use wharfage::store::{Blobs, Generation, StoreError, WriterState};

use super::{Place, content, get_whole, on, put, same, write};

/// A folder that doesn't exist yet, in one that goes with the test.
struct Folder(PathBuf, #[allow(dead_code, reason = "removes itself when dropped")] tempfile::TempDir);

async fn folder() -> Folder {
    let above = tempfile::tempdir().unwrap();
    Folder(above.path().join("data"), above)
}

#[async_trait::async_trait]
impl Place for Folder {
    async fn open(&self) -> Arc<dyn Blobs> {
        Arc::new(FolderBlobs::open(&self.0).unwrap())
    }
}

on!(folder);

fn file(root: &Path, generation: Generation) -> PathBuf {
    root.join(generation.path())
}

#[tokio::test]
async fn a_blob_is_one_file_at_its_generation() {
    let folder = folder().await;
    let bytes = content(1, 100_000);
    let generation = put(folder.open().await.as_ref(), &bytes).await;
    assert_eq!(fs::read(file(&folder.0, generation)).unwrap(), bytes);
}

#[tokio::test]
async fn what_a_crash_left_beyond_the_checkpoint_is_overwritten_and_cut() {
    let folder = folder().await;
    let (kept, rest) = (content(2, 1000), content(3, 500));
    for leftover in [0, 100, 500, 5000] {
        let generation = Generation::random();
        let blobs = folder.open().await;
        let path = file(&folder.0, generation);
        fs::write(&path, [kept.to_vec(), vec![0xff; leftover]].concat()).unwrap();
        let mut writer = blobs.writer(generation, 1000, &WriterState::default()).await.unwrap();
        write(writer.as_mut(), &rest, 100).await;
        writer.finish().await.unwrap();
        assert_eq!(fs::read(&path).unwrap(), [kept.to_vec(), rest.to_vec()].concat());
    }
}

#[tokio::test]
async fn what_a_crash_left_before_the_first_checkpoint_is_overwritten_and_cut() {
    let folder = folder().await;
    let generation = Generation::random();
    let blobs = folder.open().await;
    fs::write(file(&folder.0, generation), vec![0xff; 5000]).unwrap();
    let bytes = content(4, 700);
    let mut writer = blobs.writer(generation, 0, &WriterState::default()).await.unwrap();
    write(writer.as_mut(), &bytes, 100).await;
    writer.finish().await.unwrap();
    same(&get_whole(blobs.as_ref(), generation, 700).await.unwrap(), &bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_begins_only_after_the_last_batch_of_the_one_before_it() {
    let folder = folder().await;
    let blobs = folder.open().await;
    let generation = Generation::random();
    for round in 0..50 {
        let mut abandoned = blobs.writer(generation, 0, &WriterState::default()).await.unwrap();
        // Just enough for a batch to be on its way to the file when the writer goes.
        write(abandoned.as_mut(), &content(1000, 1024 * 1024), 256 * 1024).await;
        drop(abandoned);
        let bytes = content(round, 1024 * 1024);
        let mut writer = blobs.writer(generation, 0, &WriterState::default()).await.unwrap();
        write(writer.as_mut(), &bytes, 256 * 1024).await;
        writer.finish().await.unwrap();
        same(&get_whole(blobs.as_ref(), generation, bytes.len()).await.unwrap(), &bytes);
    }
}

#[tokio::test]
async fn a_second_writer_of_a_generation_waits_for_the_first() {
    let folder = folder().await;
    let blobs = folder.open().await;
    let (generation, state) = (Generation::random(), WriterState::default());
    let first = blobs.writer(generation, 0, &state).await.unwrap();
    let mut second = blobs.writer(generation, 0, &state);
    assert!(futures::poll!(&mut second).is_pending());
    blobs.writer(Generation::random(), 0, &state).await.unwrap();
    drop(first);
    second.await.unwrap();
}

#[tokio::test]
async fn a_folder_has_no_urls_of_its_own() {
    let folder = folder().await;
    let blobs = folder.open().await;
    let generation = put(blobs.as_ref(), &content(5, 10)).await;
    assert_eq!(blobs.presigned_url(generation, Duration::from_secs(60)).await.unwrap(), None);
}

#[tokio::test]
async fn a_folder_that_is_gone_is_not_ready() {
    let folder = folder().await;
    let blobs = folder.open().await;
    fs::remove_dir_all(&folder.0).unwrap();
    assert!(matches!(blobs.ready().await, Err(StoreError::Unavailable(_))));
}

#[tokio::test]
async fn blobs_are_their_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder().await;
    let generation = put(folder.open().await.as_ref(), &content(6, 10)).await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o077;
    assert_eq!(mode(&file(&folder.0, generation)), 0);
    assert_eq!(mode(&folder.0.join("blobs")), 0);
}
