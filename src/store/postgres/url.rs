//! The database's URL. It may hold a password, which no message contains.

use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;

use crate::{StoreError, StoreResult};

/// Parses a URL. An error names the mistake and quotes nothing of the URL.
pub(super) fn parse(url: &str) -> StoreResult<PgConnectOptions> {
    let invalid = |reason: String| {
        StoreError::Backend(format!("the PostgreSQL URL is not valid: {reason}").into())
    };
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(invalid("it must begin with postgres://".to_owned()));
    }
    let options = PgConnectOptions::from_str(url).map_err(|error| invalid(error.to_string()))?;
    Ok(if options.get_application_name().is_some() {
        options
    } else {
        options.application_name("wharfage")
    })
}

/// Returns host and database, for messages.
pub(super) fn address(options: &PgConnectOptions) -> String {
    let host = match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    };
    format!("{host}/{}", options.get_database().unwrap_or(options.get_username()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_errors_nor_debug_show_the_password() {
        for bad in [
            "mysql://me:s3cret@db/registry",
            "postgres://me:s3cret@db:port/registry",
            "postgres://me:s3cret@db/registry?sslmode=s0me",
            "postgres://me:s3cret%ff@db/registry",
            "postgres://me:s3cret",
        ] {
            let result = parse(bad).map(|options| address(&options));
            let shown = format!("{result:?}");
            assert!(!shown.contains("s3cret"), "{shown}");
        }
        let options = parse("postgres://me:s3cret@db:6432/registry?sslmode=require").unwrap();
        assert_eq!(address(&options), "db:6432/registry");
        let socket = parse("postgres://me@%2Frun%2Fpg/registry").unwrap();
        assert_eq!(address(&socket), "/run/pg/registry");
    }
}
