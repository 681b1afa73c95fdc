//! Emits Kubernetes events, which `kubectl describe` shows.
//!
//! An event is emitted when something changes, not at each reconcile. A repeated event increments
//! the count of the existing one. An event that cannot be written is logged, and blocks nothing.

use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};

use super::policy_rule::{Feature, PolicyRule, RuleScope};
use wharfage_crd::Reason;

/// Permissions to emit events.
pub(super) const RULES: &[PolicyRule] = &[PolicyRule {
    group: "events.k8s.io",
    resources: &["events"],
    verbs: &["create", "patch"],
    scope: RuleScope::Cluster,
    feature: Feature::Core,
    reason: "events",
}];

/// The longest note that the API accepts, in bytes.
pub const LONGEST_NOTE: usize = 1024;

#[derive(Clone)]
pub struct Events(Recorder);

impl Events {
    /// Makes a writer of events that names `instance` as their source.
    pub fn new(client: Client, instance: &str) -> Self {
        let reporter =
            Reporter { controller: "wharfage".to_owned(), instance: Some(instance.to_owned()) };
        Self(Recorder::new(client, reporter))
    }

    /// Emits an event about a change.
    pub async fn normal<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        reason: Reason,
        note: impl Into<String>,
    ) {
        self.publish(object, EventType::Normal, reason, note.into()).await;
    }

    /// Emits an event about a problem.
    pub async fn warning<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        reason: Reason,
        note: impl Into<String>,
    ) {
        self.publish(object, EventType::Warning, reason, note.into()).await;
    }

    async fn publish<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        type_: EventType,
        reason: Reason,
        note: String,
    ) {
        let note = cut(note);
        let event = Event {
            type_,
            reason: reason.to_string(),
            note: Some(note),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        if let Err(error) = self.0.publish(&event, &object.object_ref(&())).await {
            tracing::warn!(kind = %K::kind(&()), %reason, %error, "an event could not be written");
        }
    }
}

fn cut(mut note: String) -> String {
    const MORE: &str = "…";
    if note.len() > LONGEST_NOTE {
        note.truncate(note.floor_char_boundary(LONGEST_NOTE - MORE.len()));
        note.push_str(MORE);
    }
    note
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_note_is_cut_between_characters() {
        for fits in [String::new(), "x".repeat(1024), "ü".repeat(512)] {
            assert_eq!(cut(fits.clone()), fits);
        }
        for (long, left) in [
            ("x".repeat(1025), 1021),
            ("ü".repeat(1000), 510),
            ("x".to_owned() + &"€".repeat(400), 341),
        ] {
            let cut = cut(long.clone());
            assert!(cut.len() <= LONGEST_NOTE, "{} bytes", cut.len());
            let kept = cut.strip_suffix('…').unwrap();
            assert_eq!((long.starts_with(kept), kept.chars().count()), (true, left));
        }
    }
}
