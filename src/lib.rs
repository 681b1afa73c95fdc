//! Wharfage: Amazon ECR for any Kubernetes cluster, declared instead of clicked.
//!
//! One package, a library and a thin binary. The map, and which way dependencies may point:
//!
//! ```text
//! cli ──► apply ──► (aws-sdk-ecr)          what manifests ask for, carried out through the ECR API alone
//!  │        └─────► plan, crd
//!  └────► registry, jobs ──► store         the server: OCI and ECR APIs, jobs, metadata and bytes
//! everything ──► names, lifecycle, policy  pure: no I/O, no clock, nothing else of ours
//! ```
//!
//! `docs/architecture.md` tells the same at length.

// They panic where a stream cannot be written; `cli::output` is the one place that does.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod cli;
pub mod datadir;
pub mod serve;

pub use wharfage_apply as apply;
pub use wharfage_crd as crd;
pub use wharfage_domain::{access_key, lifecycle, names, policy, scanning, tag_mutability, wildcard};
pub use wharfage_jobs as jobs;
pub use wharfage_manifests as manifests;
pub use wharfage_operator as operator;
pub use wharfage_plan as plan;
pub use wharfage_process::{budget, listener, operations, shutdown, telemetry};
pub use wharfage_registry as registry;
pub use wharfage_store as store;
