//! Inspection of an upload's bytes while they are written: each byte once, in order, on a blocking
//! thread.

use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinHandle;

use crate::{StoreError, StoreResult};

/// Fewer bytes than this are inspected on the calling thread, because a change of threads would
/// take as long.
const INLINE: usize = 32 * 1024;

/// Receives the bytes that a writer takes, to hash them.
pub trait Inspect: Send + Sync {
    /// Processes the next bytes. It may compute for long, but must not wait.
    fn inspect(&self, bytes: &[u8]);
}

/// Inspects nothing.
impl Inspect for () {
    fn inspect(&self, _: &[u8]) {}
}

/// Runs an [`Inspect`] on blocking threads while its caller continues.
pub(super) struct Inspection {
    inspect: Arc<dyn Inspect>,
    running: Option<JoinHandle<()>>,
}

impl Inspection {
    pub(super) fn new(inspect: Arc<dyn Inspect>) -> Self {
        Self { inspect, running: None }
    }

    /// Starts the inspection of the next frames, after that of the previous ones has ended.
    pub(super) async fn take(&mut self, frames: Vec<Bytes>) -> StoreResult<()> {
        self.wait().await?;
        if frames.iter().map(Bytes::len).sum::<usize>() < INLINE {
            frames.iter().for_each(|frame| self.inspect.inspect(frame));
            return Ok(());
        }
        let inspect = Arc::clone(&self.inspect);
        let all = move || frames.into_iter().for_each(|frame| inspect.inspect(&frame));
        self.running = Some(tokio::task::spawn_blocking(all));
        Ok(())
    }

    /// Waits until every frame has been inspected. Cancel safe.
    pub(super) async fn wait(&mut self) -> StoreResult<()> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let outcome = running.await;
        self.running = None;
        outcome.map_err(|error| StoreError::Backend(Box::new(error)))
    }
}
