//! Code that up, plan and apply share: the registries of a folder, how each is reached, and how
//! plans and their outcomes are shown.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use kube::ResourceExt as _;
use serde::Serialize;

use super::identity::{Identity, Planner};
use super::output::{print_error, say, say_error};
use crate::apply::Identity::Ambient;
use crate::apply::{self, Connection, Ecr, Progress, Report, observe};
use crate::crd::Registry;
use crate::datadir::DataDir;
use crate::manifests::{LoadError, Manifests, Problem};
use crate::plan::model::{ApiError, ErrorKind, Refused};
use crate::plan::{Desired, Plan, desired, plan, unresolved};
use crate::telemetry::is_capable_terminal;

/// The flags of commands that read a folder and call registries which run already.
#[derive(Debug, clap::Args)]
pub(super) struct Input {
    /// A folder of manifests, a single file, or - for standard input; may be given several times
    #[arg(short, long, value_name = "PATH", required = true)]
    file: Vec<PathBuf>,

    /// The data folder of the registries that up or serve started
    #[arg(long, env = "WHARFAGE_DATA", default_value = ".wharfage", value_name = "DIR")]
    data: PathBuf,

    /// Only this registry; may be given several times
    #[arg(long, value_name = "NAME")]
    registry: Vec<String>,

    #[command(flatten)]
    identity: Identity,

    /// Output format
    #[arg(long, short, value_enum, default_value = "text")]
    pub(super) output: Output,
}

/// The output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

impl Input {
    /// Reads the folder and finds the registries that it means, and who plans for them. An error is printed for programs, too.
    pub(super) async fn read(&self) -> anyhow::Result<(Manifests, Vec<Target>, Planner)> {
        let read = self.try_read().await;
        if let (Err(error), Output::Json) = (&read, self.output) {
            JsonOutput::of_error(error).print()?;
        }
        read
    }

    async fn try_read(&self) -> anyhow::Result<(Manifests, Vec<Target>, Planner)> {
        let paths = self.file.clone();
        if paths.iter().filter(|path| path.as_os_str() == "-").count() > 1 {
            bail!("standard input (-) can be read once only: give it once");
        }
        let manifests =
            tokio::task::spawn_blocking(move || crate::manifests::load_all(&paths)).await??;
        let from = || {
            self.file.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
        };
        if let Some(unknown) = self.registry.iter().find(|name| manifests.registry(name).is_none())
        {
            bail!("{} declares no Registry {unknown:?}", from());
        }
        if manifests.registries.is_empty() {
            // The reason is often that nothing was read there.
            show_notes(&manifests.notes, Output::Json);
            bail!("{} declares no Registry: add one, or name another folder", from());
        }
        let mut targets = Vec::new();
        for registry in manifests.registries.iter().map(|loaded| &loaded.resource) {
            if self.registry.is_empty() || self.registry.contains(&registry.name_any()) {
                targets.push(Target::find(registry, &self.data).await?);
            }
        }
        let planner = self.identity.resolve(&self.data, &self.file)?;
        Ok((manifests, targets, planner))
    }

    /// Returns what belongs to no registry; nothing when only some registries are asked for.
    pub(super) fn unresolved(&self, manifests: &Manifests) -> Vec<Refused> {
        if self.registry.is_empty() { unresolved(manifests) } else { Vec::new() }
    }
}

/// A registry that can be reached.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// Its Registry's name.
    pub(super) name: String,
    /// Where it is, for people.
    pub(super) place: String,
    pub(super) ecr: Ecr,
}

impl Target {
    /// Finds out how a registry is reached: a managed one by what was written when it started,
    /// others by the environment.
    async fn find(registry: &Registry, data: &Path) -> anyhow::Result<Self> {
        if registry.spec.managed.is_none() {
            return Self::ambient(registry).await;
        }
        let name = registry.name_any();
        if !data.is_dir() {
            bail!(
                "Registry {name} was not started from {}: run wharfage up FOLDER first, or name its --data",
                data.display()
            );
        }
        let data = DataDir::open(data)?;
        let started = data.started()?.into_iter().find(|started| started.name.as_str() == name);
        let started = started.with_context(|| {
            format!(
                "Registry {name} was not started from {}: run wharfage up FOLDER first",
                data.path().display()
            )
        })?;
        let (id, secret) = data.access_key(&started.name)?;
        let connection = Connection::with_key(started.endpoint.clone(), started.region, id, secret);
        Ok(Self { name, place: started.endpoint, ecr: Ecr::new(connection, None).await? })
    }

