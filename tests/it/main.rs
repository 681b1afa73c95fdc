//! Black-box tests of the binary and of the library's contracts, one module per subject.
