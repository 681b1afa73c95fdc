//! `wharfage up`: starts what a folder of manifests declares, shapes it, and keeps it so while the files change.

mod managed;
mod reconciler;
mod watch;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use kube::core::Duration as Span;

use super::StopSignals;
use super::env::Shell;
use super::identity::Identity;
use super::reconcile::Target;
use crate::datadir::DataDir;
use managed::ManagedRegistries;
use reconciler::{Folder, Occasion, Pruning, Reconciler};
use watch::Watch;

/// The flags of `wharfage up`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The files are scanned twice a second, and read again whenever they changed and at every interval. What no manifest
declares any more stays in the registry as it is, and is reported once: `wharfage apply` releases or deletes it after
a confirmation. With --prune, up does so itself when the files have rested for --prune-after: each change starts that
time again, and a folder that cannot be read, or declares nothing for a registry, never prunes there.

Examples:
  wharfage up deploy/quickstart
  wharfage up manifests --data /srv/wharfage --listen 127.0.0.1:5100
  wharfage up manifests --once                apply, then only serve
  wharfage up manifests --prune --prune-after 1h

Then, in another shell:
  eval \"$(wharfage env)\"
  aws ecr get-login-password | docker login -u AWS --password-stdin $WHARFAGE_REGISTRY

Where a Registry asks for PostgreSQL or S3, secrets come from the environment: WHARFAGE_DATABASE_URL,
WHARFAGE_S3_ACCESS_KEY_ID and WHARFAGE_S3_SECRET_ACCESS_KEY.")]
pub struct Up {
    /// The folder of manifests, or a single file
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,

    /// The data folder: each registry's data, and the aws files that wharfage env points at
    #[arg(long, env = "WHARFAGE_DATA", default_value = ".wharfage", value_name = "DIR")]
    data: PathBuf,

    /// Address of the first registry; further ones listen on the ports after it
    #[arg(
        long,
        env = "WHARFAGE_LISTEN",
        default_value = "127.0.0.1:5000",
        value_name = "ADDR:PORT"
    )]
    listen: SocketAddr,

    /// Address of /healthz, /readyz and /metrics of all registries; disabled by default
    #[arg(long, env = "WHARFAGE_ADMIN_LISTEN", value_name = "ADDR:PORT")]
    admin_listen: Option<SocketAddr>,

    /// Answer in the clear on an address other than loopback: behind a proxy that speaks TLS
    #[arg(long, env = "WHARFAGE_ALLOW_PLAIN_HTTP")]
    allow_plain_http: bool,

    /// Apply the manifests once, then only serve
    #[arg(long)]
    once: bool,

    /// Release or delete what no manifest declares any more, by its last deletionPolicy
    #[arg(long, env = "WHARFAGE_PRUNE", conflicts_with = "once")]
    prune: bool,

    /// Time without a change to the files before anything is pruned, such as 90s or 1h; each
    /// change starts the time again
    #[arg(long, env = "WHARFAGE_PRUNE_AFTER", default_value = "10m", value_parser = quiet_time, requires = "prune", value_name = "DURATION")]
    prune_after: Duration,

    #[command(flatten)]
    identity: Identity,
}

impl Up {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let mut signals = StopSignals::new()?;
        let mut running = ManagedRegistries::default();
        // With the start in it: Ctrl-C ends a long start as cleanly as a long run.
        let ended = tokio::select! {
            () = signals.next() => Ok(()),
            ended = self.work(&mut running) => ended,
        };
        tracing::info!("stopping: running transfers may end");
        tokio::select! {
            () = running.stop() => {}
            () = signals.next() => tracing::warn!("stopped at once, with transfers running"),
        }
        ended
    }

    /// Starts the managed registries and reconciles until an error. `running` then holds the started ones.
    async fn work(self, running: &mut ManagedRegistries) -> anyhow::Result<()> {
        if !self.allow_plain_http && !self.listen.ip().is_loopback() {
            bail!(
                "{} is not a loopback address, and up serves plain HTTP: give --allow-plain-http behind a proxy that speaks TLS, or \
                 use wharfage serve",
                self.listen
            );
        }
        let data = DataDir::open(&self.data)?;
        keep_apart(&self.folder, data.path())?;
        running.lock(&data, &self.folder)?;
        let planner = self.identity.resolve(data.path(), std::slice::from_ref(&self.folder))?;
        let folder = Folder::new(&self.folder)?;
        // Looked at before they are read: no change falls in between.
        let files = if self.once { None } else { Some(Watch::new(&self.folder).await?) };
        let manifests = folder.load().await?;

        running.start(&manifests, &data, self.listen, self.admin_listen).await?;
        let mut targets = running.targets().await?;
        for registry in manifests.registries.iter().map(|loaded| &loaded.resource) {
            if registry.spec.managed.is_none() {
                targets.push(Target::ambient(registry).await?);
            }
        }
        let (path, data_path) = (self.folder.to_string_lossy(), data.path().to_string_lossy());
        let pruning = Pruning {
            after: self.prune.then_some(self.prune_after),
            command: format!(
                "wharfage apply -f {} --data {}{}",
                Shell::Bash.quoted(&path),
                Shell::Bash.quoted(&data_path),
                self.identity.flags()
            ),
        };
        let mut reconciler = Reconciler::new(targets, planner, pruning, manifests);
        let wait = reconciler.reconcile(Occasion::Start).await;
        running.teach(&data, &reconciler.manifests);
        match files {
            Some(files) => reconciler.follow(&folder, files, wait).await,
            None => std::future::pending().await,
        }
    }
}

/// A time without changes, written as intervals are.
fn quiet_time(text: &str) -> anyhow::Result<Duration> {
    let span: Span = text.parse().context("it must be like 90s, 10m or 1h30m")?;
    let rest = Duration::from(span);
    if span.is_negative() || rest < Duration::from_secs(1) {
        bail!("it must be 1s or longer");
    }
    Ok(rest)
}

/// Refuses a data folder whose files would be read as manifests.
fn keep_apart(folder: &Path, data: &Path) -> anyhow::Result<()> {
    let Ok(folder) = folder.canonicalize() else { return Ok(()) };
    let Ok(relative) = data.strip_prefix(&folder) else { return Ok(()) };
    if relative.components().any(|part| part.as_os_str().as_encoded_bytes().starts_with(b".")) {
        return Ok(());
    }
    bail!(
        "the data folder {} lies among the manifests of {}: give it another place by --data, or a name that begins with a dot",
        data.display(),
        folder.display()
    )
}
