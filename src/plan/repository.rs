//! What becomes of one Repository: whether it may have the repository of its name, and what then is to change about it.

use std::collections::{BTreeMap, BTreeSet};

use super::decide::World;
use super::diff::policy_changes;
use super::model::{Adoption, ApiError, Desired, DesiredRepository, Management, ObservedRepository, Refused};
use super::ownership::{
    LifecycleOwner, MAX_TAGS, Manages, OWN_TAGS, Owner, Ownership, PREFIX, fingerprint, is_owner_tag, too_many_tags,
};
use super::{Action, Call, FieldChange, Object, Step, change};
use wharfage_crd::Reason;
use wharfage_domain::names::RepositoryName;
use wharfage_domain::policy;
use wharfage_domain::tag_mutability::TagMutability;

/// The answer to a Repository.
pub(super) struct Claim {
    /// What is done for it: nothing when all is as it should be.
    pub(super) decision: Result<Option<Step>, Refused>,
    /// Whether its repository is there (or will be) and may have lifecycle policies of ours.
    pub(super) usable: bool,
}

pub(super) fn claim(world: &World, wanted: &DesiredRepository) -> Claim {
    let found = world.observed.repositories.get(&wanted.name);
    let held = hold(world, wanted, found);
    let decision = match (wanted.management, held) {
        (Management::Full, Ok(hold)) => decide(world.desired, wanted, found, hold),
        (Management::Full, Err(refused)) => Err(refused),
        (Management::Observe, held) => {
            let usable = held.is_ok() && found.is_some();
            return Claim { decision: look(world, wanted, found), usable };
        }
        (Management::Suspended, held) => {
            return Claim { decision: Ok(None), usable: held.is_ok() && found.is_some() };
        }
    };
    let usable = decision.is_ok();
    Claim { decision, usable }
}

/// Whose a repository is that a Repository may have.
enum Hold {
    Its,
    /// Its own once this plan is executed: another identity owns it until then.
    TakenOver,
    Nobodys,
}

