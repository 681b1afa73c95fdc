//! Registry: where it is and with whose credentials, its settings, and how it stands. It gives everything in it its client.

mod connection;
mod managed;
mod settings;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, ResourceExt as _};

use super::converge::failed;
use super::finish::{KindObject as _, Outcome, finish};
use super::{Error, KindController, REQUEUE_WAITING, ReconcileResult, jittered, next};
use crate::apply_set::LastApplied;
use crate::call_metrics::CallMetrics;
use crate::context::Context;
use crate::policy_rule::{Feature, PolicyRule, own_kind};
use crate::registry_client::{RegistryClient, RegistryError, Totals};
use crate::secrets::SecretName;
use crate::settings::Settings;
use crate::status::{Cause, ConditionSet, ReadyState};
use crate::watch::Change;
use crate::{finalizer, triggers};
use connection::{RegistryConnection, connect, secret_references};
use wharfage_apply::error::named;
use wharfage_apply::{Ecr, ImageUsage, registry_id};
use wharfage_crd::common::DEFAULT_INTERVAL;
use wharfage_crd::registry::{ManagedRegistry, Quota, Usage};
use wharfage_crd::{DeletionPolicy, Reason, Registry, RegistryStatus};
use wharfage_plan::{desired_settings, unenforced_settings};

pub(crate) const RULES: &[PolicyRule] = &own_kind(&["registries"], &["registries/status"]);

/// What managed registries take.
pub(crate) use managed::{RULES as MANAGED_RULES, watch_workloads};

const KIND: &str = "Registry";

/// How often a workload that isn't there yet is looked at: why its pods don't run is told by them alone.
const ROLLOUT_POLL_INTERVAL: Duration = Duration::from_secs(10);
/// How often a workload is looked at that somebody has to make way for.
const REQUEUE_STALLED: Duration = Duration::from_secs(30);
/// How often a registry is asked whether it serves.
const PING_INTERVAL: Duration = Duration::from_secs(60);
/// Repositories that ECR lets a registry have.
const REPOSITORIES_LIMIT: i64 = 100_000;

/// Reconciles Registries.
pub(crate) struct RegistryController {
    ctx: Arc<Context>,
    /// The last applied objects of managed registries.
    last_applied: LastApplied,
}

impl RegistryController {
    pub(crate) fn new(ctx: Arc<Context>) -> Self {
        Self { ctx, last_applied: LastApplied::default() }
    }

    /// Drops what is known of a registry that a Registry does not point to any more.
    pub(crate) fn changed(&self, change: &Change<Registry>) {
        let Some(registry) = change.either() else { return };
        // The namespaces that the Registry allows now may not use what was known at the old place.
        if change.old.as_deref().map(place) != change.new.as_deref().map(place) {
            self.ctx.registry_clients.remove(&registry.name_any());
        }
        if change.new.is_none() {
            self.forget(&registry.name_any());
        }
    }

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
            move || triggers.registry(object.clone())
        };
        self.ctx.secret_watches.watch(&self.ctx.client, &object, secrets, requeue);
    }
}

/// Identifies a Registry and the place that its spec points to.
fn place(registry: &Registry) -> impl PartialEq + use<> {
    let spec = registry.spec.clone();
    (registry.uid(), spec.region, spec.registry_id, spec.endpoint, spec.aws)
}

impl KindController for RegistryController {
    type Object = Registry;
    const KIND: &'static str = KIND;
    const CONCURRENCY: u16 = 8;

    fn context(&self) -> &Context {
        &self.ctx
    }

    fn store(&self) -> Store<Registry> {
        self.ctx.stores.registries.clone()
    }

    async fn reconcile(self: Arc<Self>, registry: Arc<Registry>) -> Result<ReconcileResult, Error> {
        reconcile(&self, &registry).await
    }
}

async fn reconcile(controller: &RegistryController, registry: &Registry) -> Result<ReconcileResult, Error> {
    let (ctx, name) = (&*controller.ctx, registry.name_any());
    if registry.metadata.deletion_timestamp.is_some() {
        return cleanup(controller, registry).await;
    }
    let references = secret_references(registry, &ctx.settings.namespace);
    controller.watch_secrets(&name, &references.iter().map(|it| it.secret.clone()).collect());
    let mut outcome = match &registry.spec.managed {
        Some(managed) => run(controller, registry, managed).await?,
        None => match connect(&ctx.client, registry, &references).await {
            Ok(connection) => serve(ctx, registry, connection).await,
            Err(error) => {
                let findings = error.into_conditions()?;
                end_session(ctx, &name);
                ctx.metrics.registry_down(&name);
                outcome(findings, None)
            }
        },
    };
    let notes = unenforced_settings(registry, &desired_settings(registry, &ctx.settings.cluster));
    outcome.findings.state = outcome.findings.state.with_notes(&notes);
    // It went meanwhile, and was forgotten before all of this was made.
    if ctx.stores.registry(&name).is_none_or(|it| it.uid() != registry.uid()) {
        controller.forget(&name);
        return Ok(ReconcileResult::resting());
    }
    conclude(ctx, registry, outcome).await
}

