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

/// Without syncs, because the folder dies with the server.
const INITDB_THEN_SERVE: &str = r#"
"$1/initdb" --username=wharfage --auth=trust --encoding=UTF8 --no-sync --no-instructions -D "$2" &&
exec "$1/postgres" -D "$2" -k "$3" -c listen_addresses= -c max_connections=300 \
    -c fsync=off -c synchronous_commit=off -c full_page_writes=off
"#;

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
        // One process from the start, so that what ends the test ends it in the middle of initdb too. A clean environment,
        // as the caller's may carry settings for another server.
        let mut command = Command::new("sh");
        command
            .args(["-c", INITDB_THEN_SERVE, "postgres"])
            .args([&bin, &data, &folder])
            .current_dir(&folder)
            .env_clear()
            .envs([("PATH", "/usr/bin:/bin"), ("LC_ALL", "C.UTF-8"), ("TZ", "UTC")]);
        if root {
            command.uid(NOBODY).gid(NOBODY);
        }
        let server = Service::start("postgres", &mut command, "QUIT", Some(folder.clone()));
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
