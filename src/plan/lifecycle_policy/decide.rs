//! Decides about one LifecyclePolicy in one repository.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::diff::lifecycle_changes;
use crate::field_change::change;
use crate::model::{
    Adoption, DesiredLifecyclePolicy, EnforcedBy, LifecycleMode, Management, ObservedRepository,
    Refused,
};
use crate::ownership::{LifecycleOwner, MAX_TAGS, Ownership, is_lifecycle_tag, too_many_tags};
use crate::{Action, Desired, FieldChange, RepositoryCall, Step};
use wharfage_crd::Reason;
use wharfage_domain::lifecycle::{self, Count, Policy, Rule, TagSelection};
use wharfage_domain::names::RepositoryName;

/// Decides about a repository that may have the policy; `found` is `None` when this plan creates the repository. `enforced`
/// means that a LifecyclePolicy of ours is enforced there: then a preview must not delete that policy.
pub(super) fn decide(
    desired: &Desired,
    wanted: &DesiredLifecyclePolicy,
    name: &RepositoryName,
    found: Option<&ObservedRepository>,
    enforced: bool,
) -> Result<Option<Step>, Refused> {
    let (action, changes, calls) = match wanted.mode {
        LifecycleMode::Enforce => enforce(desired, wanted, name, found)?,
        LifecycleMode::Preview => preview(desired, wanted, found, enforced),
    };
    Ok((!calls.is_empty()).then(|| Step {
        action,
        object: wanted.object.clone(),
        key: name.clone().into(),
        arn: found.map(|found| found.arn.clone()),
        changes,
        calls: calls.into_iter().map(Into::into).collect(),
    }))
}

type Changes = (Action, Vec<FieldChange>, Vec<RepositoryCall>);

fn enforce(
    desired: &Desired,
    wanted: &DesiredLifecyclePolicy,
    name: &RepositoryName,
    found: Option<&ObservedRepository>,
) -> Result<Changes, Refused> {
    let refused = |reason, message| Err(Refused::new(&wanted.object, reason, message));
    let before = found.and_then(|found| LifecycleOwner::read(&found.tags));
    let current = found.and_then(|found| found.lifecycle_policy.as_ref());
    match &before {
        Some(owner) if !desired.is_ours(&owner.cluster) => {
            let message = format!(
                "{name} in {} has its lifecycle policy from {owner}: remove that one{}",
                desired.registry,
                desired.adoption_hint(&owner.cluster)
            );
            return refused(Reason::OwnedByAnother, message);
        }
        None if current.is_some() && wanted.adoption == Adoption::Create => {
            let message = format!(
                "{name} has a lifecycle policy, and adoptionPolicy is Create: set AdoptOrCreate to replace it"
            );
            return refused(Reason::AlreadyExists, message);
        }
        None if current.is_none() && wanted.adoption == Adoption::Adopt => {
            let message = format!(
                "{name} has no lifecycle policy, and adoptionPolicy is Adopt: set AdoptOrCreate to give it one"
            );
            return refused(Reason::NotFound, message);
        }
        _ => {}
    }
    let (mut changes, mut calls) = (Vec::new(), Vec::new());
    let mut owner = LifecycleOwner::new(&desired.cluster, &wanted.object, wanted.delete_on_removal);
    owner.by_operator = wanted.by == EnforcedBy::Operator;
    if let (None, Some(found)) = (&before, found)
        && found.tags.len() >= MAX_TAGS
    {
        return refused(Reason::TooManyTagsException, too_many_tags(name, found.tags.len()));
    }
    if let Some(before) = before.as_ref().filter(|before| before.delete != owner.delete) {
        let policy = |owner: &LifecycleOwner| {
            Some((if owner.delete { "Delete" } else { "Retain" }).to_owned())
        };
        changes.push(change("deletionPolicy", policy(before), policy(&owner)));
    }
    // The tag comes first: it makes the policy ours, so the next plan continues one that was interrupted.
    if before.as_ref() != Some(&owner) {
        calls.push(RepositoryCall::TagResource(
            Ownership { lifecycle: Some(owner), ..Ownership::default() }.tags(),
        ));
    }
    match (wanted.by, current) {
        (EnforcedBy::Registry, Some(current)) if equivalent(current, &wanted.document) => {}
        (EnforcedBy::Registry, current) => {
            match current {
                Some(current) => {
                    changes.extend(lifecycle_changes("lifecyclePolicy", current, &wanted.document))
                }
                None => changes.push(change("lifecyclePolicy", None, Some(show(&wanted.document)))),
            }
            calls.push(RepositoryCall::PutLifecyclePolicy(wanted.document.to_string()));
        }
        (EnforcedBy::Operator, Some(current)) => {
            // The registry does not know the images in use, and would expire them.
            changes.push(change("lifecyclePolicy", Some(show(current)), None));
            calls.push(RepositoryCall::DeleteLifecyclePolicy);
        }
        (EnforcedBy::Operator, None) => {}
    }
    let action = match (current, before.is_some()) {
        (None, true) if wanted.by == EnforcedBy::Operator => Action::Update,
        (None, _) => Action::Create,
        (Some(_), true) => Action::Update,
        (Some(_), false) => Action::Adopt,
    };
    if changes.is_empty() && !calls.is_empty() {
        changes.push(match action {
            Action::Create => {
                change("enforced by the operator", None, Some(show(&wanted.document)))
            }
            _ => change("ownership tags", None, None),
        });
    }
    Ok((action, changes, calls))
}

