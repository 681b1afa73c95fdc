//! Starts the watches and the controllers for one term of leadership.

use std::sync::{Arc, Weak};

use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::task::JoinSet;

use super::context::Context;
use super::controllers;
use super::controllers::lifecycle_policy::LifecyclePolicyController;
use super::controllers::pull_secret::PullSecretController;
use super::controllers::registry::{RegistryController, watch_workloads};
use super::controllers::repository::RepositoryController;
use super::events::Events;
use super::leader::Term;
use super::metrics::{OperatorMetrics, StateSource};
use super::policy_rule::{Feature, PolicyRule, RuleScope};
use super::registry_client::RegistryClients;
use super::secrets::SecretWatches;
use super::settings::Settings;
use super::stale_cache::StaleCache;
use super::stores::{Stores, Writers};
use super::triggers::{self, Triggers};
use super::{pull_secrets, watch};

/// Permissions to watch what selectors and `allowedNamespaces` read.
pub(super) const RULES: &[PolicyRule] = &[PolicyRule {
    group: "",
    resources: &["namespaces"],
    verbs: &["list", "watch"],
    scope: RuleScope::Cluster,
    feature: Feature::Core,
    reason: "labels, for allowedNamespaces and selectors",
}];

/// The controllers of all kinds.
struct Controllers {
    registry: Arc<RegistryController>,
    repository: Arc<RepositoryController>,
    lifecycle_policy: Arc<LifecyclePolicyController>,
    pull_secret: Arc<PullSecretController>,
}

impl Controllers {
    fn new(ctx: &Arc<Context>) -> Self {
        Self {
            registry: Arc::new(RegistryController::new(Arc::clone(ctx))),
            repository: Arc::new(RepositoryController::new(Arc::clone(ctx))),
            lifecycle_policy: Arc::new(LifecyclePolicyController::new(Arc::clone(ctx))),
            pull_secret: Arc::new(PullSecretController::new(Arc::clone(ctx))),
        }
    }
}

/// Runs the controllers for one term: until it is asked to stop, then until running reconciles have ended. Dropping the future
/// stops everything at once.
///
/// # Errors
/// When a first list fails for good.
pub async fn run(client: Client, settings: Settings, metrics: Arc<OperatorMetrics>, term: Term) -> anyhow::Result<()> {
    let client = term.guard(client);
    let (stores, writers) = Stores::new();
    let (triggers, queues) = Triggers::new();
    let ctx = Arc::new(Context {
        events: Events::new(client.clone(), &settings.identity),
        client,
        settings,
        stores,
        registry_clients: RegistryClients::default(),
        secret_watches: SecretWatches::default(),
        triggers,
        metrics,
        term: term.clone(),
        stale_cache: StaleCache::default(),
    });
    let controllers = Controllers::new(&ctx);
    // Dropped with this future, so that no watch outlives the term.
    let mut watches = JoinSet::new();
    watch_all(&ctx, &controllers, writers, &mut watches);
    tokio::select! {
        ready = ctx.stores.ready(&ctx.settings) => ready?,
        () = term.stopping() => return Ok(()),
    }
    tracing::info!(
        registries = ctx.stores.registries.len(),
        repositories = ctx.stores.repositories.len(),
        lifecycle_policies = ctx.stores.lifecycle_policies.len(),
        "stores are complete; starting the controllers"
    );
    let source: Weak<dyn StateSource> = Arc::<Context>::downgrade(&ctx);
    ctx.metrics.observe_state(source);
    tokio::join!(
        controllers::run(controllers.registry, queues.registries, &term),
        controllers::run(controllers.repository, queues.repositories, &term),
        controllers::run(controllers.lifecycle_policy, queues.lifecycle_policies, &term),
        controllers::run(controllers.pull_secret, queues.pull_secrets, &term),
    );
    Ok(())
}

/// Watches every kind, and requeues what its changes concern.
fn watch_all(ctx: &Arc<Context>, controllers: &Controllers, writers: Writers, watches: &mut JoinSet<()>) {
    /// Watches one kind.
    macro_rules! watch_kind {
        ($writer:expr, $predicate:path, $on_change:expr) => {
            watch_kind!($writer, $predicate, $on_change, watcher::Config::default())
        };
        ($writer:expr, $predicate:path, $on_change:expr, $selection:expr) => {{
            let (api, ctx, on_change) = (Api::all(ctx.client.clone()), Arc::clone(ctx), $on_change);
            watches
                .spawn(watch::watch_kind(api, $selection, $writer, $predicate, move |change| on_change(&ctx, change)));
        }};
    }
    let registry = Arc::clone(&controllers.registry);
    watch_kind!(writers.registries, watch::spec_or_metadata, move |ctx: &Context, change| {
        ctx.forget_deleted(&change);
        registry.changed(&change);
        triggers::registry_changed(&ctx.stores, &ctx.triggers, &ctx.settings.namespace, &change);
    });
    watch_kind!(writers.repositories, watch::spec_or_metadata, |ctx: &Context, change| {
        ctx.forget_deleted(&change);
        triggers::repository_changed(&ctx.stores, &ctx.triggers, &change);
    });
    let lifecycle_policy = Arc::clone(&controllers.lifecycle_policy);
    watch_kind!(writers.lifecycle_policies, watch::spec_or_metadata, move |ctx: &Context, change| {
        ctx.forget_deleted(&change);
        lifecycle_policy.changed(&change);
        triggers::lifecycle_policy_changed(&ctx.stores, &ctx.triggers, &change);
    });
    watch_kind!(writers.namespaces, watch::spec_or_metadata, |ctx: &Context, change| {
        triggers::namespace_changed(&ctx.stores, &ctx.triggers, &change);
    });
    watch_kind!(writers.pull_secrets, watch::spec_or_metadata, |ctx: &Context, change| {
        ctx.forget_deleted(&change);
        triggers::pull_secret_changed(&ctx.stores, &ctx.triggers, &change);
    });
    if ctx.settings.has(Feature::PullSecrets) {
        let labeled = watcher::Config::default().labels(pull_secrets::annotations::CLASS.label);
        let on_change = |ctx: &Context, change| triggers::pulled_changed(&ctx.stores, &ctx.triggers, &change);
        watch_kind!(writers.pulled, watch::any_change, on_change, labeled);
        let on_change = |ctx: &Context, change| triggers::service_account_changed(&ctx.stores, &ctx.triggers, &change);
        watch_kind!(writers.service_accounts, pull_secrets::accounts::meaning, on_change);
    }
    if ctx.settings.has(Feature::ManagedRegistries) {
        watch_workloads(ctx, watches);
    }
}
