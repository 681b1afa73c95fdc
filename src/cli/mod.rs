//! The commands: what they are called, what they take, what their help teaches. One file each does the work.

mod apply;
mod check;
mod crds;
mod env;
mod identity;
mod jobs;
mod operator;
mod output;
mod plan;
mod rbac;
mod reconcile;
mod serve;
mod up;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::telemetry::{LogFormat, start_log};

/// Container registries that are declared, not clicked: an ECR-compatible registry and its Kubernetes operator.
#[derive(Debug, Parser)]
#[command(name = "wharfage", version, propagate_version = true, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Log filter, for standard error: a level, or directives such as wharfage=debug,warn
    /// [default: info; warn for up, plan, apply and jobs]
    #[arg(long, global = true, env = "WHARFAGE_LOG", value_name = "FILTER")]
    log: Option<String>,

    /// Log format
    #[arg(long, global = true, env = "WHARFAGE_LOG_FORMAT", value_enum, default_value = "text")]
    log_format: LogFormat,
}

const EXAMPLES: &str = "\
Examples:
  wharfage up deploy/quickstart              a registry on 127.0.0.1:5000, shaped by a folder of manifests
  eval \"$(wharfage env)\"                     point the aws CLI and docker's friends at it
  aws ecr describe-repositories
  aws ecr get-login-password | crane auth login -u AWS --password-stdin $WHARFAGE_REGISTRY
  wharfage plan -f deploy/quickstart         what would change; exits 2 when something would";

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the registries a folder of manifests declares, apply the manifests, and re-apply them on change
    Up(up::Up),
    /// Print the changes that apply would make
    Plan(plan::Plan),
    /// Apply a folder of manifests
    Apply(apply::Apply),
    /// Run one registry on its own, without manifests: what a managed Registry's Pods run
    Serve(Box<serve::Serve>),
    /// List a registry's background jobs, and run dead ones again
    Jobs(jobs::Jobs),
    /// Reconcile the kinds of a Kubernetes cluster
    Operator(operator::Operator),
    /// Print the shell lines that point aws, crane and docker at a registry that up or serve started
    Env(env::Env),
    /// Print the custom resource definitions, or write them to a folder
    Crds(crds::Crds),
    /// Print what the operator may do in a cluster, and why
    Rbac(rbac::Rbac),
    /// Check that a cluster has what its operator needs: what `helm test` runs
    Check(check::Check),
    /// Print a shell's tab completion for wharfage
    #[command(
        after_help = "Example:\n  wharfage completions bash > /etc/bash_completion.d/wharfage"
    )]
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

/// Parses the command line and runs it; the result is the process's exit code.
#[tokio::main]
pub async fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(usage) => return output::print_usage(&usage),
    };
    // These print for a person on standard output: the log only disturbs unless something is wrong.
    let quiet = matches!(
        cli.command,
        Command::Up(_) | Command::Plan(_) | Command::Apply(_) | Command::Jobs(_)
    );
    let log = cli.log.as_deref().unwrap_or(if quiet { "warn,aws_config=error" } else { "info" });
    if let Err(error) = start_log(log, cli.log_format) {
        output::say_error(format_args!("error: {error:#}"));
        return ExitCode::FAILURE;
    }
    raise_file_limit();
    let outcome = match cli.command {
        Command::Up(command) => command.run().await.map(|()| ExitCode::SUCCESS),
        Command::Plan(command) => command.run().await,
        Command::Apply(command) => command.run().await,
        Command::Serve(command) => command.run().await.map(|()| ExitCode::SUCCESS),
        Command::Jobs(command) => command.run().await,
        Command::Operator(command) => command.run().await.map(|()| ExitCode::SUCCESS),
        Command::Env(command) => command.run().map(|()| ExitCode::SUCCESS),
        Command::Crds(command) => command.run().map(|()| ExitCode::SUCCESS),
        Command::Rbac(command) => command.run().map(|()| ExitCode::SUCCESS),
        Command::Check(command) => command.run().await.map(|()| ExitCode::SUCCESS),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "wharfage", &mut script);
            output::print(&String::from_utf8_lossy(&script));
            Ok(ExitCode::SUCCESS)
        }
    };
    output::exit_code(outcome.unwrap_or_else(|error| {
        output::say_error(format_args!("error: {error:#}"));
        ExitCode::FAILURE
    }))
}

