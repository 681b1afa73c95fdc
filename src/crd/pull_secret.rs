//! PullSecret: Secrets to pull from a Registry with, in the namespaces that are chosen, renewed before they end.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use kube::{CustomResource, KubeSchema, ResourceExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{NAME_PATTERN, RegistryRef, selects};
use super::conditions::Condition;

/// Secrets of type kubernetes.io/dockerconfigjson, to pull from a Registry with.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "wharfage.dev",
    version = "v1alpha1",
    kind = "PullSecret",
    plural = "pullsecrets",
    shortname = "psec",
    category = "wharfage",
    label("app.kubernetes.io/part-of", "wharfage"),
    doc = "Secrets to pull from a Registry with, in the namespaces that are chosen, renewed before they end.",
    namespaced,
    status = "PullSecretStatus",
    derive = "PartialEq",
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Secret", type_ = "string", json_path = ".status.secretName"),
    printcolumn(name = "Namespaces", type_ = "integer", json_path = ".status.namespaces"),
    // Columns of type date show how long ago a time is, and nothing sensible for one to come.
    printcolumn(name = "Expires", type_ = "string", json_path = ".status.expiresAt"),
    printcolumn(name = "Renews", type_ = "string", json_path = ".status.renewsAt"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Registry", type_ = "string", json_path = ".spec.registryRef.name", priority = 1),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
pub struct PullSecretSpec {
    /// The Registry to pull from. Its allowedNamespaces hold for every namespace that gets the Secret.
    pub registry_ref: RegistryRef,
    /// The namespaces that get the Secret, by their labels. An empty selector chooses all. Default: this namespace alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Name of the Secret in each namespace. Default: metadata.name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = NAME_PATTERN))]
    pub secret_name: Option<String>,
    /// Service accounts of each namespace whose imagePullSecrets name the Secret, as soon as they are there. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 253), regex(pattern = NAME_PATTERN)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub service_accounts: Vec<String>,
    /// True to suspend reconciliation, including renewal. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
}

/// The observed state of a PullSecret.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("default" = { "observedGeneration": -1 }))]
pub struct PullSecretStatus {
    /// Generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Name of the Secret in each namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_name: Option<String>,
    /// The number of namespaces that have the Secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<i64>,
    /// The time at which the first of the Secrets expires unless it is renewed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// The time at which the first of the Secrets is renewed: half way to its end, or a little
    /// before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renews_at: Option<Time>,
    /// The value of the annotation reconcile.wharfage.dev/requestedAt that was last acted on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_handled_reconcile_at: Option<String>,
    /// The conditions of the Secrets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

impl PullSecret {
    /// The Registry to pull from.
    pub fn registry_ref(&self) -> &RegistryRef {
        &self.spec.registry_ref
    }

    /// Name of the Secret in each namespace.
    pub fn secret_name(&self) -> String {
        self.spec.secret_name.clone().unwrap_or_else(|| self.name_any())
    }

    /// Returns whether nothing is to be done for now.
    pub fn suspended(&self) -> bool {
        self.spec.suspend.unwrap_or_default()
    }

    /// Returns whether a namespace of this name and these labels is to have the Secret.
    pub fn chooses(&self, namespace: &str, labels: Option<&BTreeMap<String, String>>) -> bool {
        match &self.spec.namespace_selector {
            Some(selector) => selects(selector, labels),
            None => self.namespace().as_deref() == Some(namespace),
        }
    }
}
