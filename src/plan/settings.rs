//! What becomes of the settings that a Registry has for the registry as a whole.
//!
//! Nothing in a registry remembers who set them: one that the manifest does not speak of is let be, also if it did before.

use super::diff::policy_changes;
use super::model::{ApiError, Desired, Observed, Refused};
use super::{Action, Call, FieldChange, Object, Step, change};
use wharfage_crd::Reason;
use wharfage_domain::policy;

/// The first setting of which two Registries want different things.
pub fn contested(one: &Desired, other: &Desired) -> Option<String> {
    let account = one
        .account_settings
        .iter()
        .find(|(name, value)| other.account_settings.get(*name).is_some_and(|wanted| wanted != *value));
    if let Some((name, _)) = account {
        return Some(format!("accountSettings.{name}"));
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

type Decision = Result<Option<Step>, Refused>;

/// Decides about each setting by itself, as a registry may have one and lack another. The policy comes last: it may forbid
/// what the others do.
pub(super) fn decide(desired: &Desired, observed: &Observed) -> [Decision; 3] {
    [account_settings(desired, observed), scanning(desired, observed), policy(desired, observed)]
}

fn account_settings(desired: &Desired, observed: &Observed) -> Decision {
    if desired.account_settings.is_empty() {
        return Ok(None);
    }
    let found = known(desired, "accountSettings", &observed.account_settings)?;
    let different = desired.account_settings.iter().filter(|(name, value)| found.get(*name) != Some(value));
    let work = different.map(|(name, to)| {
        let changed = change(&format!("accountSettings.{name}"), found.get(name).cloned(), Some(to.clone()));
        (changed, Call::PutAccountSetting { name: name.clone(), value: to.clone() })
    });
    Ok(step(desired, work.unzip()))
}

fn scanning(desired: &Desired, observed: &Observed) -> Decision {
    const FIELD: &str = "scanningConfiguration";
    let Some(to) = &desired.scanning_configuration else { return Ok(None) };
    let found = known(desired, FIELD, &observed.scanning_configuration)?;
    if found.is_equivalent(to) {
        return Ok(None);
    }
    let changed = change(FIELD, Some(found.to_string()), Some(to.to_string()));
    Ok(step(desired, (vec![changed], vec![Call::PutRegistryScanningConfiguration(to.clone())])))
}

fn policy(desired: &Desired, observed: &Observed) -> Decision {
    let Some(to) = &desired.policy else { return Ok(None) };
    let found = known(desired, "policy", &observed.policy)?;
    let call = match (to, found) {
        (None, None) => return Ok(None),
        (Some(to), Some(found)) if policy::equivalent(policy::Kind::Registry, to, found) => return Ok(None),
        (Some(to), _) => Call::PutRegistryPolicy(to.to_string()),
        (None, Some(_)) => Call::DeleteRegistryPolicy,
    };
    let changes = policy_changes(policy::Kind::Registry, "policy", found.as_ref(), to.as_ref());
    Ok(step(desired, (changes, vec![call])))
}

fn registry(desired: &Desired) -> Object {
    Object { kind: "Registry", namespace: String::new(), name: desired.registry.clone() }
}

fn known<'o, T>(desired: &Desired, field: &str, found: &'o Result<T, ApiError>) -> Result<&'o T, Refused> {
    found.as_ref().map_err(|error| Refused {
        object: registry(desired),
        reason: Reason::of_error(&error.name),
        message: format!("{field} cannot be looked at: {}", error.message),
    })
}

fn step(desired: &Desired, (changes, calls): (Vec<FieldChange>, Vec<Call>)) -> Option<Step> {
    (!calls.is_empty()).then(|| Step {
        action: Action::Update,
        object: registry(desired),
        repository: None,
        arn: None,
        changes,
        calls,
    })
}
