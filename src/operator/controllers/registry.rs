//! Registry: connects to a registry, gives its client to all resources in it, and applies its
//! settings.

mod connection;
mod managed;
mod settings;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt as _;
use kube::runtime::reflector::ObjectRef;

use super::converge::failed;
use super::finish::Outcome;
use super::interrupted::Interrupted;
use super::reconcile::{Reconcile, Reconciler};
use super::{Error, KindController, NamespaceChange, REQUEUE_WAITING, jittered, next};
use crate::apply_set::LastApplied;
use crate::call_metrics::CallMetrics;
use crate::context::Context;
use crate::kind::{Kind, Reference, status_fields};
use crate::policy_rule::{Feature, PolicyRule, own_kind};
use crate::registry_client::{RegistryClient, RegistryError, Totals};
use crate::secrets::SecretName;
use crate::settings::Settings;
use crate::status::{Cause, ConditionSet, ReadyState};
use crate::watch::Change;
use crate::workload::{self, Names, REGISTRY_LABEL};
use connection::{RegistryConnection, connect, secret_references};
use wharfage_apply::error::named;
use wharfage_apply::{Ecr, ImageUsage, registry_id};
use wharfage_crd::common::DEFAULT_INTERVAL;
use wharfage_crd::conditions::ConditionType;
use wharfage_crd::registry::{ManagedRegistry, Quota, Usage};
use wharfage_crd::{DeletionPolicy, Reason, Registry, RegistryStatus, condition};
use wharfage_plan::{desired_settings, unenforced_settings};

pub(crate) use managed::watch_workloads;

impl Kind for Registry {
    const NAME: &'static str = "Registry";
    // They wait for the client of the Registry, which may exist before it is Ready.
    const READY_REQUEUES_REFERRERS: bool = false;

    fn registry_name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    fn sync_interval(&self) -> Duration {
        PING_INTERVAL
    }

    fn references(&self) -> Vec<Reference> {
        Vec::new()
    }

    /// Returns whether the Registry is gone, or allows other namespaces. Its resources are requeued
    /// when its client changes, too.
    fn affects_referrers(change: &Change<Self>) -> bool {
        let allowed =
            |it: &Option<Arc<Self>>| it.as_ref().map(|it| it.spec.allowed_namespaces.clone());
        change.new.is_none() || allowed(&change.old) != allowed(&change.new)
    }
}

status_fields!(RegistryStatus, events: true, last_sync: |self, _now| {});

/// The interval at which a workload that does not serve yet is read: only its pods show why.
const ROLLOUT_POLL_INTERVAL: Duration = Duration::from_secs(10);
/// The interval at which a workload is read that needs someone to act.
const REQUEUE_STALLED: Duration = Duration::from_secs(30);
const PING_INTERVAL: Duration = Duration::from_secs(60);
/// The number of repositories that ECR allows in a registry.
const REPOSITORIES_LIMIT: i64 = 100_000;

/// Reconciles Registries.
pub(crate) struct RegistryController {
    ctx: Arc<Context>,
    /// The last applied objects of managed registries.
    last_applied: LastApplied,
}

impl RegistryController {
    /// Forgets a Registry that is gone.
    fn forget(&self, name: &str) {
        self.ctx.registry_clients.forget(name);
        self.ctx.metrics.forget_registry(name);
        self.watch_secrets(name, &BTreeSet::new());
    }

    /// Watches exactly these Secrets for a Registry.
    fn watch_secrets(&self, name: &str, secrets: &BTreeSet<SecretName>) {
        let (triggers, object) = (self.ctx.triggers.clone(), ObjectRef::<Registry>::new(name));
        let requeue = {
            let object = object.clone();
            move || triggers.requeue(object.clone())
        };
        self.ctx.secret_watches.watch(&self.ctx.client, &object, secrets, requeue);
    }
}

/// Identifies a Registry and the registry that its spec points to.
fn place(registry: &Registry) -> impl PartialEq + use<> {
    let spec = registry.spec.clone();
    (registry.uid(), spec.region, spec.registry_id, spec.endpoint, spec.aws)
}

impl KindController for RegistryController {
    type Kind = Registry;
    const CONCURRENCY: u16 = 8;

    fn new(ctx: Arc<Context>) -> Self {
        Self { ctx, last_applied: LastApplied::default() }
    }

    fn context(&self) -> &Arc<Context> {
        &self.ctx
    }

    fn rules() -> Vec<PolicyRule> {
        [&own_kind(&["registries"], &["registries/status"]), managed::RULES].concat()
    }

