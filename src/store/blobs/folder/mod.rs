//! Blobs in a folder: one file per generation, written once at its final place, read from the page cache without leaving
//! the async thread where the kernel allows it.
//!
//! One process uses a folder at a time. Everything that may wait for the disk runs on blocking threads.

mod buffers;
mod read;
mod write;

use std::collections::HashMap;
use std::fmt;
use std::fs::{DirBuilder, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures::StreamExt;
use rustix::fs::{AtFlags, Mode, OFlags, StatVfsMountFlags};
use tokio::sync::OwnedMutexGuard;

use self::buffers::Buffers;
use super::{BlobReader, BlobWriter, Blobs, Generation, WriterState};
use crate::store::disk::Disk;
use crate::store::{StoreError, StoreResult};

/// How long a new writer waits for an earlier one of the same generation to let go.
const TURN_PATIENCE: Duration = Duration::from_secs(10);

/// Blobs in a folder of this machine.
#[derive(Clone)]
pub struct FolderBlobs(Arc<Folder>);

/// The open folder, which readers and writers share.
struct Folder {
    path: PathBuf,
    /// The folder itself: generations are opened relative to it, which spares the kernel the walk from `/`.
    root: File,
    buffers: Buffers,
    disk: Arc<Disk>,
    /// Open writers, by whose number each one's share of memory is measured.
    writers: Arc<AtomicUsize>,
    /// Shared with each open reader, which counts them.
    readers: Arc<()>,
    /// Who may write a generation. Dropping a writer leaves its last batch on its way to the disk; the next writer must not
    /// begin before that has landed, or old bytes would land on top of newer ones.
    turns: Mutex<HashMap<Generation, Weak<tokio::sync::Mutex<()>>>>,
}

impl FolderBlobs {
    /// Opens `root`, which is made when missing, with the 256 folders that generations fan out to. Blocks: for the start of
    /// a process.
    ///
    /// # Errors
    /// When the folder cannot be made, opened or synced.
    pub fn open(root: &Path) -> StoreResult<Self> {
        Self::open_on(root, Arc::new(Disk::new(root)))
    }

    /// Opens `root` like [`FolderBlobs::open`], on a disk that others keep data on, too.
    ///
    /// # Errors
    /// When the folder cannot be made, opened or synced.
    pub fn open_on(root: &Path, disk: Arc<Disk>) -> StoreResult<Self> {
        let folder = prepare(root).map_err(|e| failed("prepare", &root.display().to_string(), e))?;
        Ok(Self(Arc::new(Folder {
            path: root.to_owned(),
            root: folder,
            buffers: Buffers::default(),
            disk,
            writers: Arc::default(),
            readers: Arc::default(),
            turns: Mutex::default(),
        })))
    }
}

/// Makes the folders and their names durable.
fn prepare(root: &Path) -> io::Result<File> {
    let new = !root.try_exists()?;
    let blobs = root.join("blobs");
    let mut folders = DirBuilder::new();
    folders.recursive(true).mode(0o700).create(&blobs)?;
    for fan_out in 0..=u8::MAX {
        folders.create(blobs.join(format!("{fan_out:02x}")))?;
    }
    File::open(&blobs)?.sync_all()?;
    let folder = File::open(root)?;
    folder.sync_all()?;
    if let (true, Some(parent)) = (new, root.canonicalize()?.parent()) {
        File::open(parent)?.sync_all()?;
    }
    Ok(folder)
}

impl fmt::Debug for FolderBlobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FolderBlobs").field(&self.0.path).finish()
    }
}

#[async_trait::async_trait]
impl Blobs for FolderBlobs {
    async fn writer(
        &self,
        generation: Generation,
        offset: u64,
        _state: &WriterState,
    ) -> StoreResult<Box<dyn BlobWriter>> {
        let turn = self.0.turn(generation).await?;
        Ok(Box::new(write::FolderWriter::open(Arc::clone(&self.0), generation, offset, turn).await?))
    }

    async fn read(&self, generation: Generation, size: u64, range: Range<u64>) -> StoreResult<BlobReader> {
        let reader = read::FolderReader::open(Arc::clone(&self.0), generation, size, range).await?;
        Ok(reader.boxed())
    }

    async fn delete(&self, generation: Generation, _state: &WriterState) -> StoreResult<()> {
        let folder = Arc::clone(&self.0);
        blocking(move || folder.delete(generation)).await?.map_err(|e| failed("delete", &generation.path(), e))
    }

    async fn presigned_url(&self, _generation: Generation, _valid_for: Duration) -> StoreResult<Option<String>> {
        Ok(None)
    }

    async fn ready(&self) -> StoreResult<()> {
        let folder = Arc::clone(&self.0);
        let shown = folder.path.display().to_string();
        // The path and not the open handle: what is not mounted any more is not ready.
        let stat = blocking(move || rustix::fs::statvfs(folder.path.join("blobs")))
            .await?
            .map_err(|e| StoreError::Unavailable(format!("cannot look at {shown}: {e}")))?;
        if stat.f_flag.contains(StatVfsMountFlags::RDONLY) {
            return Err(StoreError::Unavailable(format!("{shown} is mounted read-only")));
        }
        self.admit(0)
    }

    fn admit(&self, bytes: u64) -> StoreResult<()> {
        self.0.disk.admit(bytes)
    }
}

impl Folder {
    /// Waits until no writer of `generation` is left, its last batch included.
    async fn turn(&self, generation: Generation) -> StoreResult<OwnedMutexGuard<()>> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            turns.get(&generation).and_then(Weak::upgrade).unwrap_or_else(|| {
                let turn = Arc::default();
                turns.insert(generation, Arc::downgrade(&turn));
                turn
            })
        };
        tokio::time::timeout(TURN_PATIENCE, turn.lock_owned()).await.map_err(|_| {
            StoreError::Unavailable(format!("generation {generation} is still being written by another request"))
        })
    }

    fn open(&self, generation: Generation, flags: OFlags) -> io::Result<File> {
        let mode = Mode::RUSR | Mode::WUSR;
        let fd = rustix::fs::openat(&self.root, generation.path(), flags | OFlags::CLOEXEC, mode)?;
        Ok(File::from(fd))
    }

    fn delete(&self, generation: Generation) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.root, generation.path(), AtFlags::empty()) {
            Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
            Ok(()) => self.sync_names(generation),
        }
    }

    /// Makes the file's name (or that it is gone) durable, which syncing the file itself does not promise.
    fn sync_names(&self, generation: Generation) -> io::Result<()> {
        let path = generation.path();
        let fan_out = Path::new(&path).parent().unwrap_or(Path::new("blobs"));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        File::from(rustix::fs::openat(&self.root, fan_out, flags, Mode::empty())?).sync_all()
    }
}

/// Runs what may wait for the disk.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> StoreResult<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| StoreError::Backend(Box::new(e)))
}

/// What a failed call on the file system means.
fn failed(action: &str, path: &str, error: io::Error) -> StoreError {
    let told = format!("cannot {action} {path}: {error}");
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full(told),
        // What passes when handles are freed or the disk is mounted again.
        io::ErrorKind::ReadOnlyFilesystem => StoreError::Unavailable(told),
        _ if matches!(
            rustix::io::Errno::from_io_error(&error),
            Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE)
        ) =>
        {
            StoreError::Unavailable(told)
        }
        _ => StoreError::Backend(told.into()),
    }
}
