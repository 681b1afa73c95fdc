//! Events: what happened to a resource, for those who look at it with `kubectl describe`.
//!
//! They are told when something changes, not when it is looked at again; what happens again is counted on the event that is
//! there. An event that cannot be written is logged, and nothing else stops for it.

use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};

/// Writes events.
#[derive(Clone)]
pub struct Events(Recorder);

impl Events {
    /// Events that say they come from `instance`.
    pub fn new(client: Client, instance: &str) -> Self {
        let reporter = Reporter { controller: "wharfage".to_owned(), instance: Some(instance.to_owned()) };
        Self(Recorder::new(client, reporter))
    }

    /// Something was done.
    pub async fn normal<K: Resource<DynamicType = ()>>(&self, object: &K, reason: &str, note: impl Into<String>) {
        self.publish(object, EventType::Normal, reason, note.into()).await;
    }

    /// Something is wrong.
    pub async fn warning<K: Resource<DynamicType = ()>>(&self, object: &K, reason: &str, note: impl Into<String>) {
        self.publish(object, EventType::Warning, reason, note.into()).await;
    }

    async fn publish<K: Resource<DynamicType = ()>>(&self, object: &K, type_: EventType, reason: &str, note: String) {
        // What the API takes at most.
        const LONGEST_NOTE: usize = 1000;
        let note = note.chars().take(LONGEST_NOTE).collect();
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        if let Err(error) = self.0.publish(&event, &object.object_ref(&())).await {
            tracing::warn!(kind = %K::kind(&()), reason, %error, "an event could not be written");
        }
    }
}
