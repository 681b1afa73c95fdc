//! Events: what was pushed, deleted or moved, and what the lifecycle job did.
//!
//! The store writes the events of an image in the transaction that changes it, in the format of
//! Amazon ECR's EventBridge events ("ECR Image Action").

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::StoreResult;
use super::images::StorageClass;
use super::manifests::{PutOutcome, TagEffect};
use wharfage_domain::names::{AccountId, Digest, RepositoryName, Tag};

/// Stores events.
#[async_trait::async_trait]
pub trait EventStore: Send + Sync {
    /// Records an event.
    async fn record_event(&self, event: Event) -> StoreResult<()>;
    /// Lists the latest events of a registry, newest first.
    async fn list_events(&self, account: &AccountId, limit: usize) -> StoreResult<Vec<Event>>;
    /// Deletes events older than `before` and events not among the last `keep`: at most `limit`,
    /// the oldest first. Returns how many were deleted.
    async fn prune_events(&self, before: Timestamp, keep: u64, limit: usize) -> StoreResult<u64>;
}

/// An event of a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When it happened.
    pub at: Timestamp,
    /// Registry that it happened in.
    pub account: AccountId,
    /// Name of the repository, which may have been deleted when the event is read.
    pub repository: Option<RepositoryName>,
    /// ECR's detail-type, or the extension's own.
    pub kind: String,
    /// Details, as JSON.
    pub detail: String,
}

/// Builds the events of one image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ImageEvents<'a> {
    /// Registry of the image.
    pub account: &'a AccountId,
    /// Repository of the image.
    pub repository: &'a RepositoryName,
    /// Digest of the image.
    pub digest: &'a Digest,
    /// Media type of the image.
    pub media_type: &'a str,
    /// `artifactType` of the image, else its config's media type.
    pub(crate) artifact_media_type: Option<&'a str>,
    /// The image has an OCI `subject`: ECR then calls its events "ECR Referrer Action".
    pub(crate) is_referrer: bool,
}

impl ImageEvents<'_> {
    /// Builds a PUSH event for each tag that was set. A push that set none gets one for each tag
    /// that it named, else one without a tag; none if nothing changed.
    pub fn pushed(&self, outcome: &PutOutcome, now: Timestamp) -> Vec<Event> {
        if outcome.unchanged() {
            return Vec::new();
        }
        let set = |effect: TagEffect| matches!(effect, TagEffect::Created | TagEffect::Moved);
        let any_set = outcome.tags.iter().any(|(_, effect)| set(*effect));
        let tags =
            outcome.tags.iter().filter(|(_, effect)| !any_set || set(*effect)).map(|(tag, _)| tag);
        self.each("PUSH", tags, now)
    }

    /// Builds a DELETE event for each deleted tag, else one without a tag.
    pub fn deleted<'t>(
        &self,
        tags: impl IntoIterator<Item = &'t Tag>,
        now: Timestamp,
    ) -> Vec<Event> {
        self.each("DELETE", tags, now)
    }

    /// Builds the event of a change of storage class. `activated_at` is when the image was
    /// restored, if it was.
    pub fn moved(
        &self,
        class: StorageClass,
        activated_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Event {
        let mut detail = self.detail("UPDATE_STORAGE_CLASS");
        let target = match class {
            StorageClass::Standard => "STANDARD",
            StorageClass::Archive => "ARCHIVE",
        };
        detail.insert("target-storage-class".into(), target.into());
        if let Some(at) = activated_at {
            detail.insert("last-activated-at".into(), at.to_string().into());
        }
        self.event(detail, now)
    }

    fn each<'t>(
        &self,
        action: &str,
        tags: impl IntoIterator<Item = &'t Tag>,
        now: Timestamp,
    ) -> Vec<Event> {
        let tagged = |tag: &Tag| {
            let mut detail = self.detail(action);
            detail.insert("image-tag".into(), tag.as_str().into());
            self.event(detail, now)
        };
        let events: Vec<Event> = tags.into_iter().map(tagged).collect();
        if events.is_empty() { vec![self.event(self.detail(action), now)] } else { events }
    }

    fn detail(&self, action: &str) -> Map<String, Value> {
        let mut detail = Map::new();
        let mut put = |name: &str, value: &str| detail.insert(name.into(), value.into());
        put("result", "SUCCESS");
        put("repository-name", self.repository.as_str());
        put("image-digest", self.digest.as_str());
        put("action-type", action);
        put("manifest-media-type", self.media_type);
        if let Some(artifact) = self.artifact_media_type {
            put("artifact-media-type", artifact);
        }
        detail
    }

    fn event(&self, detail: Map<String, Value>, now: Timestamp) -> Event {
        let kind = if self.is_referrer { "ECR Referrer Action" } else { "ECR Image Action" };
        Event {
            at: now,
            account: self.account.clone(),
            repository: Some(self.repository.clone()),
            kind: kind.into(),
            detail: Value::Object(detail).to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags_of(outcome: &PutOutcome) -> Vec<Option<String>> {
        let events = ImageEvents {
            account: &"123456789012".parse().unwrap(),
            repository: &"team/app".parse().unwrap(),
            digest: &Digest::sha256(b"x"),
            media_type: "application/vnd.oci.image.manifest.v1+json",
            artifact_media_type: None,
            is_referrer: false,
        };
        let tag = |event: &Event| {
            let detail: Value = serde_json::from_str(&event.detail).unwrap();
            assert_eq!(detail["action-type"], "PUSH");
            detail["image-tag"].as_str().map(str::to_owned)
        };
        events.pushed(outcome, Timestamp::UNIX_EPOCH).iter().map(tag).collect()
    }

    fn outcome(created: bool, restored: bool, tags: &[(&str, TagEffect)]) -> PutOutcome {
        let tags = tags.iter().map(|(tag, effect)| (tag.parse().unwrap(), *effect)).collect();
        PutOutcome { created, restored, retyped: false, tags }
    }

    #[test]
    fn a_push_has_one_event_for_each_tag_that_it_set() {
        use TagEffect::{Created, Moved, Unchanged};
        assert_eq!(tags_of(&outcome(true, false, &[])), [None]);
        assert_eq!(
            tags_of(&outcome(false, false, &[("a", Created), ("b", Unchanged), ("c", Moved)])),
            [Some("a".into()), Some("c".into())]
        );
        assert_eq!(tags_of(&outcome(false, true, &[("a", Unchanged)])), [Some("a".into())]);
        assert_eq!(tags_of(&outcome(false, false, &[("a", Unchanged)])), [] as [Option<String>; 0]);
    }
}
