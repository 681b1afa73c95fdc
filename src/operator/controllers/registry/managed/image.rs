//! Decides which image the pods of a managed registry run.
//!
//! The image is pinned in the status. When the operator has another default image, the registries change to it one after
//! the other: the next one begins when the one before serves with it. So an image that does not work stops at the first
//! registry.

use std::cmp::Ordering;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;

use crate::kind::Kind as _;
use crate::status::is_ready;
use wharfage_crd::common::older;
use wharfage_crd::conditions::{ConditionStatus, ConditionType, set_condition};
use wharfage_crd::{Condition, Reason, Registry, condition};

/// The image of a managed registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ImageDecision {
    pub image: String,
    pub migration: Migration,
}

/// The change of a managed registry to another image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Migration {
    /// The registry runs the image that it should.
    None,
    /// The registry changes to the image, until its pods serve with it.
    Running,
    /// Another Registry changes first.
    Waiting { to: String, after: String },
}

impl Migration {
    /// Returns the migration after the workload was applied. It ends when the pods serve with the image.
    pub(super) fn after_rollout(self, is_settled: bool) -> Self {
        match self {
            Self::Running if is_settled => Self::None,
            other => other,
        }
    }

    /// Sets the condition of a Registry of this generation.
    pub(super) fn set_condition(
        &self,
        conditions: &mut Vec<Condition>,
        image: &str,
        generation: Option<i64>,
    ) {
        let (status, reason, message) = match self {
            Self::None => {
                conditions.retain(|it| it.type_ != ConditionType::Migrating);
                return;
            }
            Self::Running => {
                (true, Reason::ImageChanging, format!("the pods change to image {image}"))
            }
            Self::Waiting { to, after } => (
                false,
                Reason::WaitingForTurn,
                format!(
                    "the pods change from image {image} to {to} after those of Registry {after}"
                ),
            ),
        };
        let condition = Condition {
            type_: ConditionType::Migrating,
            status: status.into(),
            reason: reason.to_string(),
            message,
            observed_generation: generation,
            last_transition_time: Time(Timestamp::now()),
        };
        set_condition(conditions, condition);
    }
}

/// Decides which image the registry runs now. `running` is the image of its existing pods, in case the status does not say
/// it; `default` is the image of Registries that name none. Returns nothing if no image is known.
pub(super) fn decide(
    registry: &Registry,
    all: &[Arc<Registry>],
    running: Option<&str>,
    default: Option<&str>,
) -> Option<ImageDecision> {
    let desired = explicit(registry).or(default)?;
    let decision =
        |image: &str, migration| Some(ImageDecision { image: image.to_owned(), migration });
    let Some(pinned) = pinned(registry).or(running) else {
        return decision(desired, Migration::None);
    };
    if pinned == desired {
        let migration = if is_migrating(registry) { Migration::Running } else { Migration::None };
        return decision(desired, migration);
    }
    if explicit(registry).is_some() {
        return decision(desired, Migration::Running);
    }
    let others = || all.iter().map(|it| &**it).filter(|it| it.uid() != registry.uid());
    let first = others()
        .find(|it| is_migrating(it))
        .or_else(|| others().find(|it| is_outdated(it, desired) && before(it, registry).is_lt()));
    match first {
        Some(other) => {
            let (to, after) = (desired.to_owned(), other.name_any());
            decision(pinned, Migration::Waiting { to, after })
        }
        None => decision(desired, Migration::Running),
    }
}

fn explicit(registry: &Registry) -> Option<&str> {
    registry.spec.managed.as_ref()?.image.as_deref()
}

fn pinned(registry: &Registry) -> Option<&str> {
    registry.status.as_ref()?.image.as_deref()
}

fn is_migrating(registry: &Registry) -> bool {
    registry.spec.managed.is_some()
        && condition(registry.conditions(), ConditionType::Migrating)
            .is_some_and(|it| it.status == ConditionStatus::True)
}

/// Returns whether the registry will change to the default image, too.
fn is_outdated(registry: &Registry, default: &str) -> bool {
    registry.spec.managed.is_some()
        && registry.metadata.deletion_timestamp.is_none()
        && explicit(registry).is_none()
        && pinned(registry).is_some_and(|it| it != default)
}

