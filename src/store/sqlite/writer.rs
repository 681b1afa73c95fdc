//! The one writer: a thread that owns the one writing connection and commits what has queued together (group commit), so
//! that many clients share one fsync. Nothing is answered before it is durable.

use std::iter;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode};
use tokio::sync::{mpsc, oneshot};

use super::db::Db;
use crate::store::{StoreError, StoreResult};

/// Operations that may wait; who comes then waits for a place.
const QUEUE: usize = 1024;
/// Operations in one transaction: bounds how long the first of them waits for the others.
const BATCH: usize = 256;

/// How long the writer may take to show that it writes again, and what it writes then: the value that is there.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs in the writer's transaction.
type Operation = Box<dyn FnOnce(&Connection) -> Ran + Send>;

/// An operation that ran and whose caller waits for the commit.
struct Ran {
    /// It succeeded: what it wrote is to be committed.
    keep: bool,
    answer: Answer,
}

/// Tells the caller, and why if the commit failed.
type Answer = Box<dyn FnOnce(Result<(), &Lost>)>;

/// Why nothing of a batch was kept.
struct Lost {
    reason: String,
    /// For want of space.
    full: bool,
}

/// The writer's handle. Dropping it lets the queue run empty and closes the connection.
#[derive(Debug)]
pub(super) struct Writer {
    queue: Option<mpsc::Sender<Operation>>,
    thread: Option<JoinHandle<()>>,
    failing: Failing,
}

/// Why the last batch was not kept; none when it was.
type Failing = Arc<Mutex<Option<String>>>;

impl Writer {
    /// Starts the thread. It calls `tend` before each batch, which says whether space is short.
    pub(super) fn start(connection: Connection, tend: impl Fn() -> bool + Send + 'static) -> StoreResult<Self> {
        let (queue, operations) = mpsc::channel(QUEUE);
        let failing = Failing::default();
        let told = Arc::clone(&failing);
        let thread = std::thread::Builder::new()
            .name("sqlite-writer".into())
            .spawn(move || write_all(&connection, operations, &tend, &told))
            .map_err(|error| StoreError::Backend(Box::new(error)))?;
        Ok(Self { queue: Some(queue), thread: Some(thread), failing })
    }

    /// Whether the database takes writes. It waits for nobody's work while the last batch was kept; after one that failed
    /// it has something written, since nobody else may try.
    ///
    /// # Errors
    /// `Unavailable`, or `Full`.
    pub(super) async fn healthy(&self) -> StoreResult<()> {
        let failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(reason) = failing else { return Ok(()) };
        let check = self.write(|db| {
            let version: Option<i64> = db.first("PRAGMA user_version", [], |row| Ok(row.get(0)?))?;
            let version = version.unwrap_or_default();
            db.0.pragma_update(None, "user_version", version)?;
            StoreResult::Ok(())
        });
        let silent = |_| StoreError::Unavailable(format!("the database takes no writes: {reason}"));
        tokio::time::timeout(CHECK_TIMEOUT, check).await.map_err(silent)?
    }

    /// Runs an operation and answers when it is durable. An error rolls back this operation alone. Once queued, an
    /// operation runs even if its caller stops waiting.
    pub(super) async fn write<T, E>(
        &self,
        operation: impl FnOnce(Db<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let (caller, outcome) = oneshot::channel();
        let operation: Operation = Box::new(move |connection| {
            let ran = catch_unwind(AssertUnwindSafe(|| operation(Db(connection))));
            let ran = ran.unwrap_or_else(|_| Err(StoreError::Backend("a write panicked: see the log".into()).into()));
            let keep = ran.is_ok();
            let answer = move |committed: Result<(), &Lost>| {
                // What was refused was refused by what the batch had written, so a failed commit voids that as well.
                let answer = match committed {
                    Ok(()) => ran,
                    Err(Lost { reason, full: true }) => Err(StoreError::Full(reason.clone()).into()),
                    Err(Lost { reason, full: false }) => {
                        Err(StoreError::Unavailable(format!("the commit failed: {reason}")).into())
                    }
                };
                // A caller that is gone needs no answer.
                let _ = caller.send(answer);
            };
            Ran { keep, answer: Box::new(answer) }
        });
        let stopped = || StoreError::Unavailable("the database takes no writes: see the log".into());
        let queue = self.queue.as_ref().ok_or_else(stopped)?;
        queue.send(operation).await.map_err(|_| stopped())?;
        outcome.await.map_err(|_| stopped())?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // It catches panics itself; there is nothing to report.
            let _ = thread.join();
        }
    }
}

