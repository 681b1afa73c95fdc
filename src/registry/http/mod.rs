//! The HTTP server: connections, TLS, CORS, routing and readiness. Contains no protocol logic.

pub mod cors;
pub mod health;
mod router;
pub mod server;
pub mod tls;
