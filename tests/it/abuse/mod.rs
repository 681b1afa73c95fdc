//! The registry under abuse, with 512 MiB of memory: it lives on, others are answered all the time, who is refused is told
//! so, and the memory comes back.

mod connections;
mod http2;
mod memory;
mod siege;
