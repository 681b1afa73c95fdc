//! The file system that a data folder lies on: when it is too full for pushes, and a reserve that deletions may use then.
//!
//! Even a deletion writes: the database's log grows before anything shrinks. So a file of some MiB keeps space that a full
//! disk does not have any more. It is given up when little else is free, and kept again when there is room.
//! Pushes end well before that point, because bytes that fill the reserve would be bytes that nobody could delete.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use super::{StoreError, StoreResult};

/// The reserve's share of the file system, and its bounds in bytes. The largest is twice what the database's log grows to.
const SHARE: u64 = 32;
const SMALLEST: u64 = 256 * 1024;
const LARGEST: u64 = 32 * 1024 * 1024;

/// The disk under a folder. Every call is a system call or two and may be made on an async thread, but for [`Disk::tend`].
#[derive(Debug)]
pub struct Disk {
    folder: PathBuf,
    /// The reserve's file; none when nothing is kept.
    reserve: Option<PathBuf>,
    /// How many bytes the reserve keeps at the moment.
    held: AtomicU64,
    tending: Mutex<()>,
}

/// How full a file system is, in bytes.
#[derive(Debug, Clone, Copy)]
struct Fill {
    free: u64,
    /// What the reserve keeps, and what it should.
    held: u64,
    wanted: u64,
}

/// What to do with the reserve.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    /// Keep it, for there is room.
    Keep,
    /// Give it up to who deletes.
    GiveUp,
}

impl Fill {
    /// Whether so many bytes more leave the reserve and as much again.
    fn takes(self, bytes: u64) -> bool {
        self.free.saturating_add(self.held) >= bytes.saturating_add(2 * self.wanted)
    }

    /// More must be free to keep the reserve than it takes, or it would come and go.
    fn step(self) -> Step {
        match self.held {
            0 if self.free >= 3 * self.wanted => Step::Keep,
            1.. if self.free < self.wanted => Step::GiveUp,
            _ => Step::Nothing,
        }
    }
}

impl Disk {
    /// The disk under `folder`, which exists. Nothing is reserved on it.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), reserve: None, held: AtomicU64::new(0), tending: Mutex::new(()) }
    }

    /// The disk under `folder`, with the reserve in the file `reserve` there: kept now, or given up when the disk is full.
    pub fn with_reserve(folder: &Path) -> Self {
        let path = folder.join("reserve");
        let held = path.metadata().map_or(0, |kept| kept.len());
        let disk = Self { reserve: Some(path), held: AtomicU64::new(held), ..Self::new(folder) };
        disk.tend();
        disk
    }

    /// Free bytes that this process may use; none when the file system does not say.
    pub fn free(&self) -> Option<u64> {
        Some(self.fill()?.free)
    }

    /// Whether `bytes` more may be kept.
    ///
    /// # Errors
    /// `Full`.
    pub fn admit(&self, bytes: u64) -> StoreResult<()> {
        match self.fill() {
            Some(fill) if !fill.takes(bytes) => {
                let (Fill { free, wanted, .. }, folder) = (fill, self.folder.display());
                let text = format!("{folder} has {free} bytes free, and {bytes} more would leave less than {wanted}");
                Err(StoreError::Full(text))
            }
            // What does not say how full it is says so when it is written to.
            _ => Ok(()),
        }
    }

    /// Keeps the reserve or gives it up, as the disk has it now; returns whether space is short. May wait for the disk.
    pub fn tend(&self) -> bool {
        let _turn = self.tending.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some(reserve), Some(fill)) = (&self.reserve, self.fill()) else { return false };
        let held = match fill.step() {
            Step::Nothing => return fill.free < fill.wanted,
            Step::Keep => keep(reserve, fill.wanted).map(|()| fill.wanted),
            Step::GiveUp => give_up(reserve).map(|()| 0),
        };
        match held {
            Ok(0) => {
                tracing::error!(folder = %self.folder.display(), "the disk is full; deletions use the reserve, pushes are refused");
                self.held.store(0, Ordering::Release);
            }
            Ok(held) => self.held.store(held, Ordering::Release),
            // Not every file system can promise space.
            Err(error) => tracing::debug!(%error, "the reserve of the data folder stays as it is"),
        }
        self.fill().is_some_and(|fill| fill.free < fill.wanted)
    }

    fn fill(&self) -> Option<Fill> {
        let stat = statvfs(&self.folder).ok()?;
        let wanted = (stat.f_blocks.saturating_mul(stat.f_frsize) / SHARE).clamp(SMALLEST, LARGEST);
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        Some(Fill { free, held: self.held.load(Ordering::Acquire), wanted })
    }
}

/// Allocates the file's blocks.
fn keep(path: &Path, bytes: u64) -> io::Result<()> {
    let file = File::options().write(true).create(true).truncate(false).open(path)?;
    let kept = fallocate(&file, FallocateFlags::empty(), 0, bytes);
    if let Err(error) = kept {
        // Whatever came of it holds nothing.
        file.set_len(0)?;
        return Err(error.into());
    }
    Ok(())
}

fn give_up(path: &Path) -> io::Result<()> {
    File::options().write(true).open(path)?.set_len(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn fill(free: u64, held: u64) -> Fill {
        Fill { free: free * MIB, held: held * MIB, wanted: 32 * MIB }
    }

    #[test]
    fn a_push_leaves_the_reserve_and_as_much_again() {
        assert!(fill(32, 32).takes(0) && !fill(31, 32).takes(0), "the reserve is kept");
        assert!(fill(64, 0).takes(0) && !fill(63, 0).takes(0), "the reserve is given up");
        assert!(fill(100, 32).takes(68 * MIB) && !fill(100, 32).takes(68 * MIB + 1));
        assert!(!fill(100, 32).takes(u64::MAX));
    }

    #[test]
    fn the_reserve_is_given_up_when_little_is_free_and_does_not_flutter() {
        assert_eq!(fill(31, 32).step(), Step::GiveUp);
        // What it gave up does not bring it back at once, and what it took does not end it.
        assert_eq!(fill(31 + 32, 0).step(), Step::Nothing);
        assert_eq!(fill(96, 0).step(), Step::Keep);
        assert_eq!(fill(96 - 32, 32).step(), Step::Nothing);
    }

    #[test]
    fn the_reserve_takes_space_that_is_found_again_by_the_next_process() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::with_reserve(folder.path());
        let held = disk.held.load(Ordering::Acquire);
        let kept = folder.path().join("reserve").metadata().unwrap();
        assert_eq!(kept.len(), held);
        assert!(held >= SMALLEST, "this test needs a disk with some room");
        let again = Disk::with_reserve(folder.path());
        assert_eq!(again.held.load(Ordering::Acquire), held);
        again.admit(0).unwrap();
        assert!(matches!(again.admit(u64::MAX), Err(StoreError::Full(_))));
    }
}
