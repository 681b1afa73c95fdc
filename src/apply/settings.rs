//! Reads and writes the settings of a registry as a whole.
//!
//! ECR's operations for them take no registry id: they are about the caller's registry.

use std::collections::BTreeMap;

use aws_sdk_ecr::error::ProvideErrorMetadata as _;
use aws_sdk_ecr::types;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::Value;

use super::client::{Ecr, api_error};
use super::error::client_error;
use super::registry::registry_id;
use super::response::{document, unexpected};
use wharfage_crd::Reason;
use wharfage_domain::scanning::{ScanFrequency, ScanType, ScanningConfiguration, ScanningRule};
use wharfage_plan::model::{ApiError, ErrorKind};
use wharfage_plan::{DesiredSettings, ObservedSettings, RegistryDocument, SettingsCall};

/// Reads the settings that `desired` has, and nothing else. A setting that cannot be read is an error in the result.
pub async fn observe_settings(ecr: &Ecr, desired: &DesiredSettings) -> ObservedSettings {
    let mut observed = ObservedSettings::default();
    let documents = desired.documents();
    if documents.is_empty() {
        return observed;
    }
    if let Err(error) = check_account(ecr).await {
        observed.account_settings = Err(error.clone());
        observed.policy = Err(error.clone());
        observed.scanning_configuration = Err(error);
        return observed;
    }
    if documents.contains(&RegistryDocument::AccountSettings) {
        let found = account_settings(ecr, desired.account_settings.keys()).await;
        observed.account_settings = found.map_err(|error| unsupported(error, "account settings"));
    }
    if documents.contains(&RegistryDocument::Policy) {
        observed.policy = registry_policy(ecr).await.map_err(|error| unsupported(error, "policy"));
    }
    if documents.contains(&RegistryDocument::ScanningConfiguration) {
        let found = scanning_configuration(ecr).await;
        observed.scanning_configuration =
            found.map_err(|error| unsupported(error, "scanning configuration"));
    }
    observed
}

/// Checks that the caller's registry is the one to change, because the operations would change the caller's in any case.
async fn check_account(ecr: &Ecr) -> Result<(), ApiError> {
    let Some(expected) = &ecr.registry_id else { return Ok(()) };
    let own = registry_id(ecr).await?;
    if own == *expected {
        return Ok(());
    }
    let message = format!(
        "the credentials belong to registry {own}, not to {expected}, and a registry's settings are its own account's matter: \
         correct registryId, or the credentials"
    );
    Err(ApiError::new(ErrorKind::Other, Reason::RegistryIdMismatch.as_str(), message))
}

/// Adds what to do about an operation that the registry does not have.
fn unsupported(error: ApiError, what: &str) -> ApiError {
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
        let answer = ecr
            .client
            .get_account_setting()
            .name(name)
            .send()
            .await
            .map_err(|error| api_error(&error))?;
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
    let answer = ecr
        .client
        .get_registry_scanning_configuration()
        .send()
        .await
        .map_err(|error| api_error(&error))?;
    let Some(found) = answer.scanning_configuration() else {
        return Ok(ScanningConfiguration::default());
    };
    let scan_type = match found.scan_type() {
        None => ScanType::default(),
        Some(text) => known("scanType", text.as_str(), &ScanType::ALL, ScanType::as_str)?,
    };
    let rules = found.rules().iter().map(|rule| {
        let frequency = rule.scan_frequency().as_str();
        let scan_frequency =
            known("scanFrequency", frequency, &ScanFrequency::ALL, ScanFrequency::as_str)?;
        let filters = rule.repository_filters().iter().map(|it| it.filter().to_owned()).collect();
        Ok(ScanningRule { scan_frequency, filters })
    });
    Ok(ScanningConfiguration { scan_type, rules: rules.collect::<Result<_, ApiError>>()? })
}

fn known<T: Copy>(
    field: &str,
    text: &str,
    all: &[T],
    spelling: fn(T) -> &'static str,
) -> Result<T, ApiError> {
    all.iter().copied().find(|it| spelling(*it) == text).ok_or_else(|| unexpected(field, text))
}

/// Executes one call about the registry as a whole.
pub(super) async fn execute(ecr: &Ecr, call: &SettingsCall) -> Result<(), ApiError> {
    let client = &ecr.client;
    match call {
        SettingsCall::PutAccountSetting { name, value } => {
            let sent = client.put_account_setting().name(name).value(value).send().await;
            sent.map(drop).map_err(|error| api_error(&error))
        }
        SettingsCall::PutRegistryPolicy(text) => {
            let sent = client.put_registry_policy().policy_text(text).send().await;
            sent.map(drop).map_err(|error| api_error(&error))
        }
        SettingsCall::DeleteRegistryPolicy => match client.delete_registry_policy().send().await {
            // There is nothing to delete any more, which is a success.
            Err(error) if error.code() != Some("RegistryPolicyNotFoundException") => {
                Err(api_error(&error))
            }
            _ => Ok(()),
        },
        SettingsCall::PutRegistryScanningConfiguration(wanted) => {
            let request = client.put_registry_scanning_configuration();
            let request = request.scan_type(types::ScanType::from(wanted.scan_type.as_str()));
            let rules = wanted.rules.iter().map(rule).collect::<Result<_, _>>()?;
            request.set_rules(Some(rules)).send().await.map(drop).map_err(|error| api_error(&error))
        }
    }
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
