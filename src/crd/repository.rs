//! Repository: one repository of a registry, as ECR knows it.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::Duration;
use kube::{CustomResource, KubeSchema, ResourceExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{
    AdoptionPolicy, DURATION_PATTERN, DeletionPolicy, Document, Managed as _, ManagementPolicy,
    RegistryRef, at_least_the_shortest_interval, managed,
};
use super::conditions::Condition;
use super::registry::WildcardFilter;
use wharfage_domain::names::{InvalidName, RepositoryName};

pub use wharfage_domain::tag_mutability::Mutability;

/// The characters that a resource tag may have: those that AWS takes of any service. The letters
/// and digits are those of all scripts.
const TAG_PATTERN: &str = r"^[\p{L}\p{N} _.:/=+@-]*$";

/// One repository of a registry.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "wharfage.dev",
    version = "v1alpha1",
    kind = "Repository",
    plural = "repositories",
    shortname = "repo",
    category = "wharfage",
    label("app.kubernetes.io/part-of", "wharfage"),
    doc = "One repository of a Registry. Field names are those of the Amazon ECR API.",
    namespaced,
    status = "RepositoryStatus",
    derive = "PartialEq",
    validation = Rule::new("has(self.spec.repositoryName) || size(self.metadata.name) >= 2")
        .message("metadata.name has one character, a repository's name at least two: set spec.repositoryName"),
    validation = Rule::new(
        "(has(self.spec.repositoryName) ? self.spec.repositoryName : self.metadata.name) == (has(oldSelf.spec.repositoryName) ? oldSelf.spec.repositoryName : oldSelf.metadata.name)"
    )
    .message("repositoryName is immutable: make another Repository with the new name, and copy the images to it"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "URI", type_ = "string", json_path = ".status.repositoryUri"),
    printcolumn(name = "Images", type_ = "integer", json_path = ".status.imageCount"),
    printcolumn(name = "Size", type_ = "integer", json_path = ".status.imageSizeBytes"),
    printcolumn(name = "Critical", type_ = "integer", json_path = ".status.findingSeverityCounts.CRITICAL"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Registry", type_ = "string", json_path = ".spec.registryRef.name", priority = 1),
    printcolumn(name = "Mutability", type_ = "string", json_path = ".spec.imageTagMutability", priority = 1),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(
        "(has(self.imageTagMutability) && self.imageTagMutability.endsWith('_WITH_EXCLUSION')) == (has(self.imageTagMutabilityExclusionFilters) && size(self.imageTagMutabilityExclusionFilters) > 0)"
    )
    .message("imageTagMutabilityExclusionFilters (1 to 5) go with IMMUTABLE_WITH_EXCLUSION and MUTABLE_WITH_EXCLUSION: give both, or neither"),
    validation = Rule::new(
        "(has(self.encryptionConfiguration) ? self.encryptionConfiguration.encryptionType : 'AES256') == (has(oldSelf.encryptionConfiguration) ? oldSelf.encryptionConfiguration.encryptionType : 'AES256') && (has(self.encryptionConfiguration) && has(self.encryptionConfiguration.kmsKey) ? self.encryptionConfiguration.kmsKey : '') == (has(oldSelf.encryptionConfiguration) && has(oldSelf.encryptionConfiguration.kmsKey) ? oldSelf.encryptionConfiguration.kmsKey : '')"
    )
    .message("encryptionConfiguration is immutable: make another Repository, and copy the images to it"),
    validation = Rule::new(
        "(has(self.visibility) ? self.visibility : 'Private') == (has(oldSelf.visibility) ? oldSelf.visibility : 'Private')"
    )
    .message("visibility is immutable: make another Repository, and copy the images to it"),
    validation = Rule::new("!has(self.catalogData) || (has(self.visibility) && self.visibility == 'Public')")
        .message("catalogData is for public repositories: set visibility to Public, or leave catalogData out"),
    validation = Rule::new("self.registryRef.name == oldSelf.registryRef.name")
        .message("registryRef is immutable: make another Repository for the other Registry"),
)]
pub struct RepositorySpec {
    /// The Registry that the repository is in. Immutable.
    pub registry_ref: RegistryRef,
    /// Name of the repository in the registry; slashes make namespaces. Default: metadata.name. Immutable.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(min = 2, max = 256), regex(pattern = NAME_PATTERN))]
    pub repository_name: Option<RepositoryName>,
    /// Private needs a login to pull; Public is pulled by anybody. Default: Private. Immutable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub visibility: Option<Visibility>,
    /// Determines whether a tag may be moved to another image. Default: MUTABLE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_tag_mutability: Option<Mutability>,
    /// Tags that are excepted from imageTagMutability, 1 to 5 patterns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["filterType".into(), "filter".into()]))]
    pub image_tag_mutability_exclusion_filters: Vec<ExclusionFilter>,
    /// The encryption of images at rest. Default: AES256. Immutable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encryption_configuration: Option<EncryptionConfiguration>,
    /// The settings by which images are scanned when they are pushed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_scanning_configuration: Option<ImageScanningConfiguration>,
    /// The permissions on this repository, in IAM's grammar. A document, not a string.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository_policy: Option<Document>,
    /// Tags of the repository itself (not of its images), at most 45: ECR takes 50, and five say who owns it. Keys and values
    /// have letters, digits, spaces and _.:/=+-@ only.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend(
        "maxProperties" = 45,
        "additionalProperties" = { "type": "string", "maxLength": 256, "pattern": TAG_PATTERN }
    ))]
    #[x_kube(
        validation = Rule::new("self.all(key, size(key) >= 1 && size(key) <= 128)").message("a tag's key has 1 to 128 characters"),
        validation = Rule::new(r"self.all(key, key.matches('^[\\p{L}\\p{N} _.:/=+@-]*$'))")
            .message("a tag's key has letters, digits, spaces and _.:/=+-@ only: choose another key"),
        validation = Rule::new("self.all(key, !key.matches('^([aA][wW][sS]:|wharfage.dev/)'))")
            .message("tags that start with aws: or wharfage.dev/ are reserved: choose another key"),
    )]
    pub tags: BTreeMap<String, String>,
    /// The data that the gallery shows of a public repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub catalog_data: Option<CatalogData>,
    /// Refuses every deletion of the repository through this resource while true. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_protection: Option<bool>,
    /// With deletionPolicy Delete: true to delete the images with the repository. Default: false, a
    /// repository with images is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub empty_on_delete: Option<bool>,
    /// Full makes the registry match; Observe only looks. Default: Full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub management_policy: Option<ManagementPolicy>,
    /// Determines whether a repository that already exists is adopted. Default: AdoptOrCreate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adoption_policy: Option<AdoptionPolicy>,
    /// The action on the repository when this resource is deleted. Default: Retain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<DeletionPolicy>,
    /// The time between two checks of the registry, such as 10m or 1h30m; 1s at least. Default:
    /// 10m.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(max = 32), regex(pattern = DURATION_PATTERN))]
    #[x_kube(validation = at_least_the_shortest_interval())]
    pub interval: Option<Duration>,
    /// True to suspend reconciliation. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
}

