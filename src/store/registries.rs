//! What the store keeps of a registry as a whole. Plain data.

use crate::scanning::ScanningConfiguration;

/// A registry's own settings, but for its account settings. The default is that of a registry which nobody configured.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RegistrySettings {
    /// The registry policy's text as it was put.
    pub policy: Option<String>,
    /// How its repositories are scanned.
    pub scanning: ScanningConfiguration,
    /// Grows with every change of the settings, account settings included; 0 while nothing was ever put.
    pub version: u64,
    /// Grows with every change of the registry policy.
    pub policy_version: u64,
}

/// One change of a registry's settings; the others stay.
#[derive(Debug, Clone)]
pub enum RegistryChange {
    /// PutRegistryPolicy, or with `None` DeleteRegistryPolicy.
    Policy(Option<String>),
    /// PutRegistryScanningConfiguration.
    Scanning(ScanningConfiguration),
}
