//! LifecyclePolicy: which images of which repositories expire or are archived, in ECR's own grammar.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use kube::core::Duration;
use kube::{CustomResource, KubeSchema, ResourceExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{
    AdoptionPolicy, DURATION_PATTERN, DeletionPolicy, ManagementPolicy, RegistryRef, RepositoryRef,
    at_least_the_shortest_interval, managed, selects,
};
use super::conditions::Condition;
use super::repository::Repository;

pub use wharfage_domain::lifecycle::StorageClass;

/// Rules about which images of which repositories expire or are archived.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "wharfage.dev",
    version = "v1alpha1",
    kind = "LifecyclePolicy",
    plural = "lifecyclepolicies",
    shortname = "lcp",
    category = "wharfage",
    label("app.kubernetes.io/part-of", "wharfage"),
    doc = "Which images of which repositories expire or are archived. The rules are those of an Amazon ECR lifecycle policy.",
    namespaced,
    status = "LifecyclePolicyStatus",
    derive = "PartialEq",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(
        name = "Repositories",
        type_ = "integer",
        json_path = ".status.totals.repositories"
    ),
    printcolumn(name = "Expiring", type_ = "integer", json_path = ".status.totals.expiring"),
    printcolumn(name = "Protected", type_ = "integer", json_path = ".status.totals.protected"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Registry",
        type_ = "string",
        json_path = ".spec.registryRef.name",
        priority = 1
    ),
    printcolumn(
        name = "Size",
        type_ = "integer",
        json_path = ".status.totals.bytes",
        priority = 1
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.repositoryRef) != has(self.repositorySelector)")
        .message("give exactly one of repositoryRef and repositorySelector"),
    validation = Rule::new("self.registryRef.name == oldSelf.registryRef.name")
        .message("registryRef is immutable: make another LifecyclePolicy for the other Registry"),
)]
pub struct LifecyclePolicySpec {
    /// The Registry whose repositories are meant. Immutable.
    pub registry_ref: RegistryRef,
    /// One Repository of this namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository_ref: Option<RepositoryRef>,
    /// The Repositories of this namespace with these labels. An empty selector chooses all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository_selector: Option<LabelSelector>,
    /// Preview reports in status the images that the policy would delete or archive; Enforce
    /// applies the policy. Default: Preview.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// The rules, as in the rules of an ECR lifecycle policy: paste them.
    #[schemars(length(min = 1, max = 50))]
    #[x_kube(
        merge_strategy = ListMerge::Atomic,
        validation = Rule::new("self.all(rule, self.exists_one(other, other.rulePriority == rule.rulePriority))")
            .message("every rule needs its own rulePriority: renumber the rules"),
        validation = Rule::new(
            "self.filter(rule, rule.selection.tagStatus == 'untagged' && !(has(rule.selection.storageClass) && rule.selection.storageClass == 'archive')).size() <= 1 && self.filter(rule, rule.selection.tagStatus == 'untagged' && has(rule.selection.storageClass) && rule.selection.storageClass == 'archive').size() <= 1"
        )
        .message("only one rule may select untagged images per storage class: join them"),
        validation = Rule::new(
            "self.all(rule, rule.selection.tagStatus != 'any' || self.all(other, (has(other.selection.storageClass) && other.selection.storageClass == 'archive') != (has(rule.selection.storageClass) && rule.selection.storageClass == 'archive') || other.rulePriority <= rule.rulePriority))"
        )
        .message("a rule with tagStatus any must have the highest rulePriority of its storage class: number it last"),
    )]
    pub rules: Vec<LifecycleRule>,
    /// Keeps images that run: the operator then carries the policy out itself. An extension, on Amazon ECR too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_use_protection: Option<InUseProtection>,
    /// Full makes the registry match; Observe only looks. Default: Full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub management_policy: Option<ManagementPolicy>,
    /// Determines whether a policy that a repository already has is adopted. Default:
    /// AdoptOrCreate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adoption_policy: Option<AdoptionPolicy>,
    /// Determines whether the repositories keep the policy when this resource is deleted. Default:
    /// Retain.
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

