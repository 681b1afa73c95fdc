//! Standard output and standard error: the one place that writes to either, for every command.
//!
//! A reader that closes the pipe (`| head`) ends nothing: the rest is dropped, and the exit code is
//! the usual one. Any other failure, such as a full disk, is reported once and ends the
//! command with exit code 1. The macros of the standard library panic there.

use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// True if some standard output is lost.
static LOST: AtomicBool = AtomicBool::new(false);

/// Prints a line.
pub(super) fn say(line: fmt::Arguments<'_>) {
    print(&format!("{line}\n"));
}

/// Prints text as it is.
pub(super) fn print(text: &str) {
    let mut out = io::stdout().lock();
    report(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

/// Prints a line to standard error. A failure cannot be reported anywhere.
pub(super) fn say_error(line: fmt::Arguments<'_>) {
    print_error(&format!("{line}\n"));
}

/// Prints text to standard error as it is.
pub(super) fn print_error(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Prints what clap has to say instead of a command: help, the version, or an error in the command
/// line.
pub(super) fn print_usage(usage: &clap::Error) -> ExitCode {
    let printed = usage.print().and_then(|()| io::stdout().flush());
    if !usage.use_stderr() {
        report(printed);
    }
    exit_code(ExitCode::from(u8::try_from(usage.exit_code()).unwrap_or(1)))
}

/// The command's exit code: a failure where its output is not complete, though somebody reads it.
pub(super) fn exit_code(code: ExitCode) -> ExitCode {
    if LOST.load(Ordering::Relaxed) { ExitCode::FAILURE } else { code }
}

fn report(written: io::Result<()>) {
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
        && !LOST.swap(true, Ordering::Relaxed)
    {
        say_error(format_args!("error: cannot write to standard output: {error}"));
    }
}
