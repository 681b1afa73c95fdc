//! Types that several kinds share: references, management policies, documents.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt as _;
use kube::core::{Rule, Selector, SelectorExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The time between two checks of the registry, if the resource does not set one.
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(600);
/// The shortest such rest, whatever a resource says: without any it would do nothing but look.
pub const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);

/// A DNS-1123 subdomain, which is what Kubernetes asks of an object's name.
pub(crate) const NAME_PATTERN: &str =
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
/// A DNS-1123 label, which is what Kubernetes asks of a namespace's name.
pub(crate) const NAMESPACE_PATTERN: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
/// A duration as Go writes it, of bounded length, so that reading it can't overflow.
pub(crate) const DURATION_PATTERN: &str = r"^([0-9]{1,6}(ms|s|m|h)){1,4}$";

/// [`SHORTEST_INTERVAL`], as a rule of every `interval`.
pub(crate) fn at_least_the_shortest_interval() -> Rule {
    Rule::new("duration(self) >= duration('1s')")
        .message("an interval is 1s or longer: give a longer one")
}

/// The Registry that a resource belongs to.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub struct RegistryRef {
    /// Name of the Registry. It may be made later: until then the resource waits.
    #[schemars(length(min = 1, max = 253), regex(pattern = NAME_PATTERN))]
    pub name: String,
}

/// A Repository of the same namespace.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub struct RepositoryRef {
    /// Name of the Repository resource (its metadata.name, not its repositoryName).
    #[schemars(length(min = 1, max = 253), regex(pattern = NAME_PATTERN))]
    pub name: String,
}

/// A Secret in a named namespace: what a cluster-scoped kind needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = NAME_PATTERN))]
    pub name: String,
    /// Namespace of the Secret.
    #[schemars(length(min = 1, max = 63), regex(pattern = NAMESPACE_PATTERN))]
    pub namespace: String,
}

/// One key of a Secret in a named namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = NAME_PATTERN))]
    pub name: String,
    /// Namespace of the Secret.
    #[schemars(length(min = 1, max = 63), regex(pattern = NAMESPACE_PATTERN))]
    pub namespace: String,
    /// Key within the Secret's data.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[-._a-zA-Z0-9]+$"))]
    pub key: Option<String>,
}

/// Determines whether Wharfage changes what it manages, or only observes it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ManagementPolicy {
    /// The registry is made to match the spec.
    #[default]
    Full,
    /// Only status is written; the registry is left as it is.
    Observe,
}

/// The action if an object of that name already exists in the registry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AdoptionPolicy {
    /// Adopt an existing object, create a missing one.
    #[default]
    AdoptOrCreate,
    /// Adopt an existing object; wait while there is none.
    Adopt,
    /// Create the object; refuse to adopt an existing one.
    Create,
}

/// The action on the object in the registry when its resource is deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// It is kept.
    #[default]
    Retain,
    /// It is deleted too.
    Delete,
}

/// A JSON document in its own grammar (a policy in IAM's), written as YAML instead of as a string.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Document(pub serde_json::Map<String, serde_json::Value>);

impl Document {
    /// The document as a JSON value.
    pub fn to_value(&self) -> serde_json::Value {
        serde_json::Value::Object(self.0.clone())
    }
}

impl JsonSchema for Document {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Document".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
    }
}

/// The fields of every kind but Registry: the registry it is in and how it is managed.
pub trait Managed {
    /// The Registry that it belongs to.
    fn registry_ref(&self) -> &RegistryRef;
    /// Returns whether the registry is made to match, or only observed.
    fn management_policy(&self) -> ManagementPolicy;
    /// Returns what to do about an object that already exists.
    fn adoption_policy(&self) -> AdoptionPolicy;
    /// Returns the action when the resource is deleted.
    fn deletion_policy(&self) -> DeletionPolicy;
    /// Returns how long to rest between two looks at the registry.
    fn interval(&self) -> Duration;
    /// Returns whether nothing is to be done for now.
    fn suspended(&self) -> bool;
}

/// The fields behind [`Managed`] are the same in every spec, so their reading is, too.
macro_rules! managed {
    ($kind:ty) => {
        impl $crate::common::Managed for $kind {
            fn registry_ref(&self) -> &$crate::common::RegistryRef {
                &self.spec.registry_ref
            }
            fn management_policy(&self) -> $crate::common::ManagementPolicy {
                self.spec.management_policy.unwrap_or_default()
            }
            fn adoption_policy(&self) -> $crate::common::AdoptionPolicy {
                self.spec.adoption_policy.unwrap_or_default()
            }
            fn deletion_policy(&self) -> $crate::common::DeletionPolicy {
                self.spec.deletion_policy.unwrap_or_default()
            }
            fn interval(&self) -> std::time::Duration {
                let given = self.spec.interval.map_or($crate::common::DEFAULT_INTERVAL, Into::into);
                given.max($crate::common::SHORTEST_INTERVAL)
            }
            fn suspended(&self) -> bool {
                self.spec.suspend.unwrap_or_default()
            }
        }
    };
}
pub(crate) use managed;

/// Returns whether `selector` chooses an object with these labels. An empty selector chooses all;
/// one that Kubernetes would refuse (an unknown operator) chooses none.
pub fn selects(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    Selector::try_from(selector.clone())
        .is_ok_and(|selector| selector.matches(labels.unwrap_or(&NONE)))
}

/// Orders resources by precedence: the older first, and of two made in the same second the one that comes first by name.
pub fn older<K: kube::Resource>(a: &K, b: &K) -> Ordering {
    let key = |it: &K| {
        (it.meta().creation_timestamp.clone().map(|it| it.0), it.namespace(), it.name_any())
    };
    key(a).cmp(&key(b))
}
