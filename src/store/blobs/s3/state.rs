//! The writer state of an unfinished object, as JSON. Pure.

use serde::{Deserialize, Serialize};

use crate::{Generation, StoreError, StoreResult, WriterState};

/// Size of every part but the last, in bytes. All have the same, because some servers require that.
/// S3 requires at least 5 MiB and at most 10,000 parts, and ECR's largest layer (52,000 MiB) fits.
/// Small, because bytes that do not fill a part are written, read and written again.
pub(super) const PART: u64 = 6 * 1024 * 1024;
/// Maximum number of parts of an object.
pub(super) const MAX_PARTS: usize = 10_000;

/// The location of the bytes written so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ObjectProgress {
    /// Multipart upload, once a part is full.
    pub(super) multipart: Option<Multipart>,
    /// Bytes after its last part.
    pub(super) tail: Option<TailLocation>,
    /// Objects that have been replaced.
    pub(super) stale: Vec<Generation>,
}

/// A multipart upload and its parts so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Multipart {
    /// Generation of its object.
    pub(super) generation: Generation,
    /// Id that S3 gave it.
    pub(super) id: String,
    /// Entity tags of its parts, in order. The completion names them, which excludes parts that
    /// others wrote in their place.
    pub(super) parts: Vec<String>,
    /// Some parts were copied from an object that may not hold the upload's bytes.
    pub(super) recovered: bool,
}

/// The bytes that do not fill a part yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TailLocation {
    /// They are an object.
    Saved {
        /// Generation that holds them.
        generation: Generation,
        /// Number of bytes.
        len: u64,
    },
    /// They are in the state itself, as earlier versions wrote it.
    Inline(Vec<u8>),
}

impl TailLocation {
    /// Returns the number of bytes.
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Saved { len, .. } => *len,
            Self::Inline(bytes) => bytes.len() as u64,
        }
    }
}

/// The serialized form. Earlier versions wrote only the multipart upload, a line feed, and the
/// tail's bytes.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredObjectProgress {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    multipart: Option<StoredMultipart>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tail: Option<StoredTail>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    stale: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct StoredMultipart {
    /// If missing, the row's own generation, as in earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    generation: Option<String>,
    id: String,
    parts: Vec<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    recovered: bool,
}

#[derive(Serialize, Deserialize)]
struct StoredTail {
    generation: String,
    len: u64,
}

impl ObjectProgress {
    pub(super) fn encode(&self) -> StoreResult<WriterState> {
        if *self == Self::default() {
            return Ok(WriterState::default());
        }
        let multipart =
            self.multipart.as_ref().map(|Multipart { generation, id, parts, recovered }| {
                StoredMultipart {
                    generation: Some(generation.to_string()),
                    id: id.clone(),
                    parts: parts.clone(),
                    recovered: *recovered,
                }
            });
        let tail = match &self.tail {
            None => None,
            Some(TailLocation::Saved { generation, len }) => {
                Some(StoredTail { generation: generation.to_string(), len: *len })
            }
            Some(TailLocation::Inline(_)) => {
                return Err(StoreError::Backend(
                    "bytes of a blob do not belong into the database".into(),
                ));
            }
        };
        let stale = self.stale.iter().map(ToString::to_string).collect();
        let stored = serde_json::to_vec(&StoredObjectProgress { multipart, tail, stale });
        stored.map(WriterState).map_err(|e| StoreError::Backend(Box::new(e)))
    }

