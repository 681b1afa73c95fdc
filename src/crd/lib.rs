//! The kinds of group `wharfage.dev`: their Rust types and the CRDs that are generated from them.
//!
//! One file per kind. The types carry their OpenAPI schema and CEL rules with them, so that `kubectl apply` and file mode
//! refuse the same manifests with the same words. Nothing here does I/O, and nothing writes a default into a spec: an
//! absent field has its effective value from a method of the same name.

// The lint takes the arguments of one printer column for those of another.
#![allow(clippy::duplicated_attributes)]

pub mod common;
pub mod conditions;
mod generate;
pub mod lifecycle_policy;
pub mod pull_secret;
pub mod reason;
pub mod registry;
pub mod repository;
mod rules;

#[cfg(test)]
mod tests;

pub use common::{AdoptionPolicy, DeletionPolicy, Managed, ManagementPolicy};
pub use conditions::{Condition, condition};
pub use generate::{all, render};
pub use lifecycle_policy::{LifecyclePolicy, LifecyclePolicySpec, LifecyclePolicyStatus};
pub use pull_secret::{PullSecret, PullSecretSpec, PullSecretStatus};
pub use reason::Reason;
pub use registry::{Registry, RegistrySpec, RegistryStatus};
pub use repository::{Repository, RepositorySpec, RepositoryStatus};
pub use rules::{KindRules, Rules, Violation};

/// The API group of every kind.
pub const GROUP: &str = "wharfage.dev";
/// The version that is served and stored.
pub const VERSION: &str = "v1alpha1";
/// The `apiVersion` of a manifest.
pub const API_VERSION: &str = "wharfage.dev/v1alpha1";
