//! The conditions of a resource, as kstatus, Argo CD and people read them. No I/O, except
//! [`write()`].
//!
//! kstatus reads `observedGeneration` first, then `Reconciling`, then `Stalled`, then `Ready`. So
//! the middle two exist only while they are True, and each condition has its `observedGeneration`.

use std::fmt::Debug;

use jiff::SignedDuration;
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
        ConditionType::Suspended => false,
        _ => true,
    });
    conditions.sort_by_key(|it| it.type_);
    conditions
}

/// The time for which a missing reference is awaited before someone must act.
const REFERENCE_TIMEOUT: SignedDuration = SignedDuration::from_mins(10);

/// Returns the state of a resource whose reference has been missing for so long that it may never come: Stalled. It is
/// reconciled again all the same when the reference comes.
pub fn with_reference_timeout(state: ReadyState, before: &[Condition], now: &Time) -> ReadyState {
    match state {
        ReadyState::Reconciling(cause) if cause.reason == Reason::ReferenceNotFound => {
            let missing = condition(before, ConditionType::ReferencesResolved)
                .filter(|it| it.status == ConditionStatus::False)
                .map(|it| now.0.duration_since(it.last_transition_time.0));
            match missing {
                Some(missing) if missing > REFERENCE_TIMEOUT => ReadyState::Stalled(cause),
                _ => ReadyState::Reconciling(cause),
            }
        }
        state => state,
    }
}

/// Returns the conditions of a resource that is suspended in `generation`: Ready stays, and nothing is in progress.
pub fn suspended(before: &[Condition], generation: Option<i64>, now: &Time) -> Vec<Condition> {
    let in_progress = [ConditionType::Reconciling, ConditionType::Stalled];
    let mut conditions = before.to_vec();
    conditions.retain(|it| !in_progress.contains(&it.type_));
    let suspended = Condition {
        type_: ConditionType::Suspended,
        status: ConditionStatus::True,
        reason: Reason::Suspended.to_string(),
        message: SUSPENDED.to_owned(),
        observed_generation: generation,
        last_transition_time: now.clone(),
    };
    set_condition(&mut conditions, suspended);
    conditions
}

/// The message about a suspended resource.
pub const SUSPENDED: &str = "reconciliation is suspended: set spec.suspend to false to go on";

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
    fn a_reference_that_never_comes_is_stalled_in_the_end() {
        let cause = Cause::new(Reason::ReferenceNotFound, "it does not exist");
        let missing = ConditionSet {
            references: Some(Err(cause.clone())),
            ..ConditionSet::of(ReadyState::Reconciling(cause))
        };
        let since = conditions(&[], Some(1), &missing, &at(0));
        let after = |second, state: &ReadyState| {
            with_reference_timeout(state.clone(), &since, &at(second)).as_str()
        };
        assert_eq!(after(600, &missing.state), "reconciling");
        assert_eq!(after(601, &missing.state), "stalled");
        assert_eq!(with_reference_timeout(missing.state, &[], &at(601)).as_str(), "reconciling");
        let waits = ReadyState::Reconciling(Cause::new(Reason::RegistryUnavailable, "it is away"));
        assert_eq!(after(10_000, &waits), "reconciling", "an outage ends by itself");
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
        let rests = suspended(&second, Some(3), &at(3));
        assert_eq!(
            types(&rests),
            [
                ConditionType::Ready,
                ConditionType::ReferencesResolved,
                ConditionType::Drifted,
                ConditionType::Suspended
            ]
        );
        assert_eq!(suspended(&rests, Some(3), &at(4)), rests);
        assert_eq!(types(&conditions(&rests, Some(4), &found, &at(5))), types(&first));
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
