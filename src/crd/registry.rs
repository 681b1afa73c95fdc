//! Registry: where repositories live. One that Wharfage runs, one that runs elsewhere, or Amazon ECR.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, LocalObjectReference, ResourceRequirements, Toleration, TopologySpreadConstraint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{DeletionPolicy, Document, NAME_PATTERN, NAMESPACE_PATTERN, SecretKeyRef, SecretRef, selects};
use super::conditions::Condition;
use wharfage_domain::names::{AccountId, Region};
use wharfage_domain::scanning::FILTER_PATTERN;

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

/// Where the bytes of images are, in CEL: a string, empty for the volume. Of an endpoint only the host counts: to reach it by
/// another scheme moves nothing.
fn place_of(managed: &str) -> String {
    let s3 = format!("{managed}.storage.s3");
    format!(
        "(has({managed}.storage) && has({s3}) ? {s3}.bucket + (has({s3}.endpoint) ? {s3}.endpoint.find('//[^/]+') : '') : '')"
    )
}

/// Which database it is, in CEL: a string, empty for SQLite.
fn database_of(managed: &str) -> String {
    let secret = format!("{managed}.database.postgres.connectionSecretRef");
    format!(
        "(has({managed}.database) && has({managed}.database.postgres) ? {secret}.__namespace__ + '/' + {secret}.name + '/' + (has({secret}.key) ? {secret}.key : '{DEFAULT_CONNECTION_KEY}') : '')"
    )
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
    derive = "PartialEq",
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint"),
    printcolumn(name = "Repositories", type_ = "integer", json_path = ".status.usage.repositories"),
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
    #[schemars(with = "Option<String>", length(min = 2, max = 25), regex(pattern = "^[0-9a-z-]{2,25}$"))]
    pub region: Option<Region>,
    /// Account id of the registry, twelve digits in quotes. Default with managed: "000000000000"; else the account that the
    /// credentials belong to. Immutable, with managed from the start, else once given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(min = 12, max = 12), regex(pattern = "^[0-9]{12}$"))]
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
    /// How pushed images are scanned, as in ECR's PutRegistryScanningConfiguration. {}: ECR's default, BASIC without rules.
    /// Absent: left as it is, even if this resource had set it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scanning_configuration: Option<ScanningConfiguration>,
    /// Account settings, as in ECR's PutAccountSetting. What is absent is left as it is, even if this resource had set it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account_settings: Option<AccountSettings>,
    /// Which namespaces may use which names in this registry. Absent: every namespace may use every name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 100))]
    pub allowed_namespaces: Option<Vec<AllowedNamespaces>>,
    /// What happens to a managed registry's workload when this resource goes: Retain (default) leaves it running, Delete takes
    /// it away. Never the volume, never the bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<DeletionPolicy>,
}

/// A registry that Wharfage runs.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(
        "!has(self.replicas) || self.replicas <= 1 || (has(self.storage) && has(self.storage.s3) && has(self.database) && has(self.database.postgres))"
    )
    .message("more than one replica needs storage.s3 and database.postgres, which replicas can share; or set replicas to 1"),
    validation = Rule::new(
        "!has(self.database) || !has(self.database.sqlite) || !(has(self.database.sqlite.size) || has(self.database.sqlite.storageClassName)) || (has(self.storage) && has(self.storage.s3))"
    )
    .message("database.sqlite has a volume of its own only with storage.s3; else it lies beside the images: set storage.filesystem.size and storageClassName"),
    validation = Rule::new("!has(oldSelf.__namespace__) || has(self.__namespace__) && self.__namespace__ == oldSelf.__namespace__")
        .message("managed.namespace is immutable, as volumes don't move: make another Registry, and replicate to it"),
    validation = Rule::new(format!(
        "{} == {} || {} != {}", place_of("self"), place_of("oldSelf"), database_of("self"), database_of("oldSelf")
    ))
    .message(
        "storage can't change alone, as its bytes don't move and the database counts on them: set it back, or make another \
         Registry and replicate to it; with another database, too, this one begins empty"
    ),
)]
pub struct ManagedRegistry {
    /// How many processes serve. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: Option<i32>,
    /// URL under which clients reach the registry: what repositoryUri and proxyEndpoint say. Default: the URL of its Service,
    /// which only the cluster resolves; in file mode the address that it listens on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 253),
        regex(pattern = r"^https?://[a-zA-Z0-9]([-a-zA-Z0-9.]*[a-zA-Z0-9])?(:[0-9]{1,5})?/?$")
    )]
    pub public_url: Option<String>,
    /// Where the bytes of images are kept. Default: filesystem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// Where everything but the bytes is kept. Default: sqlite.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<Database>,
    /// Certificate that the registry serves with. Default: plain HTTP, for use behind a proxy or on loopback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// The Service in front of the registry's pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<Service>,
    /// Namespace that the workload runs in. Default: the operator's own. Immutable once given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = NAMESPACE_PATTERN))]
    pub namespace: Option<String>,
    /// CPU and memory of each pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Image that the pods run. Default: the operator's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^\S+$"))]
    pub image: Option<String>,
    /// Where and as whom the pods run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// Whether a NetworkPolicy limits who may reach the pods. Default: Enabled, clients from anywhere, metrics from within the
    /// cluster; what the pods may reach is not limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<NetworkPolicyMode>,
}

