//! The registry: one process, one region, its APIs. The layers, each of which imports only those below it:
//!
//! ```text
//! http                    connections, TLS, CORS, routing, readiness: no protocol logic
//! oci    ecr    query     the protocols, which do not import each other
//! message                 requests, responses, and bodies within a memory budget
//! service                 the use cases that the protocols share: no HTTP types
//! auth   config  json  metrics
//! ```
//!
//! A request becomes one value of a protocol's own enum before authentication, authorization and handlers see it.
//! A handler extracts, authorizes, calls the service or the store, and renders.

pub mod auth;
mod config;
mod ecr;
pub mod http;
mod json;
pub mod message;
pub mod metrics;
mod oci;
mod query;
pub mod service;

pub use config::{Config, Limits, PublicUrl};
pub use service::Registry;
