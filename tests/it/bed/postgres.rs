//! A PostgreSQL server for tests: on a socket in a temporary folder, without syncs, a database for each test.

use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use sqlx::Connection;
use uuid::Uuid;

use super::service::Service;

/// `nobody` on every Linux: PostgreSQL refuses to run as root.
const NOBODY: u32 = 65_534;

/// The server that the tests of this process share.
pub fn postgres() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(Postgres::start)
}

/// A running server. Dropping it ends it.
pub struct Postgres {
    folder: PathBuf,
    _server: Service,
}

impl Postgres {
    /// Starts a server of the caller's own, for tests that harm it.
    pub fn start() -> Self {
        let bin = super::tool("WHARFAGE_TEST_POSTGRES_BIN");
        let folder = tempfile::Builder::new().prefix("wharfage-pg-").tempdir().expect("a temporary folder").keep();
        let root = std::fs::metadata(&folder).expect("the folder's owner").uid() == 0;
        if root {
            chown(&folder, Some(NOBODY), Some(NOBODY)).expect("giving the folder to nobody");
        }
        let data = folder.join("data");
        // A name of its own, as a host's environment may carry settings of another server.
        let program = |name: &str| {
            let mut command = Command::new(bin.join(name));
            command.current_dir(&folder).env_clear().env("LC_ALL", "C.UTF-8").env("TZ", "UTC");
            if root {
                command.uid(NOBODY).gid(NOBODY);
            }
            command
        };

        let made = program("initdb")
            .args(["--username=wharfage", "--auth=trust", "--encoding=UTF8", "--no-sync", "--no-instructions", "-D"])
            .arg(&data)
            .output()
            .unwrap_or_else(|error| panic!("starting initdb in {}: {error}", bin.display()));
        assert!(made.status.success(), "initdb failed:\n{}", String::from_utf8_lossy(&made.stderr));

        let server = Service::start(
            "postgres",
            program("postgres").arg("-D").arg(&data).arg("-k").arg(&folder).args([
                "-clisten_addresses=",
                "-cmax_connections=300",
                // The folder dies with the server.
                "-cfsync=off",
                "-csynchronous_commit=off",
                "-cfull_page_writes=off",
            ]),
            "QUIT",
            Some(folder.clone()),
        );
        server.wait_for(|line| line.contains("database system is ready to accept connections").then_some(()));
        Self { folder, _server: server }
    }

    /// Makes an empty database and returns its URL.
    pub async fn database(&self) -> String {
        let name = format!("test_{}", Uuid::new_v4().simple());
        let mut connection =
            sqlx::PgConnection::connect(&self.url("postgres")).await.expect("connecting to the test's PostgreSQL");
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}")))
            .execute(&mut connection)
            .await
            .expect("creating a database");
        connection.close().await.expect("closing the connection");
        self.url(&name)
    }

    fn url(&self, database: &str) -> String {
        let host = percent_encoded(&self.folder);
        format!("postgres://wharfage@{host}/{database}")
    }
}

/// A folder as the host of a URL: PostgreSQL's clients take it for the folder of the server's socket.
fn percent_encoded(folder: &Path) -> String {
    let path = folder.to_str().expect("a temporary folder's path is UTF-8");
    path.bytes()
        .map(|byte| match byte {
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
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
    let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(tables, 0);
}
