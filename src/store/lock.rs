//! The lock of what only one process may use: a data folder, a database's file.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::{StoreError, StoreResult};

/// A lock, held until it is dropped.
///
/// The drop unlocks explicitly, because closing the file is not enough. A child process that is
/// being started has a copy of the file until its exec, and with the copy the lock.
#[derive(Debug)]
pub struct ProcessLock(File);

impl ProcessLock {
    /// Takes the lock at `path`, a file that is created if missing and never deleted. `owned` names
    /// in messages what it guards. `user` names this process to another one that is refused.
    ///
    /// # Errors
    /// `Unavailable` when another process holds it, which the message names, or when the file
    /// cannot be opened or locked.
    pub fn take(path: &Path, owned: &str, user: &str) -> StoreResult<Self> {
        let failed = |reason: String| StoreError::Unavailable(format!("{owned} {reason}"));
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path);
        let mut file = file.map_err(|error| {
            failed(format!("cannot be locked: {} cannot be opened: {error}", path.display()))
        })?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => {
                let holder = holder(&mut file).unwrap_or_else(|| "another process".into());
                failed(format!("is in use by {holder}: stop that one, or use another folder"))
            }
            error => failed(format!("cannot be locked: {}: {error}", path.display())),
        })?;
        // The name only helps people, so a full disk does not prevent the start.
        if let Err(error) =
            file.set_len(0).and_then(|()| writeln!(file, "{user}, process {}", std::process::id()))
        {
            tracing::debug!(%error, path = %path.display(), "cannot write the holder's name into the lock file; the lock is held");
        }
        Ok(Self(file))
    }
}

/// Returns the holder's name, as it wrote it into the file.
fn holder(file: &mut File) -> Option<String> {
    let mut text = String::new();
    file.rewind().and_then(|()| file.take(4096).read_to_string(&mut text)).ok()?;
    let holder = text.trim();
    (!holder.is_empty()).then(|| holder.to_owned())
}

impl Drop for ProcessLock {
    fn drop(&mut self) {
        if let Err(error) = flock(&self.0, FlockOperation::Unlock) {
            tracing::warn!(%error, "cannot unlock; the lock is held until the process ends");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_once_and_names_its_holder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.lock");
        let take = || ProcessLock::take(&path, "the folder", "a test");
        let held = take().unwrap();
        let refused = take().unwrap_err().to_string();
        let holder = format!(
            "the folder is in use by a test, process {}: stop that one",
            std::process::id()
        );
        assert!(refused.contains(&holder), "{refused}");
        drop(held);
        take().unwrap();
    }

    #[test]
    fn a_drop_unlocks_while_a_starting_child_has_a_copy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.lock");
        let take = || ProcessLock::take(&path, "the folder", "a test");
        let held = take().unwrap();
        let _copy = held.0.try_clone().unwrap();
        drop(held);
        take().unwrap();
    }
}
