//! Finding and reading the files of a folder, within limits.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::Problem;

/// How deep folders may lie in folders.
const MAX_DEPTH: usize = 16;
/// How many files are read.
const MAX_FILES: usize = 10_000;
/// How many entries of folders are looked at, manifests or not.
const MAX_ENTRIES: usize = 100_000;
/// Bytes of one file.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// Bytes of all files together.
const MAX_TOTAL_BYTES: usize = 64 << 20;

/// Calls `visit` with the name and the text of every manifest file at `path`, in the order of their names, or with why it
/// can't be had. Names are relative to `path`.
pub(super) fn read(path: &Path, mut visit: impl FnMut(Result<(PathBuf, String), Problem>)) {
    let mut found = Found::default();
    let root = if path.is_file() {
        found.files.push(PathBuf::from(path.file_name().unwrap_or(path.as_os_str())));
        path.parent().unwrap_or(Path::new(""))
    } else {
        found.folder(path, Path::new(""), 0);
        path
    };
    found.problems.into_iter().for_each(|problem| visit(Err(problem)));
    let mut total = 0;
    for file in found.files {
        match text(&root.join(&file)) {
            Ok(text) => {
                total += text.len();
                if total > MAX_TOTAL_BYTES {
                    let message = format!("no more is read: the files have more than {MAX_TOTAL_BYTES} bytes together");
                    return visit(Err(Problem::of_file(&file, message)));
                }
                visit(Ok((file, text)));
            }
            Err(error) => visit(Err(Problem::of_file(&file, format!("can't be read: {error}")))),
        }
    }
}

fn text(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no ordinary file"));
    }
    let mut text = String::new();
    // One byte more than allowed tells a file at the limit from one beyond it, however it grows meanwhile.
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("it has more than {MAX_FILE_BYTES} bytes")));
    }
    Ok(text)
}

#[derive(Default)]
struct Found {
    files: Vec<PathBuf>,
    problems: Vec<Problem>,
    entries: usize,
    /// Folders looked through, as they really are: a link back to one of them ends there.
    seen: BTreeSet<PathBuf>,
}

impl Found {
    /// Looks through `relative`, a folder in `root`.
    fn folder(&mut self, root: &Path, relative: &Path, depth: usize) {
        let path = root.join(relative);
        if let Err(error) = self.entries(root, relative, &path, depth) {
            let named = if relative.as_os_str().is_empty() { root } else { relative };
            self.problems.push(Problem::of_file(named, error));
        }
    }

    fn entries(&mut self, root: &Path, relative: &Path, path: &Path, depth: usize) -> Result<(), String> {
        let unreadable = |error: io::Error| format!("can't be read: {error}");
        if depth > MAX_DEPTH {
            return Err(format!("lies more than {MAX_DEPTH} folders deep"));
        }
        if !self.seen.insert(path.canonicalize().map_err(unreadable)?) {
            return Ok(());
        }
        let mut names = Vec::new();
        for entry in path.read_dir().map_err(unreadable)? {
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(format!("holds more than {MAX_ENTRIES} entries: point at a smaller folder"));
            }
            names.push(entry.map_err(unreadable)?.file_name());
        }
        names.sort();
        for name in names {
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let relative = relative.join(&name);
            if root.join(&relative).is_dir() {
                self.folder(root, &relative, depth + 1);
            } else if is_manifest(&relative) {
                if self.files.len() == MAX_FILES {
                    return Err(format!("holds more than {MAX_FILES} manifests: point at a smaller folder"));
                }
                self.files.push(relative);
            }
        }
        Ok(())
    }
}

/// Whether a file is to be read, by its name. A kustomization says how to build manifests; it is none.
fn is_manifest(path: &Path) -> bool {
    let known =
        path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known));
    known && path.file_stem().is_none_or(|stem| stem != "kustomization")
}
