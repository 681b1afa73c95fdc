//! The one writer: a thread that owns the one writing connection and commits queued operations
//! together (group commit), so that many clients share one fsync. An operation returns only when it
//! is durable.

use std::iter;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode};
use tokio::sync::{mpsc, oneshot};

use super::db::Db;
use crate::{StoreError, StoreResult};

/// Capacity of the queue; callers wait while it is full.
const QUEUE: usize = 1024;
/// Maximum number of operations in one transaction, which bounds how long the first waits for the
/// others.
const BATCH: usize = 256;

/// The timeout of a test write.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// A queued operation, which runs in the writer's transaction.
type WriteOperation = Box<dyn FnOnce(&Connection) -> FinishedWrite + Send>;

/// An operation that has run and whose caller waits for the commit.
struct FinishedWrite {
    /// The operation succeeded, so its writes are to be committed.
    keep: bool,
    reply: WriteReply,
}

/// Sends the result to the caller, or the reason why the commit failed.
type WriteReply = Box<dyn FnOnce(Result<(), &FailedCommit>)>;

/// The reason why a batch was rolled back.
struct FailedCommit {
    reason: String,
    /// The disk was full.
    full: bool,
}

/// The writer's handle. A drop waits until the queue is empty and closes the connection.
#[derive(Debug)]
pub(super) struct Writer {
    queue: Option<mpsc::Sender<WriteOperation>>,
    thread: Option<JoinHandle<()>>,
    last_failure: LastFailure,
}

/// The reason why the last batch was rolled back; none if it was committed.
type LastFailure = Arc<Mutex<Option<String>>>;

impl Writer {
    /// Starts the thread. It calls `space_is_short` before each batch.
    pub(super) fn start(
        connection: Connection,
        space_is_short: impl Fn() -> bool + Send + 'static,
    ) -> StoreResult<Self> {
        let (queue, operations) = mpsc::channel(QUEUE);
        let last_failure = LastFailure::default();
        let failure = Arc::clone(&last_failure);
        let thread = std::thread::Builder::new()
            .name("sqlite-writer".into())
            .spawn(move || write_all(&connection, operations, &space_is_short, &failure))
            .map_err(|error| StoreError::Backend(Box::new(error)))?;
        Ok(Self { queue: Some(queue), thread: Some(thread), last_failure })
    }

    /// Checks that the database takes writes. Does not wait for other operations if the last batch
    /// was committed. After a failed batch it makes a test write, since there may be no other.
    ///
    /// # Errors
    /// `Unavailable`, or `Full`.
    pub(super) async fn check(&self) -> StoreResult<()> {
        let last_failure = self.last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(reason) = last_failure else { return Ok(()) };
        // Writes the value that is there.
        let check = self.write(|db| {
            let version: Option<i64> =
                db.first("PRAGMA user_version", [], |row| Ok(row.get(0)?))?;
            let version = version.unwrap_or_default();
            db.0.pragma_update(None, "user_version", version)?;
            StoreResult::Ok(())
        });
        let silent = |_| StoreError::Unavailable(format!("the database takes no writes: {reason}"));
        tokio::time::timeout(CHECK_TIMEOUT, check).await.map_err(silent)?
    }

    /// Runs an operation and returns when it is durable. An error rolls back this operation alone.
    /// Once queued, an operation runs even if its caller stops waiting.
    pub(super) async fn write<T, E>(
        &self,
        operation: impl FnOnce(Db<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let (caller, outcome) = oneshot::channel();
        let operation: WriteOperation = Box::new(move |connection| {
            let result = catch_unwind(AssertUnwindSafe(|| operation(Db(connection))));
            let result = result.unwrap_or_else(|_| {
                Err(StoreError::Backend("a write panicked: see the log".into()).into())
            });
            let keep = result.is_ok();
            let reply = move |committed: Result<(), &FailedCommit>| {
                // A refusal may rest on earlier writes of the batch, so a failed commit voids it as
                // well.
                let result = match committed {
                    Ok(()) => result,
                    Err(FailedCommit { reason, full: true }) => {
                        Err(StoreError::Full(reason.clone()).into())
                    }
                    Err(FailedCommit { reason, full: false }) => {
                        Err(StoreError::Unavailable(format!("the commit failed: {reason}")).into())
                    }
                };
                // The caller may have stopped waiting.
                let _ = caller.send(result);
            };
            FinishedWrite { keep, reply: Box::new(reply) }
        });
        let stopped =
            || StoreError::Unavailable("the database takes no writes: see the log".into());
        let queue = self.queue.as_ref().ok_or_else(stopped)?;
        queue.send(operation).await.map_err(|_| stopped())?;
        outcome.await.map_err(|_| stopped())?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // The thread catches panics itself; there is nothing to report.
            let _ = thread.join();
        }
    }
}

