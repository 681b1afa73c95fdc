//! Registry: a store of repositories that Wharfage runs or that runs elsewhere, or Amazon ECR.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod managed;
mod settings;

use super::common::{DeletionPolicy, Document, SecretKeyRef, SecretRef, selects};
use super::conditions::Condition;
use wharfage_domain::names::{AccountId, Region};

pub use managed::{
    CertManager, Database, FilesystemStorage, IssuerRef, ManagedRegistry, NetworkPolicyMode, Pod,
    Postgres, S3Storage, Service, ServiceType, Sqlite, Storage, Tls,
};
pub use settings::{
    AccountSettings, BasicScanType, RegistryPolicyScope, ScanFrequency, ScanType,
    ScanningConfiguration, ScanningFilter, ScanningRule, Toggle, WildcardFilter,
};

/// The region of a managed registry that names none.
pub const DEFAULT_REGION: &str = "local-1";
/// The registry id of a managed registry that names none.
pub const DEFAULT_REGISTRY_ID: &str = "000000000000";
/// The key of a connectionSecretRef that names none.
pub const DEFAULT_CONNECTION_KEY: &str = "uri";

/// The account of a managed registry whose spec is `spec`, in CEL: a string.
fn account_of(spec: &str) -> String {
    format!("(has({spec}.registryId) ? {spec}.registryId : '{DEFAULT_REGISTRY_ID}')")
}

/// A container registry: `managed` is run by Wharfage, `endpoint` is a Wharfage that runs elsewhere, `aws` is Amazon ECR.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "wharfage.dev",
    version = "v1alpha1",
    kind = "Registry",
    plural = "registries",
    shortname = "reg",
    category = "wharfage",
    label("app.kubernetes.io/part-of", "wharfage"),
    doc = "A container registry that speaks the Amazon ECR API: one that Wharfage runs, one that runs elsewhere, or Amazon ECR itself.",
    status = "RegistryStatus",
    scale(
        spec_replicas_path = ".spec.managed.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    derive = "PartialEq",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint"),
    printcolumn(
        name = "Repositories",
        type_ = "integer",
        json_path = ".status.usage.repositories"
    ),
    printcolumn(name = "Images", type_ = "integer", json_path = ".status.usage.images"),
    printcolumn(name = "Size", type_ = "integer", json_path = ".status.usage.bytes"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Region", type_ = "string", json_path = ".spec.region", priority = 1),
    printcolumn(name = "Account", type_ = "string", json_path = ".spec.registryId", priority = 1),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.managed), has(self.endpoint), has(self.aws)].exists_one(given, given)")
        .message("give exactly one of managed, endpoint and aws"),
    validation = Rule::new("has(self.managed) || has(self.region)")
        .message("region is required with endpoint and aws: name the region that the registry's API is signed for"),
    validation = Rule::new("has(self.managed) == has(oldSelf.managed)")
        .message("a registry that Wharfage runs stays one, and another stays another: make a new Registry"),
    validation = Rule::new("!has(oldSelf.region) || has(self.region) && self.region == oldSelf.region")
        .message("region is immutable: make another Registry, and replicate to it"),
    validation = Rule::new(
        "has(self.managed) || !has(oldSelf.registryId) || has(self.registryId) && self.registryId == oldSelf.registryId"
    )
    .message("registryId is immutable: make another Registry"),
    validation = Rule::new(format!("!has(self.managed) || {} == {}", account_of("self"), account_of("oldSelf")))
        .message("registryId is immutable, as the repositories are that account's (default: 000000000000): make another Registry, and replicate to it"),
)]
pub struct RegistrySpec {
    /// Region that ARNs and signatures name. Default with managed: local-1. Immutable once given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        with = "Option<String>",
        length(min = 2, max = 25),
        regex(pattern = "^[0-9a-z-]{2,25}$")
    )]
    pub region: Option<Region>,
    /// Account id of the registry, twelve digits in quotes. Default with managed: "000000000000"; else the account that the
    /// credentials belong to. Immutable, with managed from the start, else once given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        with = "Option<String>",
        length(min = 12, max = 12),
        regex(pattern = "^[0-9]{12}$")
    )]
    pub registry_id: Option<AccountId>,
    /// A registry that Wharfage runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub managed: Option<ManagedRegistry>,
    /// A registry with the ECR API that runs elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// Amazon ECR. With neither roleArn nor credentialsSecretRef the process's own identity is used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aws: Option<Aws>,
    /// The registry's own permissions policy, in IAM's grammar. A document, not a string. {}: the registry shall have none.
    /// Absent: left as it is, even if this resource had set it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Document>,
    /// The settings by which pushed images are scanned, as in ECR's
    /// PutRegistryScanningConfiguration. {}: ECR's default, BASIC without rules. Absent: left as
    /// it is, even if this resource had set it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scanning_configuration: Option<ScanningConfiguration>,
    /// Account settings, as in ECR's PutAccountSetting. Absent settings are left as they are, even
    /// if this resource had set them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account_settings: Option<AccountSettings>,
    /// Rules about which namespaces may use which names in this registry. Absent: every namespace
    /// may use every name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 100))]
    pub allowed_namespaces: Option<Vec<AllowedNamespaces>>,
    /// The action on a managed registry's workload when this resource is deleted: Retain (default)
    /// leaves it running, Delete deletes it. Never the volume, never the bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<DeletionPolicy>,
}

