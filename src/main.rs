//! Parses the command line and dispatches; everything else is in the library.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    wharfage::cli::run().await
}
