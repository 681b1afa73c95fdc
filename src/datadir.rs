//! The content of a data folder beside the registries' own data: their root keys, the aws
//! configuration that `wharfage env` points clients at, and which registries run there.
//!
//! ```text
//! DIR/aws/credentials     the access keys, as profiles (mode 0600)
//! DIR/aws/config          region and endpoints of the same profiles
//! DIR/identity            who owns what is applied with this folder
//! DIR/lock                which process uses the folder
//! DIR/registries.json     which registries were started last, and where
//! DIR/registries/NAME/    one registry: registry.json, root-key.json (0600), metadata.sqlite, blobs/, reserve
//! ```

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};

use crate::access_key::AccessKey;
use crate::names::{AccountId, Region, RegistryName};
use crate::store::lock::ProcessLock;

/// Characters of a data folder's own identity.
const IDENTITY: usize = 16;

/// A data folder.
#[derive(Debug, Clone)]
pub struct DataDir(PathBuf);

/// A registry that was started from a data folder, as its clients need to know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartedRegistry {
    /// Its name, which is also its profile's.
    pub name: RegistryName,
    /// `http://host:port`.
    pub endpoint: String,
    /// `host:port`, what image names begin with.
    pub authority: String,
    /// Its region.
    pub region: Region,
    /// Its account.
    pub account: AccountId,
}

/// The data that a registry's folder keeps about it, in `registry.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// Its account: what the folder holds is stored under it.
    account: AccountId,
    /// Its region, likewise.
    region: Region,
    /// The offset of its port from the first listener's; absent where it never ran beside others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port_offset: Option<u16>,
}

/// A root key as it is kept in its file.
#[derive(Serialize, Deserialize)]
struct StoredKey {
    #[serde(rename = "AccessKeyId")]
    id: String,
    #[serde(rename = "SecretAccessKey")]
    secret: String,
}

