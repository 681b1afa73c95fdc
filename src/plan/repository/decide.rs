//! Decides about one Repository: whether it gets the repository of its name, and what changes there.

use std::collections::{BTreeMap, BTreeSet};

use crate::context::PlanContext;
use crate::diff::policy_changes;
use crate::field_change::change;
use crate::model::{
    Adoption, ApiError, DesiredRepository, Management, ObservedRepository, Refused,
};
use crate::ownership::{
    LifecycleOwner, MAX_TAGS, Manages, OWN_TAGS, Owner, Ownership, PREFIX, fingerprint,
    is_owner_tag, too_many_tags,
};
use crate::{Action, Desired, FieldChange, Object, RepositoryCall, Step};
use wharfage_crd::Reason;
use wharfage_domain::names::RepositoryName;
use wharfage_domain::policy;
use wharfage_domain::tag_mutability::TagMutability;

/// The decision about a Repository.
pub(super) struct RepositoryDecision {
    /// The step, if one is needed, or the refusal.
    pub(super) step: Result<Option<Step>, Refused>,
    /// The repository exists, or will, and may have lifecycle policies of ours.
    pub(super) is_usable: bool,
}

pub(super) fn decide(context: &PlanContext, wanted: &DesiredRepository) -> RepositoryDecision {
    let found = context.observed.repositories.get(&wanted.name);
    let availability = availability(context, wanted, found);
    let is_usable = availability.is_ok() && found.is_some();
    match wanted.management {
        Management::Full => {
            let step =
                availability.and_then(|it| change_repository(context.desired, wanted, found, it));
            RepositoryDecision { is_usable: step.is_ok(), step }
        }
        Management::Observe => {
            RepositoryDecision { step: observe(context, wanted, found).map(|()| None), is_usable }
        }
        Management::Suspended => RepositoryDecision { step: Ok(None), is_usable },
    }
}

/// The owner of a repository that a Repository may have.
enum Availability {
    Owned,
    /// Owned once this plan is executed: another identity, from which we adopt, owns it until then.
    Adoptable,
    Unowned,
}

/// Returns who owns the repository of this name, or why this Repository may not have it.
fn availability(
    context: &PlanContext,
    wanted: &DesiredRepository,
    found: Option<&ObservedRepository>,
) -> Result<Availability, Refused> {
    let name = &wanted.name;
    if let Some(unreadable) = context.observed.repositories.unreadable.get(name) {
        return Err(unreadable_error(&wanted.object, name, unreadable));
    }
    let owner = found.and_then(|found| Ownership::read(&found.tags).owner);
    if let Some(owner) = &owner {
        if !context.desired.is_ours(&owner.cluster) {
            let hint = context.desired.adoption_hint(&owner.cluster);
            return Err(owned_by_another(context.desired, wanted, owner, &hint));
        }
        let object = owner.object();
        if object == wanted.object {
            let adopts = context.desired.adopts_from(&owner.cluster);
            return Ok(if adopts { Availability::Adoptable } else { Availability::Owned });
        }
        if context.keeps(owner, name) {
            return Err(owned_by_another(context.desired, wanted, object, ""));
        }
    }
    // The repository has no owner: the first claim gets it.
    match context.claims(name).iter().find(|it| it.management == Management::Full) {
        Some(first) if first.object != wanted.object => {
            Err(owned_by_another(context.desired, wanted, &first.object, ""))
        }
        _ => Ok(Availability::Unowned),
    }
}

fn owned_by_another(
    desired: &Desired,
    wanted: &DesiredRepository,
    owner: impl std::fmt::Display,
    hint: &str,
) -> Refused {
    let (name, registry) = (&wanted.name, &desired.registry);
    let message = format!(
        "{name} in {registry} is managed by {owner}: give this one another repositoryName, or remove that one{hint}"
    );
    Refused::new(&wanted.object, Reason::OwnedByAnother, message)
}

fn unreadable_error(object: &Object, name: &RepositoryName, unreadable: &ApiError) -> Refused {
    let message = format!("{name} cannot be read: {}", unreadable.message);
    Refused { object: object.clone(), reason: Reason::of_error(&unreadable.name), message }
}