/// [`RepositoryName::PATTERN`], anchored.
pub(super) const NAME_PATTERN: &str =
    r"^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$";

/// The clients that may pull.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Visibility {
    /// The clients that the policies allow.
    #[default]
    Private,
    /// Anybody.
    Public,
}

/// A pattern of tags.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, KubeSchema,
)]
#[serde(rename_all = "camelCase")]
pub struct ExclusionFilter {
    /// The syntax of the pattern: WILDCARD.
    pub filter_type: WildcardFilter,
    /// The pattern; a star stands for any run of characters, at most two of them.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[0-9a-zA-Z._*-]{1,128}$"))]
    #[x_kube(validation = Rule::new(r"self.matches('^[^*]*(\\*[^*]*){0,2}$')").message("a filter has at most two stars"))]
    pub filter: String,
}

/// The encryption of images at rest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.kmsKey) || self.encryptionType != 'AES256'")
        .message("kmsKey goes with encryptionType KMS or KMS_DSSE: change the type, or leave kmsKey out"),
)]
pub struct EncryptionConfiguration {
    /// Kind of encryption.
    pub encryption_type: EncryptionType,
    /// Key id, alias or ARN. Default with KMS: the registry's own key.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub kms_key: Option<String>,
}

/// Kind of encryption at rest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EncryptionType {
    /// The registry's default.
    #[default]
    #[serde(rename = "AES256")]
    Aes256,
    /// A key of the key service.
    #[serde(rename = "KMS")]
    Kms,
    /// A key of the key service, two layers.
    #[serde(rename = "KMS_DSSE")]
    KmsDsse,
}