/// Whether this Repository may have the repository of its name.
fn hold(world: &World, wanted: &DesiredRepository, found: Option<&ObservedRepository>) -> Result<Hold, Refused> {
    let name = &wanted.name;
    if let Some(unreadable) = world.observed.unreadable.get(name) {
        return Err(unreadable_error(&wanted.object, name, unreadable));
    }
    let owner = found.and_then(|found| Ownership::read(&found.tags).owner);
    if let Some(owner) = &owner {
        if !world.desired.is_ours(&owner.cluster) {
            let hint = world.desired.adoption_hint(&owner.cluster);
            return Err(owned_by_another(world.desired, wanted, owner, &hint));
        }
        let object = owner.object();
        if object == wanted.object {
            let taken_over = world.desired.takes_over(&owner.cluster);
            return Ok(if taken_over { Hold::TakenOver } else { Hold::Its });
        }
        if world.holds(owner, name) {
            return Err(owned_by_another(world.desired, wanted, object, ""));
        }
    }
    // Nobody has it: the first that asks for it gets it.
    match world.claims(name).iter().find(|it| it.management == Management::Full) {
        Some(first) if first.object != wanted.object => Err(owned_by_another(world.desired, wanted, &first.object, "")),
        _ => Ok(Hold::Nobodys),
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
    let message = format!("{name} cannot be looked at: {}", unreadable.message);
    Refused { object: object.clone(), reason: Reason::of_error(&unreadable.name), message }
}

/// A Repository that may change nothing is refused only if there is nothing to look at.
fn look(
    world: &World,
    wanted: &DesiredRepository,
    found: Option<&ObservedRepository>,
) -> Result<Option<Step>, Refused> {
    let name = &wanted.name;
    if let Some(unreadable) = world.observed.unreadable.get(name) {
        return Err(unreadable_error(&wanted.object, name, unreadable));
    }
    if found.is_none() {
        let message = format!(
            "{name} does not exist, and managementPolicy is Observe: create it, or set managementPolicy to Full"
        );
        return Err(Refused::new(&wanted.object, Reason::NotFound, message));
    }
    Ok(None)
}

fn decide(
    desired: &Desired,
    wanted: &DesiredRepository,
    found: Option<&ObservedRepository>,
    hold: Hold,
) -> Result<Option<Step>, Refused> {
    let name = &wanted.name;
    let refused = |reason, message| Err(Refused::new(&wanted.object, reason, message));
    let Some(found) = found else {
        if wanted.adoption == Adoption::Adopt {
            return refused(
                Reason::NotFound,
                format!("{name} does not exist, and adoptionPolicy is Adopt: create it, or set AdoptOrCreate"),
            );
        }
        return Ok(Some(create(desired, wanted)));
    };
    let action = match hold {
        Hold::Its => Action::Update,
        Hold::TakenOver => Action::Adopt,
        Hold::Nobodys if wanted.adoption == Adoption::Create => {
            return refused(
                Reason::AlreadyExists,
                format!("{name} exists, and adoptionPolicy is Create: set AdoptOrCreate to take it over"),
            );
        }
        Hold::Nobodys => Action::Adopt,
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
    let count = tags_of_its_own(wanted, found);
    let is_new = action == Action::Adopt || wanted.tags.keys().any(|key| !found.tags.contains_key(key));
    if is_new && count > MAX_TAGS - OWN_TAGS {
        return refused(Reason::TooManyTagsException, too_many_tags(name, count));
    }
    Ok(update(desired, wanted, found, action))
}

/// The tags that go: what the owner's manifest had set and doesn't any more, and ours that no version writes now.
fn stale_tags(wanted: &DesiredRepository, found: &ObservedRepository, had: &Manages) -> Vec<String> {
    let ours = Ownership { owner: Some(Owner::new("", &wanted.object)), ..Ownership::default() }.tags();
    let stays = |key: &String| wanted.tags.contains_key(key) || ours.contains_key(key);
    let stale = |key: &String| !stays(key) && (had.tag_keys.contains(&fingerprint(key)) || is_owner_tag(key));
    found.tags.keys().filter(|key| stale(key)).cloned().collect()
}

/// How many tags the repository would have, beside those that say whose it is.
fn tags_of_its_own(wanted: &DesiredRepository, found: &ObservedRepository) -> usize {
    let gone = stale_tags(wanted, found, &Ownership::read(&found.tags).manages);
    let stay = found.tags.keys().filter(|key| !key.starts_with(PREFIX) && !gone.contains(key));
    stay.chain(wanted.tags.keys()).collect::<BTreeSet<_>>().len()
}

/// Two ways to write the same key count as one: ECR reads an id back as a full ARN, and what an alias stands for cannot be
/// told from its name.
fn same_encryption(wanted: &(String, Option<String>), found: &(String, Option<String>)) -> bool {
    let key = |wanted: &str, found: &str| found == wanted || found.ends_with(&format!(":key/{wanted}"));
    wanted.0 == found.0
        && match (&wanted.1, &found.1) {
            (Some(wanted), Some(found)) => wanted.contains("alias/") || key(wanted, found),
            (Some(_), None) => false,
            (None, _) => true,
        }
}

/// What the owner's manifest sets now.
fn manages(wanted: &DesiredRepository) -> Manages {
    Manages {
        policy: wanted.policy.is_some(),
        mutability: wanted.tag_mutability.is_some(),
        scanning: wanted.scan_on_push.is_some(),
        on_removal: wanted.on_removal,
        tag_keys: wanted.tags.keys().map(|key| fingerprint(key)).collect(),
    }
}

/// The manifest's tags, and those that say whose the repository is.
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
    let mut changes = vec![change("imageTagMutability", None, Some(show_mutability(&tag_mutability)))];
    if scan_on_push {
        changes.push(change("scanOnPush", None, Some("true".into())));
    }
    if let Some((kind, key)) = &wanted.encryption {
        changes.push(change("encryptionType", None, Some(kind.clone())));
        changes.extend(key.as_ref().map(|key| change("kmsKey", None, Some(key.clone()))));
    }
    changes.extend(wanted.tags.iter().map(|(key, value)| change(&format!("tags.{key}"), None, Some(value.clone()))));
    let tags = tags(desired, wanted, manages(wanted), None);
    let encryption = wanted.encryption.clone();
    let mut calls = vec![Call::CreateRepository { tag_mutability, scan_on_push, encryption, tags }];
    if let Some(document) = &wanted.policy {
        changes.push(change("repositoryPolicy", None, Some(document.to_string())));
        calls.push(Call::SetRepositoryPolicy(document.to_string()));
    }
    Step {
        action: Action::Create,
        object: wanted.object.clone(),
        repository: Some(wanted.name.clone()),
        arn: None,
        changes,
        calls,
    }
}

/// The differences of a repository that is there; what a manifest does not speak of, and never did, is let be.
fn update(desired: &Desired, wanted: &DesiredRepository, found: &ObservedRepository, action: Action) -> Option<Step> {
    let before = Ownership::read(&found.tags);
    let had = &before.manages;
    let (mut changes, mut calls) = (Vec::new(), Vec::new());

    let default = || had.mutability.then_some(TagMutability::MUTABLE);
    if let Some(to) = wanted.tag_mutability.clone().or_else(default)
        && !same_mutability(&to, &found.tag_mutability)
    {
        let from = show_mutability(&found.tag_mutability);
        changes.push(change("imageTagMutability", Some(from), Some(show_mutability(&to))));
        calls.push(Call::PutImageTagMutability(to));
    }
    if let Some(scan_on_push) = wanted.scan_on_push.or_else(|| had.scanning.then_some(false))
        && scan_on_push != found.scan_on_push
    {
        changes.push(change("scanOnPush", Some(found.scan_on_push.to_string()), Some(scan_on_push.to_string())));
        calls.push(Call::PutImageScanningConfiguration { scan_on_push });
    }
    match (&wanted.policy, &found.policy) {
        (Some(to), from)
            if !from.as_ref().is_some_and(|from| policy::equivalent(policy::Kind::Repository, from, to)) =>
        {
            changes.extend(policy_changes(policy::Kind::Repository, "repositoryPolicy", from.as_ref(), Some(to)));
            calls.push(Call::SetRepositoryPolicy(to.to_string()));
        }
        (None, Some(from)) if had.policy => {
            changes.push(change("repositoryPolicy", Some(from.to_string()), None));
            calls.push(Call::DeleteRepositoryPolicy);
        }
        _ => {}
    }

    // Written down before a setting changes is what was managed or will be, and after it what is: whenever this is cut off,
    // the next plan still knows what it has to take back. Tags go first, while it is still written down whose they were:
    // old and new ones together may be more than a repository can have.
    let now = manages(wanted);
    let meanwhile = if calls.is_empty() { now.clone() } else { now.with_settings_of(had) };
    let last = tags(desired, wanted, now, before.lifecycle.clone());
    let first = tags(desired, wanted, meanwhile, before.lifecycle.clone());
    let gone = stale_tags(wanted, found, had);
    changes.extend(tag_changes(wanted, found, &gone));
    let different = |tags: BTreeMap<String, String>, from: &BTreeMap<String, String>| -> BTreeMap<String, String> {
        tags.into_iter().filter(|(key, value)| from.get(key) != Some(value)).collect()
    };
    let (first, last) = (different(first.clone(), &found.tags), different(last, &with(&found.tags, &first)));
    if !first.is_empty() {
        calls.insert(0, Call::TagResource(first));
    }
    if !gone.is_empty() {
        calls.insert(0, Call::UntagResource(gone));
    }
    if !last.is_empty() {
        calls.push(Call::TagResource(last));
    }
    if action == Action::Update && wanted.on_removal != had.on_removal {
        changes.push(change("deletionPolicy", Some(had.on_removal.to_string()), Some(wanted.on_removal.to_string())));
    }
    if changes.is_empty() && action == Action::Update && !calls.is_empty() {
        changes.push(change("ownership tags", None, None));
    }
    (!calls.is_empty()).then(|| Step {
        action,
        object: wanted.object.clone(),
        repository: Some(wanted.name.clone()),
        arn: Some(found.arn.clone()),
        changes,
        calls,
    })
}

/// How a repository that is only looked at differs from its manifest. Whose it is does not matter.
pub fn differences(wanted: &DesiredRepository, found: &ObservedRepository) -> Vec<FieldChange> {
    let mut found = found.clone();
    found.tags.retain(|key, _| !is_owner_tag(key));
    let nobody = Desired::default();
    let step = update(&nobody, wanted, &found, Action::Adopt);
    step.map(|step| step.changes).unwrap_or_default()
}

fn with(tags: &BTreeMap<String, String>, more: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut tags = tags.clone();
    tags.extend(more.iter().map(|(key, value)| (key.clone(), value.clone())));
    tags
}

/// The differences of the manifest's own tags.
fn tag_changes(wanted: &DesiredRepository, found: &ObservedRepository, gone: &[String]) -> Vec<FieldChange> {
    let new = wanted.tags.iter().filter(|(key, value)| found.tags.get(*key) != Some(value));
    let new = new.map(|(key, to)| change(&format!("tags.{key}"), found.tags.get(key).cloned(), Some(to.clone())));
    let gone = gone.iter().filter(|key| !key.starts_with(PREFIX));
    let gone = gone.map(|key| change(&format!("tags.{key}"), found.tags.get(key).cloned(), None));
    new.chain(gone).collect()
}

/// The order of exclusion filters does not count.
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
