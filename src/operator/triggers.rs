//! Which resource is requeued by what: by a change of its own, and when something that it depends on comes, changes or goes.
//! Everything else waits for its interval.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt as _;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::ObjectRef;

use super::pull_secrets::accounts::WatchedServiceAccount;
use super::pull_secrets::annotations::CLASS;
use super::secrets::{SecretOwner, WatchedSecret};
use super::status::is_ready;
use super::stores::Stores;
use super::watch::Change;
use super::workload::{self, Names, REGISTRY_LABEL};
use wharfage_crd::conditions::ConditionType;
use wharfage_crd::{LifecyclePolicy, PullSecret, Reason, Registry, Repository, condition};

/// The sending ends of the controllers' queues. Requeuing an object that is gone does nothing.
#[derive(Clone)]
pub struct Triggers {
    registries: UnboundedSender<ObjectRef<Registry>>,
    repositories: UnboundedSender<ObjectRef<Repository>>,
    lifecycle_policies: UnboundedSender<ObjectRef<LifecyclePolicy>>,
    pull_secrets: UnboundedSender<ObjectRef<PullSecret>>,
}

/// The receiving ends, one for each controller.
pub(super) struct Queues {
    pub(super) registries: UnboundedReceiver<ObjectRef<Registry>>,
    pub(super) repositories: UnboundedReceiver<ObjectRef<Repository>>,
    pub(super) lifecycle_policies: UnboundedReceiver<ObjectRef<LifecyclePolicy>>,
    pub(super) pull_secrets: UnboundedReceiver<ObjectRef<PullSecret>>,
}

impl Triggers {
    pub(super) fn new() -> (Self, Queues) {
        let (registries, registries_queue) = unbounded();
        let (repositories, repositories_queue) = unbounded();
        let (lifecycle_policies, lifecycle_policies_queue) = unbounded();
        let (pull_secrets, pull_secrets_queue) = unbounded();
        (
            Self { registries, repositories, lifecycle_policies, pull_secrets },
            Queues {
                registries: registries_queue,
                repositories: repositories_queue,
                lifecycle_policies: lifecycle_policies_queue,
                pull_secrets: pull_secrets_queue,
            },
        )
    }

    // Sending fails only when the controller has ended.

    /// Requeues a Registry.
    pub fn registry(&self, object: ObjectRef<Registry>) {
        let _ = self.registries.unbounded_send(object);
    }

    /// Requeues a Repository.
    pub fn repository(&self, object: ObjectRef<Repository>) {
        let _ = self.repositories.unbounded_send(object);
    }

    /// Requeues a PullSecret.
    pub fn pull_secret(&self, object: ObjectRef<PullSecret>) {
        let _ = self.pull_secrets.unbounded_send(object);
    }

    /// Requeues a LifecyclePolicy.
    pub fn lifecycle_policy(&self, object: ObjectRef<LifecyclePolicy>) {
        let _ = self.lifecycle_policies.unbounded_send(object);
    }
}

/// Requeues a Registry that changed, and the Registries that waited for it to leave a registry to them.
///
/// Its resources are requeued by [`requeue_registry`] once the registry serves. Here they are requeued only when the allowed
/// namespaces or the URL changed, or when the Registry is gone. `operator_namespace` is where managed registries run by default.
pub(super) fn registry_changed(
    stores: &Stores,
    triggers: &Triggers,
    operator_namespace: &str,
    change: &Change<Registry>,
) {
    let Some(registry) = change.either() else { return };
    triggers.registry(ObjectRef::from_obj(&**registry));
    // Settings that this Registry held may be theirs now.
    let contested = |it: &Registry| {
        let conditions = it.status.as_ref().map(|it| it.conditions.as_slice()).unwrap_or_default();
        condition(conditions, ConditionType::Ready).is_some_and(|it| it.has_reason(&Reason::OwnedByAnother))
    };
    for other in stores.registries.state().iter().filter(|it| contested(it)) {
        triggers.registry(ObjectRef::from_obj(&**other));
    }
    let shared = |it: &Option<Arc<Registry>>| {
        let url = |it: &Registry| workload::told_url(it, operator_namespace);
        it.as_ref().map(|it| (it.spec.allowed_namespaces.clone(), url(it)))
    };
    if change.new.is_none() || shared(&change.old) != shared(&change.new) {
        requeue_registry(stores, triggers, &registry.name_any());
    }
}

/// Requeues every resource of a Registry: its registry began to serve, serves again, or changed.
pub(super) fn requeue_registry(stores: &Stores, triggers: &Triggers, registry: &str) {
    for it in stores.repositories_in(registry) {
        triggers.repository(ObjectRef::from_obj(&*it));
    }
    for it in stores.lifecycle_policies_in(registry) {
        triggers.lifecycle_policy(ObjectRef::from_obj(&*it));
    }
    for it in stores.pull_secrets.state().iter().filter(|it| it.spec.registry_ref.name == registry) {
        triggers.pull_secret(ObjectRef::from_obj(&**it));
    }
}

/// Requeues a Repository that changed and the lifecycle policies that select it, or did before. When it is deleted, also the
/// Repositories that claim the same name.
pub(super) fn repository_changed(stores: &Stores, triggers: &Triggers, change: &Change<Repository>) {
    let Some(repository) = change.either() else { return };
    triggers.repository(ObjectRef::from_obj(&**repository));
    let leaves = change.new.as_ref().is_none_or(|it| it.metadata.deletion_timestamp.is_some());
    if let (true, Ok(name)) = (leaves, repository.repository_name()) {
        let same = stores.repositories_that_ask_for(&name);
        for rival in same.iter().filter(|it| it.uid() != repository.uid()) {
            triggers.repository(ObjectRef::from_obj(&**rival));
        }
    }
    let labels = |it: &Option<Arc<Repository>>| it.as_ref().map(|it| it.metadata.labels.clone());
    if leaves || labels(&change.old) != labels(&change.new) {
        let about = [&change.old, &change.new].into_iter().flatten().map(|it| &**it).collect::<Vec<_>>();
        requeue_policies_of(stores, triggers, &about);
    }
}

