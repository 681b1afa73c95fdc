//! Tells when the files of a folder have changed, once they rest again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

/// How long files must rest: an editor's save is several steps.
const REST: Duration = Duration::from_millis(200);
/// How long is waited for rest at most: whoever writes all the time is read all the same.
const PATIENCE: Duration = Duration::from_secs(1);

/// The changes of a folder.
pub(super) struct Changes {
    events: mpsc::Receiver<()>,
    /// Watching ends when this goes.
    _watcher: RecommendedWatcher,
}

impl Changes {
    /// Begins to watch a folder with all that is in it, or a single file.
    pub(super) fn of(path: &Path) -> anyhow::Result<Self> {
        let cannot = || format!("cannot watch {}", path.display());
        let path = path.canonicalize().with_context(cannot)?;
        // A file's folder is watched, as editors put a new file in the place of the old one.
        let (folder, file, mode) = match path.parent() {
            Some(parent) if path.is_file() => (parent.to_owned(), Some(path.clone()), RecursiveMode::NonRecursive),
            _ => (path.clone(), None, RecursiveMode::Recursive),
        };
        let scope = Scope { folder: folder.clone(), file };
        // One place is enough: a change that waits to be told stands for all that follow.
        let (sender, events) = mpsc::channel(1);
        let handler = move |event: notify::Result<Event>| match event {
            Ok(event) => {
                if scope.concerns(&event) {
                    let _ = sender.try_send(());
                }
            }
            Err(error) => {
                tracing::warn!(%error, "watching the manifests failed once; they are read again");
                let _ = sender.try_send(());
            }
        };
        let mut watcher = notify::recommended_watcher(handler).with_context(cannot)?;
        watcher.watch(&folder, mode).with_context(cannot)?;
        Ok(Self { events, _watcher: watcher })
    }

    /// Waits for a change, and for rest after it.
    pub(super) async fn next(&mut self) -> anyhow::Result<()> {
        self.events.recv().await.context("watching the manifests ended")?;
        let end = Instant::now() + PATIENCE;
        while let Ok(event) = timeout_at(end.min(Instant::now() + REST), self.events.recv()).await {
            event.context("watching the manifests ended")?;
        }
        Ok(())
    }
}

/// Which events count.
struct Scope {
    folder: PathBuf,
    file: Option<PathBuf>,
}

impl Scope {
    fn concerns(&self, event: &Event) -> bool {
        // Reading the files is an event, too, and must not make them be read again.
        !matches!(event.kind, EventKind::Access(_)) && event.paths.iter().any(|path| self.holds(path))
    }

    fn holds(&self, path: &Path) -> bool {
        if let Some(file) = &self.file {
            return path == file;
        }
        let Ok(relative) = path.strip_prefix(&self.folder) else { return false };
        let hidden = relative.components().any(|part| part.as_os_str().as_encoded_bytes().starts_with(b"."));
        !hidden
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_is_told_once_and_reading_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.yaml");
        std::fs::write(&file, "a").unwrap();
        let mut changes = Changes::of(folder.path()).unwrap();
        for text in ["b", "c", "d"] {
            std::fs::write(&file, text).unwrap();
        }
        changes.next().await.unwrap();
        // Of the writes some may be told late, on a slow machine; if reading were a change, every look would make one.
        for _ in 0..20 {
            assert_eq!(std::fs::read_to_string(&file).unwrap(), "d");
            if tokio::time::timeout(Duration::from_millis(500), changes.next()).await.is_err() {
                return;
            }
        }
        panic!("reading is no change");
    }

    #[tokio::test]
    async fn a_file_that_takes_the_place_of_another_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let (file, new) = (folder.path().join("a.yaml"), folder.path().join(".a.yaml.swp"));
        std::fs::write(&file, "a").unwrap();
        for watched in [folder.path(), file.as_path()] {
            let mut changes = Changes::of(watched).unwrap();
            std::fs::write(&new, "b").unwrap();
            std::fs::rename(&new, &file).unwrap();
            changes.next().await.unwrap();
        }
    }

    #[test]
    fn hidden_files_do_not_count() {
        let scope = Scope { folder: "/w".into(), file: None };
        for path in ["/w/.wharfage/metadata.sqlite", "/w/a/.git/index", "/elsewhere/a.yaml"] {
            assert!(!scope.holds(Path::new(path)), "{path}");
        }
        for path in ["/w/a.yaml", "/w/team/b.yaml", "/w/team"] {
            assert!(scope.holds(Path::new(path)), "{path}");
        }
    }
}
