//! Registries.

use std::collections::BTreeMap;

use wharfage::scanning::{ScanFrequency, ScanType, ScanningConfiguration, ScanningRule};
use wharfage::store::registries::{RegistryChange, RegistrySettings};

use super::*;

pub async fn a_new_database_is_ready(store: Fixture) {
    store.ready().await.unwrap();
}

pub async fn account_settings_are_put_one_by_one(store: Fixture) {
    assert_eq!(store.list_account_settings(&account()).await.unwrap(), BTreeMap::new());
    store.put_account_setting(&account(), "BASIC_SCAN_TYPE_VERSION", "CLAIR").await.unwrap();
    store.put_account_setting(&account(), "REGISTRY_POLICY_SCOPE", "V2").await.unwrap();
    store.put_account_setting(&account(), "BASIC_SCAN_TYPE_VERSION", "AWS_NATIVE").await.unwrap();
    let settings = store.list_account_settings(&account()).await.unwrap();
    let settings: Vec<_> =
        settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(
        settings,
        [("BASIC_SCAN_TYPE_VERSION", "AWS_NATIVE"), ("REGISTRY_POLICY_SCOPE", "V2")]
    );
    assert_eq!(store.list_account_settings(&other_account()).await.unwrap(), BTreeMap::new());
}

pub async fn changing_a_registry_returns_the_previous_settings(mut store: Fixture) {
    let nothing = RegistrySettings::default();
    assert_eq!(store.registry_settings(&account()).await.unwrap(), nothing);

    let policy = Some("{ \"a\": \"\\u0000\" }".to_owned());
    let change = RegistryChange::Policy(policy.clone());
    assert_eq!(store.change_registry(&account(), change).await.unwrap(), nothing);
    let with_policy = RegistrySettings { policy, version: 1, policy_version: 1, ..nothing.clone() };

    let filters = vec!["b".to_owned(), "a*".to_owned()];
    let rules = vec![ScanningRule { scan_frequency: ScanFrequency::ContinuousScan, filters }];
    let scanning = ScanningConfiguration { scan_type: ScanType::Enhanced, rules };
    let change = RegistryChange::Scanning(scanning.clone());
    assert_eq!(store.change_registry(&account(), change).await.unwrap(), with_policy);
    let with_both = RegistrySettings { scanning, version: 2, ..with_policy };

    store.reopen().await;
    assert_eq!(store.registry_settings(&account()).await.unwrap(), with_both);
    assert_eq!(store.registry_settings(&other_account()).await.unwrap(), nothing);
    assert_eq!(
        store.change_registry(&account(), RegistryChange::Policy(None)).await.unwrap(),
        with_both
    );
    let scanning = RegistrySettings { policy: None, version: 3, policy_version: 2, ..with_both };
    assert_eq!(store.registry_settings(&account()).await.unwrap(), scanning);
}

pub async fn a_registrys_version_grows_with_every_change(store: Fixture) {
    let versions = async || {
        let settings = store.registry_settings(&account()).await.unwrap();
        (settings.version, settings.policy_version)
    };
    assert_eq!(versions().await, (0, 0), "nothing was ever put");
    store.put_account_setting(&account(), "BLOB_MOUNTING", "ENABLED").await.unwrap();
    let first = versions().await;
    store.put_account_setting(&account(), "BLOB_MOUNTING", "DISABLED").await.unwrap();
    let second = versions().await;
    assert!(0 < first.0 && first.0 < second.0 && first.1 == second.1, "{first:?}, {second:?}");
    store.change_registry(&account(), RegistryChange::Policy(None)).await.unwrap();
    let third = versions().await;
    assert!(second.0 < third.0 && second.1 < third.1, "{third:?}");
    assert_eq!(store.registry_settings(&other_account()).await.unwrap().version, 0);
}

pub async fn one_of_two_concurrent_policy_deletions_finds_it(store: Fixture) {
    store.change_registry(&account(), RegistryChange::Policy(Some("policy".into()))).await.unwrap();
    let deletions = (0..8).map(|_| {
        let store = store.handle();
        tokio::spawn(async move {
            store.change_registry(&account(), RegistryChange::Policy(None)).await.unwrap()
        })
    });
    let were = futures::future::join_all(deletions.collect::<Vec<_>>()).await;
    assert_eq!(were.into_iter().filter(|was| was.as_ref().unwrap().policy.is_some()).count(), 1);
}