fn preview(
    desired: &Desired,
    wanted: &DesiredLifecyclePolicy,
    found: Option<&ObservedRepository>,
    enforced: bool,
) -> Changes {
    let (mut changes, mut calls) = (Vec::new(), Vec::new());
    let owner = found.and_then(|found| LifecycleOwner::read(&found.tags));
    let ours = owner.is_some_and(|owner| desired.is_our_policy(&owner, &wanted.object));
    if let Some(found) = found.filter(|_| ours && !enforced) {
        // The policy was enforced until now, and must not expire images any more.
        if let Some(current) = &found.lifecycle_policy {
            changes.push(change("lifecyclePolicy", Some(show(current)), None));
            calls.push(RepositoryCall::DeleteLifecyclePolicy);
        }
        calls.push(untag(found));
    }
    let previewed = found.and_then(|found| found.preview.as_ref());
    // The operator evaluates what the registry cannot.
    if wanted.by == EnforcedBy::Registry
        && !previewed.is_some_and(|previewed| equivalent(previewed, &wanted.document))
    {
        changes.push(change("preview", None, Some(show(&wanted.document))));
        calls.push(RepositoryCall::StartLifecyclePolicyPreview(wanted.document.to_string()));
    }
    (Action::Preview, changes, calls)
}

/// Returns the step that starts the registry's preview again; `None` if the registry does not preview the policy.
pub(super) fn reevaluation(wanted: &DesiredLifecyclePolicy, name: &RepositoryName) -> Option<Step> {
    let previewed = wanted.mode == LifecycleMode::Preview && wanted.by == EnforcedBy::Registry;
    (previewed && wanted.management == Management::Full).then(|| Step {
        action: Action::Preview,
        object: wanted.object.clone(),
        key: name.clone().into(),
        arn: None,
        changes: Vec::new(),
        calls: vec![
            RepositoryCall::StartLifecyclePolicyPreview(wanted.document.to_string()).into(),
        ],
    })
}

/// Returns whether two documents mean the same. A document that this version cannot read equals only itself.
pub fn equivalent(one: &Value, other: &Value) -> bool {
    match (Policy::from_value(one), Policy::from_value(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}

/// Returns a short text of all rules.
fn show(document: &Value) -> String {
    let Ok(policy) = Policy::from_value(document) else { return document.to_string() };
    let rules = policy.rules().iter().map(|rule| format!("{} {}", rule.priority, show_rule(rule)));
    rules.collect::<Vec<_>>().join("; ")
}

/// Returns a short text of one rule.
pub(crate) fn show_rule(rule: &Rule) -> String {
    let list = |list: &BTreeSet<String>, end: &str| {
        list.iter().map(|entry| format!("{entry}{end}")).collect::<Vec<_>>().join("+")
    };
    let tags = match &rule.tags {
        TagSelection::Any => "any".to_owned(),
        TagSelection::Untagged => "untagged".to_owned(),
        TagSelection::Prefixes(prefixes) => format!("tagged {}", list(prefixes, "*")),
        TagSelection::Patterns(patterns) => format!("tagged {}", list(patterns, "")),
    };
    let count = match rule.count {
        Count::MoreThan(number) => format!("imageCountMoreThan {number}"),
        Count::SincePushed(days) => format!("sinceImagePushed {days} days"),
        Count::SincePulled(days) => format!("sinceImagePulled {days} days"),
        Count::SinceTransitioned(days) => format!("sinceImageTransitioned {days} days"),
    };
    let action = match rule.action {
        lifecycle::Action::Expire => "expire",
        lifecycle::Action::Transition => "archive",
    };
    format!("{action} {tags} {count}")
}

/// Returns the call that removes the tag with the policy's owner.
pub(super) fn untag(found: &ObservedRepository) -> RepositoryCall {
    RepositoryCall::UntagResource(
        found.tags.keys().filter(|key| is_lifecycle_tag(key)).cloned().collect(),
    )
}
