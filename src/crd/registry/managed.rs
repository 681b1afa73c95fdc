//! `spec.managed`: a registry that Wharfage runs.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, LocalObjectReference, ResourceRequirements, Toleration, TopologySpreadConstraint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::DEFAULT_CONNECTION_KEY;
use crate::common::{NAME_PATTERN, NAMESPACE_PATTERN, SecretKeyRef, SecretRef};
use wharfage_domain::names::Region;

/// The storage of the bytes of images, in CEL: a string, empty for the volume. Of an endpoint only
/// the host counts: to reach it by another scheme moves nothing.
fn place_of(managed: &str) -> String {
    let s3 = format!("{managed}.storage.s3");
    format!(
        "(has({managed}.storage) && has({s3}) ? {s3}.bucket + (has({s3}.endpoint) ? {s3}.endpoint.find('//[^/]+') : '') : '')"
    )
}

/// Returns which database it is, in CEL: a string, empty for SQLite.
fn database_of(managed: &str) -> String {
    let secret = format!("{managed}.database.postgres.connectionSecretRef");
    format!(
        "(has({managed}.database) && has({managed}.database.postgres) ? {secret}.__namespace__ + '/' + {secret}.name + '/' + (has({secret}.key) ? {secret}.key : '{DEFAULT_CONNECTION_KEY}') : '')"
    )
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
    /// The number of replicas. Default: 1. With storage.s3 and database.postgres an absent number is left to autoscalers.
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
    /// The storage of the bytes of images. Default: filesystem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// The storage of everything but the bytes. Default: sqlite.
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
    /// The placement and identity of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// Determines whether a NetworkPolicy limits who may reach the pods. Default: Enabled, clients
    /// from anywhere, metrics from within the cluster; connections from the pods are not limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<NetworkPolicyMode>,
}

/// The placement and identity of the pods of a managed registry; each field is that of a Pod.
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
    /// The rules by which replicas spread. Default: over hosts and zones, as far as there are
    /// some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topology_spread_constraints: Option<Vec<TopologySpreadConstraint>>,
    /// Secrets of the registry's namespace by which nodes pull the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// PriorityClass of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
    /// ServiceAccount of the pods, such as one that a cloud grants access to the bucket. Its token
    /// isn't mounted. Default: default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account_name: Option<String>,
}

/// Determines whether there is a NetworkPolicy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NetworkPolicyMode {
    /// There is one.
    #[default]
    Enabled,
    /// There is none: yours hold alone.
    Disabled,
}

/// The storage of the bytes of images.
#[derive(KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.filesystem) != has(self.s3)").message("give exactly one of filesystem and s3"),
)]
pub struct Storage {
    /// A folder: a persistent volume in a cluster, a folder of the data directory on a laptop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<FilesystemStorage>,
    /// A bucket of Amazon S3, or of a service with its protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Storage>,
}

/// A folder for the bytes of images.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FilesystemStorage {
    /// Size of the persistent volume. It may grow where its StorageClass allows it, and never
    /// shrinks. Default: 10Gi.
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
    #[schemars(
        with = "Option<String>",
        length(min = 2, max = 25),
        regex(pattern = "^[0-9a-z-]{2,25}$")
    )]
    pub region: Option<Region>,
    /// Endpoint of an S3 that isn't Amazon's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), regex(pattern = "^https?://[^/?#@]+/?$"))]
    pub endpoint: Option<String>,
    /// Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Default: the process's own identity, in a cluster that of
    /// pod.serviceAccountName.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<SecretRef>,
    /// True to redirect clients to the bucket for a blob's bytes by a presigned URL. Default:
    /// false, the registry passes them on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirect: Option<bool>,
}

/// The storage of everything but the bytes.
#[derive(KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.sqlite) != has(self.postgres)").message("give exactly one of sqlite and postgres"),
)]
pub struct Database {
    /// A SQLite file beside the data: one replica, no server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sqlite: Option<Sqlite>,
    /// PostgreSQL, or a database with its protocol: any number of replicas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postgres: Option<Postgres>,
}

/// A SQLite file. With storage.filesystem it lies on the same volume; with storage.s3 on a separate
/// one.
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
    /// The issuer of the certificate.
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

/// The type of a Service.
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
