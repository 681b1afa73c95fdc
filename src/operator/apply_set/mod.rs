//! Gives an owner a set of objects of several kinds: applies those that it wants, and prunes those that it no longer wants.
//!
//! A label joins the objects of a set, and its value names the owner, as in kubectl's ApplySet. The set is found by listing
//! that label, so that there is no inventory to lose. `changes` decides without I/O, by these rules:
//!
//! - An object that another party created, or that has the label of another owner, is never changed.
//! - An object is pruned only if it has the label and the operator applied it: people copy objects, labels included.
//! - Retained objects, and objects of kinds that the set does not have (volume claims), stay whatever happens to their owner.
//!
//! Everything is applied before anything is pruned.

mod changes;
mod last_applied;
mod object;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use futures::future::try_join_all;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, Preconditions};
use kube::core::ApiResource;
use kube::{Api, Client, Error, ResourceExt as _};
use serde_json::json;

use crate::api_error::{ignore_not_found, is_forbidden, is_not_found};
use crate::managed_namespaces::ManagedNamespaces;
use crate::status::FIELD_MANAGER;
use changes::{ChangeAction, plan_changes, prunable};
use object::is_applied;

pub(crate) use changes::ChangeSet;
pub(crate) use last_applied::LastApplied;
pub(crate) use object::{
    DesiredObject, FoundObject, Metadata, ObjectId, SetLabel, owner_reference,
};

/// A kind of the objects of a set.
#[derive(Debug, Clone)]
pub(crate) struct SetKind {
    pub kind: ApiResource,
    /// True if a cluster may lack the kind, because another project defines it.
    pub is_optional: bool,
}

/// The objects of one owner in one namespace.
#[derive(Clone)]
pub(crate) struct ApplySet<'a> {
    pub client: &'a Client,
    pub last_applied: &'a LastApplied,
    pub namespace: String,
    /// The namespaces that may have objects of the set from before its namespace changed.
    pub namespaces: &'a ManagedNamespaces,
    pub label: SetLabel,
    pub kinds: &'a [SetKind],
    /// Objects with the label that are never pruned, deleted or released.
    pub retained: Vec<(ApiResource, String)>,
}

/// An object of a set that cannot be read or written.
#[derive(Debug)]
pub(crate) enum ApplyError {
    /// An object of that name exists, and is not the set's.
    Foreign(ObjectId),
    /// The cluster lacks an optional kind.
    NoSuchKind,
    /// The API server refuses to list a kind.
    List {
        kind: String,
        namespace: String,
        error: Error,
    },
    /// The API server refuses an object as it is applied.
    Rejected(Box<ObjectId>, Error),
    Api(Error),
}

impl From<Error> for ApplyError {
    fn from(error: Error) -> Self {
        Self::Api(error)
    }
}

impl ApplyError {
    fn is_forbidden(&self) -> bool {
        match self {
            Self::Foreign(_) | Self::NoSuchKind => false,
            Self::List { error, .. } | Self::Rejected(_, error) | Self::Api(error) => {
                is_forbidden(error)
            }
        }
    }
}