    /// Parses the `state` of a row whose own generation is `row`.
    pub(super) fn decode(state: &WriterState, row: Generation) -> StoreResult<Self> {
        if state.0.is_empty() {
            return Ok(Self::default());
        }
        let unreadable = || StoreError::Inconsistent("an upload's state does not parse".to_owned());
        let StoredObjectProgress { multipart, tail, stale } =
            match state.0.iter().position(|&byte| byte == b'\n') {
                None => serde_json::from_slice(&state.0).map_err(|_| unreadable())?,
                Some(end) => {
                    let multipart: Option<StoredMultipart> =
                        serde_json::from_slice(&state.0[..end]).map_err(|_| unreadable())?;
                    let multipart =
                        multipart.map(|stored| Self::multipart(stored, row)).transpose()?;
                    let bytes = state.0[end + 1..].to_vec();
                    let tail = (!bytes.is_empty()).then_some(TailLocation::Inline(bytes));
                    return Ok(Self { multipart, tail, stale: Vec::new() });
                }
            };
        let tail = match tail {
            None => None,
            Some(StoredTail { generation, len }) => {
                Some(TailLocation::Saved { generation: generation.parse()?, len })
            }
        };
        let multipart = multipart.map(|stored| Self::multipart(stored, row)).transpose()?;
        let stale = stale.iter().map(|stale| stale.parse()).collect::<StoreResult<_>>()?;
        Ok(Self { multipart, tail, stale })
    }

    fn multipart(stored: StoredMultipart, row: Generation) -> StoreResult<Multipart> {
        let StoredMultipart { generation, id, parts, recovered } = stored;
        let generation = generation.map_or(Ok(row), |generation| generation.parse())?;
        Ok(Multipart { generation, id, parts, recovered })
    }

    /// Returns the total number of bytes.
    pub(super) fn len(&self) -> u64 {
        let parts = self.multipart.as_ref().map_or(0, |multipart| multipart.parts.len());
        parts as u64 * PART + self.tail.as_ref().map_or(0, TailLocation::len)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn generation() -> impl Strategy<Value = Generation> {
        any::<bool>().prop_map(|_| Generation::random())
    }

    fn progress() -> impl Strategy<Value = ObjectProgress> {
        let multipart =
            (generation(), ".{1,40}", prop::collection::vec(".{1,40}", 1..5), any::<bool>())
                .prop_map(|(generation, id, parts, recovered)| Multipart {
                    generation,
                    id,
                    parts,
                    recovered,
                });
        let tail = (generation(), 1..PART)
            .prop_map(|(generation, len)| TailLocation::Saved { generation, len });
        (
            prop::option::of(multipart),
            prop::option::of(tail),
            prop::collection::vec(generation(), 0..3),
        )
            .prop_map(|(multipart, tail, stale)| ObjectProgress { multipart, tail, stale })
    }

    proptest! {
        #[test]
        fn a_state_round_trips(progress in progress()) {
            let state = progress.encode().unwrap();
            prop_assert_eq!(ObjectProgress::decode(&state, Generation::random()).unwrap(), progress);
        }

        #[test]
        fn any_bytes_parse_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = ObjectProgress::decode(&WriterState(bytes), Generation::random());
        }
    }

    #[test]
    fn states_of_earlier_versions_are_read() {
        let row = Generation::random();
        let state = WriterState(b"{\"id\":\"u\",\"parts\":[\"a\"]}\n\0\n".to_vec());
        let progress = ObjectProgress::decode(&state, row).unwrap();
        let multipart = Multipart {
            generation: row,
            id: "u".into(),
            parts: vec!["a".into()],
            recovered: false,
        };
        assert_eq!(progress.multipart, Some(multipart));
        assert_eq!(progress.tail, Some(TailLocation::Inline(b"\0\n".to_vec())));
        assert_eq!(progress.len(), PART + 2);
        assert_eq!(
            ObjectProgress::decode(&WriterState(b"null\nhi".to_vec()), row).unwrap().len(),
            2
        );
    }

    #[test]
    fn nothing_written_has_an_empty_state() {
        assert_eq!(ObjectProgress::default().encode().unwrap(), WriterState::default());
    }

    #[test]
    fn the_largest_layer_fits() {
        assert!(PART * MAX_PARTS as u64 >= 52_000 * 1024 * 1024);
    }
}
