//! The decisions about a PullSecret: the namespaces that get the Secret, its content, its renewal and its deletion.
//!
//! No I/O and no clock. The kind's controller reads the cluster, calls this module, and executes the decision. Secrets that any
//! kind may own are in [`crate::secrets`]; here are docker configurations, service accounts and claims.

pub(crate) mod accounts;
pub(crate) mod annotations;
pub(crate) mod claims;
pub(crate) mod decide;
pub(crate) mod docker_config;
pub(crate) mod renewal;
pub(crate) mod tokens;

#[cfg(test)]
mod properties;
