//! What is remembered of a half-written file, as JSON. Pure.

use serde::{Deserialize, Serialize};

use crate::store::{Generation, StoreError, StoreResult, WriterState};

/// Where the bytes so far are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// The file that holds them. `None` before the first byte, and in rows of earlier versions, whose file is the row's own
    /// generation.
    pub(super) file: Option<Generation>,
    /// A file that this one has replaced.
    pub(super) stale: Option<Generation>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    file: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stale: Option<String>,
}

impl Progress {
    pub(super) fn encode(&self) -> StoreResult<WriterState> {
        let Some(file) = self.file else { return Ok(WriterState::default()) };
        let stored = Stored { file: file.to_string(), stale: self.stale.map(|stale| stale.to_string()) };
        serde_json::to_vec(&stored).map(WriterState).map_err(|e| StoreError::Backend(Box::new(e)))
    }

    pub(super) fn decode(state: &WriterState) -> StoreResult<Self> {
        if state.0.is_empty() {
            return Ok(Self::default());
        }
        let Stored { file, stale } = serde_json::from_slice(&state.0)
            .map_err(|e| StoreError::Inconsistent(format!("an upload's state does not parse: {e}")))?;
        Ok(Self { file: Some(file.parse()?), stale: stale.map(|stale| stale.parse()).transpose()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_decodes() {
        let (file, stale) = (Some(Generation::random()), Some(Generation::random()));
        for progress in [Progress::default(), Progress { file, stale: None }, Progress { file, stale }] {
            assert_eq!(Progress::decode(&progress.encode().unwrap()).unwrap(), progress);
        }
        assert!(matches!(Progress::decode(&WriterState(b"{}".to_vec())), Err(StoreError::Inconsistent(_))));
    }
}
