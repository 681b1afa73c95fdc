//! Tells when the files of a folder have changed, by scans.
//!
//! A change is the difference between two scans: none can be lost, and none is missed because it came about in an unusual way.
//! A link that points elsewhere, a folder in the place of another one and a file system of another machine are all seen.

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep, sleep_until};

/// The pause between two scans.
const PAUSE: Duration = Duration::from_millis(500);
/// The pause is this many times as long as a scan at least, so that a large folder costs a fiftieth of a processor.
const PAUSE_PER_LOOK: u32 = 50;
/// The time for which files must not change before they are read: an editor's save is several
/// steps.
const REST: Duration = Duration::from_millis(150);
/// The longest wait for that: files that are written all the time are read all the same.
const LONGEST_UNREST: Duration = Duration::from_secs(1);
/// The coarsest time that a file system keeps. Of two changes within it, a scan cannot see the second.
const COARSEST_TIME: Duration = Duration::from_secs(2);
/// The deepest nesting of folders; deeper ones are refused when they are read.
const MAX_DEPTH: usize = 32;
/// Maximum number of entries of folders that are read; more are refused when they are read.
const MAX_ENTRIES: usize = 200_000;

/// The files of a folder, or a single file.
pub(super) struct Watch {
    path: PathBuf,
    /// The state of the files at the last [`Self::take`].
    taken: Snapshot,
    pause: Duration,
    /// When a change that the last scan could not see would show.
    rescan_at: Option<Instant>,
}

impl Watch {
    /// Scans the files for the first time.
    pub(super) async fn new(path: &Path) -> anyhow::Result<Self> {
        let mut watch = Self {
            path: path.to_owned(),
            taken: Snapshot::default(),
            pause: PAUSE,
            rescan_at: None,
        };
        let taken = watch.scan().await?;
        watch.keep(taken);
        Ok(watch)
    }

    /// Waits until the files are to be read again: they differ from what was taken, or may differ. May be dropped at any
    /// time: nothing is forgotten.
    pub(super) async fn changed(&mut self) -> anyhow::Result<()> {
        loop {
            sleep(self.pause).await;
            if self.rescan_at.is_some_and(|at| Instant::now() >= at)
                || self.scan().await? != self.taken
            {
                return Ok(());
            }
        }
    }

    /// Takes the files as they are once they rest, and returns whether they differ from what was
    /// taken before. Content that is read afterwards is as it was taken, or differs at the next
    /// scan.
    pub(super) async fn take(&mut self) -> anyhow::Result<bool> {
        let end = Instant::now() + LONGEST_UNREST;
        let mut now = self.scan().await?;
        while Instant::now() < end {
            sleep_until(end.min(Instant::now() + REST)).await;
            let next = self.scan().await?;
            let rests = next == now;
            now = next;
            if rests {
                break;
            }
        }
        let differs = now != self.taken;
        self.keep(now);
        Ok(differs)
    }

    fn keep(&mut self, snapshot: Snapshot) {
        let recent = SystemTime::now()
            .checked_sub(COARSEST_TIME)
            .is_some_and(|since| snapshot.newest() > since);
        self.rescan_at = recent.then(|| Instant::now() + COARSEST_TIME);
        self.taken = snapshot;
    }

    async fn scan(&mut self) -> anyhow::Result<Snapshot> {
        let (path, begun) = (self.path.clone(), Instant::now());
        let snapshot = tokio::task::spawn_blocking(move || Snapshot::at(&path)).await?;
        self.pause = PAUSE.max(begun.elapsed() * PAUSE_PER_LOOK);
        Ok(snapshot)
    }
}

/// The entries that a scan finds, in the order of the names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Snapshot {
    entries: Vec<(PathBuf, Result<Stamp, io::ErrorKind>)>,
}

/// The metadata that changes when a file's content does, or another file takes its place.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    /// Seconds and nanoseconds; nobody can set it.
    changed: (i64, i64),
}

impl From<&Metadata> for Stamp {
    fn from(it: &Metadata) -> Self {
        Self {
            device: it.dev(),
            inode: it.ino(),
            bytes: it.size(),
            modified: (it.mtime(), it.mtime_nsec()),
            changed: (it.ctime(), it.ctime_nsec()),
        }
    }
}

impl Snapshot {
    fn at(path: &Path) -> Self {
        let mut snapshot = Self::default();
        snapshot.entry(path.to_owned(), &mut BTreeSet::new(), 0);
        snapshot
    }