/// Refuses a Repository with managementPolicy Observe only if its repository cannot be observed.
fn observe(
    context: &PlanContext,
    wanted: &DesiredRepository,
    found: Option<&ObservedRepository>,
) -> Result<(), Refused> {
    let name = &wanted.name;
    if let Some(unreadable) = context.observed.repositories.unreadable.get(name) {
        return Err(unreadable_error(&wanted.object, name, unreadable));
    }
    if found.is_none() {
        let message = format!(
            "{name} does not exist, and managementPolicy is Observe: create it, or set managementPolicy to Full"
        );
        return Err(Refused::new(&wanted.object, Reason::NotFound, message));
    }
    Ok(())
}

fn change_repository(
    desired: &Desired,
    wanted: &DesiredRepository,
    found: Option<&ObservedRepository>,
    availability: Availability,
) -> Result<Option<Step>, Refused> {
    let name = &wanted.name;
    let refused = |reason, message| Err(Refused::new(&wanted.object, reason, message));
    let Some(found) = found else {
        if wanted.adoption == Adoption::Adopt {
            return refused(
                Reason::NotFound,
                format!(
                    "{name} does not exist, and adoptionPolicy is Adopt: create it, or set AdoptOrCreate"
                ),
            );
        }
        return Ok(Some(create(desired, wanted)));
    };
    let action = match availability {
        Availability::Owned => Action::Update,
        Availability::Adoptable => Action::Adopt,
        Availability::Unowned if wanted.adoption == Adoption::Create => {
            return refused(
                Reason::AlreadyExists,
                format!(
                    "{name} exists, and adoptionPolicy is Create: set AdoptOrCreate to adopt it"
                ),
            );
        }
        Availability::Unowned => Action::Adopt,
    };
    if let Some(encryption) = &wanted.encryption
        && !same_encryption(encryption, &found.encryption)
    {
        let show = |(kind, key): &(String, Option<String>)| match key {
            Some(key) => format!("{kind} ({key})"),
            None => kind.clone(),
        };
        let (found, wanted) = (show(&found.encryption), show(encryption));
        return refused(
            Reason::Immutable,
            format!(
                "{name} is encrypted with {found}, not {wanted}, and that cannot change: make another repository, and copy the \
                 images to it"
            ),
        );
    }
    let count = count_tags(wanted, found);
    let is_new =
        action == Action::Adopt || wanted.tags.keys().any(|key| !found.tags.contains_key(key));
    if is_new && count > MAX_TAGS - OWN_TAGS {
        return refused(Reason::TooManyTagsException, too_many_tags(name, count));
    }
    Ok(update(desired, wanted, found, action))
}

/// Returns the tags to remove: those that the owner's manifest no longer sets, and ours that this version does not write.
fn stale_tags(
    wanted: &DesiredRepository,
    found: &ObservedRepository,
    had: &Manages,
) -> Vec<String> {
    let ours =
        Ownership { owner: Some(Owner::new("", &wanted.object)), ..Ownership::default() }.tags();
    let stays = |key: &String| wanted.tags.contains_key(key) || ours.contains_key(key);
    let stale = |key: &String| {
        !stays(key) && (had.tag_keys.contains(&fingerprint(key)) || is_owner_tag(key))
    };
    found.tags.keys().filter(|key| stale(key)).cloned().collect()
}

/// Returns the number of tags that the repository would have, without the ownership tags.
fn count_tags(wanted: &DesiredRepository, found: &ObservedRepository) -> usize {
    let gone = stale_tags(wanted, found, &Ownership::read(&found.tags).manages);
    let stay = found.tags.keys().filter(|key| !key.starts_with(PREFIX) && !gone.contains(key));
    stay.chain(wanted.tags.keys()).collect::<BTreeSet<_>>().len()
}

/// Returns whether two encryption settings may mean the same key. ECR returns a key id as a full ARN, and an alias does not
/// reveal its key.
fn same_encryption(wanted: &(String, Option<String>), found: &(String, Option<String>)) -> bool {
    let key =
        |wanted: &str, found: &str| found == wanted || found.ends_with(&format!(":key/{wanted}"));
    wanted.0 == found.0
        && match (&wanted.1, &found.1) {
            (Some(wanted), Some(found)) => wanted.contains("alias/") || key(wanted, found),
            (Some(_), None) => false,
            (None, _) => true,
        }
}

