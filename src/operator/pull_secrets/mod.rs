//! What becomes of a PullSecret: which namespaces get the Secret, what is in it, when it is renewed, what goes again.
//!
//! No I/O and no clock. The kind's controller looks at the cluster, asks here, and does what it is told.

pub mod accounts;
pub mod annotations;
pub mod claims;
pub mod decide;
pub mod docker_config;
pub mod renewal;
pub mod tokens;

#[cfg(test)]
mod properties;