impl DataDir {
    /// Opens the folder, making it if it is missing; only its owner may look inside.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        make_private_dir(path)?;
        let path = path
            .canonicalize()
            .with_context(|| format!("cannot open the data folder {}", path.display()))?;
        Ok(Self(path))
    }

    /// The folder's own path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The folder of one registry, made if it is missing.
    pub fn registry(&self, name: &RegistryName) -> anyhow::Result<PathBuf> {
        let path = self.folder_of(name);
        make_private_dir(&path)?;
        Ok(path)
    }

    fn folder_of(&self, name: &RegistryName) -> PathBuf {
        self.0.join("registries").join(name.as_str())
    }

    /// The id by which file mode with this folder owns what it makes: 16 letters and digits, made at the first call.
    ///
    /// # Errors
    /// When the file cannot be read or made, or holds something else.
    pub fn identity(&self) -> anyhow::Result<String> {
        let path = self.0.join("identity");
        let mut text = read_if_there(&path)?;
        if text.is_none() {
            let id = uuid::Uuid::new_v4().simple().to_string();
            write_private_once(&path, format!("{}\n", &id[..IDENTITY]).as_bytes())?;
            // Another process may have been first.
            text = read_if_there(&path)?;
        }
        let id = text.as_deref().map(str::trim).unwrap_or_default();
        let fits = id.len() == IDENTITY
            && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        anyhow::ensure!(
            fits,
            "{} does not hold the {IDENTITY} letters and digits of an id: restore it, or give --cluster NAME",
            path.display()
        );
        Ok(id.to_owned())
    }

    /// Makes sure that the folder holds no other registry of this name: data are stored under an account and a region, and
    /// under others they would not be found.
    ///
    /// # Errors
    /// When the folder holds a registry of this name with another account or region.
    pub fn check(
        &self,
        name: &RegistryName,
        account: &AccountId,
        region: &Region,
    ) -> anyhow::Result<()> {
        let Some(found) = self.record(name)? else { return Ok(()) };
        anyhow::ensure!(
            found.account == *account && found.region == *region,
            "{} holds registry {name} as registryId {} in region {}, and it is to be registryId {account} in region {region} \
             now: give it the former again, or another name, or another data folder",
            self.0.display(),
            found.account,
            found.region
        );
        Ok(())
    }

    /// Remembers a registry that has started, and how many ports after the first listener's its own is, where that counts.
    pub fn remember(
        &self,
        name: &RegistryName,
        account: &AccountId,
        region: &Region,
        port_offset: Option<u16>,
    ) -> anyhow::Result<()> {
        let found = self.record(name)?;
        let port_offset = port_offset.or(found.as_ref().and_then(|found| found.port_offset));
        let record = Record { account: account.clone(), region: region.clone(), port_offset };
        let path = self.record_path(name);
        if found.as_ref() == Some(&record) && path.exists() {
            return Ok(());
        }
        self.registry(name)?;
        write_private(&path, &serde_json::to_vec_pretty(&record)?)
    }

    /// Returns the offset of each of these registries' ports from the first listener's. One that
    /// ran before keeps its port; a new one gets the first that none of the others has.
    pub fn port_offsets(&self, names: &[RegistryName]) -> anyhow::Result<Vec<u16>> {
        let mut taken = BTreeSet::new();
        let mut offsets = Vec::with_capacity(names.len());
        for name in names {
            let offset = self.record(name)?.and_then(|record| record.port_offset);
            offsets.push(offset.filter(|offset| taken.insert(*offset)));
        }
        let assigned = offsets.into_iter().map(|offset| {
            let free = || (0..=u16::MAX).find(|offset| !taken.contains(offset)).unwrap_or_default();
            let offset = offset.unwrap_or_else(free);
            taken.insert(offset);
            offset
        });
        Ok(assigned.collect())
    }

    /// Returns the stored record of a registry. A folder of an earlier version remembers only what
    /// was started last.
    fn record(&self, name: &RegistryName) -> anyhow::Result<Option<Record>> {
        let path = self.record_path(name);
        if let Some(text) = read_if_there(&path)? {
            return serde_json::from_str(&text)
                .map(Some)
                .with_context(|| format!("{} is damaged", path.display()));
        }
        let Some(text) = read_if_there(&self.list())? else { return Ok(None) };
        let Ok(started) = serde_json::from_str::<Vec<StartedRegistry>>(&text) else {
            return Ok(None);
        };
        let found = started.into_iter().enumerate().find(|(_, started)| started.name == *name);
        Ok(found.map(|(index, StartedRegistry { account, region, .. })| Record {
            account,
            region,
            port_offset: u16::try_from(index).ok(),
        }))
    }

    fn record_path(&self, name: &RegistryName) -> PathBuf {
        self.folder_of(name).join("registry.json")
    }

    /// Takes the folder for this process alone. `user` says who it is, for the process that is refused then.
    ///
    /// # Errors
    /// When another process has it; the message names that one.
    pub fn lock(&self, user: &str) -> anyhow::Result<ProcessLock> {
        let owned = format!("the data folder {}", self.0.display());
        Ok(ProcessLock::take(&self.0.join("lock"), &owned, user)?)
    }

    /// The path of the aws configuration file.
    pub fn aws_config(&self) -> PathBuf {
        self.0.join("aws").join("config")
    }

    /// The path of the aws credentials file.
    pub fn aws_credentials(&self) -> PathBuf {
        self.0.join("aws").join("credentials")
    }

    /// Writes the aws files and the list of registries for what has just been started, the default
    /// one first. On a full disk the existing file stays, so that the registries can serve: after a
    /// start as the last one was, it is right.
    pub fn publish(&self, started: &[(StartedRegistry, AccessKey)]) -> anyhow::Result<()> {
        let mut started = started.to_vec();
        // One that is called so is the default one: there is one profile of that name.
        started.sort_by_key(|(registry, _)| registry.name.as_str() != "default");
        let started = started.as_slice();
        make_private_dir(&self.0.join("aws"))?;
        let registries: Vec<&StartedRegistry> =
            started.iter().map(|(registry, _)| registry).collect();
        let files = [
            (self.aws_credentials(), render_credentials(started).into_bytes()),
            (self.aws_config(), render_config(started).into_bytes()),
            (self.list(), serde_json::to_vec_pretty(&registries)?),
        ];
        for (path, bytes) in files {
            if fs::read(&path).is_ok_and(|there| there == bytes) {
                continue;
            }
            match write_private(&path, &bytes) {
                Err(error) if is_full(&error) => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "serving without it: wharfage env tells what was before"
                    );
                }
                written => written?,
            }
        }
        Ok(())
    }

    /// The registries that were started last, the default one first.
    pub fn started(&self) -> anyhow::Result<Vec<StartedRegistry>> {
        let path = self.list();
        let bytes = fs::read(&path).with_context(|| {
            format!(
                "no registry was started from {} yet: run wharfage up FOLDER first, or name its --data",
                self.0.display()
            )
        })?;
        serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))
    }

    /// The access key of a registry that was started last: its id and its secret.
    pub fn access_key(&self, registry: &RegistryName) -> anyhow::Result<(String, SecretString)> {
        let path = self.aws_credentials();
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let heading = format!("[{registry}]");
        let profile = text.lines().skip_while(|line| *line != heading).skip(1);
        let mut profile = profile.take_while(|line| !line.starts_with('['));
        let mut value = |name: &str| {
            let (_, value) =
                profile.find_map(|line| line.split_once(" = ").filter(|(key, _)| *key == name))?;
            Some(value.to_owned())
        };
        match (value("aws_access_key_id"), value("aws_secret_access_key")) {
            (Some(id), Some(secret)) => Ok((id, SecretString::from(secret))),
            _ => anyhow::bail!("{} holds no access key of {registry}", path.display()),
        }
    }

    fn list(&self) -> PathBuf {
        self.0.join("registries.json")
    }
}

