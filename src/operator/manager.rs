//! Starts the watches and the controllers for one term of leadership.

use std::sync::{Arc, Weak};

use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::task::JoinSet;

use super::context::Context;
use super::controllers::{self, KindController, NamespaceChange};
use super::events::Events;
use super::index::IndexedWriter;
use super::kind::for_each_kind;
use super::leader::Term;
use super::metrics::{OperatorMetrics, StateSource};
use super::policy_rule::{Feature, PolicyRule, RuleScope};
use super::registry_client::RegistryClients;
use super::secrets::SecretWatches;
use super::settings::Settings;
use super::stale_cache::StaleCache;
use super::stores::{IndexKey, KindWriters, Stores, Writers};
use super::triggers::{Queues, Triggers};
use super::watch::{self, Change};

/// Permissions to watch what selectors and `allowedNamespaces` read.
pub(super) const RULES: &[PolicyRule] = &[PolicyRule {
    group: "",
    resources: &["namespaces"],
    verbs: &["list", "watch"],
    scope: RuleScope::Cluster,
    feature: Feature::Core,
    reason: "labels, for allowedNamespaces and selectors",
}];

/// Makes and runs the controllers of all kinds.
macro_rules! kind_controllers {
    ($($field:ident: $kind:ty => $controller:path;)*) => {
        struct Controllers {
            $($field: Arc<$controller>,)*
        }

        impl Controllers {
            fn new(ctx: &Arc<Context>) -> Self {
                Self { $($field: Arc::new(KindController::new(Arc::clone(ctx))),)* }
            }

            /// Watches the objects of every kind.
            fn watch(&self, writers: KindWriters, watches: &mut JoinSet<()>) {
                $(watch_objects(&self.$field, writers.$field, watches);)*
            }

            fn namespace_changed(&self, change: &NamespaceChange) {
                $(self.$field.namespace_changed(change);)*
            }

            async fn run(self: Arc<Self>, queues: Queues, term: &Term) {
                tokio::join!($(controllers::run(Arc::clone(&self.$field), queues.$field, term)),*);
            }
        }

        fn log_complete(stores: &Stores) {
            tracing::info!($($field = stores.$field.len(),)* "stores are complete; starting the controllers");
        }
    };
}
for_each_kind!(kind_controllers);

/// Watches the objects of a kind, and requeues what their changes concern.
fn watch_objects<C: KindController>(
    controller: &Arc<C>,
    writer: IndexedWriter<C::Kind, IndexKey>,
    watches: &mut JoinSet<()>,
) {
    let controller = Arc::clone(controller);
    let api = Api::all(controller.context().client.clone());
    let on_change = move |change: Change<C::Kind>| {
        let ctx = controller.context();
        ctx.forget_deleted(&change);
        controller.changed(&change);
        ctx.triggers.object_changed(&ctx.stores, &change);
    };
    let selection = watcher::Config::default();
    watches.spawn(watch::watch_kind(api, selection, writer, watch::spec_or_metadata, on_change));
}

/// Runs the controllers for one term: until it is asked to stop, then until running reconciles have
/// ended. Dropping the future stops everything at once.
///
/// # Errors
/// When a first list fails for good.
pub async fn run(
    client: Client,
    settings: Settings,
    metrics: Arc<OperatorMetrics>,
    term: Term,
) -> anyhow::Result<()> {
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
    let controllers = Arc::new(Controllers::new(&ctx));
    // Dropped with this future, so that no watch outlives the term.
    let mut watches = JoinSet::new();
    watch_all(&ctx, &controllers, writers, &mut watches);
    tokio::select! {
        ready = ctx.stores.ready(&ctx.settings) => ready?,
        () = term.stopping() => return Ok(()),
    }
    log_complete(&ctx.stores);
    let source: Weak<dyn StateSource> = Arc::<Context>::downgrade(&ctx);
    ctx.metrics.observe_state(source);
    controllers.run(queues, &term).await;
    Ok(())
}

/// Starts all watches.
fn watch_all(
    ctx: &Arc<Context>,
    controllers: &Arc<Controllers>,
    writers: Writers,
    watches: &mut JoinSet<()>,
) {
    controllers.watch(writers.kinds, watches);
    let (api, by_name) = (Api::all(ctx.client.clone()), watcher::Config::default());
    let all = Arc::clone(controllers);
    let on_change = move |change| all.namespace_changed(&change);
    watches.spawn(watch::watch_kind(
        api,
        by_name,
        writers.namespaces,
        watch::spec_or_metadata,
        on_change,
    ));
    if ctx.settings.has(Feature::PullSecrets) {
        controllers::pull_secret::watch_secrets(
            ctx,
            writers.pulled,
            writers.service_accounts,
            watches,
        );
    }
    if ctx.settings.has(Feature::ManagedRegistries) {
        controllers::registry::watch_workloads(ctx, watches);
    }
}
