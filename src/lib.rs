//! Wharfage: Amazon ECR for any Kubernetes cluster, declared instead of clicked.
//!
//! This package has the commands and the binary. Each layer is a separate crate, re-exported here
//! under its name:
//!
//! ```text
//! cli ──► operator ──► apply ──► plan ──► manifests ──► crd     declares: through the ECR API alone
//!  └────► serve ──► registry, jobs ──► store                   serves: OCI and ECR APIs, jobs, metadata and bytes
//! everything ──► domain, process                               ECR's rules, pure; what any process needs
//! ```
//!
//! `docs/architecture.md` has the details.

// They panic where a stream cannot be written; `cli::output` is the one place that does.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod cli;
pub mod datadir;
pub mod serve;

pub use wharfage_apply as apply;
pub use wharfage_crd as crd;
pub use wharfage_domain::{
    access_key, lifecycle, names, policy, scanning, tag_mutability, wildcard,
};
pub use wharfage_jobs as jobs;
pub use wharfage_manifests as manifests;
pub use wharfage_operator as operator;
pub use wharfage_plan as plan;
pub use wharfage_process::{admin, budget, listener, shutdown, telemetry};
pub use wharfage_registry as registry;
pub use wharfage_store as store;
