//! `wharfage jobs`: lists a registry's background jobs, and requeues those that are dead. It works on the database itself, also
//! while a registry serves from it.

use secrecy::ExposeSecret as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use jiff::Timestamp;

use super::output::say;
use super::reconcile::Output;
use super::serve::database_url;
use crate::datadir::registry_folder;
use crate::store::Metadata;
use crate::store::jobs::{JobFilter, JobState, Requeue, StoredJob};
use crate::store::postgres::{PostgresOptions, PostgresStore};
use crate::store::sqlite::SqliteStore;

/// The number of jobs that one read takes.
const PAGE: usize = 500;

/// The flags of `wharfage jobs`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wharfage jobs list --state dead
  wharfage jobs list --kind delete-generation --output json
  wharfage jobs requeue 4711
  wharfage jobs requeue --kind delete-generation
  wharfage jobs requeue --all-dead --database-url-file /run/secrets/pg")]
pub struct Jobs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the jobs that wait, run or are dead
    List(List),
    /// Run dead jobs again, or one that waits for its next attempt
    Requeue(Again),
}

/// The database, as `wharfage serve` is pointed at it.
#[derive(Debug, clap::Args)]
struct Database {
    /// The data folder of a registry on SQLite
    #[arg(long, env = "WHARFAGE_DATA", default_value = ".wharfage", value_name = "DIR")]
    data: PathBuf,

    /// The registry's name in the data folder
    #[arg(long, env = "WHARFAGE_NAME", default_value = "default", value_name = "NAME")]
    name: String,

    /// A file that holds the PostgreSQL URL [default: WHARFAGE_DATABASE_URL, else SQLite in the data folder]
    #[arg(long, env = "WHARFAGE_DATABASE_URL_FILE", value_name = "FILE")]
    database_url_file: Option<PathBuf>,

    /// Output format
    #[arg(long, short, value_enum, default_value = "text")]
    output: Output,
}

/// The flags of `wharfage jobs list`.
#[derive(Debug, clap::Args)]
struct List {
    #[command(flatten)]
    database: Database,

    /// Only jobs of this kind
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,

    /// Only jobs in this state
    #[arg(long, value_enum)]
    state: Option<State>,
}

/// The flags of `wharfage jobs requeue`.
#[derive(Debug, clap::Args)]
struct Again {
    #[command(flatten)]
    database: Database,

    #[command(flatten)]
    which: Which,
}

/// The jobs: one of these.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// The job with this id
    id: Option<i64>,

    /// Every dead job of this kind
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,

    /// Every dead job
    #[arg(long)]
    all_dead: bool,
}

/// A job's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum State {
    /// It waits until it is due and a worker is free.
    Waiting,
    /// A worker holds it.
    Running,
    /// It failed for good.
    Dead,
}

impl From<State> for JobState {
    fn from(state: State) -> Self {
        match state {
            State::Waiting => Self::Waiting,
            State::Running => Self::Running,
            State::Dead => Self::Dead,
        }
    }
}

impl Jobs {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::List(list) => list.run().await,
            Command::Requeue(again) => again.run().await,
        }
    }
}

impl Database {
    async fn open(&self) -> anyhow::Result<Arc<dyn Metadata>> {
        if let Some(url) = database_url(self.database_url_file.as_deref())? {
            let options = PostgresOptions {
                max_connections: 1,
                migrate: false,
                ..PostgresOptions::default()
            };
            let store = PostgresStore::connect(url.expose_secret(), options).await;
            return Ok(Arc::new(store.context("cannot open the PostgreSQL database")?));
        }
        let path = registry_folder(&self.data, &self.name)?.join("metadata.sqlite");
        if !path.is_file() {
            bail!(
                "there is no database at {}: give the --data and --name of a registry",
                path.display()
            );
        }
        Ok(Arc::new(SqliteStore::open_beside(&path)?))
    }
}

impl List {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let store = self.database.open().await?;
        let filter = JobFilter { kind: self.kind, state: self.state.map(JobState::from) };
        let mut after = None;
        let mut jobs = Vec::new();
        loop {
            let page = store.list_jobs(&filter, after, PAGE).await?;
            after = page.last().map(|job| job.id);
            let ended = page.len() < PAGE;
            match self.database.output {
                Output::Text => page.iter().for_each(show),
                Output::Json => jobs.extend(page),
            }
            if ended {
                break;
            }
        }
        if self.database.output == Output::Json {
            say(format_args!("{}", serde_json::to_string_pretty(&jobs)?));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Prints a job as a line, and its last error as another.
fn show(job: &StoredJob) {
    let StoredJob { id, kind, key, state, run_at, attempts, last_error } = job;
    let state = state.as_str();
    say(format_args!("{id}  {kind}  {state}  due {run_at}  attempts {attempts}  {key}"));
    if let Some(error) = last_error {
        say(format_args!("    {error}"));
    }
}

impl Again {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let store = self.database.open().await?;
        let jobs = match (self.which.id, self.which.kind) {
            (Some(id), _) => Requeue::One(id),
            (None, Some(kind)) => Requeue::Kind(kind),
            (None, None) => Requeue::Dead,
        };
        let requeued = store.requeue_jobs(&jobs, Timestamp::now()).await?;
        if let (Requeue::One(id), 0) = (&jobs, requeued) {
            bail!("there is no job {id} that is dead or waits: wharfage jobs list shows them");
        }
        match self.database.output {
            Output::Text => say(format_args!("requeued {requeued}")),
            Output::Json => say(format_args!("{}", serde_json::json!({ "requeued": requeued }))),
        }
        Ok(ExitCode::SUCCESS)
    }
}
