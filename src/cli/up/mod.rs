//! `wharfage up`: starts what a folder of manifests declares, shapes it, and keeps it so while the files change.

mod managed;
mod watch;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use tokio::time::Instant;

use super::StopSignals;
use super::reconcile::{Identity, Output, Target, carry_out, say, show_unresolved};
use crate::crd::Managed as _;
use crate::crd::common::DEFAULT_INTERVAL;
use crate::datadir::DataDir;
use crate::manifests::{Loader, Manifests};
use crate::plan::model::Refused;
use crate::plan::unresolved;
use managed::Fleet;
use watch::Changes;

/// How soon a registry is tried again where something failed; then twice as late each time, up to the interval.
const RETRY: Duration = Duration::from_secs(15);

/// The flags of `wharfage up`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wharfage up deploy/quickstart
  wharfage up manifests --data /srv/wharfage --listen 127.0.0.1:5100
  wharfage up manifests --once                apply, then only serve

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

    /// Where the first registry listens; further ones listen on the ports after it
    #[arg(long, env = "WHARFAGE_LISTEN", default_value = "127.0.0.1:5000", value_name = "ADDR:PORT")]
    listen: SocketAddr,

    /// Where /healthz, /readyz and /metrics of all registries listen; nowhere if not given
    #[arg(long, env = "WHARFAGE_OPERATIONS_LISTEN", value_name = "ADDR:PORT")]
    operations_listen: Option<SocketAddr>,

    /// Answer in the clear on an address other than loopback: behind a proxy that speaks TLS
    #[arg(long, env = "WHARFAGE_ALLOW_PLAIN_HTTP")]
    allow_plain_http: bool,

    /// Apply the manifests once, then only serve
    #[arg(long)]
    once: bool,

    #[command(flatten)]
    identity: Identity,
}

impl Up {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let mut signals = StopSignals::new()?;
        let mut fleet = Fleet::default();
        // With the start in it: Ctrl-C ends a long start as cleanly as a long run.
        let ended = tokio::select! {
            () = signals.next() => Ok(()),
            ended = self.work(&mut fleet) => ended,
        };
        tracing::info!("stopping: running transfers may end");
        tokio::select! {
            () = fleet.stop() => {}
            () = signals.next() => tracing::warn!("stopped at once, with transfers running"),
        }
        ended
    }

    /// Starts what is declared and keeps it so; it ends by an error only. What it has started is in `fleet` then.
    async fn work(self, fleet: &mut Fleet) -> anyhow::Result<()> {
        if !self.allow_plain_http && !self.listen.ip().is_loopback() {
            bail!(
                "{} is not a loopback address, and up serves plain HTTP: give --allow-plain-http behind a proxy that speaks TLS, or \
                 use wharfage serve",
                self.listen
            );
        }
        let data = DataDir::open(&self.data)?;
        keep_apart(&self.folder, data.path())?;
        let folder = Folder::new(&self.folder)?;
        // Watched before it is read: no change falls in between.
        let changes = if self.once { None } else { Some(Changes::of(&self.folder)?) };
        let manifests = folder.load().await?;
        if manifests.registries.is_empty() {
            bail!("{} declares no Registry: add one, or name another folder", self.folder.display());
        }

        fleet.start(&manifests, &data, self.listen, self.operations_listen).await?;
        let mut targets = fleet.targets().await?;
        for registry in manifests.registries.iter().map(|loaded| &loaded.resource) {
            if registry.spec.managed.is_none() {
                targets.push(Target::ambient(registry).await?);
            }
        }
        let mut shepherd = Shepherd {
            targets,
            cluster: self.identity.cluster,
            manifests,
            shown: Vec::new(),
            failing: HashMap::new(),
            failures: 0,
        };
        let again = shepherd.reconcile(Occasion::Start).await;
        fleet.teach(&data, &shepherd.manifests);
        match changes {
            Some(changes) => shepherd.follow(&folder, changes, again).await,
            None => std::future::pending().await,
        }
    }
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

/// The folder and the rules by which it is read.
struct Folder {
    path: PathBuf,
    loader: std::sync::Arc<Loader>,
}

impl Folder {
    fn new(path: &Path) -> anyhow::Result<Self> {
        Ok(Self { path: path.to_owned(), loader: std::sync::Arc::new(Loader::new()?) })
    }

    async fn load(&self) -> anyhow::Result<Manifests> {
        let (path, loader) = (self.path.clone(), std::sync::Arc::clone(&self.loader));
        Ok(tokio::task::spawn_blocking(move || loader.load(&path)).await??)
    }
}

/// Why registries are looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Occasion {
    /// The first time: everything is told.
    Start,
    /// Files changed: it is told that they were read.
    Edit,
    /// Time has passed: only news are told.
    Interval,
}

