//! The calls about a registry as a whole.

use wharfage_domain::scanning::ScanningConfiguration;

/// A call about the settings of a registry as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettingsCall {
    /// PutAccountSetting.
    PutAccountSetting {
        /// The setting's name, such as `BLOB_MOUNTING`.
        name: String,
        /// The new value.
        value: String,
    },
    /// PutRegistryPolicy, with the document's text.
    PutRegistryPolicy(String),
    /// DeleteRegistryPolicy.
    DeleteRegistryPolicy,
    /// PutRegistryScanningConfiguration.
    PutRegistryScanningConfiguration(ScanningConfiguration),
}
