//! The lock that keeps a second process away from what one process owns: a database's file, a folder of blobs.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::{StoreError, StoreResult};

/// A lock, held until it is dropped.
///
/// It is given up expressly, as closing the file is not enough: a child that is being started just then has a copy of the
/// file until it becomes another program, and with the copy the lock.
#[derive(Debug)]
pub struct ProcessLock(File);

impl ProcessLock {
    /// Takes the lock at `path`, a file that is made when missing and stays; `owned` is what it guards, as messages say it.
    ///
    /// # Errors
    /// `Unavailable` when another process holds it, with that one's id, or when the file cannot be opened or locked.
    pub fn take(path: &Path, owned: &str) -> StoreResult<Self> {
        let failed = |reason: String| StoreError::Unavailable(format!("{owned}: {reason}"));
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let mut file =
            file.map_err(|error| failed(format!("its lock {} cannot be opened: {error}", path.display())))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => failed(format!(
                "another process{} has it open; stop that one first, or use another folder",
                holder(&mut file)
            )),
            error => failed(format!("its lock {} cannot be taken: {error}", path.display())),
        })?;
        // Only for the message above: a full disk is no reason not to start.
        let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Self(file))
    }
}

/// The holder's process id as it wrote it into the file, for a message.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.take(32).read_to_string(&mut text));
    match (read, text.trim().parse::<u32>()) {
        (Ok(_), Ok(id)) => format!(" ({id})"),
        _ => String::new(),
    }
}

impl Drop for ProcessLock {
    fn drop(&mut self) {
        if let Err(error) = flock(&self.0, FlockOperation::Unlock) {
            tracing::warn!(%error, "a lock cannot be given up before the process ends");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_once_and_says_by_whom() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.lock");
        let held = ProcessLock::take(&path, "the folder").unwrap();
        let refused = ProcessLock::take(&path, "the folder").unwrap_err().to_string();
        let holder = format!("the folder: another process ({}) has it open", std::process::id());
        assert!(refused.contains(&holder), "{refused}");
        drop(held);
        ProcessLock::take(&path, "the folder").unwrap();
    }

    #[test]
    fn a_lock_is_given_up_while_a_child_that_is_being_started_has_a_copy_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.lock");
        let held = ProcessLock::take(&path, "the folder").unwrap();
        let _copy = held.0.try_clone().unwrap();
        drop(held);
        ProcessLock::take(&path, "the folder").unwrap();
    }
}
