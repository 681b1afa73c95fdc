//! ECR's identifiers, wildcards and policies, as pure functions and types: no I/O, no clocks, and nothing else of ours.

pub mod access_key;
pub mod lifecycle;
pub mod names;
pub mod policy;
pub mod scanning;
pub mod tag_mutability;
pub mod wildcard;
