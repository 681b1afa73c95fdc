//! Tests of the kinds' methods, beyond what the generated rules are tested for.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResourceExt as _;
use serde_json::json;

use super::common::selects;
use super::conditions::{ConditionType, set_condition};
use super::*;

fn registry(spec: serde_json::Value) -> Registry {
    serde_json::from_value(json!({ "metadata": { "name": "home" }, "spec": spec })).unwrap()
}

fn repository(namespace: &str, name: &str, labels: serde_json::Value) -> Repository {
    let metadata = json!({ "name": name, "namespace": namespace, "labels": labels });
    serde_json::from_value(
        json!({ "metadata": metadata, "spec": { "registryRef": { "name": "home" } } }),
    )
    .unwrap()
}

fn policy(targets: serde_json::Value) -> LifecyclePolicy {
    let mut spec = json!({ "registryRef": { "name": "home" }, "rules": [] });
    spec.as_object_mut().unwrap().extend(targets.as_object().unwrap().clone());
    serde_json::from_value(
        json!({ "metadata": { "name": "keep", "namespace": "team" }, "spec": spec }),
    )
    .unwrap()
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn the_group_and_version_are_those_of_the_constants() {
    let resources = [
        Registry::api_resource(),
        Repository::api_resource(),
        LifecyclePolicy::api_resource(),
        PullSecret::api_resource(),
    ];
    for resource in resources {
        assert_eq!((resource.group.as_str(), resource.version.as_str()), (GROUP, VERSION));
        assert_eq!(resource.api_version, API_VERSION);
    }
}

#[test]
fn a_managed_registry_has_a_region_and_an_id_without_saying_so() {
    let managed = registry(json!({ "managed": {} }));
    assert_eq!(managed.region().as_str(), "local-1");
    assert_eq!(managed.registry_id().unwrap().as_str(), "000000000000");
    assert_eq!(registry(json!({ "region": "eu-1", "aws": {} })).registry_id(), None);
}

#[test]
fn without_allowed_namespaces_every_namespace_may_use_every_name() {
    assert!(registry(json!({ "managed": {} })).allows(None, "any/thing"));
}

#[test]
fn allowed_namespaces_may_use_their_prefixes_only() {
    let limited = registry(json!({ "managed": {}, "allowedNamespaces": [
        { "selector": { "matchLabels": { "team": "payments" } }, "repositoryPrefixes": ["payments/"] },
        { "selector": { "matchLabels": { "team": "platform" } } },
    ] }));
    let (payments, platform) = (labels(&[("team", "payments")]), labels(&[("team", "platform")]));
    assert!(limited.allows(Some(&payments), "payments/api"));
    assert!(!limited.allows(Some(&payments), "billing/api"));
    assert!(limited.allows(Some(&platform), "billing/api"));
    assert!(!limited.allows(None, "payments/api"));
    let nobody = registry(json!({ "managed": {}, "allowedNamespaces": [] }));
    assert!(!nobody.allows(Some(&platform), "payments/api"));
}

#[test]
fn account_settings_are_named_as_ecr_names_them() {
    let registry = registry(
        json!({ "managed": {}, "accountSettings": { "BLOB_MOUNTING": "ENABLED", "REGISTRY_POLICY_SCOPE": "V2" } }),
    );
    let settings = registry.spec.account_settings.unwrap().given();
    assert_eq!(settings, [("BLOB_MOUNTING", "ENABLED"), ("REGISTRY_POLICY_SCOPE", "V2")]);
}

#[test]
fn a_policy_is_about_the_repository_that_it_names() {
    let policy = policy(json!({ "repositoryRef": { "name": "api" } }));
    assert!(policy.applies_to(&repository("team", "api", json!({}))));
    assert!(!policy.applies_to(&repository("team", "web", json!({}))));
    assert!(!policy.applies_to(&repository("other", "api", json!({}))));
}

#[test]
fn a_policy_is_about_the_repositories_that_it_selects() {
    let prod = policy(json!({ "repositorySelector": { "matchLabels": { "tier": "prod" } } }));
    assert!(prod.applies_to(&repository("team", "api", json!({ "tier": "prod" }))));
    assert!(!prod.applies_to(&repository("team", "api", json!({ "tier": "test" }))));
    assert!(!prod.applies_to(&repository("team", "api", json!({}))));
    let all = policy(json!({ "repositorySelector": {} }));
    assert!(all.applies_to(&repository("team", "api", json!({}))));
    assert!(!all.applies_to(&repository("other", "api", json!({}))));
    let mut elsewhere = repository("team", "api", json!({}));
    elsewhere.spec.registry_ref.name = "us".to_owned();
    assert!(!all.applies_to(&elsewhere));
}

#[test]
fn an_interval_is_never_so_short_that_nothing_rests() {
    let resting = |interval: &str| {
        let mut repository = repository("team", "api", json!({}));
        repository.spec.interval = Some(interval.parse().unwrap());
        repository.interval()
    };
    for (interval, expected) in
        [("0s", 1000), ("1ms", 1000), ("1s", 1000), ("1s500ms", 1500), ("1h30m", 5_400_000)]
    {
        assert_eq!(resting(interval).as_millis(), expected, "{interval}");
    }
}

#[test]
fn a_pull_secret_is_for_the_namespaces_that_it_selects_or_for_its_own() {
    let secret = |spec: serde_json::Value| -> PullSecret {
        let mut secret = json!({ "metadata": { "name": "pull", "namespace": "team" }, "spec": { "registryRef": { "name": "home" } } });
        secret["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(secret).unwrap()
    };
    let pulls = labels(&[("pulls-from", "home")]);
    let own = secret(json!({}));
    assert!(own.chooses("team", None) && !own.chooses("other", Some(&pulls)));
    assert_eq!(own.secret_name(), "pull");
    let some = secret(
        json!({ "namespaceSelector": { "matchLabels": { "pulls-from": "home" } }, "secretName": "home-pull" }),
    );
    assert!(some.chooses("other", Some(&pulls)) && !some.chooses("team", None));
    assert_eq!(some.secret_name(), "home-pull");
    let all = secret(json!({ "namespaceSelector": {} }));
    assert!(all.chooses("other", None) && all.chooses("team", None));
}

#[test]
fn a_selector_with_an_unknown_operator_chooses_nothing() {
    let selector = serde_json::from_value(
        json!({ "matchExpressions": [{ "key": "tier", "operator": "Like", "values": ["p"] }] }),
    );
    assert!(!selects(&selector.unwrap(), Some(&labels(&[("tier", "p")]))));
}

#[test]
fn a_condition_keeps_the_time_at_which_its_status_began() {
    let at = |seconds: i64, status: bool, reason: &str| Condition {
        type_: ConditionType::Ready,
        status: status.into(),
        reason: reason.to_owned(),
        message: String::new(),
        observed_generation: None,
        last_transition_time: Time(jiff::Timestamp::from_second(seconds).unwrap()),
    };
    let mut conditions = Vec::new();
    set_condition(&mut conditions, at(1, false, "Waiting"));
    set_condition(&mut conditions, at(2, false, "StillWaiting"));
    let ready = condition(&conditions, ConditionType::Ready).unwrap();
    assert_eq!(
        (ready.reason.as_str(), ready.last_transition_time.0.as_second()),
        ("StillWaiting", 1)
    );
    set_condition(&mut conditions, at(3, true, "InSync"));
    assert_eq!(conditions, [at(3, true, "InSync")]);
    assert!(condition(&conditions, ConditionType::Stalled).is_none());
}

#[test]
fn enums_are_written_as_ecr_writes_them() {
    use super::repository::{EncryptionType, Mutability};
    for mutability in [
        Mutability::Mutable,
        Mutability::Immutable,
        Mutability::MutableWithExclusion,
        Mutability::ImmutableWithExclusion,
    ] {
        assert_eq!(serde_json::to_value(mutability).unwrap(), mutability.as_str());
    }
    for encryption in [EncryptionType::Aes256, EncryptionType::Kms, EncryptionType::KmsDsse] {
        assert_eq!(serde_json::to_value(encryption).unwrap(), encryption.as_str());
    }
}

#[test]
fn the_schemas_pattern_of_repository_names_is_that_of_the_type() {
    assert_eq!(
        super::repository::NAME_PATTERN,
        format!("^{}$", wharfage_domain::names::RepositoryName::PATTERN)
    );
}