/// A registry with the ECR API that runs elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// URL of the registry's API.
    #[schemars(length(max = 2048), regex(pattern = "^https?://[^/?#@]+/?$"))]
    pub url: String,
    /// Secret whose key (default: ca.crt) holds the certificates to trust, in PEM. Default: the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_bundle_secret_ref: Option<SecretKeyRef>,
    /// Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Default: the process's own identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<SecretRef>,
}

/// Amazon ECR.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Aws {
    /// Role to assume.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 20, max = 2048),
        regex(pattern = r"^arn:aws(-[a-z]+)*:iam::[0-9]{12}:role/[\w+=,.@/-]+$")
    )]
    pub role_arn: Option<String>,
    /// Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<SecretRef>,
}

/// Namespaces, and the names that they may use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AllowedNamespaces {
    /// The namespaces, by their labels. An empty selector chooses all.
    pub selector: LabelSelector,
    /// The prefixes of which a repository's name must have one. Absent or empty: any name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 100),
        inner(length(min = 1, max = 256), regex(pattern = "^[a-z0-9][a-z0-9._/-]*$"))
    )]
    pub repository_prefixes: Vec<String>,
}

/// The observed state of a Registry.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("default" = { "observedGeneration": -1 }))]
pub struct RegistryStatus {
    /// Generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// URL of the registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Namespace that a managed registry runs in.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub namespace: Option<String>,
    /// Image that the pods of a managed registry run. Another default image of the operator replaces it in one Registry after
    /// the other.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub image: Option<String>,
    /// Region of the registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub region: Option<String>,
    /// Account id of the registry, as it answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 12))]
    pub registry_id: Option<String>,
    /// Number of pods of a managed registry, for autoscalers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Label selector of the pods of a managed registry, for autoscalers.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub selector: Option<String>,
    /// The capabilities of this registry beyond Amazon ECR.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub capabilities: Vec<String>,
    /// The number of repositories and images in the registry, and their size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// The use of each limited resource.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub quotas: Vec<Quota>,
    /// The value of the annotation reconcile.wharfage.dev/requestedAt that was last acted on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_handled_reconcile_at: Option<String>,
    /// The conditions of the registry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// The number of repositories and images in a registry, and their size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Number of repositories.
    pub repositories: i64,
    /// Number of images. Repositories take turns in being counted.
    pub images: i64,
    /// Bytes of all images, as their manifests say. Repositories take turns in being counted.
    pub bytes: i64,
}

/// The use of a limited resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Quota {
    /// The name of the limited resource.
    pub name: String,
    /// The number in use.
    pub used: i64,
    /// The highest number allowed.
    pub limit: i64,
}

impl Registry {
    /// The region that it serves.
    pub fn region(&self) -> Region {
        self.spec.region.clone().unwrap_or_else(default_region)
    }

    /// The account id of a managed registry; for others only what the spec says, as their credentials decide.
    pub fn registry_id(&self) -> Option<AccountId> {
        let given = self.spec.registry_id.clone();
        if self.spec.managed.is_some() { given.or_else(default_registry_id) } else { given }
    }

    /// Returns the action on its workload when the resource is deleted.
    pub fn deletion_policy(&self) -> DeletionPolicy {
        self.spec.deletion_policy.unwrap_or_default()
    }

    /// Returns whether a namespace with these labels may use this registry at all.
    pub fn admits(&self, namespace_labels: Option<&BTreeMap<String, String>>) -> bool {
        let Some(allowed) = &self.spec.allowed_namespaces else { return true };
        allowed.iter().any(|entry| selects(&entry.selector, namespace_labels))
    }

    /// Returns whether a namespace with these labels may use this repository name here.
    pub fn allows(
        &self,
        namespace_labels: Option<&BTreeMap<String, String>>,
        repository_name: &str,
    ) -> bool {
        let Some(allowed) = &self.spec.allowed_namespaces else { return true };
        allowed.iter().any(|entry| {
            let prefixes = &entry.repository_prefixes;
            let named = prefixes.is_empty()
                || prefixes.iter().any(|prefix| repository_name.starts_with(prefix.as_str()));
            named && selects(&entry.selector, namespace_labels)
        })
    }
}

fn default_region() -> Region {
    // A constant that the tests of this module parse.
    #[allow(clippy::expect_used)]
    DEFAULT_REGION.parse().expect("the default region is valid")
}

fn default_registry_id() -> Option<AccountId> {
    DEFAULT_REGISTRY_ID.parse().ok()
}