    /// Drops the client of a registry that the Registry no longer points to. Requeues the
    /// Registries whose settings this one may have held, and its resources if its URL changed.
    fn changed(&self, change: &Change<Registry>) {
        let Some(registry) = change.either() else { return };
        let Context { stores, triggers, settings, .. } = &*self.ctx;
        // The namespaces that the Registry allows now may not use what was known of the other
        // registry.
        if change.old.as_deref().map(place) != change.new.as_deref().map(place) {
            self.ctx.registry_clients.remove(&registry.name_any());
        }
        if change.new.is_none() {
            self.forget(&registry.name_any());
        }
        let contested = |it: &&Registry| {
            let ready = condition(it.conditions(), ConditionType::Ready);
            ready.is_some_and(|it| it.has_reason(&Reason::OwnedByAnother))
        };
        triggers.requeue_all(stores.registries.state().iter().map(|it| &**it).filter(contested));
        let url = |it: &Arc<Registry>| workload::told_url(it, &settings.namespace);
        if change.old.as_ref().map(url) != change.new.as_ref().map(url) {
            triggers.requeue_registry(stores, &registry.name_any());
        }
    }

    /// Requeues the managed Registries that run in the namespace: they may have waited for it.
    fn namespace_changed(&self, change: &NamespaceChange) {
        let Some(namespace) = change.either().map(|it| it.name_any()) else { return };
        let runs_there = |it: &&Registry| {
            it.spec
                .managed
                .as_ref()
                .is_some_and(|managed| managed.namespace.as_ref() == Some(&namespace))
        };
        let registries = self.ctx.stores.registries.state();
        self.ctx.triggers.requeue_all(registries.iter().map(|it| &**it).filter(runs_there));
    }
}

/// Requeues the Registry that the label of a changed workload object names.
fn workload_changed(ctx: &Context, labels: &BTreeMap<String, String>) {
    let Some(workload) = labels.get(REGISTRY_LABEL) else { return };
    let is_its = |it: &&Registry| {
        it.spec.managed.is_some() && Names::of(&it.name_any()).workload() == *workload
    };
    ctx.triggers.requeue_all(ctx.stores.registries.state().iter().map(|it| &**it).filter(is_its));
}

impl Reconciler for RegistryController {
    type Inputs = ();

    fn dereference(&self, _reconcile: &Reconcile<'_, Registry>) -> Result<(), Interrupted> {
        Ok(())
    }

    /// A Registry that is not managed can have it from an exported manifest.
    fn needs_finalizer(&self, registry: &Registry) -> bool {
        registry.spec.managed.is_some() && self.ctx.settings.has(Feature::ManagedRegistries)
    }

    async fn apply(
        &self,
        reconcile: &Reconcile<'_, Registry>,
        (): (),
    ) -> Result<Outcome<RegistryStatus>, Interrupted> {
        let (ctx, registry, name) = (&*self.ctx, reconcile.object, reconcile.registry_name());
        let references = secret_references(registry, &ctx.settings.namespace);
        self.watch_secrets(name, &references.iter().map(|it| it.secret.clone()).collect());
        let mut outcome = match &registry.spec.managed {
            Some(managed) => run(self, registry, managed).await?,
            None => match connect(&ctx.client, registry, &references).await {
                Ok(connection) => serve(ctx, registry, connection).await,
                Err(error) => {
                    let findings = error.into_conditions()?;
                    remove_client(ctx, name);
                    ctx.metrics.registry_down(name);
                    outcome(findings, None)
                }
            },
        };
        let notes =
            unenforced_settings(registry, &desired_settings(registry, &ctx.settings.cluster));
        outcome.findings.state = outcome.findings.state.with_notes(&notes);
        // It was deleted meanwhile, and forgotten before its client was made.
        if ctx.stores.registry(name).is_none_or(|it| it.uid() != registry.uid()) {
            self.forget(name);
            return Err(Interrupted::Gone);
        }
        Ok(outcome)
    }

    /// Deletes or releases the workload of a managed Registry. No other registry is changed.
    async fn release(&self, reconcile: &Reconcile<'_, Registry>) -> Result<(), Interrupted> {
        let registry = reconcile.object;
        let Some(managed) = &registry.spec.managed else { return Ok(()) };
        if !self.ctx.settings.has(Feature::ManagedRegistries) {
            // Without the permissions nothing can be done, and a retained workload needs none.
            return match registry.deletion_policy() {
                DeletionPolicy::Retain => Ok(()),
                DeletionPolicy::Delete => {
                    Err(Interrupted::Conditions(Box::new(disabled()), jittered(PING_INTERVAL)))
                }
            };
        }
        match managed::cleanup(self, registry, managed).await? {
            None => Ok(()),
            Some(blocked) => {
                Err(Interrupted::Conditions(Box::new(blocked), jittered(REQUEUE_STALLED)))
            }
        }
    }

