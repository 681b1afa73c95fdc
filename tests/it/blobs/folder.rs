//! The contract on a folder, and tests of folders alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use wharfage::store::blobs::folder::FolderBlobs;
use wharfage::store::{Blobs, Generation, Handover, StoreError, WriterState};

use super::{BackendFixture, begin, checkpoint, content, finish, on, put, resume, write};

/// A folder that does not exist yet, in a temporary one.
pub(super) struct Folder(
    PathBuf,
    #[allow(dead_code, reason = "removes itself when dropped")] tempfile::TempDir,
);

pub(super) async fn folder() -> Folder {
    let above = tempfile::tempdir().unwrap();
    Folder(above.path().join("data"), above)
}

#[async_trait::async_trait]
impl BackendFixture for Folder {
    async fn open(&self) -> Arc<dyn Blobs> {
        Arc::new(FolderBlobs::open(&self.0).unwrap())
    }

    async fn objects(&self) -> Vec<String> {
        let files = |path: &Path| {
            fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
        };
        let found = files(&self.0.join("blobs"))
            .iter()
            .flat_map(|fan_out| files(fan_out))
            .collect::<Vec<_>>();
        let mut found: Vec<_> = found
            .iter()
            .map(|path| path.strip_prefix(&self.0).unwrap().to_str().unwrap().to_owned())
            .collect();
        found.sort();
        found
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
    let blob = put(folder.open().await.as_ref(), &bytes).await;
    assert_eq!(fs::read(file(&folder.0, blob.generation)).unwrap(), bytes);
}

#[tokio::test]
async fn bytes_beyond_the_checkpoint_are_overwritten_or_truncated() {
    let folder = folder().await;
    let (kept, rest) = (content(2, 1000), content(3, 500));
    for handover in [Handover::Clean, Handover::Takeover] {
        for leftover in [0, 100, 500, 5000] {
            let blobs = folder.open().await;
            let mut writer = begin(blobs.as_ref()).await;
            write(writer.as_mut(), &kept, 100).await;
            let state = checkpoint(writer.as_mut()).await;
            drop(writer);
            let [path] = folder.objects().await.try_into().unwrap();
            fs::write(folder.0.join(path), [kept.to_vec(), vec![0xff; leftover]].concat()).unwrap();
            let mut writer = resume(blobs.as_ref(), 1000, &state, handover).await.unwrap();
            write(writer.as_mut(), &rest, 100).await;
            let blob = finish(writer).await;
            assert_eq!(
                fs::read(file(&folder.0, blob.generation)).unwrap(),
                [kept.to_vec(), rest.to_vec()].concat()
            );
            for path in folder.objects().await {
                fs::remove_file(folder.0.join(path)).unwrap();
            }
        }
    }
}

#[tokio::test]
async fn uploads_of_earlier_versions_continue_in_their_rows_file() {
    let folder = folder().await;
    let blobs = folder.open().await;
    let (generation, kept, rest) = (Generation::random(), content(4, 700), content(5, 10));
    fs::write(file(&folder.0, generation), &kept).unwrap();
    let key = wharfage::store::UploadKey::plain(generation);
    let mut writer = blobs
        .writer(&key, 700, &WriterState::default(), Handover::Clean, Arc::new(()))
        .await
        .unwrap();
    write(writer.as_mut(), &rest, 100).await;
    let blob = finish(writer).await;
    assert_eq!(
        fs::read(file(&folder.0, blob.generation)).unwrap(),
        [kept.to_vec(), rest.to_vec()].concat()
    );
}

#[tokio::test]
async fn a_writer_does_not_begin_in_an_existing_file() {
    let folder = folder().await;
    let blobs = folder.open().await;
    let generation = Generation::random();
    fs::write(file(&folder.0, generation), "somebody's").unwrap();
    let key = wharfage::store::UploadKey::plain(generation);
    let mut writer = blobs
        .writer(&key, 0, &WriterState::default(), Handover::Clean, Arc::new(()))
        .await
        .unwrap();
    writer.write(content(6, 10)).await.unwrap();
    assert!(writer.finish().await.is_err());
    assert_eq!(fs::read(file(&folder.0, generation)).unwrap(), b"somebody's");
}

#[tokio::test]
async fn a_folder_has_no_presigned_urls() {
    let folder = folder().await;
    let blobs = folder.open().await;
    let blob = put(blobs.as_ref(), &content(5, 10)).await;
    assert_eq!(blobs.presigned_url(&blob, Duration::from_secs(60)).await.unwrap(), None);
}

#[tokio::test]
async fn a_missing_folder_is_not_ready() {
    let folder = folder().await;
    let blobs = folder.open().await;
    fs::remove_dir_all(&folder.0).unwrap();
    assert!(matches!(blobs.ready().await, Err(StoreError::Unavailable(_))));
}

#[tokio::test]
async fn blobs_are_readable_by_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder().await;
    let generation = put(folder.open().await.as_ref(), &content(6, 10)).await.generation;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o077;
    assert_eq!(mode(&file(&folder.0, generation)), 0);
    assert_eq!(mode(&folder.0.join("blobs")), 0);
}
