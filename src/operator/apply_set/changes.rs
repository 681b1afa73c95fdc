//! Decides which objects of a set are applied and which are pruned. No I/O.

use std::fmt;

use kube::core::ApiResource;

use super::object::{DesiredObject, FoundObject, ObjectId, SetLabel};

/// The changes that give an owner the objects that it wants.
#[derive(Debug)]
pub(super) struct PlannedChanges<'o> {
    /// The objects to apply, in the order in which they are wanted, each with the object that exists.
    pub apply: Vec<(&'o DesiredObject, Option<&'o FoundObject>)>,
    /// The objects to delete after that.
    pub prune: Vec<&'o FoundObject>,
}

/// Plans the changes of a set. `is_current` says whether an existing object is as it was last applied.
pub(super) fn plan_changes<'o>(
    label: &SetLabel,
    retained: &[(ApiResource, String)],
    desired: &'o [DesiredObject],
    found: &'o [FoundObject],
    is_current: impl Fn(&DesiredObject, &FoundObject) -> bool,
) -> PlannedChanges<'o> {
    let existing = |it: &DesiredObject| found.iter().find(|found| found.is(&it.kind, &it.name));
    let apply = desired.iter().map(|it| (it, existing(it)));
    let apply =
        apply.filter(|(it, existing)| !existing.is_some_and(|existing| is_current(it, existing)));
    let is_desired =
        |it: &FoundObject| desired.iter().any(|desired| it.is(&desired.kind, &desired.name));
    let prune = prunable(label, retained, found).into_iter().filter(|it| !is_desired(it));
    PlannedChanges { apply: apply.collect(), prune: prune.collect() }
}

/// Returns the objects that are the set's to delete or to release: all that carry its mark, except those that are retained.
pub(super) fn prunable<'o>(
    label: &SetLabel,
    retained: &[(ApiResource, String)],
    found: &'o [FoundObject],
) -> Vec<&'o FoundObject> {
    let is_retained = |it: &FoundObject| retained.iter().any(|(kind, name)| it.is(kind, name));
    found.iter().filter(|it| label.may_prune(&it.object) && !is_retained(it)).collect()
}

/// The objects that were changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ChangeSet(Vec<(ObjectId, ChangeAction)>);

/// The change that was made to an object, in the words of `kubectl apply`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChangeAction {
    Created,
    Configured,
    Deleted,
    /// It no longer has the owner.
    Released,
}