/// Where and as whom the pods of a managed registry run; each field is that of a Pod.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// Labels of the pods, beside Wharfage's own, which win.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that don't keep the pods away.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// Rules about nodes, and about other pods there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// How replicas spread. Default: over hosts and zones, as far as there are some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topology_spread_constraints: Option<Vec<TopologySpreadConstraint>>,
    /// Secrets of the registry's namespace by which nodes pull the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// PriorityClass of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
    /// ServiceAccount of the pods, such as one that a cloud lets into the bucket. Its token isn't mounted. Default: default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account_name: Option<String>,
}

/// Whether there is a NetworkPolicy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NetworkPolicyMode {
    /// There is one.
    #[default]
    Enabled,
    /// There is none: yours hold alone.
    Disabled,
}

/// Where the bytes of images are kept.
#[derive(KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.filesystem) != has(self.s3)").message("give exactly one of filesystem and s3"),
)]
pub struct Storage {
    /// A folder: a persistent volume in a cluster, a folder of the data directory on a laptop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<FilesystemStorage>,
    /// A bucket of Amazon S3, or of what speaks its protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Storage>,
}

/// A folder for the bytes of images.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FilesystemStorage {
    /// Size of the persistent volume. It may grow where its StorageClass lets it, and never shrinks. Default: 10Gi.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Quantity>,
    /// StorageClass of the persistent volume. Default: the cluster's default class.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = NAME_PATTERN))]
    pub storage_class_name: Option<String>,
}

/// A bucket for the bytes of images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct S3Storage {
    /// Name of the bucket. It must exist.
    #[schemars(length(min = 3, max = 63), regex(pattern = "^[a-z0-9][a-z0-9.-]*[a-z0-9]$"))]
    pub bucket: String,
    /// Region of the bucket. Default: us-east-1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(min = 2, max = 25), regex(pattern = "^[0-9a-z-]{2,25}$"))]
    pub region: Option<Region>,
    /// Endpoint of an S3 that isn't Amazon's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), regex(pattern = "^https?://[^/?#@]+/?$"))]
    pub endpoint: Option<String>,
    /// Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Default: the process's own identity, in a cluster that of
    /// pod.serviceAccountName.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<SecretRef>,
    /// Whether clients are sent to the bucket for a blob's bytes by a presigned URL. Default: false, the registry passes them on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirect: Option<bool>,
}

/// Where everything but the bytes is kept.
#[derive(KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.sqlite) != has(self.postgres)").message("give exactly one of sqlite and postgres"),
)]
pub struct Database {
    /// A SQLite file beside the data: one replica, no server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sqlite: Option<Sqlite>,
    /// PostgreSQL, or what speaks its protocol: any number of replicas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postgres: Option<Postgres>,
}

/// A SQLite file. With storage.filesystem it lies on the same volume; with storage.s3 on one of its own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sqlite {
    /// Size of the database's persistent volume, with storage.s3. Default: 2Gi.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Quantity>,
    /// StorageClass of that volume. Default: the cluster's default class.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = NAME_PATTERN))]
    pub storage_class_name: Option<String>,
}

/// A PostgreSQL database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Postgres {
    /// Secret whose key (default: uri) holds the connection's URI, password included.
    pub connection_secret_ref: SecretKeyRef,
}

/// The certificate of a managed registry. One that is renewed is taken up without a restart.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.secretName) || has(self.certManager)")
        .message("give secretName, or certManager to have a certificate issued"),
)]
pub struct Tls {
    /// Secret of type kubernetes.io/tls in the registry's namespace. Default with certManager: the registry's name and -tls.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = NAME_PATTERN))]
    pub secret_name: Option<String>,
    /// Has cert-manager issue the certificate into the Secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_manager: Option<CertManager>,
}

/// A certificate that cert-manager issues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CertManager {
    /// Who issues it.
    pub issuer_ref: IssuerRef,
    /// Names that it is for. Default: the host of publicUrl, and the Service's where there is no publicUrl.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(min = 1, max = 253)))]
    pub dns_names: Vec<String>,
}

/// An issuer of cert-manager.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IssuerRef {
    /// Name of the issuer.
    #[schemars(length(min = 1, max = 253), regex(pattern = NAME_PATTERN))]
    pub name: String,
    /// Kind of the issuer. Default: Issuer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub kind: Option<String>,
    /// API group of the issuer. Default: cert-manager.io.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub group: Option<String>,
}