fn write_all(
    connection: &Connection,
    mut operations: mpsc::Receiver<Operation>,
    tend: &impl Fn() -> bool,
    failing: &Mutex<Option<String>>,
) {
    while let Some(first) = operations.blocking_recv() {
        let queued = iter::from_fn(|| operations.try_recv().ok());
        let mut batch = iter::once(first).chain(queued).take(BATCH);
        let short = tend();
        // An operation that is dropped without an answer tells its caller that the database takes no writes.
        let failed = match write_batch(connection, &mut batch, tend) {
            Ok(lost) => lost.map(|lost| lost.reason),
            Err(error) => {
                tracing::error!(%error, "the database did not take a batch of writes");
                roll_back(connection);
                Some(error.to_string())
            }
        };
        *failing.lock().unwrap_or_else(PoisonError::into_inner) = failed;
        if short {
            // The log is written from its beginning again instead of growing.
            let copied = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
            if let Err(error) = copied {
                tracing::warn!(%error, "space is short, and the database's log was not copied back");
            }
        }
    }
    // The log and its index stay as they are, with their space: the next start could not make them again on a full disk.
    if tend()
        && let Err(error) = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
    {
        tracing::warn!(%error, "space is short, and the database's log is not kept");
    }
}

/// Runs a batch in one transaction, each operation in a savepoint of its own, commits, and answers. Returns why nothing was
/// kept, if so.
fn write_batch(
    connection: &Connection,
    batch: &mut dyn Iterator<Item = Operation>,
    tend: &impl Fn() -> bool,
) -> rusqlite::Result<Option<Lost>> {
    let execute = |sql: &str| connection.prepare_cached(sql)?.execute([]);
    execute("BEGIN IMMEDIATE")?;
    let mut ran = Vec::new();
    for operation in batch {
        execute("SAVEPOINT operation")?;
        let done = operation(connection);
        // Some failures, a full disk above all, roll back the whole transaction: nothing of the batch is there any more.
        if connection.is_autocommit() {
            ran.push(done);
            return Ok(Some(answer(ran, Lost { reason: "the database rolled back".into(), full: tend() })));
        }
        if !done.keep {
            execute("ROLLBACK TO operation")?;
        }
        execute("RELEASE operation")?;
        ran.push(done);
    }
    match execute("COMMIT") {
        Ok(_) => {
            for done in ran {
                (done.answer)(Ok(()));
            }
            Ok(None)
        }
        Err(error) => {
            tracing::error!(%error, operations = ran.len(), "a commit failed");
            roll_back(connection);
            let full = error.sqlite_error_code() == Some(ErrorCode::DiskFull);
            Ok(Some(answer(ran, Lost { reason: error.to_string(), full })))
        }
    }
}

/// Answers operations of which nothing was kept.
fn answer(ran: Vec<Ran>, lost: Lost) -> Lost {
    for done in ran {
        (done.answer)(Err(&lost));
    }
    lost
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

    /// Holds the writer until what is returned is dropped.
    async fn hold(writer: &Arc<Writer>) -> std::sync::mpsc::Sender<()> {
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
    async fn operations_that_queue_share_commits() {
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
        let release = hold(&writer).await;
        // Out of tokio's budget, which ends a task's turn after some dozens of steps: one poll queues them all.
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
    async fn an_operation_that_fails_undoes_itself_alone() {
        let writer = Arc::new(Writer::start(connection(), || false).unwrap());
        let release = hold(&writer).await;
        let fails = writer.write(|db| {
            db.run("INSERT INTO parent VALUES (2)", [])?;
            StoreResult::<()>::Err(StoreError::Unavailable("no".into()))
        });
        let panics = writer.write(|db| {
            db.run("INSERT INTO parent VALUES (3)", [])?;
            if count_rows(db)? > 0 { panic!("as the test wants") } else { StoreResult::Ok(()) }
        });
        let all = async { tokio::join!(insert(&writer, 1), fails, panics, insert(&writer, 1), insert(&writer, 4)) };
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
    async fn a_commit_that_fails_fails_all_that_shared_it_and_the_next_goes_on() {
        let writer = Arc::new(Writer::start(connection(), || false).unwrap());
        let release = hold(&writer).await;
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
    async fn what_is_queued_is_written_though_nobody_waits_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch("CREATE TABLE parent (id INTEGER PRIMARY KEY)").unwrap();
        let writer = Arc::new(Writer::start(connection, || false).unwrap());
        let release = hold(&writer).await;
        {
            let mut write = std::pin::pin!(insert(&writer, 1));
            assert!(futures::poll!(&mut write).is_pending());
        }
        drop(release);
        // The task that held the writer has a handle of its own: once it is through, so is the queue.
        assert_eq!(count(&writer).await, 1);
    }
}
