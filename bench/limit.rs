//! The least that a push can cost on this machine: one thread that receives, hashes, writes and syncs.
//!
//! It speaks as much HTTP as the benchmark's client needs for a monolithic push, and nothing else: no authorization, no
//! concurrency, no limits. What a registry costs above it is the registry's.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;

use sha2::{Digest as _, Sha256};

/// Bytes that are received, hashed and written at a time: they stay in a core's cache.
const CHUNK: usize = 256 * 1024;

/// Receives pushes on `address`, one connection after the other, until the process ends.
pub fn run(address: SocketAddr, folder: &Path) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    for number in 0_u64.. {
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        connection(stream, &folder.join(number.to_string()))?;
    }
    Ok(())
}

/// Answers the requests of one connection. Every body goes to the file at `path`.
fn connection(mut stream: TcpStream, path: &Path) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut filled = 0;
    loop {
        let Some(end) = buffer[..filled].windows(4).position(|window| window == b"\r\n\r\n") else {
            let read = stream.read(&mut buffer[filled..])?;
            if read == 0 {
                return Ok(());
            }
            filled += read;
            continue;
        };
        let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
        let body = end + 4;
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok())
            .unwrap_or(0);
        if head.starts_with("POST") {
            stream.write_all(
                b"HTTP/1.1 202 Accepted\r\nLocation: /upload\r\nContent-Length: 0\r\n\r\n",
            )?;
        } else {
            let digest = receive(&mut stream, &mut buffer, body..filled, length, path)?;
            let right = head
                .split(['?', '&', ' '])
                .any(|part| part.strip_prefix("digest=sha256:") == Some(&*digest));
            let status = if right { "201 Created" } else { "400 Bad Request" };
            write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")?;
        }
        // The client sends its next request when it has the answer.
        filled = 0;
    }
}

/// Receives `length` bytes, of which `begun` lie in the buffer already; returns their SHA-256 when they are on disk.
fn receive(
    stream: &mut TcpStream,
    buffer: &mut [u8],
    begun: std::ops::Range<usize>,
    length: usize,
    path: &Path,
) -> io::Result<String> {
    let mut file = File::create(path)?;
    let mut hash = Sha256::new();
    let mut left = length - begun.len();
    hash.update(&buffer[begun.clone()]);
    file.write_all(&buffer[begun])?;
    while left > 0 {
        let want = left.min(buffer.len());
        let read = stream.read(&mut buffer[..want])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hash.update(&buffer[..read]);
        file.write_all(&buffer[..read])?;
        left -= read;
    }
    file.sync_all()?;
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