    fn must_release(&self, _registry: &Registry) -> bool {
        true
    }

    fn complete_status(&self, status: &mut RegistryStatus) {
        status.capabilities = capabilities(&self.ctx.settings);
    }
}

/// Reconciles the workload of a managed registry, and its client once a replica serves.
async fn run(
    controller: &RegistryController,
    registry: &Registry,
    managed: &ManagedRegistry,
) -> Result<Outcome<RegistryStatus>, Error> {
    let ctx = &*controller.ctx;
    let name = registry.name_any();
    if !ctx.settings.has(Feature::ManagedRegistries) {
        remove_client(ctx, &name);
        return Ok(outcome(disabled(), None));
    }
    let managed::ManagedState { state, workload, migration, connection } =
        managed::reconcile(controller, registry, managed).await?;
    let generation = registry.metadata.generation;
    let place = workload.as_ref().map(|it| it.endpoint.clone());
    let set_workload = move |status: &mut RegistryStatus| {
        if let Some(workload) = workload {
            workload.set(status);
        }
        managed::set_migration(migration, status, generation);
    };
    let (Some(place), Some(connection)) = (place, connection) else {
        remove_client(ctx, &name);
        // Nothing calls it, so no call shows that.
        match managed.replicas {
            Some(0) => ctx.metrics.registry_stopped(&name),
            _ => ctx.metrics.registry_down(&name),
        }
        let waits = matches!(state.state, ReadyState::Reconciling(_));
        let retry = jittered(if waits { ROLLOUT_POLL_INTERVAL } else { REQUEUE_STALLED });
        return Ok(outcome(state, Some(retry)).with_status(set_workload));
    };
    let connection = RegistryConnection::managed(registry, connection, place);
    let mut outcome = serve(ctx, registry, connection).await;
    match (&state.state, &outcome.findings.state) {
        // The number of replicas says more than that the registry answers.
        (ReadyState::Ready(_), ReadyState::Ready(_)) => outcome.findings.state = state.state,
        (ReadyState::Ready(_), _) => {}
        (ReadyState::Reconciling(_), _) => {
            outcome.findings = state;
            outcome.next = jittered(ROLLOUT_POLL_INTERVAL);
        }
        (ReadyState::Stalled(_), _) => outcome.findings = state,
    }
    Ok(outcome.with_status(set_workload))
}

fn disabled() -> ConditionSet {
    let message =
        "managed registries are disabled in this operator: enable them where it was installed";
    ConditionSet::of(ReadyState::Stalled(Cause::new(Reason::ManagedRegistriesDisabled, message)))
}

/// Removes the client of a registry that cannot be asked any more, and requeues its resources,
/// which wait from now on.
fn remove_client(ctx: &Context, registry: &str) {
    if ctx.registry_clients.remove(registry) {
        ctx.triggers.requeue_registry(&ctx.stores, registry);
    }
}

/// Makes the result, with the delay `retry` or one by the state.
fn outcome(findings: ConditionSet, retry: Option<Duration>) -> Outcome<RegistryStatus> {
    let next = match (retry, &findings.state) {
        (Some(retry), _) => retry,
        (None, ReadyState::Reconciling(_)) => jittered(REQUEUE_WAITING),
        (None, _) => jittered(PING_INTERVAL),
    };
    Outcome::new(findings, next)
}

