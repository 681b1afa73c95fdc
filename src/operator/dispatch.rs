//! Who is woken by what: a resource is looked at when it changes, and when something that it depends on comes, changes or
//! goes. Whatever is forgotten here waits for its interval.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Namespace;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt as _};

use super::context::{Context, Stores, Wake};
use super::pull_secrets::accounts::WatchedServiceAccount;
use super::pull_secrets::marks::{Owner, WatchedSecret};
use super::status::is_ready;
use super::watch::Change;
use super::workload::{self, Names, REGISTRY_LABEL};
use crate::crd::conditions::ConditionType;
use crate::crd::{LifecyclePolicy, PullSecret, Registry, Repository, condition};

/// Nothing is remembered of an object that is gone.
fn forget<K: Resource>(ctx: &Context, change: &Change<K>) {
    let Change { old: Some(old), new: None } = change else { return };
    if let Some(uid) = old.meta().uid.as_deref() {
        ctx.written.forget(uid);
        ctx.turns.forget(uid);
    }
}

/// Nothing is kept of a Registry that is gone.
pub(super) fn forget_registry(ctx: &Context, name: &str) {
    ctx.sessions.forget(name);
    ctx.metrics.forget_registry(name);
    ctx.secrets.follow(&ctx.client, &ctx.wake, name, &BTreeSet::new());
}

/// A Registry changed: it is looked at. What is in it is woken when its session is there ([`all_in`]); but what is
/// allowed, or what a managed one is called, may have changed, and one that is gone leaves everything in it waiting.
pub(super) fn registry_changed(ctx: &Context, change: &Change<Registry>) {
    forget(ctx, change);
    let Some(registry) = change.either() else { return };
    ctx.wake.registry(ObjectRef::from_obj(&**registry));
    // What can be had of it where it was isn't for those that it allows from now on.
    if change.old.as_deref().map(place) != change.new.as_deref().map(place) {
        ctx.sessions.remove(&registry.name_any());
    }
    if change.new.is_none() {
        forget_registry(ctx, &registry.name_any());
    }
    // What it had of a registry that others are, too, may be theirs now.
    let contested = |it: &Registry| {
        let conditions = it.status.as_ref().map(|it| it.conditions.as_slice()).unwrap_or_default();
        condition(conditions, ConditionType::Ready).is_some_and(|it| it.reason == "OwnedByAnother")
    };
    for other in ctx.stores.registries.state().iter().filter(|it| contested(it)) {
        ctx.wake.registry(ObjectRef::from_obj(&**other));
    }
    let means = |it: &Option<std::sync::Arc<Registry>>| {
        let told = |it: &Registry| workload::told_url(it, &ctx.settings.namespace);
        it.as_ref().map(|it| (it.spec.allowed_namespaces.clone(), told(it)))
    };
    if change.new.is_none() || means(&change.old) != means(&change.new) {
        all_in(&ctx.stores, &ctx.wake, &registry.name_any());
    }
}

/// Which Registry it is, and where, as far as its spec says that.
fn place(registry: &Registry) -> impl PartialEq + use<> {
    let spec = registry.spec.clone();
    (registry.uid(), spec.region, spec.registry_id, spec.endpoint, spec.aws)
}

/// Everything in a Registry is looked at: it serves, or serves again, or in another way.
pub(super) fn all_in(stores: &Stores, wake: &Wake, registry: &str) {
    for it in stores.repositories_in(registry) {
        wake.repository(ObjectRef::from_obj(&*it));
    }
    for it in stores.lifecycle_policies_in(registry) {
        wake.lifecycle_policy(ObjectRef::from_obj(&*it));
    }
    for it in stores.pull_secrets.state().iter().filter(|it| it.spec.registry_ref.name == registry) {
        wake.pull_secret(ObjectRef::from_obj(&**it));
    }
}

/// A Repository changed: it is looked at; so are those that ask for the same name, if it goes, and the lifecycle policies of
/// its namespace that are, or were, about it.
pub(super) fn repository_changed(ctx: &Context, change: &Change<Repository>) {
    forget(ctx, change);
    let Some(repository) = change.either() else { return };
    ctx.wake.repository(ObjectRef::from_obj(&**repository));
    let leaves = change.new.as_ref().is_none_or(|it| it.metadata.deletion_timestamp.is_some());
    if let (true, Ok(name)) = (leaves, repository.repository_name()) {
        let same = ctx.stores.repositories_that_ask_for(&name);
        for rival in same.iter().filter(|it| it.uid() != repository.uid()) {
            ctx.wake.repository(ObjectRef::from_obj(&**rival));
        }
    }
    let labels = |it: &Option<std::sync::Arc<Repository>>| it.as_ref().map(|it| it.metadata.labels.clone());
    if leaves || labels(&change.old) != labels(&change.new) {
        let about = [&change.old, &change.new].into_iter().flatten().map(|it| &**it).collect::<Vec<_>>();
        wake_policies_about(ctx, &about);
    }
}

