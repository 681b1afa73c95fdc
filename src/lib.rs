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

pub mod access_key;
pub mod apply;
pub mod budget;
pub mod cli;
pub mod crd;
pub mod datadir;
pub mod jobs;
pub mod lifecycle;
pub mod listener;
pub mod manifests;
pub mod names;
pub mod operations;
pub mod operator;
pub mod plan;
pub mod policy;
pub mod registry;
pub mod scanning;
pub mod serve;
pub mod shutdown;
pub mod store;
pub mod tag_mutability;
pub mod telemetry;
pub mod wildcard;
