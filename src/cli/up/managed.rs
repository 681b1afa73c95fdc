//! The registries that run in this process: one for each managed Registry.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use futures::future::{join_all, try_join_all};
use kube::ResourceExt as _;
use secrecy::SecretString;

use super::super::env::Shell;
use super::super::output::say;
use super::super::reconcile::Target;
use crate::access_key::AccessKey;
use crate::apply::{Connection, Ecr};
use crate::crd::Registry;
use crate::crd::registry::ManagedRegistry;
use crate::datadir::{DataDir, StartedRegistry, root_key};
use crate::jobs;
use crate::listener::bind;
use crate::manifests::Manifests;
use crate::names::{AccountId, RegistryName};
use crate::registry::http::server::ServerLimits;
use crate::registry::{Config, Limits, PublicUrl};
use crate::serve::{Database, Opened, Running, ServerMetrics, Startup, Storage};
use crate::store::blobs::s3::{S3Config, S3Credentials};
use crate::store::lock::ProcessLock;

/// The managed registries that run in this process.
#[derive(Default)]
pub(super) struct ManagedRegistries {
    running: Vec<(Running, StartedRegistry, AccessKey)>,
    /// Given up after they have stopped.
    lock: Option<ProcessLock>,
}

impl ManagedRegistries {
    /// Takes the data folder for this process, until the registries have stopped.
    pub(super) fn lock(&mut self, data: &DataDir, manifests: &Path) -> anyhow::Result<()> {
        self.lock = Some(data.lock(&format!("wharfage up {}", manifests.display()))?);
        Ok(())
    }

    /// Starts every managed Registry: the first on `address`, each further one on the next port. None answers before all are
    /// open and what `wharfage env` reads is written.
    pub(super) async fn start(
        &mut self,
        manifests: &Manifests,
        data: &DataDir,
        address: SocketAddr,
        admin: Option<SocketAddr>,
    ) -> anyhow::Result<()> {
        let registries = manifests.registries.iter().map(|loaded| &loaded.resource);
        let managed: Vec<_> =
            registries.filter_map(|it| Some((it, it.spec.managed.as_ref()?))).collect();
        let on_postgres = managed
            .iter()
            .filter(|(_, it)| it.database.as_ref().is_some_and(|it| it.postgres.is_some()));
        ensure!(
            on_postgres.count() <= 1,
            "several Registries ask for PostgreSQL, but WHARFAGE_DATABASE_URL names one database: leave the others on SQLite"
        );
        let metrics = ServerMetrics::default();
        let names: Vec<RegistryName> = managed
            .iter()
            .map(|(registry, _)| registry.name_any().parse())
            .collect::<Result<_, _>>()?;
        // A folder that holds other registries is refused before anything of it is used.
        for (name, (registry, _)) in names.iter().zip(&managed) {
            data.check(name, &account(registry)?, &registry.region())?;
        }
        let mut offsets: Vec<_> =
            data.port_offsets(&names)?.into_iter().zip(names.into_iter().zip(managed)).collect();
        // In the order of their ports: which one is the default doesn't change because another was added.
        offsets.sort_by_key(|(offset, _)| *offset);
        let mut opened = Vec::with_capacity(offsets.len());
        for (offset, (name, (registry, managed))) in offsets {
            let started = match port_after(address, offset) {
                Ok(address) => open(name, registry, managed, data, address, &metrics).await,
                Err(error) => Err(error),
            };
            let started = started
                .with_context(|| format!("cannot start Registry {}", registry.name_any()))?;
            let StartedRegistry { name, account, region, .. } = &started.1;
            data.remember(name, account, region, Some(offset))?;
            opened.push(started);
        }
        if opened.is_empty() {
            return Ok(());
        }
        let started: Vec<_> =
            opened.iter().map(|(_, started, key)| (started.clone(), key.clone())).collect();
        data.publish(&started)?;
        self.running.extend(
            opened.into_iter().map(|(opened, started, key)| (opened.serve(), started, key)),
        );
        self.announce(admin).await
    }

