//! Every requirement of distribution-spec 1.1, over HTTP against the program, on SQLite with a folder and on PostgreSQL with
//! S3.

/// Makes each function a test on both backends. A requirement that is not listed is dead code, which the compiler tells.
macro_rules! on_both_backends {
    ($($name:ident),+ $(,)?) => {
        mod on_sqlite_and_a_folder {
            $(#[tokio::test]
            async fn $name() {
                super::$name(crate::oci::client::Backend::SqliteAndFolder).await;
            })+
        }
        mod on_postgresql_and_s3 {
            $(#[tokio::test]
            async fn $name() {
                super::$name(crate::oci::client::Backend::PostgresqlAndS3).await;
            })+
        }
    };
}

mod access;
pub mod client;
mod discovery;
pub mod images;
mod integrity;
mod management;
mod manifests;
mod pull;
mod push;
mod resume;