/// Requeues the lifecycle policies that waited for this Repository to become Ready.
pub(super) fn repository_ready(stores: &Stores, triggers: &Triggers, repository: &Repository) {
    requeue_policies_of(stores, triggers, &[repository]);
}

fn requeue_policies_of(stores: &Stores, triggers: &Triggers, repositories: &[&Repository]) {
    for policy in stores.lifecycle_policies_about(repositories) {
        triggers.lifecycle_policy(ObjectRef::from_obj(&*policy));
    }
}

/// Requeues a LifecyclePolicy that changed. When it is deleted or its spec changed, other policies of the namespace may take
/// over its repositories: those that are not Ready are requeued, too.
pub(super) fn lifecycle_policy_changed(stores: &Stores, triggers: &Triggers, change: &Change<LifecyclePolicy>) {
    let Some(policy) = change.either() else { return };
    triggers.lifecycle_policy(ObjectRef::from_obj(&**policy));
    let makes_way = match (&change.old, &change.new) {
        (Some(old), Some(new)) => new.metadata.deletion_timestamp.is_some() || old.spec != new.spec,
        (old, _) => old.is_some(),
    };
    if !makes_way {
        return;
    }
    let waits = |it: &LifecyclePolicy| {
        let conditions = it.status.as_ref().map(|it| it.conditions.as_slice()).unwrap_or_default();
        it.uid() != policy.uid() && !is_ready(conditions)
    };
    let neighbors = stores.lifecycle_policies_of(&policy.namespace().unwrap_or_default());
    for other in neighbors.iter().filter(|it| waits(it)) {
        triggers.lifecycle_policy(ObjectRef::from_obj(&**other));
    }
}

/// Requeues the Registry that the label of a changed workload object names.
pub(super) fn workload_changed(stores: &Stores, triggers: &Triggers, labels: &BTreeMap<String, String>) {
    let Some(workload) = labels.get(REGISTRY_LABEL) else { return };
    for registry in stores.registries.state() {
        if registry.spec.managed.is_some() && Names::of(&registry.name_any()).workload() == *workload {
            triggers.registry(ObjectRef::from_obj(&*registry));
        }
    }
}

/// Requeues what depends on a namespace whose labels changed, because selectors and permissions follow labels. A managed
/// registry may be waiting for a new namespace.
pub(super) fn namespace_changed(stores: &Stores, triggers: &Triggers, change: &Change<PartialObjectMeta<Namespace>>) {
    let Some(namespace) = change.either().map(|it| it.name_any()) else { return };
    for it in stores.registries.state() {
        if it.spec.managed.as_ref().is_some_and(|managed| managed.namespace.as_ref() == Some(&namespace)) {
            triggers.registry(ObjectRef::from_obj(&*it));
        }
    }
    for it in stores.repositories_of(&namespace) {
        triggers.repository(ObjectRef::from_obj(&*it));
    }
    let chooses = |it: &PullSecret| {
        let labels = [&change.old, &change.new].into_iter().flatten().map(|it| it.metadata.labels.as_ref());
        it.namespace().as_ref() == Some(&namespace) || labels.into_iter().any(|labels| it.chooses(&namespace, labels))
    };
    requeue_pull_secrets(stores, triggers, chooses);
}

fn requeue_pull_secrets(stores: &Stores, triggers: &Triggers, which: impl Fn(&PullSecret) -> bool) {
    for it in stores.pull_secrets.state().iter().filter(|it| which(it)) {
        triggers.pull_secret(ObjectRef::from_obj(&**it));
    }
}

/// Requeues a PullSecret that changed and those with the same Secret name, now or before.
pub(super) fn pull_secret_changed(stores: &Stores, triggers: &Triggers, change: &Change<PullSecret>) {
    let Some(pull_secret) = change.either() else { return };
    triggers.pull_secret(ObjectRef::from_obj(&**pull_secret));
    let names: BTreeSet<String> = [&change.old, &change.new].into_iter().flatten().map(|it| it.secret_name()).collect();
    requeue_pull_secrets(stores, triggers, |other| {
        other.uid() != pull_secret.uid() && names.contains(&other.secret_name())
    });
}

/// Requeues the PullSecrets that own, or owned, a Secret that changed.
pub(super) fn pulled_changed(stores: &Stores, triggers: &Triggers, change: &Change<WatchedSecret>) {
    let whose =
        [&change.old, &change.new].into_iter().flatten().flat_map(|it| CLASS.owners(it)).collect::<BTreeSet<_>>();
    requeue_pull_secrets(stores, triggers, |it| whose.contains(&SecretOwner::of(it).label_value()));
}

/// Requeues the PullSecrets that belong in a service account that is new or lists other Secrets.
pub(super) fn service_account_changed(stores: &Stores, triggers: &Triggers, change: &Change<WatchedServiceAccount>) {
    let Some(account) = &change.new else { return };
    let (namespace, name) = (account.namespace().unwrap_or_default(), account.name_any());
    let found = stores.namespace(&namespace);
    let labels = found.as_ref().and_then(|it| it.metadata.labels.as_ref());
    requeue_pull_secrets(stores, triggers, |it| {
        it.spec.service_accounts.contains(&name) && it.chooses(&namespace, labels)
    });
}
