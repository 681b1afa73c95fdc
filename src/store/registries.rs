//! Registries: settings that belong to an account as a whole.

use std::collections::BTreeMap;

use super::StoreResult;
use wharfage_domain::names::AccountId;
use wharfage_domain::scanning::ScanningConfiguration;

/// Stores the settings of registries. A registry exists without a row: then all are defaults.
#[async_trait::async_trait]
pub trait RegistryStore: Send + Sync {
    /// Returns a registry's settings: the defaults if nothing was ever put.
    async fn registry_settings(&self, account: &AccountId) -> StoreResult<RegistrySettings>;
    /// Changes one setting, and returns the settings from before the change.
    async fn change_registry(
        &self,
        account: &AccountId,
        change: RegistryChange,
    ) -> StoreResult<RegistrySettings>;
    /// Lists the account settings that were ever put; the caller knows the defaults.
    async fn list_account_settings(
        &self,
        account: &AccountId,
    ) -> StoreResult<BTreeMap<String, String>>;
    /// Puts one account setting.
    async fn put_account_setting(
        &self,
        account: &AccountId,
        name: &str,
        value: &str,
    ) -> StoreResult<()>;
}

/// A registry's own settings, without its account settings. The default is that of a registry that
/// was never configured.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RegistrySettings {
    /// The text of the registry policy, byte for byte as it was put.
    pub policy: Option<String>,
    /// ECR's registry scanning configuration.
    pub scanning: ScanningConfiguration,
    /// Grows with every change of the settings, account settings included; 0 if nothing was ever
    /// put.
    pub version: u64,
    /// Grows with every change of the registry policy.
    pub policy_version: u64,
}

/// One change of a registry's settings; the others keep their values.
#[derive(Debug, Clone)]
pub enum RegistryChange {
    /// PutRegistryPolicy, or with `None` DeleteRegistryPolicy.
    Policy(Option<String>),
    /// PutRegistryScanningConfiguration.
    Scanning(ScanningConfiguration),
}
