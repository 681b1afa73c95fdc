//! The owner of what file mode creates, and the manifests that asked for it.

use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};

use crate::datadir::DataDir;
use crate::plan::identity::{LONGEST_SET, file_mode};

/// The path of standard input.
const STANDARD_INPUT: &str = "-";

/// The flags that say who owns.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Identity {
    /// The owner that is recorded on what these manifests make; what another owner made is never touched [default: an id
    /// that is kept in the data folder]
    #[arg(long, env = "WHARFAGE_CLUSTER", value_parser = cluster_name, value_name = "NAME")]
    cluster: Option<String>,

    /// This set of manifests: only what the same set made is ever released or deleted [default: the folder's path]
    #[arg(long, env = "WHARFAGE_SET", value_parser = set_name, value_name = "NAME")]
    set: Option<String>,

    /// Adopt what another owner created, where the manifests declare it: `local` owns what earlier versions created
    #[arg(long, value_parser = owner_name, value_name = "OWNER")]
    adopt_from: Option<String>,
}

/// The owner on whose behalf a plan is made, in the words of the tags.
#[derive(Debug, Clone)]
pub(super) struct Planner {
    /// The identity; see [`crate::plan::identity`].
    pub(super) cluster: String,
    /// Another owner whose repositories are adopted.
    pub(super) adopt_from: Option<String>,
}

impl Identity {
    /// Finds the owner by its flag or in the data folder, and the set by its flag or by where the manifests are.
    ///
    /// # Errors
    /// When there is neither a name nor a data folder to keep an id in.
    pub(super) fn resolve(&self, data: &Path, sources: &[PathBuf]) -> anyhow::Result<Planner> {
        let name = match &self.cluster {
            Some(name) => name.clone(),
            None if data.is_dir() => DataDir::open(data)?.identity()?,
            None => bail!(
                "nothing says who owns what these manifests make, as there is no data folder {}: give a name with --cluster NAME, \
                 the same at each run",
                data.display()
            ),
        };
        let set = match &self.set {
            Some(set) => Some(set.clone()),
            None => set_of(sources)?,
        };
        Ok(Planner {
            cluster: file_mode(&name, set.as_deref()),
            adopt_from: self.adopt_from.clone(),
        })
    }

    /// The flags that make another command plan for the same owner and set. Their values need no quotes.
    pub(super) fn flags(&self) -> String {
        let flag = |name: &str, value: &Option<String>| {
            value.as_ref().map(|value| format!(" --{name} {value}"))
        };
        [flag("cluster", &self.cluster), flag("set", &self.set)].into_iter().flatten().collect()
    }
}

/// The name of the set that these paths are; none for a pipe, whose manifests may be others each time.
fn set_of(sources: &[PathBuf]) -> anyhow::Result<Option<String>> {
    if sources.iter().any(|source| source.as_os_str() == STANDARD_INPUT) {
        return Ok(None);
    }
    let mut paths = Vec::with_capacity(sources.len());
    for source in sources {
        paths.push(
            absolute(source)
                .with_context(|| format!("cannot tell where {} is", source.display()))?,
        );
    }
    paths.sort();
    let mut hash = Sha256::new();
    for path in &paths {
        hash.update(path.as_os_str().as_encoded_bytes());
        hash.update([0]);
    }
    Ok(Some(hex::encode(&hash.finalize()[..LONGEST_SET / 4])))
}

/// The path from the root, as it is written: a link stays the same set when it points elsewhere.
fn absolute(path: &Path) -> std::io::Result<PathBuf> {
    let mut written = PathBuf::new();
    for component in std::path::absolute(path)?.components() {
        match component {
            Component::ParentDir => {
                written.pop();
            }
            component => written.push(component),
        }
    }
    Ok(written)
}

/// A cluster's name, or the name that owns in file mode.
pub(super) fn cluster_name(text: &str) -> Result<String, String> {
    name(text, 63)
}

fn set_name(text: &str) -> Result<String, String> {
    name(text, LONGEST_SET)
}

/// An owner as refusals name it: a cluster, or `file:` and the name of one of file mode.
fn owner_name(text: &str) -> Result<String, String> {
    cluster_name(text.strip_prefix("file:").unwrap_or(text))?;
    Ok(text.to_owned())
}

fn name(text: &str, longest: usize) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let fits = (1..=longest).contains(&text.len()) && text.bytes().all(plain);
    if fits && !text.starts_with('-') && !text.ends_with('-') {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "it must be 1 to {longest} of a-z, 0-9 and -, and begin and end with none of -"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_into_a_tag() {
        for good in ["local", "a", "eu-1", &"a".repeat(63)] {
            assert_eq!(cluster_name(good).as_deref(), Ok(good));
            assert!(owner_name(&format!("file:{good}")).is_ok());
        }
        for bad in ["", "A", "a/b", "-a", "a-", "a b", "a:b", &"a".repeat(64)] {
            assert!(cluster_name(bad).is_err() && owner_name(bad).is_err(), "{bad}");
        }
        assert!(
            set_name(&"a".repeat(LONGEST_SET)).is_ok()
                && set_name(&"a".repeat(LONGEST_SET + 1)).is_err()
        );
    }

    #[test]
    fn a_set_is_where_its_manifests_are() {
        let set =
            |paths: &[&str]| set_of(&paths.iter().map(PathBuf::from).collect::<Vec<_>>()).unwrap();
        assert_eq!(set(&["/w/a"]), set(&["/w/./b/../a/"]));
        assert_eq!(set(&["/w/a", "/w/b"]), set(&["/w/b", "/w/a"]));
        assert_ne!(set(&["/w/a"]), set(&["/w/b"]));
        assert_ne!(set(&["/w/a"]), set(&["/w/a", "/w/b"]));
        assert!(set(&["/w/a"]).is_some_and(|set| set_name(&set).is_ok()));
        assert_eq!(set(&["/w/a", "-"]), None);
    }

    #[test]
    fn without_a_name_the_data_folder_owns() {
        let data = tempfile::tempdir().unwrap();
        let nameless = Identity { cluster: None, set: Some("s".to_owned()), adopt_from: None };
        let first = nameless.resolve(data.path(), &[]).unwrap().cluster;
        assert_eq!(nameless.resolve(data.path(), &[]).unwrap().cluster, first);
        let named = Identity { cluster: Some("prod".to_owned()), ..nameless.clone() };
        assert_eq!(
            named.resolve(&data.path().join("missing"), &[]).unwrap().cluster,
            "file:prod:s"
        );
        let error = nameless.resolve(&data.path().join("missing"), &[]).unwrap_err().to_string();
        assert!(error.contains("--cluster NAME"), "{error}");
    }
}