fn write_all(
    connection: &Connection,
    mut operations: mpsc::Receiver<WriteOperation>,
    space_is_short: &impl Fn() -> bool,
    last_failure: &Mutex<Option<String>>,
) {
    while let Some(first) = operations.blocking_recv() {
        let queued = iter::from_fn(|| operations.try_recv().ok());
        let mut batch = iter::once(first).chain(queued).take(BATCH);
        let short = space_is_short();
        // The caller of an operation that is dropped without a reply gets the error that the
        // database takes no writes.
        let failed = match write_batch(connection, &mut batch, space_is_short) {
            Ok(failed) => failed.map(|failed| failed.reason),
            Err(error) => {
                tracing::error!(%error, "the database did not take a batch of writes");
                roll_back(connection);
                Some(error.to_string())
            }
        };
        *last_failure.lock().unwrap_or_else(PoisonError::into_inner) = failed;
        if short {
            // Lets the log be overwritten from its beginning instead of growing.
            let copied = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
            if let Err(error) = copied {
                tracing::warn!(%error, "space is short, and the database's log was not copied back");
            }
        }
    }
    // Keeps the log and its index with their space: on a full disk the next start could not create
    // them.
    if space_is_short()
        && let Err(error) =
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
    {
        tracing::warn!(%error, "the disk is nearly full; cannot keep the database's log");
    }
}

/// Runs a batch in one transaction, each operation in its own savepoint, commits, and replies.
/// Returns the reason if the batch was rolled back.
fn write_batch(
    connection: &Connection,
    batch: &mut dyn Iterator<Item = WriteOperation>,
    space_is_short: &impl Fn() -> bool,
) -> rusqlite::Result<Option<FailedCommit>> {
    let execute = |sql: &str| connection.prepare_cached(sql)?.execute([]);
    execute("BEGIN IMMEDIATE")?;
    let mut finished = Vec::new();
    for operation in batch {
        execute("SAVEPOINT operation")?;
        let write = operation(connection);
        // Some failures, above all a full disk, roll back the whole transaction.
        if connection.is_autocommit() {
            finished.push(write);
            let failed =
                FailedCommit { reason: "the database rolled back".into(), full: space_is_short() };
            return Ok(Some(reply_failed(finished, failed)));
        }
        if !write.keep {
            execute("ROLLBACK TO operation")?;
        }
        execute("RELEASE operation")?;
        finished.push(write);
    }
    match execute("COMMIT") {
        Ok(_) => {
            for write in finished {
                (write.reply)(Ok(()));
            }
            Ok(None)
        }
        Err(error) => {
            tracing::error!(%error, operations = finished.len(), "a commit failed");
            roll_back(connection);
            let full = error.sqlite_error_code() == Some(ErrorCode::DiskFull);
            Ok(Some(reply_failed(finished, FailedCommit { reason: error.to_string(), full })))
        }
    }
}

/// Replies to operations that were rolled back.
fn reply_failed(finished: Vec<FinishedWrite>, failed: FailedCommit) -> FailedCommit {
    for write in finished {
        (write.reply)(Err(&failed));
    }
    failed
}

