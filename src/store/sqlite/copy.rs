//! Copies of the database that are made before its schema changes, so that a program that cannot work with the new schema
//! has something to go back to.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::file::{folder_of, sync_folder};
use crate::{StoreError, StoreResult};

/// The part of a copy's name between the database's name and the version.
const SCHEMA: &str = ".schema-";
/// The number of copies that stay. Older ones are removed when another one is made.
const COPIES: usize = 2;

/// Returns the path of the copy of a database whose schema had this version.
pub(super) fn path_of(path: &Path, version: i64) -> PathBuf {
    with_suffix(path, &format!("{SCHEMA}{version}"))
}

/// Copies the database, whose schema has this version, to a file beside it. The copy is whole and durable, or not there.
///
/// # Errors
/// When the copy cannot be written, for example because the disk is full.
pub(super) fn before_migration(
    connection: &Connection,
    path: &Path,
    version: i64,
) -> StoreResult<()> {
    let (copy, partial) = (path_of(path, version), with_suffix(path, &format!("{SCHEMA}partial")));
    let failed = |error: &dyn std::fmt::Display| {
        StoreError::Unavailable(format!(
            "the database {} cannot be copied to {} before its schema changes: {error}; make room for the copy, or start \
             the version that served it",
            path.display(),
            copy.display()
        ))
    };
    remove_if_present(&partial).map_err(|error| failed(&error))?;
    let target = partial.to_str().ok_or_else(|| failed(&"its path is not UTF-8"))?;
    connection.execute("VACUUM INTO ?1", [target]).map_err(|error| failed(&error))?;
    File::open(&partial)
        .and_then(|file| file.sync_all())
        .and_then(|()| std::fs::rename(&partial, &copy))
        .map_err(|error| failed(&error))?;
    sync_folder(path)?;
    tracing::info!(copy = %copy.display(), "copied the database before its schema changes");
    remove_older(path)
}

/// Removes all copies but those of the latest versions.
fn remove_older(path: &Path) -> StoreResult<()> {
    let cannot = |error: std::io::Error| {
        StoreError::Unavailable(format!(
            "old copies of {} cannot be removed: {error}",
            path.display()
        ))
    };
    let prefix = with_suffix(Path::new(path.file_name().unwrap_or_default()), SCHEMA);
    let prefix = prefix.to_string_lossy().into_owned();
    let mut versions = Vec::new();
    for entry in std::fs::read_dir(folder_of(path)).map_err(cannot)? {
        let name = entry.map_err(cannot)?.file_name();
        let version = name.to_str().and_then(|it| it.strip_prefix(&prefix)?.parse::<i64>().ok());
        versions.extend(version);
    }
    versions.sort_unstable_by(|one, other| other.cmp(one));
    for version in versions.into_iter().skip(COPIES) {
        remove_if_present(&path_of(path, version)).map_err(cannot)?;
    }
    Ok(())
}

fn remove_if_present(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}