/// Orders Registries by their turn: one that is not Ready blocks no other.
fn before(one: &Registry, other: &Registry) -> Ordering {
    let waits = |it: &Registry| !is_ready(it.conditions());
    waits(one).cmp(&waits(other)).then_with(|| older(one, other))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A Registry that runs `image`; `state` is Ready, Migrating or Failing.
    fn registry(name: &str, image: Option<&str>, state: &str) -> Arc<Registry> {
        let is = |type_: &str, holds: bool| {
            json!({
                "type": type_, "status": if holds { "True" } else { "False" }, "reason": "Because",
                "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
            })
        };
        let mut conditions = vec![is("Ready", state == "Ready")];
        if state == "Migrating" {
            conditions.push(is("Migrating", true));
        }
        Arc::new(
            serde_json::from_value(json!({
                "apiVersion": "wharfage.dev/v1alpha1", "kind": "Registry",
                "metadata": { "name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z" },
                "spec": { "managed": {} },
                "status": { "image": image, "conditions": conditions },
            }))
            .unwrap(),
        )
    }

    fn decision(all: &[Arc<Registry>], index: usize) -> (String, Migration) {
        let decided = decide(&all[index], all, None, Some("new")).unwrap();
        (decided.image, decided.migration)
    }

    fn waits(after: &str) -> (String, Migration) {
        ("old".to_owned(), Migration::Waiting { to: "new".to_owned(), after: after.to_owned() })
    }

    #[test]
    fn a_new_registry_runs_the_default_image() {
        let all = [registry("a", None, "Failing")];
        assert_eq!(decision(&all, 0), ("new".to_owned(), Migration::None));
        assert_eq!(decide(&all[0], &all, None, None), None);
    }

    #[test]
    fn one_registry_changes_at_a_time() {
        let (old, new) = (Some("old"), Some("new"));
        let running = ("new".to_owned(), Migration::Running);
        let all = ["a", "b", "c"].map(|name| registry(name, old, "Ready"));
        assert_eq!(
            [0, 1, 2].map(|it| decision(&all, it)),
            [running.clone(), waits("a"), waits("a")]
        );
        let all = [registry("a", new, "Migrating"), all[1].clone(), all[2].clone()];
        assert_eq!(
            [0, 1, 2].map(|it| decision(&all, it)),
            [running.clone(), waits("a"), waits("a")]
        );
        let all = [registry("a", new, "Ready"), all[1].clone(), all[2].clone()];
        let done = ("new".to_owned(), Migration::None);
        assert_eq!([0, 1, 2].map(|it| decision(&all, it)), [done, running, waits("b")]);
    }

    #[test]
    fn a_registry_that_does_not_serve_changes_last() {
        let all = [registry("a", Some("old"), "Failing"), registry("b", Some("old"), "Ready")];
        assert_eq!(decision(&all, 0), waits("b"));
        assert_eq!(decision(&all, 1).1, Migration::Running);
    }

    #[test]
    fn the_image_of_running_pods_counts_where_the_status_has_none() {
        let all = [registry("a", Some("old"), "Ready"), registry("b", None, "Ready")];
        let decided = decide(&all[1], &all, Some("old"), Some("new")).unwrap();
        assert_eq!((decided.image, decided.migration), waits("a"));
    }

    #[test]
    fn an_image_of_the_spec_waits_for_no_other() {
        let mut explicit = Registry::clone(&registry("b", Some("old"), "Ready"));
        explicit.spec.managed.as_mut().unwrap().image = Some("own".to_owned());
        let all = [registry("a", Some("new"), "Migrating"), Arc::new(explicit)];
        assert_eq!(decision(&all, 1), ("own".to_owned(), Migration::Running));
    }

    #[test]
    fn a_rollback_changes_back() {
        let all = [registry("a", Some("newer"), "Migrating"), registry("b", Some("new"), "Ready")];
        assert_eq!(decision(&all, 0), ("new".to_owned(), Migration::Running));
        assert_eq!(decision(&all, 1), ("new".to_owned(), Migration::None));
    }
}
