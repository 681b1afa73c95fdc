//! What a data folder holds beside the registries' own data: their root keys, the aws configuration that `wharfage env`
//! points clients at, and which registries run there.
//!
//! ```text
//! DIR/aws/credentials     the access keys, as profiles (mode 0600)
//! DIR/aws/config          region and endpoints of the same profiles
//! DIR/registries.json     which registries were started last, and where
//! DIR/registries/NAME/    one registry: root-key.json (0600), metadata.sqlite, blobs/
//! ```

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::names::{AccountId, Region};
use crate::registry::auth::{AccessKey, Secret};

/// A data folder.
#[derive(Debug, Clone)]
pub struct DataDir(PathBuf);

/// A registry that was started from a data folder, as its clients need to know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartedRegistry {
    /// Its name, which is also its profile's.
    pub name: String,
    /// `http://host:port`.
    pub endpoint: String,
    /// `host:port`, what image names begin with.
    pub authority: String,
    /// Its region.
    pub region: Region,
    /// Its account.
    pub account: AccountId,
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
        let path = path.canonicalize().with_context(|| format!("cannot open the data folder {}", path.display()))?;
        Ok(Self(path))
    }

    /// The folder's own path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The folder of one registry, made if it is missing. `name` is a Kubernetes object name, so it holds no path trick.
    pub fn registry(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.0.join("registries").join(name);
        make_private_dir(&path)?;
        Ok(path)
    }

    /// The path of the aws configuration file.
    pub fn aws_config(&self) -> PathBuf {
        self.0.join("aws").join("config")
    }

    /// The path of the aws credentials file.
    pub fn aws_credentials(&self) -> PathBuf {
        self.0.join("aws").join("credentials")
    }

    /// Writes the aws files and the list of registries for what has just been started, the default one first.
    pub fn publish(&self, started: &[(StartedRegistry, AccessKey)]) -> anyhow::Result<()> {
        make_private_dir(&self.0.join("aws"))?;
        write_private(&self.aws_credentials(), render_credentials(started).as_bytes())?;
        write_private(&self.aws_config(), render_config(started).as_bytes())?;
        let registries: Vec<&StartedRegistry> = started.iter().map(|(registry, _)| registry).collect();
        write_private(&self.list(), &serde_json::to_vec_pretty(&registries)?)
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
    pub fn access_key(&self, registry: &str) -> anyhow::Result<(String, Secret)> {
        let path = self.aws_credentials();
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let heading = format!("[{registry}]");
        let profile = text.lines().skip_while(|line| *line != heading).skip(1);
        let mut profile = profile.take_while(|line| !line.starts_with('['));
        let mut value = |name: &str| {
            let (_, value) = profile.find_map(|line| line.split_once(" = ").filter(|(key, _)| *key == name))?;
            Some(value.to_owned())
        };
        match (value("aws_access_key_id"), value("aws_secret_access_key")) {
            (Some(id), Some(secret)) => Ok((id, Secret::new(&secret))),
            _ => anyhow::bail!("{} holds no access key of {registry}", path.display()),
        }
    }

    fn list(&self) -> PathBuf {
        self.0.join("registries.json")
    }
}

/// The root key kept in `folder`, made at the first call.
pub fn root_key(folder: &Path, account: &AccountId) -> anyhow::Result<AccessKey> {
    let path = folder.join("root-key.json");
    match fs::read(&path) {
        Ok(bytes) => {
            // The parser's message could quote the file, so it is not passed on.
            let key: StoredKey = serde_json::from_slice(&bytes).map_err(|_| {
                anyhow::anyhow!("{} is not a root key: an object with AccessKeyId and SecretAccessKey", path.display())
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
            let stored = StoredKey { id: key.id.to_string(), secret: key.secret.expose().to_owned() };
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
        let _ = writeln!(text, "aws_secret_access_key = {}\n", key.secret.expose());
    })
}

fn render_config(started: &[(StartedRegistry, AccessKey)]) -> String {
    let mut text = profiles(started, |text, profile, _key, registry| {
        let heading = if profile == "default" { profile.to_owned() } else { format!("profile {profile}") };
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
    let mut text = String::from("# Written by wharfage at each start; wharfage env points clients here.\n\n");
    if let Some((first, key)) = started.first() {
        render(&mut text, "default", key, first);
    }
    for (registry, key) in started.iter().filter(|(registry, _)| registry.name != "default") {
        render(&mut text, &registry.name, key, registry);
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

/// Replaces a file that only its owner may read, at once and durably: a crash leaves the old one or the new one.
fn write_private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let write = || -> std::io::Result<()> {
        let temporary = path.with_extension("new");
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        match path.parent() {
            Some(folder) => fs::File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn registry(name: &str, port: u16) -> StartedRegistry {
        StartedRegistry {
            name: name.into(),
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
        assert_eq!((&first.id, first.secret.expose()), (&second.id, second.secret.expose()));
        let mode = fs::metadata(folder.path().join("root-key.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_root_key_is_named_without_being_quoted() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("root-key.json"), "{\"AccessKeyId\": \"AKIASECRETISH\"").unwrap();
        let error = format!("{:#}", root_key(folder.path(), &"123456789012".parse().unwrap()).unwrap_err());
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
        for heading in
            ["[default]", "[profile home]", "[profile us]", "[services wharfage-home]", "[services wharfage-us]"]
        {
            assert!(config.contains(heading), "{heading} in {config}");
        }
        let mode = fs::metadata(data.aws_credentials()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        for (registry, key) in &started {
            let (id, secret) = data.access_key(&registry.name).unwrap();
            assert_eq!((id.as_str(), secret.expose()), (&*key.id, key.secret.expose()));
        }
        assert!(data.access_key("elsewhere").is_err());
        assert_eq!(data.started().unwrap(), started.into_iter().map(|(registry, _)| registry).collect::<Vec<_>>());
    }
}