/// Raises the limit of open files to the highest that the system allows: a connection is one, and
/// shells often give no more than 1024 though the system would.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

/// The signals that ask the process to end, Ctrl-C, SIGTERM and the SIGHUP of a terminal that is closed: none is missed once
/// this is made, not even between waits.
///
/// Made before anything else. A signal that comes earlier ends the process at once, and is lost where it is a container's
/// first process: the kernel drops what that one has no handler for.
struct StopSignals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    /// None where the process was started to outlive its terminal, as by nohup.
    hang_up: Option<tokio::signal::unix::Signal>,
}

impl StopSignals {
    fn new() -> anyhow::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let hang_up = if ignores_hang_up() { None } else { Some(signal(SignalKind::hangup())?) };
        let (interrupt, terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        Ok(Self { interrupt, terminate, hang_up })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            () = hang_up(&mut self.hang_up) => {}
        }
    }
}

async fn hang_up(signal: &mut Option<tokio::signal::unix::Signal>) {
    match signal {
        Some(signal) => signal.recv().await.unwrap_or_default(),
        None => std::future::pending().await,
    }
}

/// Returns whether SIGHUP was set to be ignored before the program started; a handler would undo
/// that. Read from the process's status in Linux; elsewhere the signal always ends it.
fn ignores_hang_up() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignored_signals(&status) & 1 != 0
}

/// The mask of ignored signals in `/proc/PID/status`, the first signal in the lowest bit.
fn ignored_signals(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_files_may_be_open_as_the_system_allows() {
        raise_file_limit();
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }

    #[test]
    fn ignored_signals_are_read_from_linux_own_words() {
        assert_eq!(
            ignored_signals(
                "Name:\twharfage\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n"
            ),
            0x1001
        );
        assert_eq!(ignored_signals("Name:\twharfage\n"), 0);
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    /// The pages that document a command's flags.
    fn pages(command: &str) -> &'static [&'static str] {
        const README: &str = include_str!("../../README.md");
        const OPERATIONS: &str = include_str!("../../docs/operations.md");
        const FILE_MODE: &str = include_str!("../../docs/file-mode.md");
        match command {
            "serve" | "operator" | "check" => &[OPERATIONS],
            "jobs" => &[README, OPERATIONS],
            "up" | "plan" | "apply" => &[README, FILE_MODE],
            _ => &[README],
        }
    }

    #[test]
    fn every_flag_is_in_the_docs() {
        let mut cli = Cli::command();
        cli.build();
        let mut missing = Vec::new();
        for command in cli.get_subcommands().filter(|command| command.get_name() != "help") {
            let words: Vec<&str> = pages(command.get_name())
                .iter()
                .flat_map(|page| page.split(|it: char| !it.is_ascii_alphanumeric() && it != '-'))
                .collect();
            let nested = command.get_subcommands().filter(|it| it.get_name() != "help");
            for argument in
                std::iter::once(command).chain(nested).flat_map(clap::Command::get_arguments)
            {
                let Some(flag) = argument.get_long().filter(|it| !["help", "version"].contains(it))
                else {
                    continue;
                };
                let short = argument.get_short().map(|short| format!("-{short}"));
                let known = |flag: &str| words.contains(&flag);
                if !known(&format!("--{flag}")) && !short.as_deref().is_some_and(known) {
                    missing.push(format!("{} --{flag}", command.get_name()));
                }
            }
        }
        assert_eq!(missing, Vec::<String>::new(), "the docs lack them");
    }
}
