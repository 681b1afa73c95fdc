//! A proxy between the program and S3 that does what a healthy server never does: it refuses, falls silent, hangs up.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The action on requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// They are passed on.
    None,
    /// The answer is this status and S3's code.
    Refuse(u16, &'static str),
    /// There is no answer.
    Silence,
    /// The connection is reset.
    Reset,
}

/// A running proxy. Dropping it ends it.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    _listener: JoinSet<()>,
}

struct Shared {
    server: SocketAddr,
    fault: Mutex<Fault>,
    /// Ends with the fault, so that the next request is judged by the new one.
    connections: Mutex<JoinSet<()>>,
    refused: watch::Sender<usize>,
}

impl Proxy {
    /// Starts one in front of `server`.
    pub async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port of loopback");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            server,
            fault: Mutex::new(Fault::None),
            connections: Mutex::default(),
            refused: watch::Sender::new(0),
        });
        let mut accepting = JoinSet::new();
        accepting.spawn({
            let shared = Arc::clone(&shared);
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    lock(&shared.connections).spawn(serve(Arc::clone(&shared), client));
                }
            }
        });
        Self { address, shared, _listener: accepting }
    }

    /// `http://HOST:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Lets this become of all requests from now on, those under way included.
    pub async fn set(&self, fault: Fault) {
        *lock(&self.shared.fault) = fault;
        self.shared.refused.send_replace(0);
        let mut connections = std::mem::take(&mut *lock(&self.shared.connections));
        connections.shutdown().await;
    }

    /// Waits until so many requests were not passed on since the fault began.
    pub async fn refused(&self, requests: usize) {
        let mut refused = self.shared.refused.subscribe();
        refused.wait_for(|refused| *refused >= requests).await.expect("the proxy runs");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(shared: Arc<Shared>, mut client: TcpStream) {
    let fault = *lock(&shared.fault);
    if fault == Fault::None {
        let Ok(mut server) = TcpStream::connect(shared.server).await else { return };
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        return;
    }
    let Some(method) = read_request(&mut client).await else { return };
    shared.refused.send_modify(|refused| *refused += 1);
    match fault {
        Fault::None => {}
        Fault::Refuse(status, code) => {
            let body = format!(
                "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>no</Message></Error>"
            );
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {status} No\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
            );
            let body = if method == "HEAD" { "" } else { &body };
            let _ = client.write_all(format!("{head}{body}").as_bytes()).await;
            let _ = client.shutdown().await;
        }
        Fault::Silence => std::future::pending().await,
        Fault::Reset => {
            let _ = client.set_zero_linger();
        }
    }
}

/// Reads a request with its body; returns its method.
async fn read_request(client: &mut TcpStream) -> Option<String> {
    let mut read = Vec::new();
    let end = loop {
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if client.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    let mut left = length.unwrap_or(0_usize).saturating_sub(read.len() - end);
    let mut sink = vec![0; 64 * 1024];
    while left > 0 {
        let got = client.read(&mut sink).await.ok()?;
        if got == 0 {
            return None;
        }
        left = left.saturating_sub(got);
    }
    Some(head.split(' ').next()?.to_ascii_uppercase())
}
