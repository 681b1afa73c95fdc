//! Conditions as Kubernetes and kstatus read them, and the table of those that Wharfage sets.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::reason::Reason;

/// The conditions that Wharfage sets.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum ConditionType {
    /// The registry is as the spec asks.
    Ready,
    /// Work is in progress, or something is waited for. Present only while True.
    Reconciling,
    /// It makes no progress until somebody changes something. Present only while True.
    Stalled,
    /// Everything that the spec refers to exists.
    ReferencesResolved,
    /// Somebody changed the registry behind the resource's back.
    Drifted,
    /// A managed registry changes to another image, or waits for its turn to do so. Absent otherwise.
    Migrating,
    /// The resource is not reconciled, because spec.suspend is true. Present only while True.
    Suspended,
}

/// The state of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// It is not known.
    Unknown,
}

impl From<bool> for ConditionStatus {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// One observation about a resource, in the shape of Kubernetes' `meta/v1` Condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// The type of the condition.
    #[serde(rename = "type")]
    pub type_: ConditionType,
    /// The status of the condition.
    pub status: ConditionStatus,
    /// The reason, as one CamelCase word that programs may compare.
    #[schemars(
        length(min = 1, max = 1024),
        regex(pattern = "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")
    )]
    pub reason: String,
    /// The reason, as one sentence that names the object, the value and what to do.
    #[schemars(length(max = 32768))]
    pub message: String,
    /// The generation of the spec that was observed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The time at which the status last changed.
    pub last_transition_time: Time,
}

impl Condition {
    /// Returns whether the condition has this reason.
    pub fn has_reason(&self, reason: &Reason) -> bool {
        self.reason == reason.as_str()
    }
}

/// The condition of this type, if the resource has it.
pub fn condition(conditions: &[Condition], type_: ConditionType) -> Option<&Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Puts `new` among `conditions`. An unchanged status keeps the time at which it began.
pub fn set_condition(conditions: &mut Vec<Condition>, mut new: Condition) {
    match conditions.iter_mut().find(|old| old.type_ == new.type_) {
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time = old.last_transition_time.clone();
            }
            *old = new;
        }
        None => conditions.push(new),
    }
}
