//! The registry under abuse, with 512 MiB of memory: it lives on, others are answered all the time,
//! a refused client gets an answer, and the memory is released.

mod connections;
mod http2;
mod memory;
mod siege;