    /// A registry that runs elsewhere, by the environment's AWS configuration.
    pub(super) async fn ambient(registry: &Registry) -> anyhow::Result<Self> {
        let (name, region) = (registry.name_any(), registry.region());
        let (place, endpoint, role) = match (&registry.spec.endpoint, &registry.spec.aws) {
            (Some(endpoint), _) => (endpoint.url.clone(), Some(endpoint.url.clone()), None),
            (None, Some(aws)) => (format!("Amazon ECR in {region}"), None, aws.role_arn.clone()),
            (None, None) => bail!("Registry {name} is neither managed nor an endpoint nor aws"),
        };
        let connection =
            Connection { endpoint, region, identity: Ambient, role, ca_bundle: None, host: None };
        let ecr = Ecr::new(connection, registry.registry_id().as_ref()).await?;
        Ok(Self { name, place, ecr })
    }

    /// Looks at the registry and says what would change, and what it was planned from.
    pub(super) async fn plan(
        &self,
        manifests: &Manifests,
        planner: &Planner,
    ) -> anyhow::Result<(Desired, Plan)> {
        let registry = manifests
            .registry(&self.name)
            .with_context(|| format!("Registry {} is gone", self.name))?;
        let mut desired = desired(manifests, &registry.resource, &planner.cluster);
        desired.adopt_from.clone_from(&planner.adopt_from);
        let observed = observe(&self.ecr, &desired).await.map_err(|error| self.explain(error))?;
        let plan = plan(&desired, &observed);
        Ok((desired, plan))
    }

    fn explain(&self, error: ApiError) -> anyhow::Error {
        // A proxy's refusal looks like a registry that makes no sense, and its silence like one
        // that is unreachable.
        let by_proxy = matches!(
            error.kind,
            ErrorKind::Unavailable | ErrorKind::UnexpectedResponse | ErrorKind::Client
        );
        match self.ecr.proxy().filter(|_| by_proxy) {
            Some(proxy) => anyhow::anyhow!(
                "Registry {} ({}), through the proxy {proxy}: {error}. To ask no proxy, add the host to NO_PROXY",
                self.name,
                self.place
            ),
            None => anyhow::anyhow!("Registry {} ({}): {error}", self.name, self.place),
        }
    }

    /// Returns the heading of its plan.
    pub(super) fn heading(&self) -> String {
        format!("Registry {} ({})", self.name, self.place)
    }
}

/// Executes a plan, and shows the progress: a line for each outcome, and on a terminal what is
/// being done. Without an `output` it is silent.
pub(super) async fn execute(target: &Target, plan: &Plan, output: Option<Output>) -> Report {
    let lively = output.is_some() && is_capable_terminal(&std::io::stderr());
    let clear = || {
        if lively {
            print_error("\r\x1b[K");
        }
    };
    let report = apply::apply(&target.ecr, plan, |progress| match progress {
        Progress::Begun { number, of, step } if lively => {
            print_error(&format!(
                "\r\x1b[K[{number}/{of}] {} {}",
                step.action.as_str(),
                step.object
            ));
        }
        Progress::Previewing(count) if lively => {
            print_error(&format!("\r\x1b[Kwaiting for {count} to be previewed"));
        }
        Progress::Begun { .. } | Progress::Previewing(_) => {}
        Progress::Ended(outcome) => {
            clear();
            if output == Some(Output::Text) {
                say(format_args!("{outcome}"));
            }
        }
    });
    let report = report.await;
    clear();
    report
}

/// Prints notes about the manifests; where standard output is for a program, to standard error.
pub(super) fn show_notes(notes: &[String], output: Output) {
    for note in notes {
        match output {
            Output::Text => say(format_args!("  note    {note}")),
            Output::Json => say_error(format_args!("note: {note}")),
        }
    }
}

/// Prints the resources that belong to no registry.
pub(super) fn show_unresolved(refused: &[Refused]) {
    for Refused { object, reason, message } in refused {
        say(format_args!("! refused {object}\n             {reason}: {message}"));
    }
}

/// A registry's part of the output for programs.
#[derive(Serialize)]
pub(super) struct RegistryOutput {
    pub(super) registry: String,
    pub(super) place: String,
    #[serde(flatten)]
    pub(super) plan: Option<Plan>,
    #[serde(flatten)]
    pub(super) report: Option<Report>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

/// All that is printed for programs.
#[derive(Default, Serialize)]
pub(super) struct JsonOutput {
    pub(super) registries: Vec<RegistryOutput>,
    /// Resources that belong to no registry.
    pub(super) refused: Vec<Refused>,
    /// The files that were not read, and what else the author should know.
    pub(super) notes: Vec<String>,
    /// The faults of the manifests; the registry was not asked then.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) problems: Vec<Problem>,
    /// The error that ended the command, if it is not in the manifests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

impl JsonOutput {
    fn of_error(error: &anyhow::Error) -> Self {
        match error.downcast_ref::<LoadError>() {
            Some(LoadError { problems }) => Self { problems: problems.clone(), ..Self::default() },
            None => Self { error: Some(format!("{error:#}")), ..Self::default() },
        }
    }

    pub(super) fn print(&self) -> anyhow::Result<()> {
        say(format_args!("{}", serde_json::to_string_pretty(self)?));
        Ok(())
    }
}
