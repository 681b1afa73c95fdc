//! HTTP as both APIs need it: connections, TLS, bodies within memory, and what browsers ask. Knows nothing of images.

pub mod body;
pub mod cors;
pub mod memory;
pub mod metrics;
pub mod server;
pub mod tls;
