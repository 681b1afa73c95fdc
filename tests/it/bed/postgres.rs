//! A PostgreSQL server for tests: on a socket in a temporary folder, without syncs, a database for each test.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use sqlx::Connection;
use uuid::Uuid;

use super::service::{Folder, Frozen, Service};

/// `nobody` on every Linux: PostgreSQL refuses to run as root.
const NOBODY: u32 = 65_534;

/// Without syncs, because the folder dies with the server. Committed data is in the kernel's hands
/// all the same, so that it survives the server.
const INITDB_THEN_SERVE: &str = r#"
[ -e "$2/PG_VERSION" ] ||
    "$1/initdb" --username=wharfage --auth=trust --encoding=UTF8 --no-sync --no-instructions -D "$2" &&
exec "$1/postgres" -D "$2" -k "$3" -c listen_addresses= -c max_connections=300 \
    -c fsync=off -c synchronous_commit="$4" -c full_page_writes=off
"#;

/// The server that the tests of this process share.
pub fn postgres() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(|| Postgres::run("off"))
}

/// A running server. Dropping it ends it.
pub struct Postgres {
    // In this order: the server ends before its data go.
    server: Service,
    folder: Folder,
    synchronous_commit: &'static str,
}

impl Postgres {
    /// Starts a server of the caller's own, for tests that harm it.
    pub fn start() -> Self {
        Self::run("on")
    }

    fn run(synchronous_commit: &'static str) -> Self {
        let folder = Folder::new();
        if runs_as_root() {
            chown(folder.path(), Some(NOBODY), Some(NOBODY)).expect("giving the folder to nobody");
        }
        Self { server: serve(&folder, synchronous_commit), folder, synchronous_commit }
    }

    /// Kills the server with all its processes, as a power cut would.
    pub fn kill9(&mut self) {
        self.server.kill_all();
    }

    /// Starts the server again after its end, on the same data.
    pub fn start_again(&mut self) {
        self.server = serve(&self.folder, self.synchronous_commit);
    }

    /// Stops all the server's processes until the returned guard is dropped: it neither answers nor
    /// hangs up.
    #[must_use]
    pub fn freeze(&self) -> Frozen<'_> {
        self.server.freeze()
    }

    /// Makes an empty database and returns its URL.
    pub async fn database(&self) -> String {
        let name = format!("test_{}", Uuid::new_v4().simple());
        let mut connection = sqlx::PgConnection::connect(&self.url("postgres"))
            .await
            .expect("connecting to the test's PostgreSQL");
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}")))
            .execute(&mut connection)
            .await
            .expect("creating a database");
        connection.close().await.expect("closing the connection");
        self.url(&name)
    }

    /// Returns where it listens.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join(".s.PGSQL.5432")
    }

    fn url(&self, database: &str) -> String {
        let host = percent_encoded(self.folder.path());
        format!("postgres://wharfage@{host}/{database}")
    }
}

fn runs_as_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Starts the server on the data in `folder`, which are made when there are none, and waits until it is ready.
fn serve(folder: &Folder, synchronous_commit: &str) -> Service {
    let bin = super::tool("WHARFAGE_TEST_POSTGRES_BIN");
    let folder = folder.path();
    // One process from the start, so that what ends the test ends it in the middle of initdb too. A clean environment,
    // as the caller's may carry settings for another server.
    let mut command = Command::new("sh");
    command
        .args(["-c", INITDB_THEN_SERVE, "postgres"])
        .args([&bin, &folder.join("data"), folder])
        .arg(synchronous_commit)
        .current_dir(folder)
        .env_clear()
        .envs([("PATH", "/usr/bin:/bin"), ("LC_ALL", "C.UTF-8"), ("TZ", "UTC")]);
    if runs_as_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    let server = Service::start("postgres", &mut command, "QUIT", None);
    server.wait_for(|line| {
        line.contains("database system is ready to accept connections").then_some(())
    });
    server
}

/// A folder as the host of a URL: PostgreSQL's clients take it for the folder of the server's socket.
fn percent_encoded(folder: &Path) -> String {
    let path = folder.to_str().expect("a temporary folder's path is UTF-8");
    path.bytes()
        .map(|byte| match byte {
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'_' | b'.' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

#[tokio::test]
async fn a_test_gets_an_empty_database_of_its_own() {
    let server = postgres();
    let (one, other) = (server.database().await, server.database().await);
    assert_ne!(one, other);
    let mut connection = sqlx::PgConnection::connect(&one).await.expect("the database answers");
    let tables: i64 =
        sqlx::query_scalar("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
            .fetch_one(&mut connection)
            .await
            .unwrap();
    assert_eq!(tables, 0);
}
