//! Decides about each setting of a registry as a whole.

use std::collections::{BTreeMap, BTreeSet};

use super::{DesiredSettings, KIND};
use crate::diff::policy_changes;
use crate::document::{Author, merge};
use crate::field_change::change;
use crate::model::{ApiError, Refused};
use crate::{Action, Desired, FieldChange, Object, Observed, RegistryDocument, SettingsCall, Step};
use wharfage_crd::Reason;
use wharfage_domain::policy;

/// Returns the first setting that two Registries want to have different values.
pub fn contested(one: &Desired, other: &Desired) -> Option<String> {
    let (one, other) = (&one.settings, &other.settings);
    let merged = merge(&[], &[author(one), author(other)]);
    let mut conflicts = merged.authors.iter().flat_map(|it| &it.conflicts);
    if let Some(conflict) = conflicts.find(|it| !it.agrees) {
        return Some(format!("accountSettings.{}", conflict.key));
    }
    if let (Some(one), Some(other)) = (&one.scanning_configuration, &other.scanning_configuration)
        && !one.is_equivalent(other)
    {
        return Some("scanningConfiguration".to_owned());
    }
    let same = match (one.policy.as_ref()?, other.policy.as_ref()?) {
        (Some(one), Some(other)) => policy::equivalent(policy::Kind::Registry, one, other),
        (one, other) => one.is_none() && other.is_none(),
    };
    (!same).then(|| "policy".to_owned())
}

/// Returns the account settings of one Registry as entries. ECR cannot remove one, so nothing is remembered.
fn author(settings: &DesiredSettings) -> Author<String, String> {
    let desired =
        settings.account_settings.iter().map(|(name, value)| (name.clone(), value.clone()));
    Author { desired: desired.collect(), last_applied: BTreeSet::new() }
}

type SettingsDecision = Result<Option<Step>, Refused>;

/// Decides about each setting separately, because a registry may support only some of them. The policy comes last, because it
/// may forbid the other changes.
pub(super) fn decide(desired: &Desired, observed: &Observed) -> [SettingsDecision; 3] {
    [account_settings(desired, observed), scanning(desired, observed), policy(desired, observed)]
}

fn account_settings(desired: &Desired, observed: &Observed) -> SettingsDecision {
    if desired.settings.account_settings.is_empty() {
        return Ok(None);
    }
    let found = readable(desired, "accountSettings", &observed.settings.account_settings)?;
    let current: Vec<_> = found.clone().into_iter().collect();
    let merged: BTreeMap<_, _> =
        merge(&current, &[author(&desired.settings)]).document.into_iter().collect();
    let different = merged.iter().filter(|(name, value)| found.get(*name) != Some(value));
    let changes = different.map(|(name, to)| {
        let changed =
            change(&format!("accountSettings.{name}"), found.get(name).cloned(), Some(to.clone()));
        (changed, SettingsCall::PutAccountSetting { name: name.clone(), value: to.clone() })
    });
    Ok(step(desired, RegistryDocument::AccountSettings, changes.unzip()))
}

fn scanning(desired: &Desired, observed: &Observed) -> SettingsDecision {
    const FIELD: &str = "scanningConfiguration";
    let Some(to) = &desired.settings.scanning_configuration else { return Ok(None) };
    let found = readable(desired, FIELD, &observed.settings.scanning_configuration)?;
    if found.is_equivalent(to) {
        return Ok(None);
    }
    let changed = change(FIELD, Some(found.to_string()), Some(to.to_string()));
    let call = SettingsCall::PutRegistryScanningConfiguration(to.clone());
    Ok(step(desired, RegistryDocument::ScanningConfiguration, (vec![changed], vec![call])))
}

fn policy(desired: &Desired, observed: &Observed) -> SettingsDecision {
    let Some(to) = &desired.settings.policy else { return Ok(None) };
    let found = readable(desired, "policy", &observed.settings.policy)?;
    let call = match (to, found) {
        (None, None) => return Ok(None),
        (Some(to), Some(found)) if policy::equivalent(policy::Kind::Registry, to, found) => {
            return Ok(None);
        }
        (Some(to), _) => SettingsCall::PutRegistryPolicy(to.to_string()),
        (None, Some(_)) => SettingsCall::DeleteRegistryPolicy,
    };
    let changes = policy_changes(policy::Kind::Registry, "policy", found.as_ref(), to.as_ref());
    Ok(step(desired, RegistryDocument::Policy, (changes, vec![call])))
}

fn registry(desired: &Desired) -> Object {
    Object { kind: KIND, namespace: String::new(), name: desired.registry.clone() }
}

fn readable<'o, T>(
    desired: &Desired,
    field: &str,
    found: &'o Result<T, ApiError>,
) -> Result<&'o T, Refused> {
    found.as_ref().map_err(|error| Refused {
        object: registry(desired),
        reason: Reason::of_error(&error.name),
        message: format!("{field} cannot be read: {}", error.message),
    })
}

fn step(
    desired: &Desired,
    document: RegistryDocument,
    (changes, calls): (Vec<FieldChange>, Vec<SettingsCall>),
) -> Option<Step> {
    (!calls.is_empty()).then(|| Step {
        action: Action::Update,
        object: registry(desired),
        key: document.into(),
        arn: None,
        changes,
        calls: calls.into_iter().map(Into::into).collect(),
    })
}
