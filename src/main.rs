//! Parses the command line and dispatches; everything else is in the library.

use std::process::ExitCode;

/// The allocator. Free memory returns to the system within about ten seconds, idle or not. The C
/// library's allocator keeps what a peak has scattered over its arenas, and musl's is slow where
/// there are many threads.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    wharfage::cli::run()
}
