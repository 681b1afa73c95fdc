//! The conditions of a resource, as kstatus, Argo CD and people read them. No I/O, except
//! [`write()`].
//!
//! kstatus reads `observedGeneration` first, then `Reconciling`, then `Stalled`, then `Ready`. So
//! the middle two exist only while they are True, and each condition has its `observedGeneration`.

use std::fmt::Debug;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::stale_cache::StaleCache;
use wharfage_crd::conditions::{ConditionStatus, ConditionType, set_condition};
use wharfage_crd::{Condition, Reason, condition};

/// The field manager of the operator.
pub const FIELD_MANAGER: &str = "wharfage";

/// The longest message of a condition, in characters. A registry may send a longer one.
const LONGEST_MESSAGE: usize = 2048;

/// The cause of a condition: a reason for programs, and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    pub reason: Reason,
    /// The object, the value, and what to do.
    pub message: String,
}

impl Cause {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: cut(message.into()) }
    }
}

fn cut(message: String) -> String {
    match message.char_indices().nth(LONGEST_MESSAGE) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message,
    }
}

/// The state in which a reconcile leaves its resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadyState {
    /// The resource is as the spec asks.
    Ready(Cause),
    /// Work continues, or something is awaited: no one needs to act.
    Reconciling(Cause),
    /// Someone must change something. It is retried slowly all the same.
    Stalled(Cause),
}

impl ReadyState {
    pub fn cause(&self) -> &Cause {
        match self {
            Self::Ready(cause) | Self::Reconciling(cause) | Self::Stalled(cause) => cause,
        }
    }

    /// Adds sentences to the message of a Ready resource.
    #[must_use]
    pub fn with_notes(self, notes: &[String]) -> Self {
        match self {
            Self::Ready(Cause { reason, message }) if !notes.is_empty() => {
                Self::Ready(Cause::new(reason, format!("{message}; {}", notes.join("; "))))
            }
            state => state,
        }
    }

    #[cfg(test)]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Ready(_) => "ready",
            Self::Reconciling(_) => "reconciling",
            Self::Stalled(_) => "stalled",
        }
    }
}

/// The result of a reconcile, for the conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConditionSet {
    pub state: ReadyState,
    /// The result of the check that all referenced objects exist; nothing if that was not checked.
    pub references: Option<Result<(), Cause>>,
    /// True if another party changed the registry; nothing if that was not checked.
    pub drifted: Option<(bool, Cause)>,
}

impl Default for ConditionSet {
    fn default() -> Self {
        Self::of(ReadyState::Reconciling(Cause::new(
            Reason::Progressing,
            "it was not reconciled yet",
        )))
    }
}

impl ConditionSet {
    /// Sets only the state.
    pub fn of(state: ReadyState) -> Self {
        Self { state, references: None, drifted: None }
    }
}

/// Returns the conditions after `findings` about `generation`. A condition whose status stays keeps
/// its transition time; one that was not checked stays unchanged.
pub fn conditions(
    before: &[Condition],
    generation: Option<i64>,
    findings: &ConditionSet,
    now: &Time,
) -> Vec<Condition> {
    let mut conditions = before.to_vec();
    let mut set = |type_, status: ConditionStatus, cause: &Cause| {
        set_condition(
            &mut conditions,
            Condition {
                type_,
                status,
                reason: cause.reason.to_string(),
                message: cause.message.clone(),
                observed_generation: generation,
                last_transition_time: now.clone(),
            },
        );
    };
    let cause = findings.state.cause();
    set(ConditionType::Ready, matches!(findings.state, ReadyState::Ready(_)).into(), cause);
    match &findings.references {
        Some(Ok(())) => {
            set(
                ConditionType::ReferencesResolved,
                true.into(),
                &Cause::new(Reason::Resolved, "all references exist"),
            );
        }
        Some(Err(missing)) => set(ConditionType::ReferencesResolved, false.into(), missing),
        None => {}
    }
    if let Some((drifted, cause)) = &findings.drifted {
        set(ConditionType::Drifted, (*drifted).into(), cause);
    }
    for (type_, holds) in [
        (ConditionType::Reconciling, matches!(findings.state, ReadyState::Reconciling(_))),
        (ConditionType::Stalled, matches!(findings.state, ReadyState::Stalled(_))),
    ] {
        if holds {
            set(type_, true.into(), cause);
        }
    }
    conditions.retain(|it| match it.type_ {
        ConditionType::Reconciling => matches!(findings.state, ReadyState::Reconciling(_)),
        ConditionType::Stalled => matches!(findings.state, ReadyState::Stalled(_)),
        _ => true,
    });
    conditions.sort_by_key(|it| it.type_);
    conditions
}

