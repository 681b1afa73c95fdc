//! The core: `plan(desired, observed)` says what would change, as data that can be printed, compared and carried out.
//!
//! Pure: no I/O and no clock. File mode and the operator run the same function.

mod decide;
mod desired;
mod diff;
mod effect;
pub mod identity;
mod lifecycle_policy;
pub mod model;
pub mod ownership;
#[cfg(test)]
mod properties;
mod repository;
mod resources;
mod settings;
#[cfg(test)]
mod tests;
mod unenforced;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

pub use decide::plan;
pub use desired::{desired, desired_in_cluster, desired_settings, on_removal, unresolved};
pub use lifecycle_policy::equivalent as equivalent_policies;
pub use model::{Desired, Observed};
pub use repository::differences;
pub use resources::Resources;
pub use settings::contested;
pub use unenforced::{unenforced, unenforced_settings};

use model::Refused;
use wharfage_domain::names::RepositoryName;
use wharfage_domain::scanning::ScanningConfiguration;
use wharfage_domain::tag_mutability::TagMutability;

/// A resource that a step is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Object {
    /// Its kind.
    pub kind: &'static str,
    /// Its namespace; empty for a cluster-scoped one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

impl Object {
    /// Whether the object's own name tells which repository is meant.
    pub fn says(&self, repository: &RepositoryName) -> bool {
        let Self { kind: _, namespace, name } = self;
        repository.as_str() == name || repository.as_str() == format!("{namespace}/{name}")
    }
}

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Makes what is not there.
    Create,
    /// Takes over what is there and nobody's.
    Adopt,
    /// Changes what is ours.
    Update,
    /// Evaluates a lifecycle policy without carrying it out.
    Preview,
    /// Lets go of what no manifest declares any more; it stays in the registry.
    Retain,
    /// Deletes what no manifest declares any more, as its manifest had said.
    Delete,
}

impl Action {
    /// Every action, in the order in which a summary counts them.
    pub const ALL: [Self; 6] = [Self::Create, Self::Adopt, Self::Update, Self::Preview, Self::Retain, Self::Delete];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Adopt => "adopt",
            Self::Update => "update",
            Self::Preview => "preview",
            Self::Retain => "retain",
            Self::Delete => "delete",
        }
    }

    fn sign(self) -> char {
        match self {
            Self::Create => '+',
            Self::Adopt => '>',
            Self::Update => '~',
            Self::Preview => '?',
            Self::Retain => '=',
            Self::Delete => '-',
        }
    }
}

/// A field that a step changes, both sides as ECR writes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldChange {
    /// ECR's name for it; of a document the changed member, such as `repositoryPolicy.Statement[Sid=ci].Action` or
    /// `lifecyclePolicy.rules[rulePriority=1].selection.countNumber`.
    pub field: String,
    /// What is there, whole; nothing if it is new.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// What is wanted, whole; nothing if it goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

impl FieldChange {
    /// Both sides as people read them: on one line, from where they differ if they are long, and never the same text for two
    /// that differ.
    pub fn sides(&self) -> (Option<String>, Option<String>) {
        let (from, to) = (self.from.as_deref().map(visible), self.to.as_deref().map(visible));
        let common = match (&from, &to) {
            (Some(from), Some(to)) => from.chars().zip(to.chars()).take_while(|(from, to)| from == to).count(),
            _ => 0,
        };
        let is_long = |side: &Option<String>| side.as_ref().is_some_and(|side| side.chars().count() > ENOUGH);
        let start = if is_long(&from) || is_long(&to) { common.saturating_sub(CONTEXT) } else { 0 };
        (from.map(|from| cut(&from, start)), to.map(|to| cut(&to, start)))
    }
}

/// Characters of a side that help somebody.
const ENOUGH: usize = 160;
/// Characters before the first difference that are shown with it.
const CONTEXT: usize = 16;

/// A text whose beginning and end can be seen.
fn visible(text: &str) -> String {
    let hidden = |c: char| c.is_control() || c.is_whitespace() && c != ' ';
    if text.trim() != text || text.is_empty() || text.contains(hidden) { format!("{text:?}") } else { text.to_owned() }
}

/// What follows the first `start` characters, cut where it would no longer help anybody.
fn cut(text: &str, start: usize) -> String {
    let length = text.chars().count();
    let before = if start > 0 { "…" } else { "" };
    let shown: String = text.chars().skip(start).take(ENOUGH).collect();
    if length - start.min(length) <= ENOUGH {
        format!("{before}{shown}")
    } else {
        format!("{before}{shown}… ({length} characters)")
    }
}

impl fmt::Display for FieldChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.field)?;
        match self.sides() {
            (None, Some(to)) => write!(f, ": {to}"),
            (Some(from), Some(to)) => write!(f, ": {from} -> {to}"),
            (Some(from), None) => write!(f, ": {from} -> (none)"),
            (None, None) => Ok(()),
        }
    }
}