    /// Starts the admin server, and prints the running registries.
    async fn announce(&mut self, admin: Option<SocketAddr>) -> anyhow::Result<()> {
        let others: Vec<_> = self
            .running
            .iter()
            .skip(1)
            .map(|(running, ..)| Arc::clone(&running.registry))
            .collect();
        if let (Some(address), Some((first, ..))) = (admin, self.running.first_mut()) {
            let (listener, address) = bind(address).await?;
            first.serve_operations(listener, &others);
            say(format_args!("/healthz, /readyz and /metrics are on http://{address}"));
        }
        for (_, StartedRegistry { name, endpoint, authority: _, region, account }, _) in
            &self.running
        {
            say(format_args!(
                "Serving {endpoint} (Registry {name}, account {account}, region {region})"
            ));
        }
        say(format_args!(""));
        Ok(())
    }

    /// Returns how the registries are reached.
    pub(super) async fn targets(&self) -> anyhow::Result<Vec<Target>> {
        let target = |(_, started, key): &(Running, StartedRegistry, AccessKey)| {
            let (endpoint, region) = (started.endpoint.clone(), started.region.clone());
            let connection =
                Connection::with_key(endpoint, region, key.id.to_string(), key.secret.clone());
            let (name, place) = (started.name.to_string(), started.endpoint.clone());
            async move { anyhow::Ok(Target { name, place, ecr: Ecr::new(connection, None).await? }) }
        };
        try_join_all(self.running.iter().map(target)).await
    }

    /// Says how to log in: lines to paste into another shell.
    pub(super) fn teach(&self, data: &DataDir, manifests: &Manifests) {
        let Some((_, first, _)) = self.running.first() else { return };
        let mut repositories = manifests.repositories.iter().map(|loaded| &loaded.resource);
        let repository = repositories.find(|it| it.spec.registry_ref.name == first.name.as_str());
        let name = repository
            .and_then(|it| it.repository_name().ok())
            .map_or("hello".to_owned(), |it| it.to_string());
        let (program, data) = (quoted(&program()), quoted(data.path()));
        say(format_args!(
            "To use it, in another shell:\n\n  \
             eval \"$({program} env --data {data})\"\n  \
             aws ecr get-login-password | docker login -u AWS --password-stdin $WHARFAGE_REGISTRY\n  \
             docker pull busybox && docker tag busybox $WHARFAGE_REGISTRY/{name}:1 && docker push $WHARFAGE_REGISTRY/{name}:1\n"
        ));
    }

    /// Stops all registries at once, and lets running transfers end.
    pub(super) async fn stop(self) {
        let Self { running, lock } = self;
        join_all(running.into_iter().map(|(running, ..)| running.stop())).await;
        drop(lock);
    }
}

/// Differences that only a restart can honor, each as a sentence.
pub(super) fn restart_needed(old: &Manifests, new: &Manifests) -> Vec<String> {
    let mut notes = Vec::new();
    for registry in new.registries.iter().map(|loaded| &loaded.resource) {
        let name = registry.name_any();
        match old.registry(&name).map(|loaded| &loaded.resource.spec) {
            None => notes.push(format!("Registry {name} is new: restart wharfage up to have it")),
            Some(old) => {
                let new = &registry.spec;
                let same = old.managed == new.managed
                    && old.endpoint == new.endpoint
                    && old.aws == new.aws
                    && old.region == new.region
                    && old.registry_id == new.registry_id;
                if !same {
                    notes.push(format!("Registry {name} is to run in another way: restart wharfage up to have it so"));
                }
            }
        }
    }
    for registry in old.registries.iter().map(|loaded| &loaded.resource) {
        let name = registry.name_any();
        if new.registry(&name).is_none() {
            notes.push(format!("Registry {name} is gone, but is served until wharfage up is restarted; its data stay"));
        }
    }
    notes
}

fn port_after(address: SocketAddr, offset: u16) -> anyhow::Result<SocketAddr> {
    if address.port() == 0 {
        return Ok(address);
    }
    let port = address.port().checked_add(offset);
    Ok(SocketAddr::new(
        address.ip(),
        port.with_context(|| format!("there is no port {offset} after {address}"))?,
    ))
}

fn account(registry: &Registry) -> anyhow::Result<AccountId> {
    registry
        .registry_id()
        .with_context(|| format!("Registry {} has no registryId", registry.name_any()))
}