/// The Service of a managed registry.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.nodePort) || (has(self.type) && self.type != 'ClusterIP')")
        .message("nodePort needs type NodePort or LoadBalancer"),
)]
pub struct Service {
    /// Type of the Service. Default: ClusterIP.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_: Option<ServiceType>,
    /// Annotations of the Service, such as a cloud's load balancer reads.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Port of the Service. Default: 443 with tls, 80 without.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
    /// Port of every node, with type NodePort or LoadBalancer. Default: the cluster picks one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub node_port: Option<i32>,
}

/// How a Service is reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServiceType {
    /// From within the cluster.
    #[default]
    ClusterIP,
    /// By a port of every node.
    NodePort,
    /// By a load balancer of the cloud.
    LoadBalancer,
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
    #[schemars(length(min = 20, max = 2048), regex(pattern = r"^arn:aws(-[a-z]+)*:iam::[0-9]{12}:role/[\w+=,.@/-]+$"))]
    pub role_arn: Option<String>,
    /// Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<SecretRef>,
}

/// How pushed images are scanned.
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
    /// BASIC looks at packages of the operating system, ENHANCED at those of languages, too, and goes on looking. Default: BASIC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scan_type: Option<ScanType>,
    /// Which repositories are scanned when; at most one rule per frequency. Repositories that no rule is for are scanned when
    /// somebody asks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub rules: Vec<ScanningRule>,
}

/// What a scan looks at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ScanType {
    /// Packages of the operating system.
    #[default]
    Basic,
    /// Packages of languages, too.
    Enhanced,
}

/// Which repositories are scanned when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScanningRule {
    /// When a repository's images are scanned.
    pub scan_frequency: ScanFrequency,
    /// Repositories that the rule is for.
    #[schemars(length(max = 100))]
    pub repository_filters: Vec<ScanningFilter>,
}

/// When images are scanned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ScanFrequency {
    /// When they are pushed.
    ScanOnPush,
    /// When they are pushed, and again when something new is known. ENHANCED only.
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
    /// How the pattern is read.
    pub filter_type: WildcardFilter,
}

/// The one way to read a pattern here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum WildcardFilter {
    /// A star stands for any run of characters.
    #[default]
    Wildcard,
}

/// Account settings, each named as ECR names it. What is absent keeps its value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub struct AccountSettings {
    /// Whether a blob may be mounted from one repository into another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blob_mounting: Option<Toggle>,
    /// Which scanner BASIC scanning uses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub basic_scan_type_version: Option<BasicScanType>,
    /// Which actions the registry's policy is consulted for: V1 three of them, V2 all.
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

/// Which actions a registry's policy is consulted for.
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

/// Namespaces, and the names that they may use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AllowedNamespaces {
    /// Which namespaces, by their labels. An empty selector chooses all.
    pub selector: LabelSelector,
    /// What a repository's name must start with. Absent or empty: any name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(min = 1, max = 256), regex(pattern = "^[a-z0-9][a-z0-9._/-]*$")))]
    pub repository_prefixes: Vec<String>,
}

/// What is known of a Registry.
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
    /// What this registry can beyond Amazon ECR.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub capabilities: Vec<String>,
    /// What the registry holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// How much of each limited thing is used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub quotas: Vec<Quota>,
    /// The value of the annotation reconcile.wharfage.dev/requestedAt that was last acted on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_handled_reconcile_at: Option<String>,
    /// What is observed about the registry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// What a registry holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Number of repositories.
    pub repositories: i64,
    /// Number of images. Repositories take turns in being counted.
    pub images: i64,
    /// Bytes of all images, as their manifests say. Repositories take turns in being counted.
    pub bytes: i64,
}

/// How much of a limited thing is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Quota {
    /// What is limited.
    pub name: String,
    /// How many are used.
    pub used: i64,
    /// How many there may be.
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

    /// What happens to its workload when the resource goes.
    pub fn deletion_policy(&self) -> DeletionPolicy {
        self.spec.deletion_policy.unwrap_or_default()
    }

    /// Whether a namespace with these labels may use this registry at all.
    pub fn admits(&self, namespace_labels: Option<&BTreeMap<String, String>>) -> bool {
        let Some(allowed) = &self.spec.allowed_namespaces else { return true };
        allowed.iter().any(|entry| selects(&entry.selector, namespace_labels))
    }

    /// Whether a namespace with these labels may use this repository name here.
    pub fn allows(&self, namespace_labels: Option<&BTreeMap<String, String>>, repository_name: &str) -> bool {
        let Some(allowed) = &self.spec.allowed_namespaces else { return true };
        allowed.iter().any(|entry| {
            let prefixes = &entry.repository_prefixes;
            let named =
                prefixes.is_empty() || prefixes.iter().any(|prefix| repository_name.starts_with(prefix.as_str()));
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