/// Makes or keeps the client, and checks that the registry answers.
async fn serve(
    ctx: &Context,
    registry: &Registry,
    connection: RegistryConnection,
) -> Outcome<RegistryStatus> {
    let name = registry.name_any();
    let RegistryConnection { connection, url: place, fingerprint } = connection;
    let registry_client =
        match ctx.registry_clients.get(&name).filter(|it| it.fingerprint() == fingerprint) {
            Some(registry_client) => registry_client,
            None => {
                let ecr = match Ecr::new(connection, registry.registry_id().as_ref()).await {
                    Ok(ecr) => ecr.observed_by(Arc::new(CallMetrics::new(
                        &name,
                        Arc::clone(&ctx.metrics),
                        ctx.term.clone(),
                    ))),
                    Err(error) => {
                        remove_client(ctx, &name);
                        let cause =
                            Cause::new(Reason::InvalidParameterException, format!("{error:#}"));
                        return outcome(ConditionSet::of(ReadyState::Stalled(cause)), None);
                    }
                };
                let (stores, triggers, registry) =
                    (ctx.stores.clone(), ctx.triggers.clone(), name.clone());
                let recovered = move || {
                    triggers.requeue(ObjectRef::<Registry>::new(&registry));
                    triggers.requeue_registry(&stores, &registry);
                };
                let registry_client =
                    Arc::new(RegistryClient::new(&name, ecr, fingerprint, recovered));
                if let Some(before) = ctx.registry_clients.last(&name) {
                    registry_client.take_over(&before, &place).await;
                }
                ctx.registry_clients.put(&name, Arc::clone(&registry_client));
                ctx.triggers.requeue_registry(&ctx.stores, &name);
                registry_client
            }
        };
    match check(ctx, &registry_client, registry, &place).await {
        Ok((usage, quotas, settled)) => {
            let serving =
                || ReadyState::Ready(Cause::new(Reason::Serving, format!("{place} answers")));
            let retry = settled
                .refused
                .as_ref()
                .map(|it| next(it, registry.conditions(), PING_INTERVAL, Timestamp::now()));
            let findings = ConditionSet {
                state: settled.refused.unwrap_or_else(serving),
                references: Some(Ok(())),
                drifted: settled.drifted,
            };
            let region = Some(registry.region().to_string());
            let registry_id = registry_client.registry().map(|(_, account)| account.clone());
            outcome(findings, retry).with_status(move |status: &mut RegistryStatus| {
                status.endpoint = Some(place);
                status.region = region;
                status.registry_id = registry_id;
                status.usage = Some(usage);
                status.quotas = quotas;
            })
        }
        Err(error) => {
            let (state, retry) = failed(&error, &name, registry.conditions(), PING_INTERVAL);
            // This reconcile probes the registry for all resources in it.
            let retry = if let RegistryError::Unavailable(it) = error { it.retry } else { retry };
            let findings = ConditionSet { references: Some(Ok(())), ..ConditionSet::of(state) };
            outcome(findings, Some(retry)).with_status(move |status| status.endpoint = Some(place))
        }
    }
}

/// Checks that the registry answers and is the one that the spec means. Returns its usage and
/// quotas, and applies its settings.
async fn check(
    ctx: &Context,
    registry_client: &Arc<RegistryClient>,
    registry: &Registry,
    place: &str,
) -> Result<(Usage, Vec<Quota>, settings::SettingsState), RegistryError> {
    let answered = registry_client.ask(registry_id(registry_client.ecr())).await?;
    if let Some(meant) = registry.registry_id().filter(|meant| meant.as_str() != answered) {
        let message = format!(
            "the credentials belong to registry {answered}, not to {meant}: correct registryId, or the credentials"
        );
        return Err(RegistryError::Rejected(named(Reason::RegistryIdMismatch.as_str(), message)));
    }
    registry_client.found(place, &answered);
    let max_age = if registry.requested().is_some() { Duration::ZERO } else { DEFAULT_INTERVAL };
    let before = registry
        .status
        .as_ref()
        .filter(|it| it.endpoint.as_deref() == Some(place))
        .and_then(|it| it.usage);
    let usage = usage(&registry_client.totals(max_age).await?, before);
    let quota = Quota {
        name: "repositories".to_owned(),
        used: usage.repositories,
        limit: REPOSITORIES_LIMIT,
    };
    let settled = settings::settle(ctx, registry, registry_client).await?;
    Ok((usage, vec![quota], settled))
}

/// Returns the usage. Until everything is counted, it is at least the reported one, which another
/// client has counted.
fn usage(totals: &Totals, before: Option<Usage>) -> Usage {
    let Totals { repositories, images: ImageUsage { images, bytes, .. }, all_counted } = *totals;
    let least = before.filter(|_| !all_counted).unwrap_or_default();
    let repositories = i64::try_from(repositories).unwrap_or(i64::MAX);
    Usage { repositories, images: images.max(least.images), bytes: bytes.max(least.bytes) }
}

/// Returns the capabilities beyond ECR, which the operator adds to any registry.
fn capabilities(settings: &Settings) -> Vec<String> {
    let protects = settings.has(Feature::InUseProtection);
    protects.then(|| "InUseProtection".to_owned()).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_count_does_not_reset_the_usage() {
        let totals = |images, all_counted| {
            let images = ImageUsage { images, bytes: images * 10, ..ImageUsage::default() };
            Totals { repositories: 2, images, all_counted }
        };
        let usage = |totals, before: Option<i64>| {
            let before = before.map(|images| Usage { repositories: 9, images, bytes: images * 10 });
            let Usage { repositories, images, bytes } = usage(&totals, before);
            assert_eq!((repositories, bytes), (2, images * 10));
            images
        };
        assert_eq!(usage(totals(3, false), Some(7)), 7);
        assert_eq!(usage(totals(8, false), Some(7)), 8);
        assert_eq!(usage(totals(3, true), Some(7)), 3);
        assert_eq!(usage(totals(3, false), None), 3);
    }
}