/// The folder of a registry in a data folder, neither of which is made.
///
/// # Errors
/// When the name is no name of a registry.
pub fn registry_folder(data: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let named = !name.is_empty() && name != "." && name != ".." && name.chars().all(plain);
    anyhow::ensure!(named, "{name:?} is no registry's name");
    Ok(data.join("registries").join(name))
}

/// The root key kept in `folder`, made at the first call.
pub fn root_key(folder: &Path, account: &AccountId) -> anyhow::Result<AccessKey> {
    let path = folder.join("root-key.json");
    match fs::read(&path) {
        Ok(bytes) => {
            // The parser's message could quote the file, so it is not passed on.
            let key: StoredKey = serde_json::from_slice(&bytes).map_err(|_| {
                anyhow::anyhow!(
                    "{} is not a root key: an object with AccessKeyId and SecretAccessKey",
                    path.display()
                )
            })?;
            anyhow::ensure!(
                !key.id.is_empty() && !key.secret.is_empty(),
                "{} holds an empty root key: restore it, or remove the file to have a new key made",
                path.display()
            );
            Ok(AccessKey::new(&key.id, &key.secret, account.clone()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key = AccessKey::generate(account.clone())?;
            let stored =
                StoredKey { id: key.id.to_string(), secret: key.secret.expose_secret().to_owned() };
            write_private(&path, &serde_json::to_vec_pretty(&stored)?)?;
            Ok(key)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn render_credentials(started: &[(StartedRegistry, AccessKey)]) -> String {
    profiles(started, |text, profile, key, _registry| {
        let _ = writeln!(text, "[{profile}]");
        let _ = writeln!(text, "aws_access_key_id = {}", key.id);
        let _ = writeln!(text, "aws_secret_access_key = {}\n", key.secret.expose_secret());
    })
}

fn render_config(started: &[(StartedRegistry, AccessKey)]) -> String {
    let mut text = profiles(started, |text, profile, _key, registry| {
        let heading =
            if profile == "default" { profile.to_owned() } else { format!("profile {profile}") };
        let _ = writeln!(text, "[{heading}]");
        let _ = writeln!(text, "region = {}", registry.region);
        let _ = writeln!(text, "output = json");
        let _ = writeln!(text, "services = wharfage-{}\n", registry.name);
    });
    for (registry, _) in started {
        let _ = writeln!(text, "[services wharfage-{}]", registry.name);
        for service in ["ecr", "ecr_public", "sts"] {
            let _ = writeln!(text, "{service} =\n  endpoint_url = {}", registry.endpoint);
        }
        text.push('\n');
    }
    text
}

/// Renders each registry under its own name, the first one also as `default`.
fn profiles(
    started: &[(StartedRegistry, AccessKey)],
    mut render: impl FnMut(&mut String, &str, &AccessKey, &StartedRegistry),
) -> String {
    let mut text =
        String::from("# Written by wharfage at each start; wharfage env points clients here.\n\n");
    if let Some((first, key)) = started.first() {
        render(&mut text, "default", key, first);
    }
    for (registry, key) in
        started.iter().filter(|(registry, _)| registry.name.as_str() != "default")
    {
        render(&mut text, registry.name.as_str(), key, registry);
    }
    text
}

fn make_private_dir(path: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make the folder {}", path.display()))
}

fn is_full(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    matches!(kind, Some(std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded))
}

/// Replaces a file that only its owner may read, at once and durably: a crash leaves the old one or the new one.
fn write_private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    publish_private(path, bytes, |temporary| fs::rename(temporary, path))
}

/// The same for a file that is made once: one that is there already stays.
fn write_private_once(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    publish_private(path, bytes, |temporary| {
        let linked = fs::hard_link(temporary, path);
        fs::remove_file(temporary)?;
        linked.or_else(|error| {
            if error.kind() == std::io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
        })
    })
}

fn publish_private(
    path: &Path,
    bytes: &[u8],
    publish: impl FnOnce(&Path) -> std::io::Result<()>,
) -> anyhow::Result<()> {
    let write = || -> std::io::Result<()> {
        // Two processes never write to one file.
        let temporary = path.with_extension(format!("{}.new", std::process::id()));
        let mut options = fs::OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        let written = file.write_all(bytes).and_then(|()| file.sync_all());
        if let Err(error) = written {
            // Half a file is of no use to anybody, and takes space.
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
        publish(&temporary)?;
        match path.parent() {
            Some(folder) => fs::File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// A file's text; nothing if there is no such file.
fn read_if_there(path: &Path) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn registry(name: &str, port: u16) -> StartedRegistry {
        StartedRegistry {
            name: name.parse().unwrap(),
            endpoint: format!("http://127.0.0.1:{port}"),
            authority: format!("127.0.0.1:{port}"),
            region: "local-1".parse().unwrap(),
            account: "123456789012".parse().unwrap(),
        }
    }

    #[test]
    fn a_root_key_is_made_once_and_kept_private() {
        let folder = tempfile::tempdir().unwrap();
        let account: AccountId = "123456789012".parse().unwrap();
        let first = root_key(folder.path(), &account).unwrap();
        let second = root_key(folder.path(), &account).unwrap();
        assert_eq!(
            (&first.id, first.secret.expose_secret()),
            (&second.id, second.secret.expose_secret())
        );
        let mode = fs::metadata(folder.path().join("root-key.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_folder_is_for_one_process() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(folder.path()).unwrap();
        let lock = data.lock("wharfage up manifests").unwrap();
        let error = data.lock("wharfage up others").unwrap_err().to_string();
        assert!(error.contains("in use by wharfage up manifests, process "), "{error}");
        drop(lock);
        data.lock("wharfage up others").unwrap();
    }

    #[test]
    fn an_identity_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(folder.path()).unwrap();
        let identity = data.identity().unwrap();
        assert_eq!((identity.len(), data.identity().unwrap()), (IDENTITY, identity));
        fs::write(folder.path().join("identity"), "not/an/identity").unwrap();
        assert!(data.identity().is_err());
    }

    #[test]
    fn a_registry_keeps_its_account_its_region_and_its_port() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(folder.path()).unwrap();
        let [home, us, eu] = ["home", "us", "eu"].map(|name| name.parse::<RegistryName>().unwrap());
        let (account, region): (AccountId, Region) =
            ("123456789012".parse().unwrap(), "local-1".parse().unwrap());
        for (name, offset) in [(&home, 0), (&us, 1)] {
            data.check(name, &account, &region).unwrap();
            data.remember(name, &account, &region, Some(offset)).unwrap();
        }
        data.remember(&us, &account, &region, None).unwrap();
        assert!(data.check(&home, &"210987654321".parse().unwrap(), &region).is_err());
        assert!(data.check(&home, &account, &"other-1".parse().unwrap()).is_err());
        assert_eq!(data.port_offsets(&[eu.clone(), home.clone(), us.clone()]).unwrap(), [2, 0, 1]);
        // A registry that does not run keeps no port from others.
        assert_eq!(data.port_offsets(&[eu, us]).unwrap(), [0, 1]);
    }

    #[test]
    fn a_folder_of_an_earlier_version_is_held_to_what_was_started_last() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(folder.path()).unwrap();
        let started: Vec<_> = [registry("home", 5000), registry("us", 5001)]
            .map(|registry| {
                (registry, AccessKey::generate("123456789012".parse().unwrap()).unwrap())
            })
            .into();
        data.publish(&started).unwrap();
        let names: Vec<RegistryName> =
            ["added", "us", "home"].map(|name| name.parse().unwrap()).into();
        assert_eq!(data.port_offsets(&names).unwrap(), [2, 1, 0]);
        assert!(
            data.check(&names[1], &"210987654321".parse().unwrap(), &"local-1".parse().unwrap())
                .is_err()
        );
    }

    #[test]
    fn a_damaged_root_key_is_named_without_being_quoted() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("root-key.json"), "{\"AccessKeyId\": \"AKIASECRETISH\"")
            .unwrap();
        let error =
            format!("{:#}", root_key(folder.path(), &"123456789012".parse().unwrap()).unwrap_err());
        assert!(error.contains("root-key.json") && !error.contains("SECRETISH"), "{error}");
    }

    #[test]
    fn the_first_registry_is_the_default_profile() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(folder.path()).unwrap();
        let account: AccountId = "123456789012".parse().unwrap();
        let started: Vec<_> = [registry("home", 5000), registry("us", 5001)]
            .into_iter()
            .map(|registry| (registry, AccessKey::generate(account.clone()).unwrap()))
            .collect();
        data.publish(&started).unwrap();
        let config = fs::read_to_string(data.aws_config()).unwrap();
        for heading in [
            "[default]",
            "[profile home]",
            "[profile us]",
            "[services wharfage-home]",
            "[services wharfage-us]",
        ] {
            assert!(config.contains(heading), "{heading} in {config}");
        }
        let mode = fs::metadata(data.aws_credentials()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        for (registry, key) in &started {
            let (id, secret) = data.access_key(&registry.name).unwrap();
            assert_eq!(
                (id.as_str(), secret.expose_secret()),
                (&*key.id, key.secret.expose_secret())
            );
        }
        assert!(data.access_key(&"elsewhere".parse().unwrap()).is_err());
        assert_eq!(
            data.started().unwrap(),
            started.into_iter().map(|(registry, _)| registry).collect::<Vec<_>>()
        );
    }
}
