//! The operator: the same manifests as file mode, from the Kubernetes API.
//!
//! One controller for each kind. A controller looks at what is there, calls the same [`plan`](crate::plan::plan), carries it
//! out and writes the status. `manager` starts the watches and the controllers; `watch` and `triggers` requeue resources;
//! `stores` and `index` find them; `session` is a registry as all controllers know it; `leader` sees to it that only one process
//! does all this.
//!
//! Modules here import each other without cycles, but for a parent and its children; a test checks that.

pub mod access;
pub mod calls;
mod census;
pub mod check;
pub mod context;
mod controllers;
mod events;
mod finalizer;
pub mod in_use;
mod index;
pub mod leader;
mod manager;
pub mod metrics;
pub mod operations;
pub mod pull_secrets;
pub mod rbac;
mod run;
mod secrets;
pub mod session;
pub mod settings;
mod slice;
pub mod status;
pub mod stores;
pub mod triggers;
mod watch;
pub mod workload;
pub mod written;

pub use run::{Process, cluster, run};
pub use settings::Settings;
