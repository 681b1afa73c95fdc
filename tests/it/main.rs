//! Black-box tests of the binary and of the library's contracts, one module per subject.

mod abuse;
mod apply;
mod bad_input;
// Not every helper of the bed is used by every subject.
#[allow(dead_code, unused_imports)]
mod bed;
mod blobs;
mod browsers;
mod crash;
mod docs;
mod file_mode;
mod imports;
mod jobs;
mod kill_rounds;
mod metadata;
mod observability;
mod oci;
mod output;
mod promises;
mod storage;
mod tls;
mod up;