/// Returns the conditions of a suspended resource: Ready stays, and nothing is in progress.
pub fn suspended(before: &[Condition]) -> Vec<Condition> {
    before
        .iter()
        .filter(|it| !matches!(it.type_, ConditionType::Reconciling | ConditionType::Stalled))
        .cloned()
        .collect()
}

pub fn is_ready(conditions: &[Condition]) -> bool {
    condition(conditions, ConditionType::Ready).is_some_and(|it| it.status == ConditionStatus::True)
}

/// Writes the status, if it differs from the one that the object has. Returns whether it was
/// written.
///
/// # Errors
/// Of the API server, except that the object is gone.
pub async fn write<K, S>(
    written: &StaleCache,
    api: &Api<K>,
    object: &K,
    before: Option<&S>,
    after: &S,
) -> Result<bool, kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    S: Serialize + PartialEq,
{
    if before == Some(after) {
        return Ok(false);
    }
    let name = object.name_any();
    let patch = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        // A later object of the same name has another uid, and refuses this status.
        "metadata": { "name": name, "uid": object.meta().uid },
        "status": after,
    });
    match api
        .patch_status(&name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&patch))
        .await
    {
        Ok(object) => {
            written.record_write(&object);
            Ok(true)
        }
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    fn types(conditions: &[Condition]) -> Vec<ConditionType> {
        conditions.iter().map(|it| it.type_).collect()
    }

    #[test]
    fn reconciling_and_stalled_are_there_only_while_true() {
        let waiting = ConditionSet::of(ReadyState::Reconciling(Cause::new(
            Reason::RegistryUnavailable,
            "it is unreachable",
        )));
        let stalled =
            ConditionSet::of(ReadyState::Stalled(Cause::new(Reason::NotAllowed, "not yours")));
        let ready = ConditionSet::of(ReadyState::Ready(Cause::new(Reason::InSync, "all is well")));
        let first = conditions(&[], Some(1), &waiting, &at(1));
        assert_eq!(types(&first), [ConditionType::Ready, ConditionType::Reconciling]);
        assert_eq!(first[0].status, ConditionStatus::False);
        let second = conditions(&first, Some(2), &stalled, &at(2));
        assert_eq!(types(&second), [ConditionType::Ready, ConditionType::Stalled]);
        assert_eq!(second[0].last_transition_time, at(1), "Ready was False before");
        assert_eq!(second[0].observed_generation, Some(2));
        let third = conditions(&second, Some(3), &ready, &at(3));
        assert_eq!(types(&third), [ConditionType::Ready]);
        assert_eq!(third[0].last_transition_time, at(3));
        assert!(is_ready(&third) && !is_ready(&second));
    }

    #[test]
    fn unchecked_conditions_stay() {
        let found = ConditionSet {
            state: ReadyState::Ready(Cause::new(Reason::InSync, "")),
            references: Some(Ok(())),
            drifted: Some((false, Cause::new(Reason::InSync, ""))),
        };
        let first = conditions(&[], Some(1), &found, &at(1));
        let away =
            ConditionSet::of(ReadyState::Reconciling(Cause::new(Reason::RegistryUnavailable, "")));
        let second = conditions(&first, Some(1), &away, &at(2));
        for type_ in [ConditionType::ReferencesResolved, ConditionType::Drifted] {
            assert_eq!(condition(&second, type_), condition(&first, type_));
        }
        assert_eq!(
            types(&suspended(&second)),
            [ConditionType::Ready, ConditionType::ReferencesResolved, ConditionType::Drifted]
        );
    }

    #[test]
    fn only_ready_messages_get_notes() {
        let notes = ["one".to_owned(), "two".to_owned()];
        let cause = Cause::new(Reason::InSync, "all is well");
        let noted = ReadyState::Ready(cause.clone()).with_notes(&notes);
        assert_eq!(noted, ReadyState::Ready(Cause::new(Reason::InSync, "all is well; one; two")));
        for state in [ReadyState::Reconciling(cause.clone()), ReadyState::Stalled(cause.clone())] {
            assert_eq!(state.clone().with_notes(&notes), state);
        }
        assert_eq!(ReadyState::Ready(cause.clone()).with_notes(&[]), ReadyState::Ready(cause));
    }

    #[test]
    fn messages_are_truncated() {
        let cause = Cause::new(Reason::InSync, "x".repeat(5000));
        assert_eq!(cause.message.chars().count(), LONGEST_MESSAGE + 1);
    }
}
