//! A client that costs as little as it can: blocking sockets, kept connections, no allocation on the way, so that the two
//! cores of a small machine are the server's.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

/// A kept connection to a registry.
pub struct Client {
    stream: TcpStream,
    authorization: Option<String>,
    buffer: Vec<u8>,
}

/// What came back.
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers, as they came.
    pub head: String,
    /// Bytes of the body.
    pub length: u64,
}

impl Answer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// Fails unless the status is this one.
    pub fn expect(self, status: u16) -> io::Result<Self> {
        if self.status == status {
            Ok(self)
        } else {
            Err(io::Error::other(format!("wanted {status}: {}", self.head)))
        }
    }
}

impl Client {
    /// Connects; `authorization` goes with every request.
    pub fn connect(address: SocketAddr, authorization: Option<String>) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, authorization, buffer: vec![0; 512 * 1024] })
    }

    /// The head of a request, ready to be sent many times.
    pub fn head(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        length: Option<u64>,
    ) -> Vec<u8> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: bench\r\n");
        if let Some(authorization) = &self.authorization {
            head += &format!("Authorization: {authorization}\r\n");
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if let Some(length) = length {
            head += &format!("Content-Length: {length}\r\n");
        }
        (head + "\r\n").into_bytes()
    }

    /// Sends a request whose body is `chunk`, `times` over.
    pub fn send(&mut self, head: &[u8], chunk: &[u8], times: usize) -> io::Result<Answer> {
        self.stream.write_all(head)?;
        for _ in 0..times {
            self.stream.write_all(chunk)?;
        }
        self.receive()
    }

    /// One request with a small body.
    pub fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> io::Result<Answer> {
        let head = self.head(method, path, headers, body.map(|body| body.len() as u64));
        self.send(&head, body.unwrap_or_default(), 1)
    }

    /// Reads an answer and lets its body go, by its Content-Length or, where the peer chunks a list, to its last chunk.
    fn receive(&mut self) -> io::Result<Answer> {
        let mut filled = 0;
        let end = loop {
            let read = self.stream.read(&mut self.buffer[filled..])?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let from = filled.saturating_sub(3);
            filled += read;
            if let Some(at) =
                self.buffer[from..filled].windows(4).position(|window| window == b"\r\n\r\n")
            {
                break from + at + 4;
            }
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        let status = head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
        let mut answer = Answer { status, head, length: 0 };
        answer.length =
            answer.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        if answer.header("transfer-encoding").is_some() {
            // No list holds this text, and a last chunk ends with it.
            const LAST: &[u8] = b"\r\n0\r\n\r\n";
            while !self.buffer[end..filled].ends_with(LAST) {
                let read = self.stream.read(&mut self.buffer[filled..])?;
                if read == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                filled += read;
            }
            answer.length = (filled - end) as u64;
            return Ok(answer);
        }
        let mut rest = answer.length.saturating_sub((filled - end) as u64);
        while rest > 0 {
            let read = self.stream.read(&mut self.buffer)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            rest = rest.saturating_sub(read as u64);
        }
        Ok(answer)
    }
}
