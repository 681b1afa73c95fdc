//! The log: where it is written and how.

use tracing_subscriber::EnvFilter;

/// The format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for machines.
    Json,
}

/// Returns whether a stream is shown on a terminal that moves its cursor where it is asked to.
pub fn is_capable_terminal(stream: &impl std::io::IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Returns whether colors are wanted on a stream: it is a capable terminal, and `NO_COLOR` is not
/// set (<https://no-color.org>).
fn takes_colors(stream: &impl std::io::IsTerminal) -> bool {
    is_capable_terminal(stream) && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Starts the log on standard error. `filter` is tracing's directive syntax (`info`, `wharfage=debug,warn`).
///
/// # Errors
/// When the filter does not parse; the error names it.
pub fn start_log(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| anyhow::anyhow!("the log filter {filter:?} is not valid: {error}"))?;
    // A standard error that nobody reads any more must not end the thread that logs.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    match format {
        LogFormat::Text => builder.with_ansi(takes_colors(&std::io::stderr())).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}
