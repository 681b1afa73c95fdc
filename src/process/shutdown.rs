//! The signal by which the tasks of a process learn that it ends.

use tokio::sync::watch;

/// Says `true` once the process is to stop.
pub type Stop = watch::Receiver<bool>;
