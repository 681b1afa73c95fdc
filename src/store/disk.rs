//! The file system of a data folder: when it is too full for pushes, and a reserve for deletions.
//!
//! Even a deletion writes: the database's log grows before anything shrinks. So a file of some MiB
//! reserves space. It is released when little else is free, and allocated again when there is
//! space. Pushes are refused well before that point: bytes that fill the reserve could not be
//! deleted.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use super::{StoreError, StoreResult};

/// The reserve is this fraction of the file system, within these bounds in bytes. The largest is
/// twice the size that the database's log grows to.
const SHARE: u64 = 32;
const SMALLEST: u64 = 256 * 1024;
const LARGEST: u64 = 32 * 1024 * 1024;

/// The disk of a folder. Every call makes one or two system calls and may be made on an async
/// thread, except for [`Disk::adjust_reserve`].
#[derive(Debug)]
pub struct Disk {
    folder: PathBuf,
    /// File of the reserve; none without a reserve.
    reserve: Option<PathBuf>,
    /// Bytes that the reserve holds now.
    held: AtomicU64,
    adjusting: Mutex<()>,
}

/// Usage of a file system, in bytes.
#[derive(Debug, Clone, Copy)]
struct DiskUsage {
    free: u64,
    /// Current and intended size of the reserve.
    held: u64,
    wanted: u64,
}

/// The change that the reserve needs.
#[derive(Debug, PartialEq, Eq)]
enum ReserveChange {
    None,
    /// There is space for it.
    Allocate,
    /// Deletions may need it.
    Release,
}

impl DiskUsage {
    /// Returns true if `bytes` more leave space for the reserve and as much again.
    fn has_room_for(self, bytes: u64) -> bool {
        self.free.saturating_add(self.held) >= bytes.saturating_add(2 * self.wanted)
    }

    /// Returns the change that the reserve needs. The allocation requires more free space than the
    /// reserve takes, so that it does not oscillate.
    fn reserve_change(self) -> ReserveChange {
        match self.held {
            0 if self.free >= 3 * self.wanted => ReserveChange::Allocate,
            1.. if self.free < self.wanted => ReserveChange::Release,
            _ => ReserveChange::None,
        }
    }
}

impl Disk {
    /// Creates the disk of an existing folder, without a reserve.
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            reserve: None,
            held: AtomicU64::new(0),
            adjusting: Mutex::new(()),
        }
    }

    /// Creates the disk of an existing folder with the reserve in its file `reserve`, and adjusts
    /// the reserve.
    pub(crate) fn with_reserve(folder: &Path) -> Self {
        let path = folder.join("reserve");
        let held = path.metadata().map_or(0, |kept| kept.len());
        let disk = Self { reserve: Some(path), held: AtomicU64::new(held), ..Self::new(folder) };
        disk.adjust_reserve();
        disk
    }

    /// Returns the free bytes that this process may use; none if the file system does not report
    /// them.
    pub fn free(&self) -> Option<u64> {
        Some(self.usage()?.free)
    }

    /// Checks that `bytes` more may be written.
    ///
    /// # Errors
    /// `Full`.
    pub fn admit(&self, bytes: u64) -> StoreResult<()> {
        match self.usage() {
            Some(usage) if !usage.has_room_for(bytes) => {
                let (DiskUsage { free, wanted, .. }, folder) = (usage, self.folder.display());
                let text = format!(
                    "{folder} has {free} bytes free, and {bytes} more would leave less than {wanted}"
                );
                Err(StoreError::Full(text))
            }
            // A file system that does not report its usage fails writes when it is full.
            _ => Ok(()),
        }
    }

    /// Allocates or releases the reserve, depending on the free space. Returns true if space is
    /// short. May wait for the disk.
    pub(crate) fn adjust_reserve(&self) -> bool {
        let _adjusting = self.adjusting.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some(reserve), Some(usage)) = (&self.reserve, self.usage()) else { return false };
        let held = match usage.reserve_change() {
            ReserveChange::None => return usage.free < usage.wanted,
            ReserveChange::Allocate => allocate(reserve, usage.wanted).map(|()| usage.wanted),
            ReserveChange::Release => release(reserve).map(|()| 0),
        };
        match held {
            Ok(0) => {
                tracing::error!(folder = %self.folder.display(), "the disk is full; deletions use the reserve, pushes are refused");
                self.held.store(0, Ordering::Release);
            }
            Ok(held) => self.held.store(held, Ordering::Release),
            // Not every file system can allocate space.
            Err(error) => {
                tracing::debug!(%error, "cannot adjust the reserve of the data folder; continuing without a change")
            }
        }
        self.usage().is_some_and(|usage| usage.free < usage.wanted)
    }

    fn usage(&self) -> Option<DiskUsage> {
        let stat = statvfs(&self.folder).ok()?;
        let wanted = (stat.f_blocks.saturating_mul(stat.f_frsize) / SHARE).clamp(SMALLEST, LARGEST);
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        Some(DiskUsage { free, held: self.held.load(Ordering::Acquire), wanted })
    }
}

/// Allocates the file's blocks.
fn allocate(path: &Path, bytes: u64) -> io::Result<()> {
    let file = File::options().write(true).create(true).truncate(false).open(path)?;
    let kept = fallocate(&file, FallocateFlags::empty(), 0, bytes);
    if let Err(error) = kept {
        // Frees what may have been allocated.
        file.set_len(0)?;
        return Err(error.into());
    }
    Ok(())
}

fn release(path: &Path) -> io::Result<()> {
    File::options().write(true).open(path)?.set_len(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn usage(free: u64, held: u64) -> DiskUsage {
        DiskUsage { free: free * MIB, held: held * MIB, wanted: 32 * MIB }
    }

    #[test]
    fn a_push_leaves_space_for_twice_the_reserve() {
        assert!(
            usage(32, 32).has_room_for(0) && !usage(31, 32).has_room_for(0),
            "the reserve is allocated"
        );
        assert!(
            usage(64, 0).has_room_for(0) && !usage(63, 0).has_room_for(0),
            "the reserve is released"
        );
        assert!(
            usage(100, 32).has_room_for(68 * MIB) && !usage(100, 32).has_room_for(68 * MIB + 1)
        );
        assert!(!usage(100, 32).has_room_for(u64::MAX));
    }

    #[test]
    fn the_reserve_is_released_when_space_is_short_without_oscillating() {
        assert_eq!(usage(31, 32).reserve_change(), ReserveChange::Release);
        // The released space is not enough to allocate the reserve again, and its allocation does
        // not release it.
        assert_eq!(usage(31 + 32, 0).reserve_change(), ReserveChange::None);
        assert_eq!(usage(96, 0).reserve_change(), ReserveChange::Allocate);
        assert_eq!(usage(96 - 32, 32).reserve_change(), ReserveChange::None);
    }

    #[test]
    fn the_reserve_is_found_by_the_next_process() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::with_reserve(folder.path());
        let held = disk.held.load(Ordering::Acquire);
        let kept = folder.path().join("reserve").metadata().unwrap();
        assert_eq!(kept.len(), held);
        assert!(held >= SMALLEST, "this test needs a disk with some free space");
        let again = Disk::with_reserve(folder.path());
        assert_eq!(again.held.load(Ordering::Acquire), held);
        again.admit(0).unwrap();
        assert!(matches!(again.admit(u64::MAX), Err(StoreError::Full(_))));
    }
}
