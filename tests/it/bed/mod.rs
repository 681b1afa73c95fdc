//! The test bed: real servers for tests, one per test process, started when the first test asks.
//!
//! A server's data lies in a temporary folder; the server ends with the test process, however that ends. A tool that is
//! missing fails the test that needs it: nothing is skipped.

pub mod disk;
pub mod postgres;
pub mod postgres_proxy;
pub mod proxy;
pub mod s3;
pub mod service;
pub mod tls;
pub mod wharfage;

use std::path::PathBuf;

pub use postgres::postgres;
pub use s3::s3;
pub use wharfage::wharfage;

/// The path in the environment variable `name`, which `tests/run` sets.
///
/// # Panics
/// When it is not set or nothing lies there.
pub fn tool(name: &str) -> PathBuf {
    let Some(path) = std::env::var_os(name).map(PathBuf::from) else {
        panic!("{name} is not set: run tests/run, or eval \"$(tests/run --env)\" before cargo test")
    };
    assert!(
        path.exists(),
        "{name}: there is nothing at {}; run tests/run to get it",
        path.display()
    );
    path
}
