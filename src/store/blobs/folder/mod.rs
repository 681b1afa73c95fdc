//! Blobs in a folder: one file per generation, written once at its final path. Bytes in the page
//! cache are read on the async thread where the kernel allows it.
//!
//! All operations that may wait for the disk run on blocking threads.

mod buffers;
mod read;
mod state;
mod write;

use std::fmt;
use std::fs::{DirBuilder, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use futures::StreamExt;
use rustix::fs::{AtFlags, Mode, OFlags, StatVfsMountFlags};

use self::buffers::Buffers;
use self::state::FileProgress;
use super::{
    BlobKey, BlobReader, BlobWriter, Blobs, Generation, Handover, Inspect, Sealed, UploadKey,
    WriterState,
};
use crate::disk::Disk;
use crate::{StoreError, StoreResult};

/// Blobs in a local folder.
#[derive(Clone)]
pub struct FolderBlobs(Arc<BlobFolder>);

/// The open folder, shared by readers and writers.
struct BlobFolder {
    path: PathBuf,
    /// The folder itself. Generations are opened relative to it, which saves the path walk from
    /// `/`.
    root: File,
    buffers: Buffers,
    disk: Arc<Disk>,
    /// Number of open writers, which determines each one's share of memory.
    writers: Arc<AtomicUsize>,
    /// Shared with each open reader: its reference count is their number.
    readers: Arc<()>,
}

impl FolderBlobs {
    /// Opens `root`, with the 256 folders among which generations are distributed; creates what is
    /// missing. Blocking, for the start of a process.
    ///
    /// # Errors
    /// When the folder cannot be created, opened or synced.
    pub fn open(root: &Path) -> StoreResult<Self> {
        Self::open_on(root, Arc::new(Disk::new(root)))
    }

    /// Opens `root` like [`FolderBlobs::open`], on a disk that is shared with other data.
    ///
    /// # Errors
    /// When the folder cannot be created, opened or synced.
    pub fn open_on(root: &Path, disk: Arc<Disk>) -> StoreResult<Self> {
        let folder =
            prepare(root).map_err(|e| io_error("prepare", &root.display().to_string(), e))?;
        Ok(Self(Arc::new(BlobFolder {
            path: root.to_owned(),
            root: folder,
            buffers: Buffers::default(),
            disk,
            writers: Arc::default(),
            readers: Arc::default(),
        })))
    }
}

/// Creates the folders, and makes their names durable.
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
        key: &UploadKey,
        offset: u64,
        state: &WriterState,
        handover: Handover,
        inspect: Arc<dyn Inspect>,
    ) -> StoreResult<Box<dyn BlobWriter>> {
        let fresh = key.as_stored()?;
        let progress = FileProgress::decode(state)?;
        let folder = Arc::clone(&self.0);
        Ok(Box::new(
            write::FolderWriter::open(folder, fresh, offset, progress, handover, inspect).await?,
        ))
    }

    async fn sealed(&self, size: u64, state: &WriterState) -> StoreResult<Option<Sealed>> {
        let FileProgress { file: Some(file), stale } = FileProgress::decode(state)? else {
            return Ok(None);
        };
        let whole = self.stored_size(file).await? == Some(size);
        Ok(whole.then(|| Sealed {
            generation: file,
            stored_size: size,
            leftover: stale.into_iter().collect(),
            recovered: false,
        }))
    }

    async fn read(&self, key: &BlobKey, range: Range<u64>) -> StoreResult<BlobReader> {
        let generation = key.as_stored()?;
        let reader =
            read::FolderReader::open(Arc::clone(&self.0), generation, key.size, range).await?;
        Ok(reader.boxed())
    }

    async fn stored_size(&self, generation: Generation) -> StoreResult<Option<u64>> {
        let folder = Arc::clone(&self.0);
        let stat =
            blocking(move || rustix::fs::statat(&folder.root, generation.path(), AtFlags::empty()))
                .await?;
        match stat {
            Ok(found) => Ok(Some(u64::try_from(found.st_size).unwrap_or_default())),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(e) => Err(io_error("inspect", &generation.path(), e.into())),
        }
    }

    fn generations_to_delete(
        &self,
        generation: Generation,
        state: &WriterState,
    ) -> StoreResult<Vec<Generation>> {
        let FileProgress { file, stale } = FileProgress::decode(state)?;
        Ok([Some(generation), file, stale].into_iter().flatten().collect())
    }

    async fn delete(
        &self,
        generation: Generation,
        state: &WriterState,
        live: &[Generation],
    ) -> StoreResult<()> {
        let mut generations = self.generations_to_delete(generation, state)?;
        generations.retain(|generation| !live.contains(generation));
        let folder = Arc::clone(&self.0);
        blocking(move || {
            generations.into_iter().try_for_each(|generation| folder.delete(generation))
        })
        .await?
        .map_err(|e| io_error("delete", &generation.path(), e))
    }

    async fn presigned_url(
        &self,
        _key: &BlobKey,
        _valid_for: Duration,
    ) -> StoreResult<Option<String>> {
        Ok(None)
    }

    async fn ready(&self) -> StoreResult<()> {
        let folder = Arc::clone(&self.0);
        let shown = folder.path.display().to_string();
        // By its path and not by the open handle: a folder that is no longer mounted is not ready.
        let stat = blocking(move || rustix::fs::statvfs(folder.path.join("blobs")))
            .await?
            .map_err(|e| StoreError::Unavailable(format!("cannot inspect {shown}: {e}")))?;
        if stat.f_flag.contains(StatVfsMountFlags::RDONLY) {
            return Err(StoreError::Unavailable(format!("{shown} is mounted read-only")));
        }
        self.admit(0)
    }

    fn admit(&self, bytes: u64) -> StoreResult<()> {
        self.0.disk.admit(bytes)
    }
}

impl BlobFolder {
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

    /// Makes the file's name or its removal durable, which a sync of the file itself does not
    /// guarantee.
    fn sync_names(&self, generation: Generation) -> io::Result<()> {
        let path = generation.path();
        let fan_out = Path::new(&path).parent().unwrap_or(Path::new("blobs"));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        File::from(rustix::fs::openat(&self.root, fan_out, flags, Mode::empty())?).sync_all()
    }
}

/// Runs work that may wait for the disk.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> StoreResult<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| StoreError::Backend(Box::new(e)))
}

/// Converts an error of the file system.
fn io_error(action: &str, path: &str, error: io::Error) -> StoreError {
    let message = format!("cannot {action} {path}: {error}");
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full(message),
        // These pass when handles are freed or the disk is mounted again.
        io::ErrorKind::ReadOnlyFilesystem => StoreError::Unavailable(message),
        _ if matches!(
            rustix::io::Errno::from_io_error(&error),
            Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE)
        ) =>
        {
            StoreError::Unavailable(message)
        }
        _ => StoreError::Backend(message.into()),
    }
}
