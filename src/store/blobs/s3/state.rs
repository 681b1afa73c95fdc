//! What is remembered of a half-written object, as bytes: a line of JSON, then the bytes that do not fill a part yet. Pure.

use serde::{Deserialize, Serialize};

use crate::store::{StoreError, StoreResult, WriterState};

/// The size of every part but the last, in bytes. The same for all, which some servers insist on; at least 5 MiB and at
/// most 10,000 parts are S3's own limits, and ECR's largest layer (52,000 MiB) fits. Small, because what does not fill a
/// part is kept in the upload's row.
pub(super) const PART: u64 = 6 * 1024 * 1024;
/// How many parts an object may have.
pub(super) const MOST_PARTS: usize = 10_000;

/// How far an object has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// The multipart upload, from the first full part on.
    pub(super) multipart: Option<Multipart>,
    /// The bytes after its last part.
    pub(super) tail: Vec<u8>,
}

/// A multipart upload and its parts so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Multipart {
    /// Its id.
    pub(super) id: String,
    /// Its parts' entity tags, in order.
    pub(super) parts: Vec<String>,
    /// Which finished object it is going to replace: that one does not tell that this upload is finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) replaces: Option<String>,
}

impl Progress {
    pub(super) fn encode(&self) -> StoreResult<WriterState> {
        if *self == Self::default() {
            return Ok(WriterState::default());
        }
        let mut bytes = serde_json::to_vec(&self.multipart).map_err(|e| StoreError::Backend(Box::new(e)))?;
        bytes.push(b'\n');
        bytes.extend_from_slice(&self.tail);
        Ok(WriterState(bytes))
    }

    /// The progress behind `state`, which must amount to `offset` bytes.
    pub(super) fn decode(state: &WriterState, offset: u64) -> StoreResult<Self> {
        let progress = Self::parse(state)
            .ok_or_else(|| StoreError::Inconsistent("an upload's state does not parse".to_owned()))?;
        let parts = progress.multipart.as_ref().map_or(0, |multipart| multipart.parts.len());
        let held = parts as u64 * PART + progress.tail.len() as u64;
        if held != offset {
            let told = format!("an upload's state holds {held} bytes, of which {offset} were acknowledged");
            return Err(StoreError::Inconsistent(told));
        }
        Ok(progress)
    }

    /// The multipart upload that `state` speaks of, if it does.
    pub(super) fn multipart_id(state: &WriterState) -> Option<String> {
        Self::parse(state)?.multipart.map(|multipart| multipart.id)
    }

    fn parse(state: &WriterState) -> Option<Self> {
        if state.0.is_empty() {
            return Some(Self::default());
        }
        let end = state.0.iter().position(|&byte| byte == b'\n')?;
        let multipart = serde_json::from_slice(&state.0[..end]).ok()?;
        Some(Self { multipart, tail: state.0[end + 1..].to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn progress() -> impl Strategy<Value = Progress> {
        let multipart = (".{1,40}", prop::collection::vec(".{1,40}", 1..5), prop::option::of(".{1,40}"))
            .prop_map(|(id, parts, replaces)| Multipart { id, parts, replaces });
        (prop::option::of(multipart), prop::collection::vec(any::<u8>(), 0..100))
            .prop_map(|(multipart, tail)| Progress { multipart, tail })
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes(progress in progress()) {
            let parts = progress.multipart.as_ref().map_or(0, |multipart| multipart.parts.len() as u64);
            let offset = parts * PART + progress.tail.len() as u64;
            let state = progress.encode().unwrap();
            prop_assert_eq!(Progress::multipart_id(&state), progress.multipart.clone().map(|multipart| multipart.id));
            prop_assert!(Progress::decode(&state, offset + 1).is_err());
            prop_assert_eq!(Progress::decode(&state, offset).unwrap(), progress);
        }

        #[test]
        fn any_bytes_are_taken_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), offset in any::<u64>()) {
            let _ = Progress::decode(&WriterState(bytes), offset);
        }
    }

    #[test]
    fn nothing_written_is_nothing_remembered() {
        assert_eq!(Progress::default().encode().unwrap(), WriterState::default());
    }

    #[test]
    fn the_largest_layer_fits() {
        assert!(PART * MOST_PARTS as u64 >= 52_000 * 1024 * 1024);
    }
}
