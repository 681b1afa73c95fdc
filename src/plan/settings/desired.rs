//! Reads the desired settings of a registry from its Registry.

use kube::ResourceExt as _;

use crate::Desired;
use crate::desired::{check_policy, object};
use crate::model::Refused;
use wharfage_crd::registry::{self, RegistrySpec};
use wharfage_crd::{Reason, Registry};
use wharfage_domain::policy::Kind;
use wharfage_domain::scanning::{ScanFrequency, ScanningConfiguration, ScanningRule};

/// Returns the desired settings of a registry as a whole, and nothing that is in it.
pub fn desired_settings(registry: &Registry, cluster: &str) -> Desired {
    let mut desired = Desired {
        cluster: cluster.to_owned(),
        registry: registry.name_any(),
        ..Desired::default()
    };
    let RegistrySpec { account_settings, scanning_configuration, policy, .. } = &registry.spec;
    let given = account_settings.clone().unwrap_or_default().given();
    desired.settings.account_settings =
        given.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    desired.settings.scanning_configuration = scanning_configuration.as_ref().map(scanning);
    match policy.as_ref().map(|document| document.to_value()) {
        // A document without members asks for no policy at all.
        Some(document) if document.as_object().is_some_and(serde_json::Map::is_empty) => {
            desired.settings.policy = Some(None)
        }
        Some(document) => match check_policy(registry, Kind::Registry, &document) {
            Ok(()) => desired.settings.policy = Some(Some(document)),
            Err(fault) => {
                let message = format!("policy is not valid: {fault}");
                desired.refused.push(Refused::new(
                    &object(registry),
                    Reason::InvalidParameterException,
                    message,
                ));
            }
        },
        None => {}
    }
    desired
}

fn scanning(wanted: &registry::ScanningConfiguration) -> ScanningConfiguration {
    let rules = wanted.rules.iter().map(|rule| ScanningRule {
        scan_frequency: match rule.scan_frequency {
            registry::ScanFrequency::ScanOnPush => ScanFrequency::ScanOnPush,
            registry::ScanFrequency::ContinuousScan => ScanFrequency::ContinuousScan,
        },
        filters: rule.repository_filters.iter().map(|it| it.filter.clone()).collect(),
    });
    let scan_type = wanted.scan_type.unwrap_or_default();
    ScanningConfiguration { scan_type, rules: rules.collect() }
}
