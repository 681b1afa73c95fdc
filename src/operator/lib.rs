//! The operator: the same manifests as file mode, from the Kubernetes API.
//!
//! One controller for each kind. A controller looks at what is there, calls the same [`plan`](wharfage_plan::plan), carries it
//! out and writes the status. `manager` starts the watches and the controllers; `watch` and `triggers` requeue resources;
//! `stores` and `index` find them; `registry_client` is a registry as all controllers know it; `leader` sees to it that only one process
//! does all this. `secrets` reads and writes Secrets for any kind, and `apply_set` other objects.
//!
//! Modules here import each other without cycles, but for a parent and its children; a test checks that.

mod api_error;
mod apply_set;
mod call_metrics;
pub mod check;
mod context;
mod controllers;
mod events;
#[cfg(test)]
mod fake_kubernetes;
mod finalizer;
mod health;
mod in_use;
mod index;
mod kind;
mod leader;
mod manager;
mod metrics;
mod plan_input;
pub mod policy_rule;
mod pull_secrets;
pub mod rbac;
pub mod registry_client;
mod run;
mod secrets;
mod settings;
mod stale_cache;
mod state_metrics;
mod status;
mod stores;
mod triggers;
mod watch;
mod workload;

pub use run::{Process, cluster, run};
pub use settings::Settings;