/// Enforcement or preview of a policy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    /// The status reports the images that the policy would delete or archive.
    #[default]
    Preview,
    /// The policy deletes or archives the images.
    Enforce,
}

/// One rule of a lifecycle policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.selection.countType != 'sinceImagePulled' || self.action.type == 'transition'")
        .message("countType sinceImagePulled goes with action.type transition only: expire by sinceImagePushed or imageCountMoreThan"),
    validation = Rule::new("self.selection.countType != 'sinceImageTransitioned' || self.action.type == 'expire'")
        .message("countType sinceImageTransitioned goes with action.type expire only"),
)]
pub struct LifecycleRule {
    /// Order in which rules are applied, the lowest first. Unique within the policy.
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub rule_priority: i32,
    /// The purpose of the rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 10_240))]
    pub description: Option<String>,
    /// The images that the rule selects.
    pub selection: Selection,
    /// The action on these images.
    pub action: Action,
}

/// The selection of images of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.tagStatus != 'tagged' || has(self.tagPatternList) != has(self.tagPrefixList)")
        .message("tagStatus tagged needs one of tagPatternList and tagPrefixList"),
    validation = Rule::new("self.tagStatus == 'tagged' || !(has(self.tagPatternList) || has(self.tagPrefixList))")
        .message("tagPatternList and tagPrefixList go with tagStatus tagged only: leave them out, or change tagStatus"),
    validation = Rule::new("(self.countType == 'imageCountMoreThan') != has(self.countUnit)")
        .message("countUnit (days) goes with every countType but imageCountMoreThan: add it, or leave it out"),
    validation = Rule::new(
        "(self.countType == 'sinceImageTransitioned') == (has(self.storageClass) && self.storageClass == 'archive')"
    )
    .message("storageClass archive and countType sinceImageTransitioned go together: give both, or neither"),
    validation = Rule::new("self.countType != 'sinceImageTransitioned' || self.countNumber >= 90")
        .message("countNumber is at least 90 with countType sinceImageTransitioned: images are archived for 90 days or more"),
)]
pub struct Selection {
    /// Images with a tag, without one, or both.
    pub tag_status: TagStatus,
    /// Patterns, each of which one of the image's tags must match; a star stands for any run of characters, at most four per
    /// pattern.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 500),
        inner(length(min = 1, max = 300), regex(pattern = r"^[^*]*(\*[^*]*){0,4}$"))
    )]
    pub tag_pattern_list: Option<Vec<String>>,
    /// Prefixes, each of which one of the image's tags must have.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 500), inner(length(min = 1, max = 300)))]
    pub tag_prefix_list: Option<Vec<String>>,
    /// Images in the standard class, or archived ones. Default: standard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<StorageClass>,
    /// The unit of countNumber.
    pub count_type: CountType,
    /// Unit of countNumber, for every countType but imageCountMoreThan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count_unit: Option<CountUnit>,
    /// The number of images that are kept, or of days.
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub count_number: i32,
}

/// Images with a tag, without one, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum TagStatus {
    /// With a tag that the list chooses.
    Tagged,
    /// Without a tag.
    Untagged,
    /// All.
    Any,
}

/// The unit of countNumber.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum CountType {
    /// All but the youngest countNumber images.
    ImageCountMoreThan,
    /// Images pushed more than countNumber days ago.
    SinceImagePushed,
    /// Images last pulled more than countNumber days ago.
    SinceImagePulled,
    /// Images archived more than countNumber days ago.
    SinceImageTransitioned,
}

/// Unit of countNumber.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum CountUnit {
    /// Days of 24 hours.
    #[default]
    Days,
}

/// The action on the images that a rule selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.type == 'transition') == has(self.targetStorageClass)")
        .message("targetStorageClass (archive) goes with type transition: give both, or neither"),
)]
pub struct Action {
    /// The type of the action: the images are deleted or archived.
    #[serde(rename = "type")]
    pub type_: ActionType,
    /// The storage class to which they are moved, with type transition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_storage_class: Option<TargetStorageClass>,
}

