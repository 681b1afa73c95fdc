//! Finding and reading manifests, within limits: folders with all that is in them, single files, standard input.

use std::collections::BTreeSet;
use std::fs::{self, FileType, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use rustix::fs::OFlags;

use super::kustomization::{self, Kustomization};
use super::{Problem, Source};

/// The path of standard input.
const STANDARD_INPUT: &str = "-";
/// The deepest nesting of folders.
const MAX_DEPTH: usize = 16;
/// The number of files that are read at most.
const MAX_FILES: usize = 10_000;
/// The number of kustomizations that are read at most.
const MAX_KUSTOMIZATIONS: usize = 1_000;
/// Maximum number of entries of folders that are read, manifests or not.
const MAX_ENTRIES: usize = 100_000;
/// Bytes of one file.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// Bytes of all files together, and of standard input.
const MAX_TOTAL_BYTES: u64 = 64 << 20;
/// The number of files that a note names at most.
const NAMED: usize = 5;

/// A file's text, as it is to be read.
pub(super) struct Text {
    /// The file's name, relative to the given folder.
    pub(super) name: PathBuf,
    /// The content of the file.
    pub(super) text: String,
    /// The namespace that a kustomization gives to its resources.
    pub(super) namespace: Option<Rc<str>>,
}

/// A result of the search for manifests.
pub(super) enum Found {
    /// A file.
    Text(Text),
    /// Something that can't be read or followed.
    Problem(Problem),
    /// Something that the author should know.
    Note(String),
}

/// Calls `visit` with every manifest at `paths`, in their order and then by name, and with all that is wrong or worth a note.
/// Of several paths, each file's name begins with its own.
pub(super) fn read(paths: &[PathBuf], mut visit: impl FnMut(Found)) {
    let mut left = MAX_TOTAL_BYTES;
    let mut search = Search::default();
    for path in paths {
        let prefix = if paths.len() > 1 { path.as_path() } else { Path::new("") };
        if path.as_os_str() == STANDARD_INPUT {
            search.files.push(Listed {
                path: path.clone(),
                name: "(standard input)".into(),
                namespace: None,
                asked_for: true,
            });
        } else if path.is_dir() {
            search.root(path, prefix);
        } else {
            let name = path
                .file_name()
                .filter(|_| paths.len() == 1 && path.exists())
                .map_or_else(|| path.clone(), PathBuf::from);
            search.files.push(Listed {
                path: path.clone(),
                name,
                namespace: None,
                asked_for: true,
            });
        }
        search.problems.drain(..).for_each(|problem| visit(Found::Problem(problem)));
        search.notes.drain(..).for_each(|note| visit(Found::Note(note)));
        for Listed { path, name, namespace, asked_for } in search.files.drain(..) {
            let text = if path.as_os_str() == STANDARD_INPUT {
                limited(io::stdin().lock(), left, MAX_TOTAL_BYTES)
            } else {
                text(&path, asked_for, left)
            };
            match text {
                Ok(text) => {
                    left = left.saturating_sub(text.len() as u64);
                    visit(Found::Text(Text { name, text, namespace }));
                }
                Err(error) => {
                    visit(Found::Problem(unreadable(&name, &error)));
                    if error.kind() == io::ErrorKind::FileTooLarge {
                        return;
                    }
                }
            }
        }
    }
}

fn unreadable(name: &Path, error: &io::Error) -> Problem {
    Problem::of_file(name, cannot_be_read(error))
}

/// Returns the text of a file. A file that was `asked_for` by its own name may be a pipe, as from
/// `-f <(…)`.
fn text(path: &Path, asked_for: bool, left: u64) -> io::Result<String> {
    // Checked before it is opened, as opening a device may do something; and opened so that it
    // waits for nobody, as it may be something else by then.
    readable(fs::metadata(path)?.file_type(), asked_for)?;
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    readable(file.metadata()?.file_type(), asked_for)?;
    if asked_for {
        rustix::fs::fcntl_setfl(&file, rustix::fs::fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
    }
    limited(file, left, MAX_FILE_BYTES)
}

/// Reads no more than `most` bytes, and no more than is `left` of all.
fn limited(from: impl Read, left: u64, most: u64) -> io::Result<String> {
    let mut text = String::new();
    // One byte more than allowed distinguishes a file at the limit from one beyond it, however it
    // grows meanwhile.
    from.take(most.min(left) + 1).read_to_string(&mut text)?;
    let length = text.len() as u64;
    if length > most {
        return Err(io::Error::other(format!("it has more than {most} bytes")));
    }
    if length > left {
        let message = format!(
            "no more is read: with it, the files have more than {MAX_TOTAL_BYTES} bytes together"
        );
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(text)
}

fn readable(kind: FileType, asked_for: bool) -> io::Result<()> {
    let what = if kind.is_file() || asked_for && (kind.is_fifo() || kind.is_char_device()) {
        return Ok(());
    } else if kind.is_fifo() {
        "a named pipe"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_char_device() || kind.is_block_device() {
        "a device"
    } else {
        "a folder"
    };
    Err(io::Error::other(format!("it is {what}, not a file: take it out of the folder")))
}

/// A file that is to be read.
struct Listed {
    path: PathBuf,
    name: PathBuf,
    namespace: Option<Rc<str>>,
    /// True if it was named itself, not found in a folder.
    asked_for: bool,
}

/// A folder that is looked through.
#[derive(Clone)]
struct Folder {
    path: PathBuf,
    /// Its name for people; empty for the given one.
    name: PathBuf,
    depth: usize,
    /// The namespace that a kustomization above gives to its resources.
    namespace: Option<Rc<str>>,
}

impl Folder {
    fn within(&self, name: impl AsRef<Path>) -> Self {
        let (path, name) = (self.path.join(&name), tidy(&self.name.join(&name)));
        Self { path, name, depth: self.depth + 1, namespace: self.namespace.clone() }
    }

    /// Returns what people read of it.
    fn shown(&self) -> &Path {
        if self.name.as_os_str().is_empty() { &self.path } else { &self.name }
    }
}

/// A path without `.`, and without `..` behind a name.
fn tidy(path: &Path) -> PathBuf {
    let mut tidy = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if tidy.file_name().is_some() => {
                tidy.pop();
            }
            _ => tidy.push(part),
        }
    }
    tidy
}

/// A search for files.
#[derive(Default)]
struct Search {
    files: Vec<Listed>,
    problems: Vec<Problem>,
    notes: Vec<String>,
    entries: usize,
    /// Kustomizations read, those that several list each time.
    kustomizations: usize,
    /// Folders looked through, as they really are: a link back to one of them ends there.
    seen: BTreeSet<PathBuf>,
}

impl Search {
    fn root(&mut self, path: &Path, name: &Path) {
        self.seen.clear();
        self.folder(&Folder {
            path: path.to_owned(),
            name: name.to_owned(),
            depth: 0,
            namespace: None,
        });
    }

    /// Looks through a folder with all folders in it.
    fn folder(&mut self, folder: &Folder) {
        if let Err(fault) = self.entries(folder) {
            self.problems.push(Problem::of_file(folder.shown(), fault));
        }
    }

    fn entries(&mut self, folder: &Folder) -> Result<(), String> {
        if !self.seen.insert(folder.path.canonicalize().map_err(|error| cannot_be_read(&error))?) {
            return Ok(());
        }
        if self.entries > MAX_ENTRIES {
            // The limit is reported once.
            return Ok(());
        }
        let names = self.names(folder)?;
        let kustomizations: Vec<&str> = kustomization::NAMES
            .into_iter()
            .filter(|name| names.iter().any(|it| it.as_os_str() == *name))
            .collect();
        match kustomizations.as_slice() {
            [] => {}
            [file] => return self.kustomization(folder, file, &mut Vec::new()),
            several => {
                return Err(format!(
                    "holds several kustomizations, {}: keep one",
                    several.join(" and ")
                ));
            }
        }
        for name in names {
            let inner = folder.within(&name);
            if inner.path.is_dir() {
                self.folder(&inner);
            } else if is_manifest(&inner.path) {
                self.file(inner)?;
            }
        }
        Ok(())
    }

    /// The names in a folder that are not hidden, in order.
    fn names(&mut self, folder: &Folder) -> Result<Vec<PathBuf>, String> {
        if folder.depth > MAX_DEPTH {
            return Err(format!("lies more than {MAX_DEPTH} folders deep"));
        }
        let mut names = Vec::new();
        for entry in folder.path.read_dir().map_err(|error| cannot_be_read(&error))? {
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(format!(
                    "holds more than {MAX_ENTRIES} entries: point at a smaller folder"
                ));
            }
            names.push(PathBuf::from(entry.map_err(|error| cannot_be_read(&error))?.file_name()));
        }
        names.retain(|name| !name.as_os_str().as_encoded_bytes().starts_with(b"."));
        names.sort();
        Ok(names)
    }

    fn file(&mut self, Folder { path, name, namespace, .. }: Folder) -> Result<(), String> {
        if self.files.len() == MAX_FILES {
            return Err(format!(
                "holds more than {MAX_FILES} manifests: point at a smaller folder"
            ));
        }
        self.files.push(Listed { path, name, namespace, asked_for: false });
        Ok(())
    }

    /// Reads what the kustomization `file` of a folder lists. `above` holds the folders that led here.
    fn kustomization(
        &mut self,
        folder: &Folder,
        file: &str,
        above: &mut Vec<PathBuf>,
    ) -> Result<(), String> {
        self.kustomizations += 1;
        if self.kustomizations > MAX_KUSTOMIZATIONS {
            let fault = format!(
                "lists more than {MAX_KUSTOMIZATIONS} kustomizations, those in them counted in"
            );
            return if self.kustomizations == MAX_KUSTOMIZATIONS + 1 { Err(fault) } else { Ok(()) };
        }
        let (path, name) = (folder.path.join(file), folder.name.join(file));
        let real = folder.path.canonicalize().map_err(|error| cannot_be_read(&error))?;
        let text = match text(&path, false, MAX_FILE_BYTES) {
            Ok(text) => text,
            Err(error) => {
                self.problems.push(unreadable(&name, &error));
                return Ok(());
            }
        };
        let Kustomization { resources, namespace } =
            match kustomization::read(&folder.path, &name, &text) {
                Ok(kustomization) => kustomization,
                Err(problems) => {
                    self.problems.extend(problems);
                    return Ok(());
                }
            };
        // A kustomization above takes precedence, as with kustomize.
        let mut folder = folder.clone();
        folder.namespace = folder.namespace.or_else(|| namespace.map(Rc::from));
        above.push(real.clone());
        let mut listed = BTreeSet::new();
        for (index, (resource, line)) in resources.iter().enumerate() {
            if let Err(fault) = self.resource(&folder, &real, resource, &mut listed, above) {
                let source = Source { file: name.clone(), document: 1, line: *line };
                self.problems.push(Problem::at(
                    &source,
                    None,
                    &kustomization::field(index),
                    format!("{resource} {fault}"),
                ));
            }
        }
        above.pop();
        let mut unlisted = Vec::new();
        self.unlisted(&folder, &listed, &mut unlisted)?;
        if !unlisted.is_empty() {
            let more = unlisted.len().saturating_sub(NAMED);
            let named: Vec<String> =
                unlisted.iter().take(NAMED).map(|it| it.display().to_string()).collect();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            self.notes.push(format!(
                "{} does not list {}{more}, so nothing is read there",
                name.display(),
                named.join(", ")
            ));
        }
        Ok(())
    }

    /// Reads one entry of a kustomization's `resources`.
    fn resource(
        &mut self,
        folder: &Folder,
        real: &Path,
        resource: &str,
        listed: &mut BTreeSet<PathBuf>,
        above: &mut Vec<PathBuf>,
    ) -> Result<(), String> {
        if resource.contains("://") || resource.contains("?ref=") || resource.starts_with("git@") {
            return Err(format!("is not a file here: {}", kustomization::build(&folder.path)));
        }
        let inner = folder.within(resource);
        let path = inner.path.canonicalize().map_err(|error| cannot_be_read(&error))?;
        listed.insert(path.clone());
        if !path.is_dir() {
            if !path.starts_with(real) {
                return Err(
                    "lies outside the kustomization's folder, which kustomize refuses: copy it"
                        .to_owned(),
                );
            }
            return self.file(inner);
        }
        if above.contains(&path) {
            return Err("leads back to this kustomization".to_owned());
        }
        let names = self.names(&inner)?;
        let file = kustomization::NAMES
            .into_iter()
            .find(|name| names.iter().any(|it| it.as_os_str() == *name));
        let file = file.ok_or("is a folder without a kustomization: list its files instead")?;
        self.kustomization(&inner, file, above)
    }

    /// Collects the manifests, and the folders with a kustomization, that a kustomization does not list.
    fn unlisted(
        &mut self,
        folder: &Folder,
        listed: &BTreeSet<PathBuf>,
        found: &mut Vec<PathBuf>,
    ) -> Result<(), String> {
        for name in self.names(folder)? {
            let inner = folder.within(&name);
            let Ok(path) = inner.path.canonicalize() else { continue };
            if listed.contains(&path)
                || kustomization::NAMES.iter().any(|it| name.as_os_str() == *it)
            {
                continue;
            }
            if !path.is_dir() {
                if is_manifest(&inner.path) {
                    found.push(inner.name);
                }
            } else if kustomization::NAMES.iter().any(|it| path.join(it).is_file()) {
                found.push(inner.name);
            } else if self.seen.insert(path) {
                self.unlisted(&inner, listed, found)?;
            }
        }
        Ok(())
    }
}

fn cannot_be_read(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::InvalidData {
        return "can't be read: it is no text in UTF-8".to_owned();
    }
    // The number of the error says nothing to those who write manifests.
    let error = error.to_string();
    format!(
        "can't be read: {}",
        error.split_once(" (os error").map_or(error.as_str(), |(text, _)| text)
    )
}

/// Returns whether a file is to be read, by its name.
fn is_manifest(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
}