fn roll_back(connection: &Connection) {
    if !connection.is_autocommit()
        && let Err(error) = connection.execute_batch("ROLLBACK")
    {
        tracing::error!(%error, "a transaction could not be rolled back");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::join_all;

    use super::*;

    fn connection() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        let schema = "CREATE TABLE parent (id INTEGER PRIMARY KEY);
                      CREATE TABLE child (id INTEGER REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED);";
        connection.execute_batch(schema).unwrap();
        connection
    }

    async fn insert(writer: &Writer, id: i64) -> StoreResult<usize> {
        writer.write(move |db| db.run("INSERT INTO parent VALUES (?1)", [id])).await
    }

    async fn count(writer: &Writer) -> i64 {
        let read = |db: Db<'_>| db.first("SELECT count(*) FROM parent", [], |row| Ok(row.get(0)?));
        writer.write::<_, StoreError>(read).await.unwrap().unwrap()
    }

    /// Blocks the writer until the returned sender is dropped.
    async fn block(writer: &Arc<Writer>) -> std::sync::mpsc::Sender<()> {
        let (release, held) = std::sync::mpsc::channel::<()>();
        let (started, has_started) = oneshot::channel();
        let writer = Arc::clone(writer);
        tokio::spawn(async move {
            let wait = move |_: Db<'_>| {
                let _ = started.send(());
                let _ = held.recv();
                StoreResult::Ok(())
            };
            writer.write(wait).await
        });
        has_started.await.unwrap();
        release
    }

    #[tokio::test]
    async fn queued_operations_share_commits() {
        let connection = connection();
        let commits = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&commits);
        connection
            .commit_hook(Some(move || {
                counter.fetch_add(1, Ordering::Relaxed);
                false
            }))
            .unwrap();
        let writer = Arc::new(Writer::start(connection, || false).unwrap());
        let release = block(&writer).await;
        // Without tokio's budget, which would make a task yield, one poll queues all of them.
        let writes = tokio::task::unconstrained(join_all((0..200).map(|id| insert(&writer, id))));
        let mut writes = std::pin::pin!(writes);
        assert!(futures::poll!(&mut writes).is_pending());
        assert_eq!(QUEUE - writer.queue.as_ref().unwrap().capacity(), 200);
        drop(release);
        assert!(writes.await.iter().all(Result::is_ok));
        assert_eq!(count(&writer).await, 200);
        let commits = commits.load(Ordering::Relaxed);
        assert!(commits <= 2, "200 writes and a count took {commits} commits");
    }

    #[tokio::test]
    async fn a_failed_operation_undoes_only_itself() {
        let writer = Arc::new(Writer::start(connection(), || false).unwrap());
        let release = block(&writer).await;
        let fails = writer.write(|db| {
            db.run("INSERT INTO parent VALUES (2)", [])?;
            StoreResult::<()>::Err(StoreError::Unavailable("no".into()))
        });
        let panics = writer.write(|db| {
            db.run("INSERT INTO parent VALUES (3)", [])?;
            if count_rows(db)? > 0 { panic!("as the test wants") } else { StoreResult::Ok(()) }
        });
        let all = async {
            tokio::join!(insert(&writer, 1), fails, panics, insert(&writer, 1), insert(&writer, 4))
        };
        let mut all = std::pin::pin!(all);
        assert!(futures::poll!(&mut all).is_pending());
        drop(release);
        let (first, fails, panics, again, last) = all.await;
        assert!(first.is_ok() && last.is_ok());
        assert!(matches!(fails, Err(StoreError::Unavailable(reason)) if reason == "no"));
        assert!(matches!(panics, Err(StoreError::Backend(_))), "{panics:?}");
        assert!(matches!(again, Err(StoreError::Backend(_))), "{again:?}");
        assert_eq!(count(&writer).await, 2);
    }

    fn count_rows(db: Db<'_>) -> StoreResult<i64> {
        let count = db.first("SELECT count(*) FROM parent", [], |row| Ok(row.get(0)?))?;
        Ok(count.unwrap_or_default())
    }

    #[tokio::test]
    async fn a_failed_commit_fails_its_operations_and_the_next_succeeds() {
        let writer = Arc::new(Writer::start(connection(), || false).unwrap());
        let release = block(&writer).await;
        let orphan = writer.write(|db| db.run("INSERT INTO child VALUES (7)", []));
        let all = async { tokio::join!(insert(&writer, 1), orphan) };
        let mut all = std::pin::pin!(all);
        assert!(futures::poll!(&mut all).is_pending());
        drop(release);
        let (first, orphan) = all.await;
        for outcome in [first, orphan] {
            assert!(matches!(outcome, Err(StoreError::Unavailable(_))), "{outcome:?}");
        }
        assert_eq!(count(&writer).await, 0);
        insert(&writer, 1).await.unwrap();
        assert_eq!(count(&writer).await, 1);
    }

    #[tokio::test]
    async fn a_queued_operation_runs_if_its_caller_stops_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch("CREATE TABLE parent (id INTEGER PRIMARY KEY)").unwrap();
        let writer = Arc::new(Writer::start(connection, || false).unwrap());
        let release = block(&writer).await;
        {
            let mut write = std::pin::pin!(insert(&writer, 1));
            assert!(futures::poll!(&mut write).is_pending());
        }
        drop(release);
        // The task that blocked the writer has a separate handle. Once it has finished, the queue
        // is empty.
        assert_eq!(count(&writer).await, 1);
    }
}
