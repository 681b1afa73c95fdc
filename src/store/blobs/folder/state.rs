//! The writer state of an unfinished file, as JSON. Pure.

use serde::{Deserialize, Serialize};

use crate::{Generation, StoreError, StoreResult, WriterState};

/// The location of the bytes written so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct FileProgress {
    /// File that holds them. `None` before the first byte, and in rows of earlier versions, whose
    /// file is the row's own generation.
    pub(super) file: Option<Generation>,
    /// File that this one has replaced.
    pub(super) stale: Option<Generation>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredFileProgress {
    file: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stale: Option<String>,
}

impl FileProgress {
    pub(super) fn encode(&self) -> StoreResult<WriterState> {
        let Some(file) = self.file else { return Ok(WriterState::default()) };
        let stored = StoredFileProgress {
            file: file.to_string(),
            stale: self.stale.map(|stale| stale.to_string()),
        };
        serde_json::to_vec(&stored).map(WriterState).map_err(|e| StoreError::Backend(Box::new(e)))
    }

    pub(super) fn decode(state: &WriterState) -> StoreResult<Self> {
        if state.0.is_empty() {
            return Ok(Self::default());
        }
        let StoredFileProgress { file, stale } = serde_json::from_slice(&state.0).map_err(|e| {
            StoreError::Inconsistent(format!("an upload's state does not parse: {e}"))
        })?;
        Ok(Self { file: Some(file.parse()?), stale: stale.map(|stale| stale.parse()).transpose()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_round_trips() {
        let (file, stale) = (Some(Generation::random()), Some(Generation::random()));
        for progress in [
            FileProgress::default(),
            FileProgress { file, stale: None },
            FileProgress { file, stale },
        ] {
            assert_eq!(FileProgress::decode(&progress.encode().unwrap()).unwrap(), progress);
        }
        assert!(matches!(
            FileProgress::decode(&WriterState(b"{}".to_vec())),
            Err(StoreError::Inconsistent(_))
        ));
    }
}