impl ChangeSet {
    pub(super) fn record(&mut self, object: ObjectId, action: ChangeAction) {
        self.0.push((object, action));
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for ChangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (object, action)) in self.0.iter().enumerate() {
            let separator = if number > 0 { ", " } else { "" };
            let action = match action {
                ChangeAction::Created => "created",
                ChangeAction::Configured => "configured",
                ChangeAction::Deleted => "deleted",
                ChangeAction::Released => "released",
            };
            write!(f, "{separator}{object} {action}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use k8s_openapi::api::core::v1::{ConfigMap, Secret};
    use kube::ResourceExt as _;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::apply_set::owner_reference;
    use wharfage_crd::{DeletionPolicy, Registry};

    const KEY: &str = "wharfage.dev/registry";

    fn label(value: &str) -> SetLabel {
        SetLabel { key: KEY, value: value.to_owned() }
    }

    fn config_map() -> ApiResource {
        ApiResource::erase::<ConfigMap>(&())
    }

    fn desired(name: &str) -> DesiredObject {
        DesiredObject { kind: config_map(), name: name.to_owned(), body: Value::Null }
    }

    /// Returns an existing object with the label of an owner, which the operator applied or another party created.
    fn found(kind: ApiResource, name: &str, owner: Option<&str>, is_applied: bool) -> FoundObject {
        let labels = owner.map(|owner| json!({ KEY: owner })).unwrap_or_default();
        let (manager, operation) =
            if is_applied { ("wharfage", "Apply") } else { ("kubectl", "Update") };
        let managed_fields = json!([{ "manager": manager, "operation": operation }]);
        let metadata = json!({ "name": name, "namespace": "n", "labels": labels, "managedFields": managed_fields });
        FoundObject {
            kind,
            object: serde_json::from_value(json!({ "metadata": metadata })).unwrap(),
        }
    }

    fn names<'o>(objects: impl IntoIterator<Item = &'o &'o FoundObject>) -> Vec<String> {
        objects.into_iter().map(|it| it.object.name_any()).collect()
    }

    #[test]
    fn an_object_of_another_party_is_never_applied_to() {
        let may_apply = |owner: Option<&str>, is_applied| {
            label("home").may_apply(&found(config_map(), "a", owner, is_applied).object)
        };
        assert!(!may_apply(None, false), "somebody created it");
        assert!(!may_apply(Some("other"), true), "it is another owner's");
        assert!(!may_apply(Some("other"), false));
        assert!(may_apply(None, true), "somebody removed its label");
        assert!(may_apply(Some("home"), true) && may_apply(Some("home"), false));
    }

    #[test]
    fn only_objects_with_the_owners_mark_are_pruned() {
        let existing = [
            found(config_map(), "ours", Some("home"), true),
            found(config_map(), "copied", Some("home"), false),
            found(config_map(), "others", Some("other"), true),
            found(config_map(), "unlabeled", None, true),
            found(config_map(), "foreign", None, false),
        ];
        let changes = plan_changes(&label("home"), &[], &[], &existing, |_, _| false);
        assert_eq!(names(&changes.prune), ["ours"]);
    }

    #[test]
    fn retained_objects_outlive_their_owner() {
        let secret = ApiResource::erase::<Secret>(&());
        let existing = [
            found(secret.clone(), "root-key", Some("home"), true),
            found(config_map(), "root-key", Some("home"), true),
            found(secret.clone(), "backends", Some("home"), true),
        ];
        let retained = [(secret.clone(), "root-key".to_owned())];
        let prune: Vec<_> = prunable(&label("home"), &retained, &existing)
            .into_iter()
            .map(FoundObject::id)
            .collect();
        let id = |kind, name| ObjectId::new(kind, "n", name);
        assert_eq!(prune, [id(&config_map(), "root-key"), id(&secret, "backends")]);
    }

    #[test]
    fn an_unchanged_object_is_not_applied_again() {
        let (wanted, existing) = (
            [desired("a"), desired("b"), desired("c")],
            [
                found(config_map(), "a", Some("home"), true),
                found(config_map(), "b", Some("home"), true),
            ],
        );
        let changes = plan_changes(&label("home"), &[], &wanted, &existing, |it, _| it.name == "a");
        let apply: Vec<_> = changes
            .apply
            .iter()
            .map(|(it, existing)| (it.name.as_str(), existing.is_some()))
            .collect();
        assert_eq!(apply, [("b", true), ("c", false)]);
        assert!(changes.prune.is_empty());
    }

    #[test]
    fn objects_have_an_owner_only_if_they_go_with_it() {
        let metadata = json!({ "name": "home", "uid": "u1" });
        let registry: Registry =
            serde_json::from_value(json!({ "metadata": metadata, "spec": {} })).unwrap();
        assert_eq!(owner_reference(&registry, DeletionPolicy::Retain), None);
        assert_eq!(owner_reference(&registry, DeletionPolicy::Delete).unwrap().uid, "u1");
    }

    #[test]
    fn a_released_object_keeps_its_other_owners() {
        let mut object = found(config_map(), "a", Some("home"), true);
        let owner = |uid: &str| json!({ "apiVersion": "v1", "kind": "A", "name": "a", "uid": uid });
        object.object.metadata.owner_references =
            Some(serde_json::from_value(json!([owner("u1"), owner("u2")])).unwrap());
        let uids = |uid: &str| {
            Some(object.owners_without(uid)?.into_iter().map(|it| it.uid).collect::<Vec<_>>())
        };
        assert_eq!(uids("u1"), Some(vec!["u2".to_owned()]));
        assert_eq!(uids("u3"), None);
    }

    #[test]
    fn changes_are_reported_by_object() {
        let mut changes = ChangeSet::default();
        assert!(changes.is_empty());
        changes.record(ObjectId::new(&config_map(), "n", "a"), ChangeAction::Created);
        changes.record(ObjectId::new(&config_map(), "n", "b"), ChangeAction::Deleted);
        assert_eq!(changes.to_string(), "ConfigMap n/a created, ConfigMap n/b deleted");
    }

    const NAMES: [&str; 4] = ["a", "b", "c", "d"];

    fn any_found() -> impl Strategy<Value = Vec<FoundObject>> {
        let owner = prop_oneof![2 => Just(Some("home")), 1 => Just(Some("other")), 1 => Just(None)];
        let one = (owner, any::<bool>());
        proptest::collection::vec(one, NAMES.len()).prop_map(|marks| {
            let marked = NAMES.iter().zip(marks);
            marked
                .map(|(name, (owner, is_applied))| found(config_map(), name, owner, is_applied))
                .collect()
        })
    }

    proptest! {
        #[test]
        fn two_owners_never_prune_the_same_object(existing in any_found(), wanted in proptest::sample::subsequence(&NAMES, 0..=4)) {
            let wanted: Vec<_> = wanted.into_iter().map(desired).collect();
            let prune = |owner: &str, wanted| {
                let changes = plan_changes(&label(owner), &[], wanted, &existing, |_, _| false);
                names(&changes.prune).into_iter().collect::<BTreeSet<_>>()
            };
            let (home, other) = (prune("home", &wanted), prune("other", &[]));
            prop_assert!(home.is_disjoint(&other));
            for it in &existing {
                let name = it.object.name_any();
                let is_wanted = wanted.iter().any(|wanted| wanted.name == name);
                prop_assert_eq!(home.contains(&name), label("home").may_prune(&it.object) && !is_wanted);
            }
        }
    }
}