impl EncryptionType {
    /// The value as ECR's API says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Aes256 => "AES256",
            Self::Kms => "KMS",
            Self::KmsDsse => "KMS_DSSE",
        }
    }
}

/// The settings by which images are scanned when they are pushed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageScanningConfiguration {
    /// True to scan each pushed image. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scan_on_push: Option<bool>,
}

/// The data that the gallery shows of a public repository, as in ECR Public's
/// PutRepositoryCatalogData.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CatalogData {
    /// One short description.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub description: Option<String>,
    /// Processor architectures that the images are for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50), inner(length(min = 1, max = 50)))]
    pub architectures: Vec<String>,
    /// Operating systems that the images are for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50), inner(length(min = 1, max = 50)))]
    pub operating_systems: Vec<String>,
    /// A logo: a PNG of at most 512,000 bytes, in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 682_668), extend("format" = "byte"))]
    pub logo_image_blob: Option<String>,
    /// The description of the repository, in Markdown.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 25_600))]
    pub about_text: Option<String>,
    /// The instructions for use, in Markdown.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 25_600))]
    pub usage_text: Option<String>,
}

/// The observed state of a Repository.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("default" = { "observedGeneration": -1 }))]
pub struct RepositoryStatus {
    /// Generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// ARN of the repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository_arn: Option<String>,
    /// The URI to write before a tag to pull from the repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository_uri: Option<String>,
    /// Account id of the registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry_id: Option<String>,
    /// Number of images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_count: Option<i64>,
    /// Bytes of the images, as their manifests say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_size_bytes: Option<i64>,
    /// The number of findings of each severity in the images.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub finding_severity_counts: BTreeMap<String, i64>,
    /// The time at which this status last changed. A check that finds no change is not recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_sync_time: Option<Time>,
    /// The value of the annotation reconcile.wharfage.dev/requestedAt that was last acted on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_handled_reconcile_at: Option<String>,
    /// The conditions of the repository.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

managed!(Repository);

impl Repository {
    /// Its name in the registry: repositoryName, or else metadata.name.
    pub fn repository_name(&self) -> Result<RepositoryName, InvalidName> {
        self.spec.repository_name.clone().map_or_else(|| self.name_any().parse(), Ok)
    }

    /// Returns who may pull.
    pub fn visibility(&self) -> Visibility {
        self.spec.visibility.unwrap_or_default()
    }

    /// Returns whether a tag may be moved to another image.
    pub fn image_tag_mutability(&self) -> Mutability {
        self.spec.image_tag_mutability.unwrap_or_default()
    }

    /// Returns how images are encrypted at rest.
    pub fn encryption_configuration(&self) -> EncryptionConfiguration {
        self.spec.encryption_configuration.clone().unwrap_or_default()
    }

    /// Returns whether its repository is deleted with it.
    pub fn deletes(&self) -> bool {
        self.deletion_policy() == DeletionPolicy::Delete && !self.deletion_protection()
    }

    /// Returns whether each pushed image is scanned.
    pub fn scan_on_push(&self) -> bool {
        self.spec
            .image_scanning_configuration
            .and_then(|configuration| configuration.scan_on_push)
            .unwrap_or_default()
    }

    /// Returns whether its deletion is refused.
    pub fn deletion_protection(&self) -> bool {
        self.spec.deletion_protection.unwrap_or_default()
    }

    /// Returns whether its images go with it.
    pub fn empty_on_delete(&self) -> bool {
        self.spec.empty_on_delete.unwrap_or_default()
    }
}