/// The Registry goes. What it manages goes with it, or stays; no other registry is touched.
async fn cleanup(controller: &RegistryController, registry: &Registry) -> Result<ReconcileResult, Error> {
    let ctx = &*controller.ctx;
    if !finalizer::has(registry) {
        return Ok(ReconcileResult::resting());
    }
    if let Some(managed) = &registry.spec.managed {
        if ctx.settings.has(Feature::ManagedRegistries) {
            if let Some(findings) = managed::cleanup(controller, registry, managed).await? {
                return conclude(ctx, registry, outcome(findings, Some(jittered(REQUEUE_STALLED)))).await;
            }
        } else if registry.deletion_policy() == DeletionPolicy::Delete {
            return conclude(ctx, registry, without_managed_registries()).await;
        }
        // Without its permissions nothing can be done, and what is to stay needs nothing done.
    }
    // One that isn't managed has it from a manifest that was exported.
    finalizer::remove(&Api::all(ctx.client.clone()), registry).await?;
    Ok(ReconcileResult::resting())
}

/// Sees to a managed registry's workload, and to its client once a replica serves.
async fn run(
    controller: &RegistryController,
    registry: &Registry,
    managed: &ManagedRegistry,
) -> Result<Outcome<RegistryStatus>, Error> {
    let ctx = &*controller.ctx;
    let name = registry.name_any();
    if !ctx.settings.has(Feature::ManagedRegistries) {
        end_session(ctx, &name);
        return Ok(without_managed_registries());
    }
    finalizer::add(&Api::all(ctx.client.clone()), registry).await?;
    let managed::ManagedState { state, endpoint, connection } =
        managed::reconcile(controller, registry, managed).await?;
    let (Some(place), Some(connection)) = (&endpoint, connection) else {
        end_session(ctx, &name);
        // Nobody asks it, so that no call tells.
        match managed.replicas {
            Some(0) => ctx.metrics.registry_stopped(&name),
            _ => ctx.metrics.registry_down(&name),
        }
        let waits = matches!(state.state, ReadyState::Reconciling(_));
        let retry = jittered(if waits { ROLLOUT_POLL_INTERVAL } else { REQUEUE_STALLED });
        return Ok(outcome(state, Some(retry)).with_status(move |status| set_endpoint(status, endpoint)));
    };
    let connection = RegistryConnection::managed(registry, connection, place.clone());
    let mut outcome = serve(ctx, registry, connection).await;
    match (&state.state, &outcome.findings.state) {
        // Whoever looks at the Registry wants to know of its replicas; that it answers is part of it.
        (ReadyState::Ready(_), ReadyState::Ready(_)) => outcome.findings.state = state.state,
        (ReadyState::Ready(_), _) => {}
        (ReadyState::Reconciling(_), _) => {
            outcome.findings = state;
            outcome.next = jittered(ROLLOUT_POLL_INTERVAL);
        }
        (ReadyState::Stalled(_), _) => outcome.findings = state,
    }
    Ok(outcome)
}

fn without_managed_registries() -> Outcome<RegistryStatus> {
    let message = "managed registries are disabled in this operator: enable them where it was installed";
    let cause = Cause::new(Reason::ManagedRegistriesDisabled, message);
    outcome(ConditionSet::of(ReadyState::Stalled(cause)), None)
}

/// The registry cannot be asked any more: what is in it waits from now on, and says so.
fn end_session(ctx: &Context, registry: &str) {
    if ctx.registry_clients.remove(registry) {
        triggers::requeue_registry(&ctx.stores, &ctx.triggers, registry);
    }
}

/// How a Registry stands, and when to reconcile it again: at `retry`, else sooner while something is waited for.
fn outcome(findings: ConditionSet, retry: Option<Duration>) -> Outcome<RegistryStatus> {
    let next = match (retry, &findings.state) {
        (Some(retry), _) => retry,
        (None, ReadyState::Reconciling(_)) => jittered(REQUEUE_WAITING),
        (None, _) => jittered(PING_INTERVAL),
    };
    Outcome::new(findings, next)
}

