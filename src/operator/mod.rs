//! The operator: the same manifests as file mode, from the Kubernetes API.
//!
//! One controller for each kind. A controller looks at what is there, calls the same [`plan`](crate::plan::plan), carries it
//! out and writes the status. `watch` and `dispatch` say what wakes it; `lookup` and `index` find what it is about; `session` is a
//! registry as all of them know it; `leader` sees to it that only one process does all this.

pub mod access;
pub mod calls;
mod census;
pub mod check;
pub mod context;
mod controllers;
mod dispatch;
mod events;
mod finalizer;
pub mod in_use;
mod index;
pub mod leader;
mod lookup;
pub mod metrics;
pub mod operations;
pub mod pull_secrets;
pub mod rbac;
mod run;
mod secrets;
pub mod session;
mod slice;
pub mod status;
mod watch;
pub mod workload;
pub mod written;

use std::sync::{Arc, Weak};

pub use run::{Process, cluster, run};

use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::task::JoinSet;

use access::{Access, Feature, Scope};
use context::{Context, Stores, Wake, Woken, Writers};
use leader::Term;
use metrics::{Census, OperatorMetrics};

/// What the operator is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The name that is written on what is owned: what another cluster owns is never touched.
    pub cluster: String,
    /// The namespace that it runs in.
    pub namespace: String,
    /// Its own name among replicas.
    pub identity: String,
    /// Features that it goes without: it has no permissions for them.
    pub without: Vec<Feature>,
    /// The image of managed registries that name none.
    pub registry_image: Option<String>,
}

impl Settings {
    /// Whether it has the permissions for a feature, and does what it is for.
    pub fn has(&self, feature: Feature) -> bool {
        !self.without.contains(&feature)
    }
}

/// What watching and telling takes.
const ACCESS: &[Access] = &[
    Access {
        group: "",
        resources: &["namespaces"],
        verbs: &["list", "watch"],
        scope: Scope::Cluster,
        feature: Feature::Core,
        why: "labels, for allowedNamespaces and selectors",
    },
    Access {
        group: "events.k8s.io",
        resources: &["events"],
        verbs: &["create", "patch"],
        scope: Scope::Cluster,
        feature: Feature::Core,
        why: "events",
    },
];

/// Everything that the operator may do.
pub fn access() -> Vec<Access> {
    [
        ACCESS,
        leader::ACCESS,
        secrets::ACCESS,
        controllers::registry::ACCESS,
        controllers::registry::MANAGED_ACCESS,
        controllers::repository::ACCESS,
        controllers::lifecycle_policy::ACCESS,
        in_use::ACCESS,
        controllers::pull_secret::ACCESS,
    ]
    .concat()
}

/// Reconciles for a term of leading: until it is asked to stop, then until what is under way has ended. Dropped, it stops at
/// once.
///
/// # Errors
/// When what is to be watched cannot be.
pub async fn work(client: Client, settings: Settings, metrics: Arc<OperatorMetrics>, term: Term) -> anyhow::Result<()> {
    let client = term.guard(client);
    let (stores, writers) = Stores::new();
    let (wake, woken) = Wake::new();
    let ctx = Arc::new(Context {
        events: events::Events::new(client.clone(), &settings.identity),
        client,
        settings,
        stores,
        sessions: session::Sessions::default(),
        wake,
        metrics,
        term: term.clone(),
        secrets: secrets::SecretWatches::default(),
        applied: controllers::registry::Applied::default(),
        turns: controllers::lifecycle_policy::Memory::default(),
        in_use: in_use::run::Shared::default(),
        tokens: pull_secrets::tokens::Tokens::default(),
        written: written::Written::default(),
    });
    // Dropped with this future: nothing is watched, and nothing done, when it is not waited for any more.
    let mut watches = JoinSet::new();
    follow_all(&ctx, writers, &mut watches);
    tokio::select! {
        ready = ctx.stores.ready(&ctx.settings) => ready?,
        () = term.stopping() => return Ok(()),
    }
    tracing::info!(
        registries = ctx.stores.registries.len(),
        repositories = ctx.stores.repositories.len(),
        lifecycle_policies = ctx.stores.lifecycle_policies.len(),
        "everything is known: reconciling begins"
    );
    let census: Weak<dyn Census> = Arc::<Context>::downgrade(&ctx);
    ctx.metrics.ask(census);
    control(&ctx, woken, &term).await;
    Ok(())
}

fn follow_all(ctx: &Arc<Context>, writers: Writers, watches: &mut JoinSet<()>) {
    /// Follows a kind, and hands its changes to a rule of [`dispatch`].
    macro_rules! follow {
        ($writer:expr, $means:path, $rule:path) => {
            follow!($writer, $means, $rule, watcher::Config::default())
        };
        ($writer:expr, $means:path, $rule:path, $selection:expr) => {{
            let (api, follower) = (Api::all(ctx.client.clone()), Arc::clone(ctx));
            watches.spawn(watch::follow(api, $selection, $writer, $means, move |change| {
                $rule(&follower, &change);
            }));
        }};
    }
    follow!(writers.registries, watch::meta, dispatch::registry_changed);
    follow!(writers.repositories, watch::meta, dispatch::repository_changed);
    follow!(writers.lifecycle_policies, watch::meta, dispatch::lifecycle_policy_changed);
    follow!(writers.namespaces, watch::meta, dispatch::namespace_changed);
    follow!(writers.pull_secrets, watch::meta, dispatch::pull_secret_changed);
    if ctx.settings.has(Feature::PullSecrets) {
        let ours = watcher::Config::default().labels(pull_secrets::marks::LABEL);
        follow!(writers.pulled, watch::everything, dispatch::pulled_changed, ours);
        follow!(writers.service_accounts, pull_secrets::accounts::meaning, dispatch::service_account_changed);
    }
    if ctx.settings.has(Feature::ManagedRegistries) {
        controllers::registry::follow_workloads(ctx, watches);
    }
}

/// Runs all controllers.
async fn control(ctx: &Arc<Context>, woken: Woken, term: &Term) {
    let stores = &ctx.stores;
    let Woken { registries, repositories, lifecycle_policies, pull_secrets } = woken;
    /// Runs a kind's controller, so many of it at a time.
    macro_rules! run {
        ($kind:ident, $queue:ident, $at_a_time:literal) => {
            controllers::run(
                controllers::$kind::KIND,
                Arc::clone(ctx),
                stores.$queue.clone(),
                $queue,
                $at_a_time,
                term.clone(),
                controllers::$kind::reconcile,
            )
        };
    }
    tokio::join!(
        run!(registry, registries, 8),
        run!(repository, repositories, 32),
        run!(lifecycle_policy, lifecycle_policies, 8),
        run!(pull_secret, pull_secrets, 4)
    );
}
