//! Finds fields of manifests that Wharfage's registry stores and does not enforce yet.
//!
//! A Registry with `aws` is Amazon ECR, which enforces all of them.

use serde_json::Value;

use super::Desired;
use super::model::DesiredRepository;
use wharfage_crd::Registry;
use wharfage_domain::policy::{Kind, Policy};
use wharfage_domain::scanning::ScanningConfiguration;

/// Returns a sentence for each setting of a repository that the registry does not enforce yet.
pub fn unenforced(registry: &Registry, wanted: &DesiredRepository) -> Vec<String> {
    let denies = wanted.policy.as_ref().is_some_and(|document| denies(Kind::Repository, document));
    let scans = wanted.scan_on_push == Some(true);
    sentences(registry, [(denies, "repositoryPolicy"), (scans, "imageScanningConfiguration")])
}

/// Returns a sentence for each setting of a registry as a whole that it does not enforce yet.
pub fn unenforced_settings(registry: &Registry, wanted: &Desired) -> Vec<String> {
    let denies =
        wanted.settings.policy.iter().flatten().any(|document| denies(Kind::Registry, document));
    let scanning = wanted.settings.scanning_configuration.as_ref();
    let scans =
        scanning.is_some_and(|wanted| !wanted.is_equivalent(&ScanningConfiguration::default()));
    sentences(registry, [(denies, "policy"), (scans, "scanningConfiguration")])
}

fn sentences(
    registry: &Registry,
    [(denies, policy), (scans, scanning)]: [(bool, &str); 2],
) -> Vec<String> {
    let ours = registry.spec.aws.is_none();
    let deny = (ours && denies)
        .then(|| format!("{policy} has a Deny, which Wharfage's registry does not enforce yet"));
    let scan = (ours && scans)
        .then(|| format!("{scanning} is stored, but Wharfage's registry does not scan images yet"));
    deny.into_iter().chain(scan).collect()
}

fn denies(kind: Kind, document: &Value) -> bool {
    Policy::from_value(kind, document).is_ok_and(|policy| policy.denies())
}