/// Keeps registries as the manifests want them.
struct Shepherd {
    targets: Vec<Target>,
    cluster: String,
    manifests: Manifests,
    /// What was refused when it was last told, so that it isn't told again and again.
    shown: Vec<String>,
    /// Plans that failed when they were last told, by registry: the same again is tried in silence.
    failing: HashMap<String, String>,
    /// How often in a row something failed.
    failures: u32,
}

impl Shepherd {
    /// Reconciles whenever the files change, and every interval; says so in as few words as possible.
    async fn follow(&mut self, folder: &Folder, mut changes: Changes, mut again: Duration) -> anyhow::Result<()> {
        let mut last_error = String::new();
        let mut due = Instant::now() + again;
        loop {
            let occasion = tokio::select! {
                changed = changes.next() => {
                    changed?;
                    match self.read(folder).await {
                        Ok(false) => {
                            last_error.clear();
                            continue;
                        }
                        Ok(true) => Occasion::Edit,
                        Err(error) => {
                            let error = format!("{error:#}");
                            if error != last_error {
                                eprintln!("{error}\nNothing was changed: mend this, and it goes on.");
                            }
                            last_error = error;
                            continue;
                        }
                    }
                }
                () = tokio::time::sleep_until(due) => Occasion::Interval,
            };
            last_error.clear();
            again = self.reconcile(occasion).await;
            due = Instant::now() + again;
        }
    }

    /// Reads the folder again; whether it says something else now.
    async fn read(&mut self, folder: &Folder) -> anyhow::Result<bool> {
        let new = folder.load().await?;
        folder.loader.check_update(&self.manifests, &new)?;
        if new == self.manifests {
            return Ok(false);
        }
        for note in managed::restart_needed(&self.manifests, &new) {
            say(format_args!("{note}"));
        }
        self.manifests = new;
        Ok(true)
    }

    /// Plans for every registry, carries the plans out and shows both. Returns when to look again.
    async fn reconcile(&mut self, occasion: Occasion) -> Duration {
        let mut failed = false;
        let mut refusals = Vec::new();
        for target in &self.targets {
            if self.manifests.registry(&target.name).is_none() {
                continue;
            }
            let plan = match target.plan(&self.manifests, &self.cluster).await {
                Ok(plan) => plan,
                Err(error) => {
                    failed = true;
                    let error = format!("{error:#}");
                    if !self.shown.contains(&error) {
                        eprintln!("error: {error}");
                    }
                    refusals.push(error);
                    continue;
                }
            };
            let refused = plan.refused.iter().map(|it| told(&target.name, it)).collect::<Vec<_>>();
            let news = refused.iter().any(|it| !self.shown.contains(it));
            refusals.extend(refused);
            let text = plan.to_string();
            let again = occasion == Occasion::Interval && self.failing.get(&target.name) == Some(&text);
            if occasion != Occasion::Interval || (!plan.is_empty() && !again) || news {
                say(format_args!("{}\n{text}\n", target.heading()));
            }
            if plan.is_empty() {
                self.failing.remove(&target.name);
                continue;
            }
            let report = carry_out(target, &plan, if again { None } else { Some(Output::Text) }).await;
            if report.succeeded() {
                self.failing.remove(&target.name);
                if again {
                    report.outcomes.iter().for_each(|outcome| say(format_args!("{outcome}")));
                }
            } else {
                failed = true;
                self.failing.insert(target.name.clone(), text);
            }
            if !again {
                say(format_args!(""));
            }
        }
        let unresolved = unresolved(&self.manifests);
        let told_already = |it: &Refused| self.shown.contains(&told("", it));
        if occasion != Occasion::Interval || !unresolved.iter().all(told_already) {
            show_unresolved(&unresolved);
        }
        refusals.extend(unresolved.iter().map(|it| told("", it)));
        self.shown = refusals;
        let interval = self.interval();
        if !failed {
            self.failures = 0;
            return interval;
        }
        let wait = RETRY.saturating_mul(2_u32.saturating_pow(self.failures));
        self.failures += 1;
        wait.min(interval)
    }

    /// The shortest time that any resource wants to rest between two looks at its registry.
    fn interval(&self) -> Duration {
        let repositories = self.manifests.repositories.iter().map(|it| it.resource.interval());
        let policies = self.manifests.lifecycle_policies.iter().map(|it| it.resource.interval());
        repositories.chain(policies).min().unwrap_or(DEFAULT_INTERVAL).max(Duration::from_secs(1))
    }
}

fn told(registry: &str, Refused { object, reason, message }: &Refused) -> String {
    format!("{registry} {object} {reason} {message}")
}
