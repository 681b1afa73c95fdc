//! Conversions between columns and domain values, shared by both databases so that the two cannot
//! differ. Pure.
//!
//! A column that does not parse is [`StoreError::Inconsistent`]: the store's fault, never the
//! caller's.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::images::ImageStatus;
use super::jobs::JobState;
use super::previews::PreviewState;
use super::repositories::{Encryption, Mutability, TagMutability};
use super::{KeyReference, StoreError, StoreResult};

/// Parses one of the newtypes (digest, tag, generation, …).
pub(super) fn parse<T: FromStr<Err: std::fmt::Display>>(text: &str) -> StoreResult<T> {
    text.parse().map_err(|error: T::Err| StoreError::Inconsistent(error.to_string()))
}

/// Converts a time to milliseconds since the epoch, the precision of every stored time.
pub(super) fn millis(time: Timestamp) -> i64 {
    time.as_millisecond()
}

/// Converts a column of milliseconds to a time.
pub(super) fn time(millis: i64) -> StoreResult<Timestamp> {
    Timestamp::from_millisecond(millis)
        .map_err(|_| StoreError::Inconsistent(format!("{millis} is no time")))
}

/// Rounds a time to the stored precision, as it will be read back.
pub(super) fn stored_time(moment: Timestamp) -> StoreResult<Timestamp> {
    time(millis(moment))
}

/// Converts a size or count; neither database has unsigned integers.
pub(super) fn signed(value: u64) -> StoreResult<i64> {
    i64::try_from(value)
        .map_err(|_| StoreError::Inconsistent(format!("{value} is too large to be stored")))
}

/// Converts a column to a size or count.
pub(super) fn unsigned(value: i64) -> StoreResult<u64> {
    u64::try_from(value).map_err(|_| StoreError::Inconsistent(format!("{value} is no size")))
}

/// Converts a key to the columns `key_id` and `wrapped_key`.
pub(super) fn key_columns(key: Option<&KeyReference>) -> (Option<&str>, Option<&[u8]>) {
    (key.map(|key| key.id.as_str()), key.map(|key| key.wrapped.as_slice()))
}

/// Converts the columns `key_id` and `wrapped_key` to a key.
pub(super) fn key_reference(
    id: Option<String>,
    wrapped: Option<Vec<u8>>,
) -> StoreResult<Option<KeyReference>> {
    match (id, wrapped) {
        (None, None) => Ok(None),
        (Some(id), Some(wrapped)) => Ok(Some(KeyReference { id, wrapped })),
        _ => Err(StoreError::Inconsistent("a key reference is half there".into())),
    }
}

/// Converts the argument of a `LIMIT`.
pub(super) fn limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// Serializes a JSON column.
pub(super) fn json<T: Serialize + ?Sized>(value: &T) -> StoreResult<String> {
    serde_json::to_string(value).map_err(|error| StoreError::Backend(Box::new(error)))
}

/// Parses a JSON column.
pub(super) fn from_json<T: DeserializeOwned>(text: &str) -> StoreResult<T> {
    serde_json::from_str(text)
        .map_err(|error| StoreError::Inconsistent(format!("a JSON column does not parse: {error}")))
}

/// Converts a lease to milliseconds.
pub(super) fn lease(lease: Duration) -> i64 {
    i64::try_from(lease.as_millis()).unwrap_or(i64::MAX)
}

/// Parses the column `job.state`.
pub(super) fn job_state(text: &str) -> StoreResult<JobState> {
    JobState::parse(text)
        .ok_or_else(|| StoreError::Inconsistent(format!("{text:?} is no state of a job")))
}

/// Serializes the column `manifest.annotations`, which is NULL without annotations.
pub(super) fn annotations(value: &BTreeMap<String, String>) -> StoreResult<Option<String>> {
    if value.is_empty() { Ok(None) } else { json(value).map(Some) }
}

/// Parses the column `manifest.annotations`.
pub(super) fn annotations_of(column: Option<&str>) -> StoreResult<BTreeMap<String, String>> {
    column.map_or_else(|| Ok(BTreeMap::new()), from_json)
}