/// Sees to the client, and asks whether the registry serves.
async fn serve(ctx: &Context, registry: &Registry, connection: RegistryConnection) -> Outcome<RegistryStatus> {
    let name = registry.name_any();
    let RegistryConnection { connection, url: place, fingerprint } = connection;
    let registry_client = match ctx.registry_clients.get(&name).filter(|it| it.fingerprint() == fingerprint) {
        Some(registry_client) => registry_client,
        None => {
            let ecr = match Ecr::new(connection, registry.registry_id().as_ref()).await {
                Ok(ecr) => {
                    ecr.observed_by(Arc::new(CallMetrics::new(&name, Arc::clone(&ctx.metrics), ctx.term.clone())))
                }
                Err(error) => {
                    end_session(ctx, &name);
                    let cause = Cause::new(Reason::InvalidParameterException, format!("{error:#}"));
                    return outcome(ConditionSet::of(ReadyState::Stalled(cause)), None);
                }
            };
            let (stores, triggers, registry) = (ctx.stores.clone(), ctx.triggers.clone(), name.clone());
            let recovered = move || {
                triggers.registry(ObjectRef::new(&registry));
                triggers::requeue_registry(&stores, &triggers, &registry);
            };
            let registry_client = Arc::new(RegistryClient::new(&name, ecr, fingerprint, recovered));
            if let Some(before) = ctx.registry_clients.last(&name) {
                registry_client.take_over(&before, &place).await;
            }
            ctx.registry_clients.put(&name, Arc::clone(&registry_client));
            triggers::requeue_registry(&ctx.stores, &ctx.triggers, &name);
            registry_client
        }
    };
    match check(ctx, &registry_client, registry, &place).await {
        Ok((usage, quotas, settled)) => {
            let serving = || ReadyState::Ready(Cause::new(Reason::Serving, format!("{place} answers")));
            let retry =
                settled.refused.as_ref().map(|it| next(it, registry.conditions(), PING_INTERVAL, Timestamp::now()));
            let findings = ConditionSet {
                state: settled.refused.unwrap_or_else(serving),
                references: Some(Ok(())),
                drifted: settled.drifted,
            };
            outcome(findings, retry).with_status(move |status: &mut RegistryStatus| {
                set_endpoint(status, Some(place));
                status.usage = Some(usage);
                status.quotas = quotas;
            })
        }
        Err(trouble) => {
            let (state, retry) = failed(&trouble, &name, registry.conditions(), PING_INTERVAL);
            // The Registry's own reconcile finds out for all resources in it whether the registry is back.
            let retry = if let RegistryError::Unavailable(it) = trouble { it.retry } else { retry };
            let findings = ConditionSet { references: Some(Ok(())), ..ConditionSet::of(state) };
            outcome(findings, Some(retry)).with_status(move |status| set_endpoint(status, Some(place)))
        }
    }
}

fn set_endpoint(status: &mut RegistryStatus, endpoint: Option<String>) {
    if endpoint.is_some() {
        status.endpoint = endpoint;
    }
}

/// Whether the registry answers, and is the one that is meant; what it holds, and what became of its settings.
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
    let before = registry.status.as_ref().filter(|it| it.endpoint.as_deref() == Some(place)).and_then(|it| it.usage);
    let usage = usage(&registry_client.totals(max_age).await?, before);
    let quota = Quota { name: "repositories".to_owned(), used: usage.repositories, limit: REPOSITORIES_LIMIT };
    let settled = settings::settle(ctx, registry, registry_client).await?;
    Ok((usage, vec![quota], settled))
}

/// What it holds. Until all is counted that is no less than what was told before, which another client has counted.
fn usage(totals: &Totals, before: Option<Usage>) -> Usage {
    let Totals { repositories, images: ImageUsage { images, bytes, .. }, all_counted } = *totals;
    let least = before.filter(|_| !all_counted).unwrap_or_default();
    let repositories = i64::try_from(repositories).unwrap_or(i64::MAX);
    Usage { repositories, images: images.max(least.images), bytes: bytes.max(least.bytes) }
}

/// What can be had of it beyond what ECR does: that is what the operator adds, whoever's the registry is.
fn capabilities(settings: &Settings) -> Vec<String> {
    let protects = settings.has(Feature::InUseProtection);
    protects.then(|| "InUseProtection".to_owned()).into_iter().collect()
}

/// Ends a reconcile.
async fn conclude(
    ctx: &Context,
    registry: &Registry,
    outcome: Outcome<RegistryStatus>,
) -> Result<ReconcileResult, Error> {
    let capabilities = capabilities(&ctx.settings);
    let outcome = outcome.with_status(move |status| status.capabilities = capabilities);
    finish(ctx, &Api::all(ctx.client.clone()), registry, outcome).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_does_not_begin_at_nothing_whenever_counting_begins_anew() {
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
