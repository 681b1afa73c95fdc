//! The registry's scanning configuration, and its effect on each repository.

use serde_json::{Value, json};

use super::EcrCall;
use super::error::{EcrError, RepositoryRef};
use super::input::{self, input, invalid, required};
use super::registry::Nothing;
use wharfage_domain::scanning::{
    FILTER_PATTERN, ScanFrequency, ScanType, ScanningConfiguration, ScanningRule, is_filter,
};
use wharfage_store::registries::RegistryChange;

input! {
    /// The input of PutRegistryScanningConfiguration.
    Put { scan_type: String, rules: Vec<Rule> }
}

input! {
    /// ECR's `RegistryScanningRule`.
    Rule { scan_frequency: String, repository_filters: Vec<Filter> }
}

input! {
    /// ECR's `ScanningRepositoryFilter`.
    Filter { filter: String, filter_type: String }
}

/// PutRegistryScanningConfiguration. Omitted members are reset to the default: BASIC without rules.
pub(crate) async fn put(call: &EcrCall, input: Put) -> Result<Value, EcrError> {
    let configuration = configuration(input)?;
    let account = &call.principal.account;
    call.authorize_registry(account)?;
    let output = json!({ "registryScanningConfiguration": shape(&configuration) });
    if configuration != ScanningConfiguration::default() {
        tracing::warn!(%account, "a scanning configuration was put; it is stored, and no image is scanned yet");
    }
    call.registry
        .metadata
        .change_registry(account, RegistryChange::Scanning(configuration))
        .await?;
    Ok(output)
}

fn configuration(input: Put) -> Result<ScanningConfiguration, EcrError> {
    let scan_type = input.scan_type.as_deref().unwrap_or(ScanType::default().as_str());
    let scan_type =
        input::one_of("scanType", scan_type, &ScanType::ALL.map(|it| (it.as_str(), it)))?;
    let rules = input.rules.unwrap_or_default();
    input::count("rules", &rules, 0..=2)?;
    let rules = rules.into_iter().map(rule).collect::<Result<_, _>>()?;
    let configuration = ScanningConfiguration { scan_type, rules };
    match configuration.fault() {
        Some(fault) => Err(EcrError::Validation(fault)),
        None => Ok(configuration),
    }
}

fn rule(rule: Rule) -> Result<ScanningRule, EcrError> {
    const FREQUENCY: &str = "rules.scanFrequency";
    const FILTERS: &str = "rules.repositoryFilters";
    let frequency = required(FREQUENCY, rule.scan_frequency)?;
    let scan_frequency =
        input::one_of(FREQUENCY, &frequency, &ScanFrequency::ALL.map(|it| (it.as_str(), it)))?;
    let filters = required(FILTERS, rule.repository_filters)?;
    input::count(FILTERS, &filters, 0..=100)?;
    Ok(ScanningRule {
        scan_frequency,
        filters: filters.into_iter().map(filter).collect::<Result<_, _>>()?,
    })
}

fn filter(filter: Filter) -> Result<String, EcrError> {
    const FILTER: &str = "rules.repositoryFilters.filter";
    const TYPE: &str = "rules.repositoryFilters.filterType";
    input::one_of(TYPE, &required(TYPE, filter.filter_type)?, &[("WILDCARD", ())])?;
    let filter = required(FILTER, filter.filter)?;
    input::length(FILTER, &filter, 1..=255)?;
    if !is_filter(&filter) {
        return Err(invalid(FILTER, format!("must satisfy regular expression '{FILTER_PATTERN}'")));
    }
    Ok(filter)
}

/// GetRegistryScanningConfiguration.
pub(crate) async fn get(call: &EcrCall, _: Nothing) -> Result<Value, EcrError> {
    let account = &call.principal.account;
    call.authorize_registry(account)?;
    let settings = call.registry.metadata.registry_settings(account).await?;
    Ok(json!({ "registryId": account, "scanningConfiguration": shape(&settings.scanning) }))
}

/// ECR's `RegistryScanningConfiguration`.
fn shape(configuration: &ScanningConfiguration) -> Value {
    let rules = configuration.rules.iter().map(|rule| {
        let filters = filters(rule.filters.iter().map(String::as_str));
        json!({ "scanFrequency": rule.scan_frequency.as_str(), "repositoryFilters": filters })
    });
    json!({ "scanType": configuration.scan_type.as_str(), "rules": rules.collect::<Value>() })
}

fn filters<'a>(filters: impl Iterator<Item = &'a str>) -> Value {
    filters.map(|filter| json!({ "filter": filter, "filterType": "WILDCARD" })).collect()
}

input! {
    /// The input of BatchGetRepositoryScanningConfiguration.
    BatchGet { repository_names: Vec<String> }
}

/// BatchGetRepositoryScanningConfiguration.
pub(crate) async fn batch_get(call: &EcrCall, input: BatchGet) -> Result<Value, EcrError> {
    let names = required("repositoryNames", input.repository_names)?;
    input::count("repositoryNames", &names, 1..=25)?;
    let account = &call.principal.account;
    let mut places = Vec::with_capacity(names.len());
    for name in &names {
        let repository_ref =
            RepositoryRef::new(account, &input::repository_name("repositoryNames", name)?);
        call.authorize(&repository_ref)?;
        places.push(repository_ref);
    }
    let configuration = call.registry.metadata.registry_settings(account).await?.scanning;
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    for RepositoryRef { account, name } in places {
        let Some(repository) = call.registry.metadata.find_repository(&account, &name).await?
        else {
            failures.push(json!({
                "repositoryName": name,
                "failureCode": "REPOSITORY_NOT_FOUND",
                "failureReason": EcrError::RepositoryNotFound(RepositoryRef { account, name: name.clone() }).to_string(),
            }));
            continue;
        };
        let scanning = configuration.of_repository(&name, repository.scan_on_push);
        found.push(json!({
            "repositoryArn": call.registry.arn(&account, &name).to_string(),
            "repositoryName": name,
            "scanOnPush": scanning.frequency != ScanFrequency::Manual,
            "scanFrequency": scanning.frequency.as_str(),
            "appliedScanFilters": filters(scanning.filters.into_iter()),
        }));
    }
    Ok(json!({ "scanningConfigurations": found, "failures": failures }))
}