/// A Repository has come to stand well: lifecycle policies that waited for it go on.
pub(super) fn repository_stands(ctx: &Context, repository: &Repository) {
    wake_policies_about(ctx, &[repository]);
}

fn wake_policies_about(ctx: &Context, repositories: &[&Repository]) {
    for policy in ctx.stores.lifecycle_policies_about(repositories) {
        ctx.wake.lifecycle_policy(ObjectRef::from_obj(&*policy));
    }
}

/// A LifecyclePolicy changed: it is looked at. If it goes, or its spec is another one, others of its namespace may have what it
/// had: those that do not stand well are looked at, too.
pub(super) fn lifecycle_policy_changed(ctx: &Context, change: &Change<LifecyclePolicy>) {
    forget(ctx, change);
    let Some(policy) = change.either() else { return };
    ctx.wake.lifecycle_policy(ObjectRef::from_obj(&**policy));
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
    let neighbours = ctx.stores.lifecycle_policies_of(&policy.namespace().unwrap_or_default());
    for other in neighbours.iter().filter(|it| waits(it)) {
        ctx.wake.lifecycle_policy(ObjectRef::from_obj(&**other));
    }
}

/// An object of a managed registry's workload changed: its Registry, which the label names, is looked at.
pub(super) fn workload_changed(ctx: &Context, labels: &BTreeMap<String, String>) {
    let Some(workload) = labels.get(REGISTRY_LABEL) else { return };
    for registry in ctx.stores.registries.state() {
        if registry.spec.managed.is_some() && Names::of(&registry.name_any()).workload() == *workload {
            ctx.wake.registry(ObjectRef::from_obj(&*registry));
        }
    }
}

/// A namespace's labels changed: what its resources may use may have, too. One that is new may be what a managed registry
/// waits for.
pub(super) fn namespace_changed(ctx: &Context, change: &Change<PartialObjectMeta<Namespace>>) {
    let Some(namespace) = change.either().map(|it| it.name_any()) else { return };
    for it in ctx.stores.registries.state() {
        if it.spec.managed.as_ref().is_some_and(|managed| managed.namespace.as_ref() == Some(&namespace)) {
            ctx.wake.registry(ObjectRef::from_obj(&*it));
        }
    }
    for it in ctx.stores.repositories_of(&namespace) {
        ctx.wake.repository(ObjectRef::from_obj(&*it));
    }
    let chooses = |it: &PullSecret| {
        let labels = [&change.old, &change.new].into_iter().flatten().map(|it| it.metadata.labels.as_ref());
        it.namespace().as_ref() == Some(&namespace) || labels.into_iter().any(|labels| it.chooses(&namespace, labels))
    };
    wake_pull_secrets(ctx, chooses);
}

fn wake_pull_secrets(ctx: &Context, which: impl Fn(&PullSecret) -> bool) {
    for it in ctx.stores.pull_secrets.state().iter().filter(|it| which(it)) {
        ctx.wake.pull_secret(ObjectRef::from_obj(&**it));
    }
}

/// A PullSecret changed: it is looked at; so are those that want Secrets of the same name, now or before.
pub(super) fn pull_secret_changed(ctx: &Context, change: &Change<PullSecret>) {
    forget(ctx, change);
    let Some(pull_secret) = change.either() else { return };
    ctx.wake.pull_secret(ObjectRef::from_obj(&**pull_secret));
    let names: BTreeSet<String> = [&change.old, &change.new].into_iter().flatten().map(|it| it.secret_name()).collect();
    wake_pull_secrets(ctx, |other| other.uid() != pull_secret.uid() && names.contains(&other.secret_name()));
}

/// A Secret that a PullSecret made changed: it is looked at, whoever the Secret says or said that it belongs to.
pub(super) fn pulled_changed(ctx: &Context, change: &Change<WatchedSecret>) {
    let whose = [&change.old, &change.new].into_iter().flatten().flat_map(|it| it.owners()).collect::<BTreeSet<_>>();
    wake_pull_secrets(ctx, |it| whose.contains(&Owner::of(it).label()));
}

/// A service account came, or names other Secrets: the PullSecrets that are to be named in it are looked at.
pub(super) fn service_account_changed(ctx: &Context, change: &Change<WatchedServiceAccount>) {
    let Some(account) = &change.new else { return };
    let (namespace, name) = (account.namespace().unwrap_or_default(), account.name_any());
    let found = ctx.stores.namespace(&namespace);
    let labels = found.as_ref().and_then(|it| it.metadata.labels.as_ref());
    wake_pull_secrets(ctx, |it| it.spec.service_accounts.contains(&name) && it.chooses(&namespace, labels));
}