/// Opens the stores and the listener of one Registry.
async fn open(
    name: RegistryName,
    registry: &Registry,
    managed: &ManagedRegistry,
    data: &DataDir,
    address: SocketAddr,
    metrics: &ServerMetrics,
) -> anyhow::Result<(Opened, StartedRegistry, AccessKey)> {
    let account = account(registry)?;
    let folder = data.registry(&name)?;
    let key = root_key(&folder, &account)?;
    let (listener, address) = bind(address).await?;
    let reached = if address.ip().is_unspecified() {
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port())
    } else {
        address
    };
    let local = PublicUrl { scheme: "http".to_owned(), authority: reached.to_string() };
    let public_url: PublicUrl = match &managed.public_url {
        Some(url) => url.parse().context("publicUrl")?,
        None => local.clone(),
    };
    let startup = Startup {
        config: Config {
            region: registry.region(),
            account: account.clone(),
            public_url: public_url.clone(),
            redirect_blobs: redirects(managed),
            limits: Limits::default(),
        },
        root_key: key.clone(),
        database: database(managed, &folder)?,
        storage: storage(managed, &folder, name.as_str())?,
        jobs: jobs::JobSettings::default(),
        limits: ServerLimits::default(),
        tls: None,
    };
    let opened = Opened::open(startup, listener, metrics).await?;
    // Tools on this machine speak to the listener; images are named by the address that clients
    // get.
    let started = StartedRegistry {
        name,
        endpoint: local.to_string(),
        authority: public_url.authority,
        region: registry.region(),
        account,
    };
    Ok((opened, started, key))
}

fn redirects(managed: &ManagedRegistry) -> bool {
    let s3 = managed.storage.as_ref().and_then(|storage| storage.s3.as_ref());
    s3.and_then(|s3| s3.redirect).unwrap_or_default()
}

fn database(managed: &ManagedRegistry, folder: &Path) -> anyhow::Result<Database> {
    if managed.database.as_ref().is_none_or(|database| database.postgres.is_none()) {
        return Ok(Database::Sqlite(folder.to_owned()));
    }
    match std::env::var("WHARFAGE_DATABASE_URL") {
        Ok(url) if !url.is_empty() => Ok(Database::Postgres(SecretString::from(url))),
        _ => {
            bail!(
                "database.postgres needs its URL, and Secrets are read in a cluster only: set WHARFAGE_DATABASE_URL"
            )
        }
    }
}

fn storage(managed: &ManagedRegistry, folder: &Path, name: &str) -> anyhow::Result<Storage> {
    let Some(s3) = managed.storage.as_ref().and_then(|storage| storage.s3.as_ref()) else {
        return Ok(Storage::Folder(folder.to_owned()));
    };
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let credentials = match (
        variable("WHARFAGE_S3_ACCESS_KEY_ID"),
        variable("WHARFAGE_S3_SECRET_ACCESS_KEY"),
    ) {
        (Some(access_key), Some(secret_key)) => Some(S3Credentials { access_key, secret_key }),
        (None, None) => None,
        _ => bail!(
            "set both of WHARFAGE_S3_ACCESS_KEY_ID and WHARFAGE_S3_SECRET_ACCESS_KEY, or neither"
        ),
    };
    Ok(Storage::S3(S3Config {
        bucket: s3.bucket.clone(),
        region: s3.region.as_ref().map_or("us-east-1".to_owned(), ToString::to_string),
        endpoint: s3.endpoint.clone(),
        credentials,
        // Registries that share a bucket keep out of each other's way.
        prefix: name.to_owned(),
        redirect: s3.redirect.unwrap_or_default(),
    }))
}

/// Returns how this program is called: by its name where the shell finds it so, else by its path.
fn program() -> PathBuf {
    let Ok(own) = std::env::current_exe() else { return "wharfage".into() };
    let found = std::env::var_os("PATH").and_then(|path| {
        std::env::split_paths(&path)
            .map(|folder| folder.join("wharfage"))
            .find(|candidate| candidate.is_file())
    });
    let same = found
        .and_then(|found| found.canonicalize().ok())
        .is_some_and(|found| Some(found) == own.canonicalize().ok());
    if same { "wharfage".into() } else { own }
}

fn quoted(path: &Path) -> String {
    Shell::Bash.quoted(&path.to_string_lossy())
}
