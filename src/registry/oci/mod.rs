//! The OCI door: distribution-spec 1.1 under `/v2/`, as Amazon ECR offers it.

pub mod action;
