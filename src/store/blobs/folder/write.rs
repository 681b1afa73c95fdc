//! Writing: frames are gathered into batches; a batch is inspected on one blocking thread and written to the file on another
//! while the caller receives the next. Memory is three batches per writer, and the batches shrink as writers become many.
//!
//! A file is appended to by one writer after the other, each of which has ended before the next begins. After a takeover
//! that is not certain: what was acknowledged is copied to a file of the new claim, and the old one is left to its writer.

use std::fs::File;
use std::io::{self, IoSlice, Read as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use rustix::fs::OFlags;
use tokio::task::JoinHandle;

use super::state::Progress;
use super::{Folder, blocking, failed};
use crate::store::blobs::inspect::{Inspect, Inspection};
use crate::store::{BlobWriter, Generation, Handover, Sealed, StoreError, StoreResult, WriterState};

/// The largest and smallest batch in bytes, and what the batches being gathered should stay within together.
const BATCH: usize = 1024 * 1024;
const SMALLEST_BATCH: usize = 128 * 1024;
const ALL_BATCHES: usize = 16 * 1024 * 1024;

/// Frames below this size are copied together: a frame keeps the whole receive buffer alive that it is a slice of.
const SMALL_FRAME: usize = 4 * 1024;

/// Slices per vectored write (IOV_MAX).
const SLICES: usize = 1024;

/// Unsynced bytes after which the disk is set to work before anyone waits for it: the last sync of 256 MiB takes 7 ms
/// instead of 100.
const EARLY_SYNC: u64 = 16 * 1024 * 1024;

/// Writes one generation.
pub(super) struct FolderWriter {
    batch: Batch,
    inspection: Inspection,
    sink: Sink,
    early: EarlySync,
    generation: Generation,
    /// What the row names as not needed any more: gone before the next checkpoint.
    stale: Option<Generation>,
    /// What this writer has replaced since.
    replaced: Option<Generation>,
    share: Share,
}

/// Where the file is: here, or with the blocking thread that works on it. Dropping the writer leaves a batch on its way to
/// land.
enum Sink {
    Here(Box<Target>),
    Working(JoinHandle<(Box<Target>, io::Result<()>)>),
    /// Something failed: what is in the file since the last checkpoint is not known.
    Broken,
}

impl FolderWriter {
    /// Goes on at `offset`: in the file that `progress` names, or in a new one at `fresh`.
    pub(super) async fn open(
        folder: Arc<Folder>,
        fresh: Generation,
        offset: u64,
        progress: Progress,
        handover: Handover,
        inspect: Arc<dyn Inspect>,
    ) -> StoreResult<Self> {
        let share = Share::of(&folder.writers);
        let Progress { file, stale } = progress;
        let held = file.unwrap_or(fresh);
        let copied = handover == Handover::Takeover && offset > 0 && held != fresh;
        let generation = if offset == 0 || copied { fresh } else { held };
        let named = offset > 0 && !copied;
        let mut target = Target { folder, generation, file: None, offset, named };
        if offset > 0 {
            let path = held.path();
            let found;
            (target, found) = blocking(move || {
                let found = if copied { target.copy_of(held) } else { target.open_existing() };
                (target, found)
            })
            .await?;
            match found {
                Ok(found) if found >= offset => {}
                Ok(found) => {
                    let told = format!("{path} has {found} bytes, of which {offset} were acknowledged");
                    return Err(StoreError::Inconsistent(told));
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    let told = format!("{path} is missing, of which {offset} bytes were acknowledged");
                    return Err(StoreError::Inconsistent(told));
                }
                Err(e) => return Err(failed("open", &path, e)),
            }
        }
        Ok(Self {
            batch: Batch::default(),
            inspection: Inspection::new(inspect),
            sink: Sink::Here(Box::new(target)),
            early: EarlySync { from: offset, running: None },
            generation,
            stale,
            replaced: copied.then_some(held),
            share,
        })
    }

    /// Waits for the work under way. Safe to cancel: the work stays where it can be awaited again.
    async fn settle(&mut self) -> StoreResult<Box<Target>> {
        let outcome = match &mut self.sink {
            Sink::Working(work) => Some(work.await),
            Sink::Here(_) | Sink::Broken => None,
        };
        let sink = std::mem::replace(&mut self.sink, Sink::Broken);
        match (sink, outcome) {
            (Sink::Here(target), _) => Ok(target),
            (Sink::Working(_), Some(Ok((target, Ok(()))))) => Ok(target),
            (Sink::Working(_), Some(Ok((_, Err(e))))) => Err(failed("write", &self.generation.path(), e)),
            (Sink::Working(_), Some(Err(e))) => Err(StoreError::Backend(Box::new(e))),
            (Sink::Broken | Sink::Working(_), _) => {
                let told = format!("{} is not written on after a failure", self.generation.path());
                Err(StoreError::Backend(told.into()))
            }
        }
    }

    /// Hands the batch over, followed by `then`, and does not wait for it.
    async fn hand_over(
        &mut self,
        then: impl FnOnce(&mut Target) -> io::Result<()> + Send + 'static,
    ) -> StoreResult<()> {
        self.inspection.take(self.batch.uninspected()).await?;
        let mut target = self.settle().await?;
        let frames = self.batch.take();
        self.sink = Sink::Working(tokio::task::spawn_blocking(move || {
            let result = target.append(&frames).and_then(|()| then(&mut target));
            // The frames' memory is freed before anyone hears of the result.
            drop(frames);
            (target, result)
        }));
        Ok(())
    }

    /// Everything written is in the file and on the disk, cut to its end; returns that, in bytes.
    async fn make_durable(&mut self) -> StoreResult<u64> {
        self.early.settle(self.generation).await?;
        self.hand_over(Target::make_durable).await?;
        self.inspection.settle().await?;
        let target = self.settle().await?;
        let end = target.offset;
        self.sink = Sink::Here(target);
        Ok(end)
    }
}

#[async_trait::async_trait]
impl BlobWriter for FolderWriter {
    async fn write(&mut self, bytes: Bytes) -> StoreResult<()> {
        self.batch.push(bytes);
        if self.batch.len < self.share.batch() {
            return Ok(());
        }
        let target = self.settle().await?;
        let start_early = self.early.advance(target.offset);
        if let (true, Some(file)) = (start_early, &target.file) {
            self.early.start(Arc::clone(file), self.generation).await?;
        }
        self.sink = Sink::Here(target);
        self.hand_over(|_| Ok(())).await
    }

    async fn inspected(&mut self) -> StoreResult<()> {
        self.inspection.take(self.batch.uninspected()).await?;
        self.inspection.settle().await
    }

    async fn checkpoint(&mut self, _next: Generation) -> StoreResult<WriterState> {
        let target = self.settle().await?;
        let (folder, nothing) = (Arc::clone(&target.folder), target.offset == 0 && self.batch.len == 0);
        self.sink = Sink::Here(target);
        if nothing {
            // Not even a file, of which no row would know.
            return Ok(WriterState::default());
        }
        self.make_durable().await?;
        if let Some(stale) = self.stale.take() {
            blocking(move || folder.delete(stale)).await?.map_err(|e| failed("delete", &stale.path(), e))?;
        }
        self.stale = self.replaced.take();
        Progress { file: Some(self.generation), stale: self.stale }.encode()
    }

    async fn finish(mut self: Box<Self>) -> StoreResult<Sealed> {
        let stored_size = self.make_durable().await?;
        let leftover = self.stale.take().into_iter().chain(self.replaced.take()).collect();
        Ok(Sealed { generation: self.generation, stored_size, leftover, recovered: false })
    }

    async fn abandon(mut self: Box<Self>) {
        // What fails here was to be given up anyway.
        let _ = self.early.settle(self.generation).await;
        let _ = self.settle().await;
    }
}

/// Frames that go to the file together.
#[derive(Default)]
struct Batch {
    frames: Vec<Bytes>,
    small: BytesMut,
    len: usize,
    /// How many of the frames are inspected, or about to be.
    inspected: usize,
}

impl Batch {
    fn push(&mut self, bytes: Bytes) {
        self.len += bytes.len();
        if bytes.len() < SMALL_FRAME {
            self.small.extend_from_slice(&bytes);
        } else {
            self.close_small();
            self.frames.push(bytes);
        }
    }

    fn close_small(&mut self) {
        if !self.small.is_empty() {
            self.frames.push(self.small.split().freeze());
        }
    }

    /// The frames that were not inspected yet, which they are now.
    fn uninspected(&mut self) -> Vec<Bytes> {
        self.close_small();
        let frames = self.frames[self.inspected..].to_vec();
        self.inspected = self.frames.len();
        frames
    }

    fn take(&mut self) -> Vec<Bytes> {
        self.close_small();
        (self.len, self.inspected) = (0, 0);
        std::mem::take(&mut self.frames)
    }
}

/// The file behind a writer. Every call blocks.
struct Target {
    folder: Arc<Folder>,
    generation: Generation,
    /// Opened by the first call that needs it, so that a small blob takes one blocking call in all.
    file: Option<Arc<File>>,
    /// Where the next bytes go.
    offset: u64,
    /// Whether the file's name is durable.
    named: bool,
}

impl Target {
    /// Opens what an earlier writer left and tells its length in bytes.
    fn open_existing(&mut self) -> io::Result<u64> {
        let file = self.folder.open(self.generation, OFlags::RDWR)?;
        let len = file.metadata()?.len();
        self.file = Some(Arc::new(file));
        Ok(len)
    }

    /// Begins this file with the acknowledged bytes of another, as far as that one has them; returns how many there are.
    fn copy_of(&mut self, other: Generation) -> io::Result<u64> {
        let source = self.folder.open(other, OFlags::RDONLY)?;
        let copy = self.file()?;
        // By the kernel, which shares the blocks where the file system can.
        io::copy(&mut source.take(self.offset), &mut &*copy)
    }

    fn file(&mut self) -> io::Result<Arc<File>> {
        if let Some(file) = &self.file {
            return Ok(Arc::clone(file));
        }
        // EXCL: what is there already was written by somebody else.
        let file = Arc::new(self.folder.open(self.generation, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?);
        self.file = Some(Arc::clone(&file));
        Ok(file)
    }

    fn append(&mut self, frames: &[Bytes]) -> io::Result<()> {
        let file = self.file()?;
        // Before they are written: what fills the reserve could not be deleted any more.
        let bytes = frames.iter().map(|frame| frame.len() as u64).sum();
        self.folder.disk.admit(bytes).map_err(|full| io::Error::new(io::ErrorKind::StorageFull, full))?;
        for frames in frames.chunks(SLICES) {
            let mut slices: Vec<_> = frames.iter().map(|frame| IoSlice::new(frame)).collect();
            let mut slices = slices.as_mut_slice();
            while !slices.is_empty() {
                match rustix::io::pwritev(&file, slices, self.offset) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(written) => {
                        self.offset += written as u64;
                        IoSlice::advance_slices(&mut slices, written);
                    }
                    Err(rustix::io::Errno::INTR) => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
        Ok(())
    }

    fn make_durable(&mut self) -> io::Result<()> {
        let file = self.file()?;
        // A writer before may have left more than was acknowledged, of which nothing may show up in a finished blob.
        if file.metadata()?.len() != self.offset {
            file.set_len(self.offset)?;
        }
        file.sync_data()?;
        if !self.named {
            self.folder.sync_names(self.generation)?;
            self.named = true;
        }
        Ok(())
    }
}

/// Syncs behind the writer's back, so that the last sync of a large blob has little left to do.
struct EarlySync {
    /// How far the file had been written when the last one began.
    from: u64,
    running: Option<JoinHandle<io::Result<()>>>,
}

impl EarlySync {
    /// Whether to begin another, now that the file reaches to `offset`.
    fn advance(&mut self, offset: u64) -> bool {
        let due =
            offset.saturating_sub(self.from) >= EARLY_SYNC && self.running.as_ref().is_none_or(JoinHandle::is_finished);
        if due {
            self.from = offset;
        }
        due
    }

    async fn start(&mut self, file: Arc<File>, generation: Generation) -> StoreResult<()> {
        self.settle(generation).await?;
        self.running = Some(tokio::task::spawn_blocking(move || file.sync_data()));
        Ok(())
    }

    /// Waits for the one under way. Its failure must be heard: the kernel tells it once per open file.
    async fn settle(&mut self, generation: Generation) -> StoreResult<()> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let outcome = running.await;
        self.running = None;
        outcome.map_err(|e| StoreError::Backend(Box::new(e)))?.map_err(|e| failed("sync", &generation.path(), e))
    }
}

/// One writer's share of the memory for batches.
struct Share(Arc<AtomicUsize>);

impl Share {
    fn of(writers: &Arc<AtomicUsize>) -> Self {
        writers.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(writers))
    }

    /// How many bytes to gather.
    fn batch(&self) -> usize {
        (ALL_BATCHES / self.0.load(Ordering::Relaxed).max(1)).clamp(SMALLEST_BATCH, BATCH)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_keep_their_order_and_small_ones_are_joined() {
        let mut batch = Batch::default();
        let large = Bytes::from(vec![b'x'; SMALL_FRAME]);
        for frame in [Bytes::from("a"), Bytes::from("b"), large.clone(), Bytes::from("c")] {
            batch.push(frame);
        }
        assert_eq!(batch.len, SMALL_FRAME + 3);
        assert_eq!(batch.take(), [Bytes::from("ab"), large, Bytes::from("c")]);
        assert_eq!(batch.len, 0);
        assert!(batch.take().is_empty());
    }

    #[test]
    fn batches_shrink_as_writers_become_many() {
        let writers = Arc::default();
        let first = Share::of(&writers);
        assert_eq!(first.batch(), BATCH);
        let more: Vec<_> = (1..64).map(|_| Share::of(&writers)).collect();
        assert_eq!(first.batch() * 64, ALL_BATCHES);
        let most: Vec<_> = (0..1000).map(|_| Share::of(&writers)).collect();
        assert_eq!(first.batch(), SMALLEST_BATCH);
        drop((more, most));
        assert_eq!(first.batch(), BATCH);
    }
}