/// Parses the column `manifest.status`.
pub(super) fn status(text: &str) -> StoreResult<ImageStatus> {
    ImageStatus::parse(text)
        .ok_or_else(|| StoreError::Inconsistent(format!("{text:?} is no image status")))
}

/// Parses the columns `repository.tag_mutability` and `repository.exclusions`.
pub(super) fn tag_mutability(mode: &str, exclusions: &str) -> StoreResult<TagMutability> {
    let mode = Mutability::parse(mode)
        .ok_or_else(|| StoreError::Inconsistent(format!("{mode:?} is no tag mutability")))?;
    Ok(TagMutability { mode, exclusions: from_json(exclusions)? })
}

/// Returns the column `blob.encryption`. Repositories with the same encryption share bytes.
pub(super) fn encryption(encryption: &Encryption) -> String {
    match &encryption.kms_key {
        None => encryption.kind.clone(),
        Some(key) => format!("{}:{key}", encryption.kind),
    }
}

/// Converts a preview's state to the columns `state`, `completed_at` and `summary`.
pub(super) fn preview_columns(state: &PreviewState) -> (&'static str, Option<i64>, Option<&str>) {
    match state {
        PreviewState::InProgress => ("IN_PROGRESS", None, None),
        PreviewState::Complete { completed_at, summary } => {
            ("COMPLETE", Some(millis(*completed_at)), Some(summary))
        }
        PreviewState::Failed => ("FAILED", None, None),
    }
}

/// Parses the columns `state`, `completed_at` and `summary` of a preview.
pub(super) fn preview_state(
    state: &str,
    completed_at: Option<i64>,
    summary: Option<String>,
) -> StoreResult<PreviewState> {
    match (state, completed_at, summary) {
        ("IN_PROGRESS", _, _) => Ok(PreviewState::InProgress),
        ("FAILED", _, _) => Ok(PreviewState::Failed),
        ("COMPLETE", Some(completed_at), Some(summary)) => {
            Ok(PreviewState::Complete { completed_at: time(completed_at)?, summary })
        }
        _ => Err(StoreError::Inconsistent(format!(
            "a lifecycle preview is {state:?} without a result"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_that_does_not_parse_is_an_inconsistency() {
        assert!(matches!(
            parse::<wharfage_domain::names::Digest>("sha256:x"),
            Err(StoreError::Inconsistent(_))
        ));
        assert!(matches!(time(i64::MAX), Err(StoreError::Inconsistent(_))));
        assert!(matches!(unsigned(-1), Err(StoreError::Inconsistent(_))));
        assert!(matches!(status("active"), Err(StoreError::Inconsistent(_))));
        assert!(matches!(tag_mutability("MUTABLE", "no JSON"), Err(StoreError::Inconsistent(_))));
        assert!(matches!(preview_state("COMPLETE", None, None), Err(StoreError::Inconsistent(_))));
    }

    #[test]
    fn a_key_reference_has_both_columns_or_none() {
        let key = KeyReference { id: "k".into(), wrapped: vec![1] };
        let (id, wrapped) = key_columns(Some(&key));
        assert_eq!(
            key_reference(id.map(Into::into), wrapped.map(Into::into)).unwrap(),
            Some(key.clone())
        );
        assert_eq!(key_reference(None, None).unwrap(), None);
        assert!(matches!(key_reference(Some("k".into()), None), Err(StoreError::Inconsistent(_))));
    }

    #[test]
    fn each_key_is_another_encryption() {
        let kms =
            |key: &str| encryption(&Encryption { kind: "KMS".into(), kms_key: Some(key.into()) });
        assert_ne!(kms("a"), kms("b"));
        assert_ne!(kms("a"), encryption(&Encryption::default()));
    }

    #[test]
    fn annotations_round_trip_and_none_are_null() {
        let some = BTreeMap::from([("a".to_owned(), "\"b\"".to_owned())]);
        assert_eq!(annotations_of(annotations(&some).unwrap().as_deref()).unwrap(), some);
        assert_eq!(annotations(&BTreeMap::new()).unwrap(), None);
    }
}
