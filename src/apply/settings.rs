//! The settings of a registry as a whole: looked at where they are spoken of, and put.
//!
//! ECR's operations for them take no registry id: they are about the registry of whoever calls.

use std::collections::BTreeMap;

use aws_sdk_ecr::error::ProvideErrorMetadata as _;
use aws_sdk_ecr::types;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::Value;

use super::client::{Ecr, api_error};
use super::error::client_error;
use super::observe::{document, registry_id, unexpected};
use wharfage_crd::Reason;
use wharfage_domain::scanning::{ScanFrequency, ScanType, ScanningConfiguration, ScanningRule};
use wharfage_plan::Call;
use wharfage_plan::model::{ApiError, Desired, ErrorKind, Observed};

/// What is there of the settings that `desired` speaks of, and nothing of the repositories.
pub async fn observe_settings(ecr: &Ecr, desired: &Desired) -> Observed {
    let mut observed = Observed::default();
    let (settings, policy) = (&desired.account_settings, desired.policy.is_some());
    let scanning = desired.scanning_configuration.is_some();
    if settings.is_empty() && !policy && !scanning {
        return observed;
    }
    if let Err(error) = own_registry(ecr).await {
        observed.account_settings = Err(error.clone());
        observed.policy = Err(error.clone());
        observed.scanning_configuration = Err(error);
        return observed;
    }
    if !settings.is_empty() {
        let found = account_settings(ecr, settings.keys()).await;
        observed.account_settings = found.map_err(|error| lacking(error, "account settings"));
    }
    if policy {
        observed.policy = registry_policy(ecr).await.map_err(|error| lacking(error, "policy"));
    }
    if scanning {
        let found = scanning_configuration(ecr).await;
        observed.scanning_configuration = found.map_err(|error| lacking(error, "scanning configuration"));
    }
    observed
}

/// Another account's registry would be meant, and the caller's own be changed.
async fn own_registry(ecr: &Ecr) -> Result<(), ApiError> {
    let Some(meant) = &ecr.registry_id else { return Ok(()) };
    let own = registry_id(ecr).await?;
    if own == *meant {
        return Ok(());
    }
    let message = format!(
        "the credentials belong to registry {own}, not to {meant}, and a registry's settings are its own account's matter: \
         correct registryId, or the credentials"
    );
    Err(ApiError::new(ErrorKind::Other, Reason::RegistryIdMismatch.as_str(), message))
}

fn lacking(error: ApiError, what: &str) -> ApiError {
    if error.kind != ErrorKind::UnsupportedOperation {
        return error;
    }
    let message = format!("this registry has no {what} ({error}): take that out of the manifest");
    ApiError::new(ErrorKind::UnsupportedOperation, Reason::UnsupportedByRegistry.as_str(), message)
}

async fn account_settings(
    ecr: &Ecr,
    names: impl Iterator<Item = &String>,
) -> Result<BTreeMap<String, String>, ApiError> {
    let found = stream::iter(names).then(|name| async move {
        let answer = ecr.client.get_account_setting().name(name).send().await.map_err(|error| api_error(&error))?;
        Ok((name.clone(), answer.value().unwrap_or_default().to_owned()))
    });
    found.try_collect().await
}

async fn registry_policy(ecr: &Ecr) -> Result<Option<Value>, ApiError> {
    match ecr.client.get_registry_policy().send().await {
        Ok(answer) => document("policyText", answer.policy_text()),
        Err(error) if error.code() == Some("RegistryPolicyNotFoundException") => Ok(None),
        Err(error) => Err(api_error(&error)),
    }
}

async fn scanning_configuration(ecr: &Ecr) -> Result<ScanningConfiguration, ApiError> {
    let answer = ecr.client.get_registry_scanning_configuration().send().await.map_err(|error| api_error(&error))?;
    let Some(found) = answer.scanning_configuration() else { return Ok(ScanningConfiguration::default()) };
    let scan_type = match found.scan_type() {
        None => ScanType::default(),
        Some(text) => known("scanType", text.as_str(), &ScanType::ALL, ScanType::as_str)?,
    };
    let rules = found.rules().iter().map(|rule| {
        let frequency = rule.scan_frequency().as_str();
        let scan_frequency = known("scanFrequency", frequency, &ScanFrequency::ALL, ScanFrequency::as_str)?;
        let filters = rule.repository_filters().iter().map(|it| it.filter().to_owned()).collect();
        Ok(ScanningRule { scan_frequency, filters })
    });
    Ok(ScanningConfiguration { scan_type, rules: rules.collect::<Result<_, ApiError>>()? })
}

fn known<T: Copy>(field: &str, text: &str, all: &[T], spelling: fn(T) -> &'static str) -> Result<T, ApiError> {
    all.iter().copied().find(|it| spelling(*it) == text).ok_or_else(|| unexpected(field, text))
}

/// Makes a call that is about the registry as a whole; false when it is about something else.
pub(super) async fn put(ecr: &Ecr, call: &Call) -> Result<bool, ApiError> {
    let client = &ecr.client;
    match call {
        Call::PutAccountSetting { name, value } => {
            let sent = client.put_account_setting().name(name).value(value).send().await;
            sent.map_err(|error| api_error(&error))?;
        }
        Call::PutRegistryPolicy(text) => {
            let sent = client.put_registry_policy().policy_text(text).send().await;
            sent.map_err(|error| api_error(&error))?;
        }
        Call::DeleteRegistryPolicy => match client.delete_registry_policy().send().await {
            // What is gone already needs no deleting.
            Err(error) if error.code() != Some("RegistryPolicyNotFoundException") => return Err(api_error(&error)),
            _ => {}
        },
        Call::PutRegistryScanningConfiguration(wanted) => {
            let request = client.put_registry_scanning_configuration();
            let request = request.scan_type(types::ScanType::from(wanted.scan_type.as_str()));
            let rules = wanted.rules.iter().map(rule).collect::<Result<_, _>>()?;
            request.set_rules(Some(rules)).send().await.map_err(|error| api_error(&error))?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn rule(wanted: &ScanningRule) -> Result<types::RegistryScanningRule, ApiError> {
    let filter = |filter: &String| {
        let kind = types::ScanningRepositoryFilterType::Wildcard;
        types::ScanningRepositoryFilter::builder().filter(filter).filter_type(kind).build()
    };
    let filters = wanted.filters.iter().map(filter).collect::<Result<_, _>>();
    let rule = types::RegistryScanningRule::builder()
        .scan_frequency(types::ScanFrequency::from(wanted.scan_frequency.as_str()))
        .set_repository_filters(Some(filters.map_err(|error| client_error(error.to_string()))?));
    rule.build().map_err(|error| client_error(error.to_string()))
}