impl ApplySet<'_> {
    pub fn api(&self, kind: &ApiResource) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, kind)
    }

    pub fn list_params(&self) -> ListParams {
        ListParams::default().labels(&self.label.selector())
    }

    /// Lists the objects of the set in its namespace.
    ///
    /// # Errors
    /// [`ApplyError::List`]
    pub async fn find(&self) -> Result<Vec<FoundObject>, ApplyError> {
        let found =
            try_join_all(self.kinds.iter().map(async |kind| self.find_of(kind).await)).await?;
        Ok(found.into_iter().flatten().collect())
    }

    async fn find_of(
        &self,
        SetKind { kind, is_optional }: &SetKind,
    ) -> Result<Vec<FoundObject>, ApplyError> {
        match self.api(kind).list_metadata(&self.list_params()).await {
            Ok(found) => Ok(found
                .items
                .into_iter()
                .map(|object| FoundObject { kind: kind.clone(), object })
                .collect()),
            Err(error) if *is_optional && is_not_found(&error) => Ok(Vec::new()),
            Err(error) => Err(ApplyError::List {
                kind: kind.kind.clone(),
                namespace: self.namespace.clone(),
                error,
            }),
        }
    }

    /// Lists the applied objects of these kinds with the set's label in other namespaces.
    ///
    /// # Errors
    /// [`ApplyError::Api`]
    pub async fn find_elsewhere(
        &self,
        kinds: &[ApiResource],
    ) -> Result<Vec<FoundObject>, ApplyError> {
        let mut elsewhere = Vec::new();
        let is_elsewhere =
            |it: &Metadata| is_applied(it) && it.namespace().is_some_and(|it| it != self.namespace);
        for kind in kinds {
            for api in self.namespaces.apis_with(self.client, kind) {
                let api: Api<DynamicObject> = api;
                let listed = api.list_metadata(&self.list_params()).await?.items;
                let found = listed.into_iter().filter(is_elsewhere);
                elsewhere.extend(found.map(|object| FoundObject { kind: kind.clone(), object }));
            }
        }
        Ok(elsewhere)
    }

    /// Checks that no object of another party has the name of a desired one. Call it before any object is applied.
    ///
    /// # Errors
    /// [`ApplyError::Foreign`], or [`ApplyError::Api`]
    pub async fn check_foreign(
        &self,
        desired: &[DesiredObject],
        found: &[FoundObject],
    ) -> Result<(), ApplyError> {
        for DesiredObject { kind, name, .. } in desired {
            if found.iter().any(|it| it.is(kind, name)) {
                continue;
            }
            let existing = match self.api(kind).get_metadata_opt(name).await {
                // The kind is missing, too, which applying the object reports.
                Err(error) if is_not_found(&error) => None,
                existing => existing?,
            };
            if existing.is_some_and(|it| !self.label.may_apply(&it)) {
                return Err(ApplyError::Foreign(ObjectId::new(kind, &self.namespace, name)));
            }
        }
        Ok(())
    }

    /// Applies what differs from the last time, then deletes the objects that are no longer desired. Returns what changed.
    ///
    /// # Errors
    /// Of the first object that the API server refuses; the rest is left unchanged.
    pub async fn apply(
        &self,
        desired: &[DesiredObject],
        found: &[FoundObject],
    ) -> Result<ChangeSet, ApplyError> {
        let is_current = |it: &DesiredObject, existing: &FoundObject| {
            self.last_applied.is_current(&self.namespace, it, &existing.object)
        };
        let planned = plan_changes(&self.label, &self.retained, desired, found, is_current);
        let mut changes = ChangeSet::default();
        for (object, existing) in planned.apply {
            self.apply_one(object).await?;
            let action =
                if existing.is_some() { ChangeAction::Configured } else { ChangeAction::Created };
            changes.record(ObjectId::new(&object.kind, &self.namespace, &object.name), action);
        }
        self.delete(planned.prune, &mut changes).await?;
        Ok(changes)
    }

    async fn apply_one(&self, object: &DesiredObject) -> Result<(), ApplyError> {
        let DesiredObject { kind, name, body } = object;
        let is_optional = || self.kinds.iter().any(|it| it.kind == *kind && it.is_optional);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        match self.api(kind).patch_metadata(name, &params, &Patch::Apply(body)).await {
            Ok(applied) => {
                self.last_applied.record(&self.namespace, object, &applied);
                Ok(())
            }
            Err(error) if is_optional() && is_not_found(&error) => Err(ApplyError::NoSuchKind),
            Err(error) => Err(ApplyError::Rejected(
                Box::new(ObjectId::new(kind, &self.namespace, name)),
                error,
            )),
        }
    }

    /// Deletes the whole set, because its owner is gone. Returns what changed.
    ///
    /// # Errors
    /// Of the first object that the API server refuses.
    pub async fn delete_all(&self) -> Result<ChangeSet, ApplyError> {
        let (found, mut changes) = (self.find().await?, ChangeSet::default());
        self.delete(prunable(&self.label, &self.retained, &found), &mut changes).await?;
        Ok(changes)
    }

    async fn delete(
        &self,
        objects: Vec<&FoundObject>,
        changes: &mut ChangeSet,
    ) -> Result<(), ApplyError> {
        for FoundObject { kind, object } in objects {
            let name = object.name_any();
            self.last_applied.forget(kind, &self.namespace, &name);
            ignore_not_found(self.api(kind).delete(&name, &DeleteParams::background()).await)?;
            changes.record(ObjectId::new(kind, &self.namespace, &name), ChangeAction::Deleted);
        }
        Ok(())
    }

    /// Deletes an object that is to be applied again at once. Returns whether it is gone; otherwise its finalizers keep it.
    ///
    /// # Errors
    /// [`ApplyError::Rejected`]
    pub async fn delete_to_replace(
        &self,
        kind: &ApiResource,
        name: &str,
        uid: Option<String>,
    ) -> Result<bool, ApplyError> {
        self.last_applied.forget(kind, &self.namespace, name);
        let params =
            DeleteParams::background().preconditions(Preconditions { uid, resource_version: None });
        match self.api(kind).delete(name, &params).await {
            Ok(deleted) => Ok(deleted.is_right()),
            Err(error) if is_not_found(&error) => Ok(true),
            Err(error) => Err(ApplyError::Rejected(
                Box::new(ObjectId::new(kind, &self.namespace, name)),
                error,
            )),
        }
    }

    /// Removes an owner from all objects of the set here and in `elsewhere`, so that they outlive it. Skips what the operator
    /// may not read or write. Returns what changed.
    ///
    /// # Errors
    /// When the API server cannot be asked now.
    pub async fn release(
        &self,
        owner_uid: &str,
        elsewhere: BTreeSet<String>,
    ) -> Result<ChangeSet, ApplyError> {
        let mut changes = ChangeSet::default();
        for namespace in elsewhere.into_iter().chain([self.namespace.clone()]) {
            let set = Self { namespace, ..self.clone() };
            for kind in set.kinds {
                if_allowed(set.release_of(kind, owner_uid, &mut changes).await)?;
            }
        }
        Ok(changes)
    }

    async fn release_of(
        &self,
        kind: &SetKind,
        owner_uid: &str,
        changes: &mut ChangeSet,
    ) -> Result<(), ApplyError> {
        let found = self.find_of(kind).await?;
        for it in prunable(&self.label, &self.retained, &found) {
            let Some(others) = it.owners_without(owner_uid) else { continue };
            let version = it.object.resource_version();
            let patch =
                json!({ "metadata": { "ownerReferences": others, "resourceVersion": version } });
            let (name, params) = (it.object.name_any(), PatchParams::default());
            ignore_not_found(
                self.api(&it.kind).patch_metadata(&name, &params, &Patch::Merge(&patch)).await,
            )?;
            changes.record(ObjectId::new(&it.kind, &self.namespace, &name), ChangeAction::Released);
        }
        Ok(())
    }
}

/// Ignores what the operator may not read or write.
pub(crate) fn if_allowed<T: Default>(done: Result<T, ApplyError>) -> Result<T, ApplyError> {
    match done {
        Err(error) if error.is_forbidden() => Ok(T::default()),
        done => done,
    }
}