/// The type of an action: images are deleted or archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ActionType {
    /// Deleted.
    Expire,
    /// Moved to another storage class.
    Transition,
}

/// The storage classes to which images can be moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum TargetStorageClass {
    /// The archive.
    #[default]
    Archive,
}

/// Keeps images that run from expiring.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InUseProtection {
    /// True to keep images that Pods or workloads use. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// The number of images used by a workload before that are kept, too. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub keep_previous: Option<i32>,
    /// Namespaces whose Pods count. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
}

/// The observed state of a LifecyclePolicy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("default" = { "observedGeneration": -1 }))]
pub struct LifecyclePolicyStatus {
    /// Generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The repositories with the most to report, at most 100; totals counts all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub repositories: Vec<RepositoryOutcome>,
    /// The results of the policy for all repositories together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub totals: Option<Totals>,
    /// The time at which this status last changed. A check that finds no change is not recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_sync_time: Option<Time>,
    /// The value of the annotation reconcile.wharfage.dev/requestedAt that was last acted on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_handled_reconcile_at: Option<String>,
    /// The conditions of the policy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// The result of a policy for one repository.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RepositoryOutcome {
    /// Name of the repository in the registry.
    pub name: String,
    /// The state of the policy in this repository.
    pub state: OutcomeState,
    /// Images that expire, or expired when the operator carried the policy out last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiring: Option<i64>,
    /// Images that are archived, or were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transitioning: Option<i64>,
    /// Bytes of the images that expire.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,
    /// Images that would expire or be archived, but are in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protected: Option<i64>,
    /// The time of this result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evaluated_at: Option<Time>,
    /// Some of the images.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub sample: Vec<ImageOutcome>,
}

/// The state of a policy in a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OutcomeState {
    /// Not evaluated yet.
    Pending,
    /// The result is known, and the policy is not enforced.
    Previewed,
    /// The registry has the policy, or the operator enforced it.
    Enforced,
    /// It failed; the conditions say why.
    Failed,
}

/// The result of a policy for one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageOutcome {
    /// Digest of the image.
    pub digest: String,
    /// Some of its tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5))]
    pub tags: Vec<String>,
    /// The action on the image: EXPIRE or TRANSITION.
    pub action: String,
    /// The rule that decided.
    pub rule_priority: i32,
}

/// The results of a policy for all repositories together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Repositories that the policy is for.
    pub repositories: i64,
    /// Images that expire, or expired when the operator carried the policy out last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiring: Option<i64>,
    /// Images that are archived, or were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transitioning: Option<i64>,
    /// Bytes of the images that expire.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,
    /// Images that would expire or be archived, but are in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protected: Option<i64>,
}

managed!(LifecyclePolicy);

impl LifecyclePolicy {
    /// Returns whether the policy is enforced or previewed.
    pub fn mode(&self) -> Mode {
        self.spec.mode.unwrap_or_default()
    }

    /// Returns whether images that run are kept.
    pub fn protects_in_use(&self) -> bool {
        self.spec
            .in_use_protection
            .as_ref()
            .and_then(|protection| protection.enabled)
            .unwrap_or_default()
    }

    /// Returns whether it is about this repository: same namespace, same registry, and referred to or selected.
    pub fn applies_to(&self, repository: &Repository) -> bool {
        let spec = &self.spec;
        let chosen = match (&spec.repository_ref, &spec.repository_selector) {
            (Some(reference), _) => reference.name == repository.name_any(),
            (None, Some(selector)) => selects(selector, repository.metadata.labels.as_ref()),
            (None, None) => false,
        };
        chosen
            && self.namespace() == repository.namespace()
            && spec.registry_ref == repository.spec.registry_ref
    }

    /// The document that ECR's PutLifecyclePolicy takes as text.
    pub fn document(&self) -> serde_json::Value {
        serde_json::json!({ "rules": self.spec.rules })
    }
}