/// One call of the ECR API. A step's calls run in order, and each may be repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// CreateRepository.
    CreateRepository {
        /// `imageTagMutability` with its filters.
        tag_mutability: TagMutability,
        /// `scanOnPush`.
        scan_on_push: bool,
        /// `encryptionType` and `kmsKey`; ECR's default if none.
        encryption: Option<(String, Option<String>)>,
        /// Resource tags.
        tags: BTreeMap<String, String>,
    },
    /// PutImageTagMutability.
    PutImageTagMutability(TagMutability),
    /// PutImageScanningConfiguration.
    PutImageScanningConfiguration {
        /// `scanOnPush`.
        scan_on_push: bool,
    },
    /// TagResource.
    TagResource(BTreeMap<String, String>),
    /// UntagResource.
    UntagResource(Vec<String>),
    /// SetRepositoryPolicy, with the document's text.
    SetRepositoryPolicy(String),
    /// DeleteRepositoryPolicy.
    DeleteRepositoryPolicy,
    /// PutLifecyclePolicy, with the document's text.
    PutLifecyclePolicy(String),
    /// DeleteLifecyclePolicy.
    DeleteLifecyclePolicy,
    /// StartLifecyclePolicyPreview, with the document's text.
    StartLifecyclePolicyPreview(String),
    /// DeleteRepository.
    DeleteRepository {
        /// Images too.
        force: bool,
    },
    /// PutAccountSetting.
    PutAccountSetting {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
    /// PutRegistryPolicy, with the document's text.
    PutRegistryPolicy(String),
    /// DeleteRegistryPolicy.
    DeleteRegistryPolicy,
    /// PutRegistryScanningConfiguration.
    PutRegistryScanningConfiguration(ScanningConfiguration),
}

/// One thing that a plan does, for one resource and one repository at most.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Step {
    /// What it does.
    pub action: Action,
    /// The resource that asks for it, or asked once.
    pub object: Object,
    /// The repository that it does it to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<RepositoryName>,
    /// Its ARN, where the repository is there already.
    #[serde(skip)]
    pub arn: Option<String>,
    /// What changes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<FieldChange>,
    /// How it is done.
    #[serde(skip)]
    pub calls: Vec<Call>,
}

/// What would change in one registry.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Plan {
    /// What is done, in this order.
    pub steps: Vec<Step>,
    /// Resources that are not acted on.
    pub refused: Vec<Refused>,
    /// What holds only elsewhere and is let be here.
    pub notes: Vec<String>,
    /// Previews of these same policies by the registry, evaluated again: images may have changed since. None is part of what
    /// would change.
    #[serde(skip)]
    pub reevaluations: Vec<Step>,
}

impl Plan {
    /// Whether the registry is as the manifests want it, and nothing is refused.
    pub fn is_settled(&self) -> bool {
        self.steps.is_empty() && self.refused.is_empty()
    }

    /// Whether nothing would change.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Takes out the steps that release or delete what no manifest declares any more. What a declared resource gives up,
    /// such as a policy for a repository that its selector left, stays in the plan.
    #[must_use]
    pub fn take_orphans(&mut self, desired: &Desired) -> Vec<Step> {
        let declared: BTreeSet<&RepositoryName> = desired.repositories.iter().map(|it| &it.name).collect();
        let is_orphan = |step: &Step| {
            let gives_up = desired.declared.contains(&step.object)
                && (step.object.kind == "Repository"
                    || step.repository.as_ref().is_some_and(|name| declared.contains(name)));
            matches!(step.action, Action::Retain | Action::Delete) && !gives_up
        };
        let (orphans, steps) = std::mem::take(&mut self.steps).into_iter().partition(is_orphan);
        self.steps = steps;
        orphans
    }

    /// How many steps of each action there are, those with none left out.
    pub fn counts(&self) -> Vec<(Action, usize)> {
        let count = |action| self.steps.iter().filter(|step| step.action == action).count();
        Action::ALL.into_iter().map(|action| (action, count(action))).filter(|(_, count)| *count > 0).collect()
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:<8}{}", self.action.sign(), self.action.as_str(), self.object)?;
        if let Some(repository) = self.repository.as_ref().filter(|repository| !self.object.says(repository)) {
            write!(f, " ({repository})")?;
        }
        self.changes.iter().try_for_each(|change| write!(f, "\n             {change}"))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            writeln!(f, "{step}")?;
        }
        for Refused { object, reason, message } in &self.refused {
            writeln!(f, "! refused {object}\n             {reason}: {message}")?;
        }
        for note in &self.notes {
            writeln!(f, "  note    {note}")?;
        }
        if self.steps.is_empty() {
            return write!(f, "Nothing to change.");
        }
        let counts: Vec<String> =
            self.counts().into_iter().map(|(action, count)| format!("{count} to {}", action.as_str())).collect();
        write!(f, "{}.", counts.join(", "))
    }
}

fn change(field: &str, from: Option<String>, to: Option<String>) -> FieldChange {
    FieldChange { field: field.to_owned(), from, to }
}