/// Returns the fields that the manifest sets now.
fn manages(wanted: &DesiredRepository) -> Manages {
    Manages {
        policy: wanted.policy.is_some(),
        mutability: wanted.tag_mutability.is_some(),
        scanning: wanted.scan_on_push.is_some(),
        on_removal: wanted.on_removal,
        tag_keys: wanted.tags.keys().map(|key| fingerprint(key)).collect(),
    }
}

/// Returns the manifest's tags and the ownership tags.
fn tags(
    desired: &Desired,
    wanted: &DesiredRepository,
    manages: Manages,
    lifecycle: Option<LifecycleOwner>,
) -> BTreeMap<String, String> {
    let owner = Some(Owner::new(&desired.cluster, &wanted.object));
    let mut tags = wanted.tags.clone();
    tags.extend(Ownership { owner, manages, lifecycle }.tags());
    tags
}

fn create(desired: &Desired, wanted: &DesiredRepository) -> Step {
    let tag_mutability = wanted.tag_mutability.clone().unwrap_or(TagMutability::MUTABLE);
    let scan_on_push = wanted.scan_on_push.unwrap_or_default();
    let mut changes =
        vec![change("imageTagMutability", None, Some(show_mutability(&tag_mutability)))];
    if scan_on_push {
        changes.push(change("scanOnPush", None, Some("true".into())));
    }
    if let Some((kind, key)) = &wanted.encryption {
        changes.push(change("encryptionType", None, Some(kind.clone())));
        changes.extend(key.as_ref().map(|key| change("kmsKey", None, Some(key.clone()))));
    }
    changes.extend(
        wanted
            .tags
            .iter()
            .map(|(key, value)| change(&format!("tags.{key}"), None, Some(value.clone()))),
    );
    let tags = tags(desired, wanted, manages(wanted), None);
    let encryption = wanted.encryption.clone();
    let mut calls =
        vec![RepositoryCall::CreateRepository { tag_mutability, scan_on_push, encryption, tags }];
    if let Some(document) = &wanted.policy {
        changes.push(change("repositoryPolicy", None, Some(document.to_string())));
        calls.push(RepositoryCall::SetRepositoryPolicy(document.to_string()));
    }
    Step {
        action: Action::Create,
        object: wanted.object.clone(),
        key: wanted.name.clone().into(),
        arn: None,
        changes,
        calls: calls.into_iter().map(Into::into).collect(),
    }
}

