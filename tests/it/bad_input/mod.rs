//! Bad input over the wire against the program: each piece gets its named error, nothing is stored, and the process lives.

mod api;
mod bodies;
mod credentials;
mod query;
mod refusals;
pub mod target;
mod wire;
