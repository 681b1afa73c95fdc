//! A proxy between the program and PostgreSQL that does what a failover does: a transaction is committed, and the connection
//! breaks before its client hears of it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinSet;

use super::postgres::Postgres;

/// Messages of a client (PostgreSQL's documentation, "Message Formats"): a simple query with its length.
const BEGIN: &[u8] = b"Q\0\0\0\x0aBEGIN\0";
const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";

/// A running proxy. Dropping it ends it.
pub struct PostgresProxy {
    address: SocketAddr,
    planned_loss: Arc<PlannedLoss>,
    _listener: JoinSet<()>,
}

/// A part of a statement: the answer to the commit of the next transaction with it is lost.
#[derive(Default)]
struct PlannedLoss(Mutex<Option<&'static str>>);

impl PostgresProxy {
    /// Starts one in front of `server`.
    pub async fn start(server: &Postgres) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port of loopback");
        let address = listener.local_addr().expect("a bound socket has an address");
        let planned_loss = Arc::<PlannedLoss>::default();
        let mut accepting = JoinSet::new();
        accepting.spawn({
            let (socket, planned_loss) = (server.socket(), Arc::clone(&planned_loss));
            async move {
                let mut connections = JoinSet::new();
                while let Ok((client, _)) = listener.accept().await {
                    connections.spawn(pass_on(client, socket.clone(), Arc::clone(&planned_loss)));
                }
            }
        });
        Self { address, planned_loss, _listener: accepting }
    }

    /// The URL of a database of the server by way of the proxy. Each statement is sent with its text, by which the proxy
    /// knows it.
    pub fn url(&self, database: &str) -> String {
        let (_, name) = database.rsplit_once('/').expect("the URL of a database");
        format!(
            "postgres://wharfage@{}/{name}?sslmode=disable&statement-cache-capacity=0",
            self.address
        )
    }

    /// Lets the next transaction with such a statement commit, and ends its connection instead of passing the answer on.
    pub fn lose_answer_to_commit_of(&self, statement: &'static str) {
        *self.planned_loss.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(statement);
    }
}

impl PlannedLoss {
    /// Returns whether the answer to the commit of a transaction of these messages is lost: of one transaction.
    fn take(&self, transaction: &[u8]) -> bool {
        let mut planned_loss = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = planned_loss.is_some_and(|part| {
            transaction.windows(part.len()).any(|window| window == part.as_bytes())
        });
        found && planned_loss.take().is_some()
    }
}

/// Passes on what each side sends, until one ends or an answer is lost.
async fn pass_on(mut client: TcpStream, server: PathBuf, planned_loss: Arc<PlannedLoss>) {
    let Ok(mut server) = UnixStream::connect(server).await else { return };
    let (mut asked, mut answered) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let (mut transaction, mut is_lost) = (Vec::new(), false);
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let Ok(length @ 1..) = read else { return };
                // The client waits for the answer to each of the two, so nothing is queued behind
                // them.
                transaction.extend_from_slice(&asked[..length]);
                if transaction.ends_with(COMMIT) {
                    is_lost = planned_loss.take(&transaction);
                }
                if transaction.ends_with(COMMIT) || transaction.ends_with(BEGIN) {
                    transaction.clear();
                }
                if server.write_all(&asked[..length]).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut answered) => {
                let Ok(length @ 1..) = read else { return };
                if is_lost || client.write_all(&answered[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}