/// Returns the step for a repository that exists. A field that the manifest does not set, and never set, is left unchanged.
fn update(
    desired: &Desired,
    wanted: &DesiredRepository,
    found: &ObservedRepository,
    action: Action,
) -> Option<Step> {
    let before = Ownership::read(&found.tags);
    let had = &before.manages;
    let (mut changes, mut calls) = (Vec::new(), Vec::new());

    let default = || had.mutability.then_some(TagMutability::MUTABLE);
    if let Some(to) = wanted.tag_mutability.clone().or_else(default)
        && !same_mutability(&to, &found.tag_mutability)
    {
        let from = show_mutability(&found.tag_mutability);
        changes.push(change("imageTagMutability", Some(from), Some(show_mutability(&to))));
        calls.push(RepositoryCall::PutImageTagMutability(to));
    }
    if let Some(scan_on_push) = wanted.scan_on_push.or_else(|| had.scanning.then_some(false))
        && scan_on_push != found.scan_on_push
    {
        changes.push(change(
            "scanOnPush",
            Some(found.scan_on_push.to_string()),
            Some(scan_on_push.to_string()),
        ));
        calls.push(RepositoryCall::PutImageScanningConfiguration { scan_on_push });
    }
    match (&wanted.policy, &found.policy) {
        (Some(to), from)
            if !from
                .as_ref()
                .is_some_and(|from| policy::equivalent(policy::Kind::Repository, from, to)) =>
        {
            changes.extend(policy_changes(
                policy::Kind::Repository,
                "repositoryPolicy",
                from.as_ref(),
                Some(to),
            ));
            calls.push(RepositoryCall::SetRepositoryPolicy(to.to_string()));
        }
        (None, Some(from)) if had.policy => {
            changes.push(change("repositoryPolicy", Some(from.to_string()), None));
            calls.push(RepositoryCall::DeleteRepositoryPolicy);
        }
        _ => {}
    }

    // Before a setting changes, the tag records the fields that were or will be managed; afterwards, those that are. So the
    // next plan knows what to reset, wherever this one is interrupted. Tags are removed first, while the record still lists
    // them, because old and new ones together may be more than a repository can have.
    let now = manages(wanted);
    let meanwhile = if calls.is_empty() { now.clone() } else { now.with_settings_of(had) };
    let last = tags(desired, wanted, now, before.lifecycle.clone());
    let first = tags(desired, wanted, meanwhile, before.lifecycle.clone());
    let gone = stale_tags(wanted, found, had);
    changes.extend(tag_changes(wanted, found, &gone));
    let different = |tags: BTreeMap<String, String>,
                     from: &BTreeMap<String, String>|
     -> BTreeMap<String, String> {
        tags.into_iter().filter(|(key, value)| from.get(key) != Some(value)).collect()
    };
    let (first, last) =
        (different(first.clone(), &found.tags), different(last, &with(&found.tags, &first)));
    if !first.is_empty() {
        calls.insert(0, RepositoryCall::TagResource(first));
    }
    if !gone.is_empty() {
        calls.insert(0, RepositoryCall::UntagResource(gone));
    }
    if !last.is_empty() {
        calls.push(RepositoryCall::TagResource(last));
    }
    if action == Action::Update && wanted.on_removal != had.on_removal {
        changes.push(change(
            "deletionPolicy",
            Some(had.on_removal.to_string()),
            Some(wanted.on_removal.to_string()),
        ));
    }
    if changes.is_empty() && action == Action::Update && !calls.is_empty() {
        changes.push(change("ownership tags", None, None));
    }
    (!calls.is_empty()).then(|| Step {
        action,
        object: wanted.object.clone(),
        key: wanted.name.clone().into(),
        arn: Some(found.arn.clone()),
        changes,
        calls: calls.into_iter().map(Into::into).collect(),
    })
}

/// Returns how an observed repository differs from its manifest, no matter who owns it.
pub fn differences(wanted: &DesiredRepository, found: &ObservedRepository) -> Vec<FieldChange> {
    let mut found = found.clone();
    found.tags.retain(|key, _| !is_owner_tag(key));
    let no_owner = Desired::default();
    let step = update(&no_owner, wanted, &found, Action::Adopt);
    step.map(|step| step.changes).unwrap_or_default()
}

fn with(
    tags: &BTreeMap<String, String>,
    more: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut tags = tags.clone();
    tags.extend(more.iter().map(|(key, value)| (key.clone(), value.clone())));
    tags
}

/// Returns the changes of the manifest's own tags.
fn tag_changes(
    wanted: &DesiredRepository,
    found: &ObservedRepository,
    gone: &[String],
) -> Vec<FieldChange> {
    let new = wanted.tags.iter().filter(|(key, value)| found.tags.get(*key) != Some(value));
    let new = new.map(|(key, to)| {
        change(&format!("tags.{key}"), found.tags.get(key).cloned(), Some(to.clone()))
    });
    let gone = gone.iter().filter(|key| !key.starts_with(PREFIX));
    let gone = gone.map(|key| change(&format!("tags.{key}"), found.tags.get(key).cloned(), None));
    new.chain(gone).collect()
}

/// Compares without the order of the exclusion filters.
fn same_mutability(a: &TagMutability, b: &TagMutability) -> bool {
    let filters = |it: &TagMutability| it.exclusions.iter().cloned().collect::<BTreeSet<_>>();
    a.mode == b.mode && filters(a) == filters(b)
}

fn show_mutability(it: &TagMutability) -> String {
    match it.exclusions.as_slice() {
        [] => it.mode.as_str().to_owned(),
        filters => format!("{} ({})", it.mode.as_str(), filters.join(", ")),
    }
}
