//! The registry-wide settings: the scanning configuration and the account settings.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use wharfage_domain::scanning::FILTER_PATTERN;

pub use wharfage_domain::scanning::ScanType;

/// The settings by which pushed images are scanned.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(
        "!has(self.rules) || self.rules.all(rule, rule.scanFrequency != 'CONTINUOUS_SCAN' || (has(self.scanType) && self.scanType == 'ENHANCED'))"
    )
    .message("scanFrequency CONTINUOUS_SCAN needs scanType ENHANCED: set that, or use SCAN_ON_PUSH"),
    validation = Rule::new(
        "!has(self.rules) || self.rules.all(rule, self.rules.exists_one(other, other.scanFrequency == rule.scanFrequency))"
    )
    .message("at most one rule may have a scanFrequency: join the repositoryFilters of those that share one"),
)]
pub struct ScanningConfiguration {
    /// BASIC scans packages of the operating system. ENHANCED also scans those of languages, and
    /// continues to scan. Default: BASIC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scan_type: Option<ScanType>,
    /// Rules about which repositories are scanned when; at most one rule per frequency.
    /// Repositories without a rule are scanned on request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub rules: Vec<ScanningRule>,
}

/// A rule about which repositories are scanned when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScanningRule {
    /// The time at which a repository's images are scanned.
    pub scan_frequency: ScanFrequency,
    /// Repositories that the rule is for.
    #[schemars(length(max = 100))]
    pub repository_filters: Vec<ScanningFilter>,
}

/// The time at which images are scanned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ScanFrequency {
    /// When they are pushed.
    ScanOnPush,
    /// When they are pushed, and again when new vulnerabilities are known. ENHANCED only.
    ContinuousScan,
}

/// A pattern of repository names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScanningFilter {
    /// The pattern. With a star, which stands for any run of characters, it matches a whole name; without one, any name that
    /// it occurs in.
    #[schemars(length(min = 1, max = 255), regex(pattern = FILTER_PATTERN))]
    pub filter: String,
    /// The syntax of the pattern.
    pub filter_type: WildcardFilter,
}

/// The one way to read a pattern here.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum WildcardFilter {
    /// A star stands for any run of characters.
    #[default]
    Wildcard,
}

/// Account settings, each named as ECR names it. Absent ones keep their value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub struct AccountSettings {
    /// Determines whether a blob may be mounted from one repository into another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blob_mounting: Option<Toggle>,
    /// The scanner that BASIC scanning uses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub basic_scan_type_version: Option<BasicScanType>,
    /// The actions for which the registry's policy is consulted: V1 three of them, V2 all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry_policy_scope: Option<RegistryPolicyScope>,
}

impl AccountSettings {
    /// The settings that are given: name and value, as ECR's API says them.
    pub fn given(&self) -> Vec<(&'static str, &'static str)> {
        let Self { blob_mounting, basic_scan_type_version, registry_policy_scope } = self;
        let settings = [
            ("BLOB_MOUNTING", blob_mounting.map(Toggle::as_str)),
            ("BASIC_SCAN_TYPE_VERSION", basic_scan_type_version.map(BasicScanType::as_str)),
            ("REGISTRY_POLICY_SCOPE", registry_policy_scope.map(RegistryPolicyScope::as_str)),
        ];
        settings.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

/// A setting that is on or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Toggle {
    /// On.
    Enabled,
    /// Off.
    Disabled,
}

impl Toggle {
    /// The value as ECR's API says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enabled => "ENABLED",
            Self::Disabled => "DISABLED",
        }
    }
}

/// The scanner of BASIC scanning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum BasicScanType {
    /// The registry's own.
    AwsNative,
    /// Clair, which Amazon ECR has retired.
    Clair,
}

impl BasicScanType {
    /// The value as ECR's API says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AwsNative => "AWS_NATIVE",
            Self::Clair => "CLAIR",
        }
    }
}

/// The actions for which a registry's policy is consulted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RegistryPolicyScope {
    /// Three of them.
    V1,
    /// All of them.
    V2,
}

impl RegistryPolicyScope {
    /// The value as ECR's API says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "V1",
            Self::V2 => "V2",
        }
    }
}
