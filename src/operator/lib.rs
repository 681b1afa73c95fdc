//! The operator: the same manifests as file mode, from the Kubernetes API.
//!
//! `kind` has the list of the kinds. Each kind has a controller, which supplies the steps of the
//! reconcile that all kinds share: observe, call the same [`plan`](wharfage_plan::plan) as file
//! mode, execute it, and write the status. `manager` starts the watches and the controllers;
//! `watch` and `triggers` requeue objects; `stores` and `index` find them. All controllers share
//! one `registry_client` for each registry. `secrets` reads and writes Secrets for any kind, and
//! `apply_set` other objects. `leader` lets only one replica work.
//!
//! Modules here import each other without cycles, except a parent and its children; a test checks
//! that.

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
mod managed_namespaces;
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

pub use managed_namespaces::ManagedNamespaces;
pub use run::{Process, cluster, run};
pub use settings::Settings;
