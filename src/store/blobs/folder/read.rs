//! Reading. Bytes in the page cache are copied on the async thread; others are read on a blocking
//! thread.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::Stream;
use rustix::fs::OFlags;
use tokio::task::JoinHandle;

use super::buffers::{Buffer, Buffers};
use super::{BlobFolder, blocking, io_error};
use crate::{Generation, StoreError, StoreResult};

/// Maximum size of one read in bytes. Measured: smaller reads cost more system calls; larger ones
/// leave the processor's cache before they are sent.
const CHUNK: u64 = 128 * 1024;
/// Minimum size of one read, and the intended total of all readers' chunks: each slow client holds
/// one.
const SMALLEST_CHUNK: u64 = 16 * 1024;
const ALL_CHUNKS: u64 = 32 * 1024 * 1024;

/// A stream of a range of a generation.
pub(super) struct FolderReader {
    file: Arc<File>,
    generation: Generation,
    buffers: Buffers,
    left: Range<u64>,
    /// Its reference count is the number of open readers.
    open: Arc<()>,
    /// Read that is running on a blocking thread.
    fetching: Option<JoinHandle<io::Result<Buffer>>>,
}

impl FolderReader {
    pub(super) async fn open(
        folder: Arc<BlobFolder>,
        generation: Generation,
        size: u64,
        range: Range<u64>,
    ) -> StoreResult<Self> {
        if range.start > range.end || range.end > size {
            return Err(StoreError::Backend(
                format!("range {range:?} is not within {size} bytes").into(),
            ));
        }
        let (buffers, open) = (folder.buffers.clone(), Arc::clone(&folder.readers));
        let file =
            match cached::open(&folder, generation) {
                Some(file) => file,
                None => blocking(move || folder.open(generation, OFlags::RDONLY)).await?.map_err(
                    |e| match e.kind() {
                        io::ErrorKind::NotFound => {
                            StoreError::Inconsistent(format!("{} is missing", generation.path()))
                        }
                        _ => io_error("open", &generation.path(), e),
                    },
                )?,
            };
        let found = file.metadata().map_err(|e| io_error("inspect", &generation.path(), e))?.len();
        if found != size {
            let path = generation.path();
            return Err(StoreError::Inconsistent(format!(
                "{path} has {found} bytes instead of {size}"
            )));
        }
        Ok(Self { file: Arc::new(file), generation, buffers, left: range, open, fetching: None })
    }

    /// Returns the size of the next read.
    fn chunk(&self) -> u64 {
        (ALL_CHUNKS / Arc::strong_count(&self.open) as u64).clamp(SMALLEST_CHUNK, CHUNK)
    }

    fn emit(&mut self, chunk: Buffer) -> Poll<Option<StoreResult<Bytes>>> {
        self.left.start += chunk.as_ref().len() as u64;
        Poll::Ready(Some(Ok(Bytes::from_owner(chunk))))
    }

    fn fail(&mut self, error: StoreError) -> Poll<Option<StoreResult<Bytes>>> {
        self.left.start = self.left.end;
        Poll::Ready(Some(Err(error)))
    }
}

impl Stream for FolderReader {
    type Item = StoreResult<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.fetching.is_none() {
            let left = self.left.end - self.left.start;
            if left == 0 {
                return Poll::Ready(None);
            }
            let mut chunk =
                self.buffers.take(usize::try_from(left.min(self.chunk())).unwrap_or(usize::MAX));
            let at = self.left.start;
            let got = cached::read(&self.file, chunk.as_mut(), at);
            if got == chunk.as_ref().len() {
                return self.emit(chunk);
            }
            let file = Arc::clone(&self.file);
            self.fetching = Some(tokio::task::spawn_blocking(move || {
                file.read_exact_at(&mut chunk.as_mut()[got..], at + got as u64)?;
                Ok(chunk)
            }));
        }
        let Some(fetching) = self.fetching.as_mut() else { return Poll::Ready(None) };
        let fetched = ready!(Pin::new(fetching).poll(context));
        self.fetching = None;
        match fetched {
            Ok(Ok(chunk)) => self.emit(chunk),
            Ok(Err(e)) if e.kind() == io::ErrorKind::UnexpectedEof => {
                let message = format!("{} ended while it was read", self.generation.path());
                self.fail(StoreError::Inconsistent(message))
            }
            Ok(Err(e)) => {
                let error = io_error("read", &self.generation.path(), e);
                self.fail(error)
            }
            Err(e) => self.fail(StoreError::Backend(Box::new(e))),
        }
    }
}

/// Calls that the kernel answers from memory alone. Every failure means that a blocking thread has
/// to repeat the call, which reports the error.
#[cfg(target_os = "linux")]
mod cached {
    use std::fs::File;
    use std::io::IoSliceMut;

    use rustix::fs::{Mode, OFlags, ResolveFlags};
    use rustix::io::ReadWriteFlags;

    use super::super::BlobFolder;
    use crate::Generation;

    pub(super) fn open(folder: &BlobFolder, generation: Generation) -> Option<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::openat2(
            &folder.root,
            generation.path(),
            flags,
            Mode::empty(),
            ResolveFlags::CACHED,
        )
        .ok()
        .map(File::from)
    }

    /// Reads bytes at `at` that are in the page cache, and returns how many.
    pub(super) fn read(file: &File, into: &mut [u8], at: u64) -> usize {
        rustix::io::preadv2(file, &mut [IoSliceMut::new(into)], at, ReadWriteFlags::NOWAIT)
            .unwrap_or(0)
    }
}

/// On other systems every call may wait for the disk.
#[cfg(not(target_os = "linux"))]
mod cached {
    use std::fs::File;

    use super::super::BlobFolder;
    use crate::Generation;

    pub(super) fn open(_folder: &BlobFolder, _generation: Generation) -> Option<File> {
        None
    }

    pub(super) fn read(_file: &File, _into: &mut [u8], _at: u64) -> usize {
        0
    }
}
