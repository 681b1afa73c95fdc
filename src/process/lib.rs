//! Parts that each process needs, whatever it serves: a log, connections and memory within limits,
//! an admin server, and a way to stop.

pub mod admin;
pub mod budget;
pub mod listener;
pub mod shutdown;
pub mod telemetry;