    /// Scans a file, or a folder and all that is in it; links are followed.
    fn entry(&mut self, path: PathBuf, folders: &mut BTreeSet<(u64, u64)>, depth: usize) {
        if self.entries.len() >= MAX_ENTRIES {
            return;
        }
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) => return self.entries.push((path, Err(error.kind()))),
        };
        if !metadata.is_dir() {
            return self.entries.push((path, Ok(Stamp::from(&metadata))));
        }
        // A link back to a folder that it is in ends there.
        if depth > MAX_DEPTH || !folders.insert((metadata.dev(), metadata.ino())) {
            return;
        }
        let names = std::fs::read_dir(&path).and_then(|entries| {
            let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
            names.collect::<io::Result<Vec<_>>>()
        });
        match names {
            Ok(mut names) => {
                names.retain(|name| !name.as_encoded_bytes().starts_with(b"."));
                names.sort();
                for name in names {
                    let path = path.join(name);
                    // A folder may have any name, and a link to one, too; other files are no manifests.
                    if is_manifest(&path) || path.is_dir() {
                        self.entry(path, folders, depth + 1);
                    }
                }
            }
            Err(error) => self.entries.push((path, Err(error.kind()))),
        }
    }

    /// When a file changed last.
    fn newest(&self) -> SystemTime {
        let seconds = self
            .entries
            .iter()
            .filter_map(|(_, stamp)| stamp.as_ref().ok().map(|stamp| stamp.changed.0))
            .max();
        // The second that follows: the fraction is left out.
        let seconds =
            u64::try_from(seconds.unwrap_or_default().saturating_add(1)).unwrap_or_default();
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }
}

fn is_manifest(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A folder with one file, whose last change is long ago for the watch.
    async fn settled(path: &Path) -> Watch {
        let mut watch = Watch::new(path).await.unwrap();
        watch.rescan_at = None;
        watch
    }

    async fn sees(watch: &mut Watch) {
        tokio::time::timeout(Duration::from_secs(60), watch.changed())
            .await
            .expect("the change is seen")
            .unwrap();
        assert!(watch.take().await.unwrap());
    }

    #[tokio::test]
    async fn reading_is_no_change_and_what_is_no_manifest_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.yaml");
        fs::write(&file, "a").unwrap();
        let mut watch = settled(folder.path()).await;
        fs::read_to_string(&file).unwrap();
        fs::write(folder.path().join(".a.yaml.swp"), "b").unwrap();
        fs::write(folder.path().join("notes.txt"), "b").unwrap();
        assert!(!watch.take().await.unwrap());
    }

    #[tokio::test]
    async fn a_recent_change_is_scanned_again() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.yaml"), "a").unwrap();
        let mut watch = Watch::new(folder.path()).await.unwrap();
        watch.changed().await.unwrap();
        assert!(!watch.take().await.unwrap(), "nothing differs, but something may have");
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_loses_no_change() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.yaml");
        fs::write(&file, "a").unwrap();
        let mut watch = settled(folder.path()).await;
        fs::write(&file, "longer").unwrap();
        // As often as a timer wins against the change, it is seen the next time.
        for _ in 0..3 {
            let _ = futures::FutureExt::now_or_never(watch.changed());
        }
        sees(&mut watch).await;
    }

    #[tokio::test]
    async fn a_file_in_the_place_of_another_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let (file, new) = (folder.path().join("a.yaml"), folder.path().join(".new"));
        fs::write(&file, "a").unwrap();
        for watched in [folder.path(), file.as_path()] {
            let mut watch = settled(watched).await;
            fs::write(&new, "b").unwrap();
            fs::rename(&new, &file).unwrap();
            sees(&mut watch).await;
        }
    }

    #[tokio::test]
    async fn a_config_maps_swap_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (version, text) in [("..1", "a"), ("..2", "b")] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("a.yaml"), text).unwrap();
        }
        symlink("..1", at("..data")).unwrap();
        symlink("..data/a.yaml", at("a.yaml")).unwrap();
        let mut watch = settled(folder.path()).await;
        symlink("..2", at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        sees(&mut watch).await;
    }

    #[tokio::test]
    async fn a_link_that_points_elsewhere_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (version, text) in [("v1", "a"), ("v2", "b")] {
            fs::create_dir_all(at(version).join("manifests")).unwrap();
            fs::write(at(version).join("manifests/a.yaml"), text).unwrap();
        }
        symlink("v1", at("current")).unwrap();
        for (watched, to) in [("current", "v2"), ("current/manifests", "v1")] {
            let mut watch = settled(&at(watched)).await;
            symlink(to, at("next")).unwrap();
            fs::rename(at("next"), at("current")).unwrap();
            sees(&mut watch).await;
        }
    }

    #[tokio::test]
    async fn a_folder_that_is_replaced_or_gone_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for version in ["manifests", "new"] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("a.yaml"), version).unwrap();
        }
        let mut watch = settled(&at("manifests")).await;
        fs::rename(at("manifests"), at("old")).unwrap();
        fs::rename(at("new"), at("manifests")).unwrap();
        sees(&mut watch).await;
        watch.rescan_at = None;
        fs::remove_dir_all(at("manifests")).unwrap();
        sees(&mut watch).await;
        watch.rescan_at = None;
        fs::rename(at("old"), at("manifests")).unwrap();
        sees(&mut watch).await;
    }

    #[test]
    fn a_link_to_the_folder_itself_ends() {
        let folder = tempfile::tempdir().unwrap();
        symlink(".", folder.path().join("again")).unwrap();
        fs::write(folder.path().join("a.yaml"), "a").unwrap();
        assert_eq!(Snapshot::at(folder.path()).entries.len(), 1);
    }
}
