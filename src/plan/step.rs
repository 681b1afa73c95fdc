//! A plan as data: its steps, in the order in which they are executed, and how they are printed.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use super::field_change::FieldChange;
use super::model::Refused;
use super::{Call, Desired, ObjectKey, repository};
use wharfage_domain::names::RepositoryName;

/// A resource of Kubernetes, or of a folder of manifests, that a step is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Object {
    /// The resource's kind.
    pub kind: &'static str,
    /// The resource's namespace; empty if the resource is cluster-scoped.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// The resource's name.
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
    /// Returns the key's name, unless it is the resource's own name and so needs no mention.
    pub fn other_name<'k>(&self, key: &'k ObjectKey) -> Option<&'k str> {
        let Self { kind: _, namespace, name } = self;
        key.name().filter(|other| *other != name && *other != format!("{namespace}/{name}"))
    }
}

/// The action of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Creates an object that does not exist.
    Create,
    /// Adopts an object that exists and has no owner.
    Adopt,
    /// Changes an object that we own.
    Update,
    /// Evaluates a lifecycle policy without enforcing it.
    Preview,
    /// Releases an object that no manifest declares any more; it stays in the registry.
    Retain,
    /// Deletes an object that no manifest declares any more, because its manifest said so.
    Delete,
}

impl Action {
    /// Every action, in the order in which a summary counts them.
    pub const ALL: [Self; 6] =
        [Self::Create, Self::Adopt, Self::Update, Self::Preview, Self::Retain, Self::Delete];

    /// Returns the action's name in text and JSON.
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

/// One action of a plan, for one resource and one object in the registry.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Step {
    /// The action.
    pub action: Action,
    /// The resource that asks for the step, or once asked for what the step ends.
    pub object: Object,
    /// The object in the registry.
    #[serde(flatten, skip_serializing_if = "ObjectKey::is_document")]
    pub key: ObjectKey,
    /// The object's ARN, if it has one already.
    #[serde(skip)]
    pub arn: Option<String>,
    /// The changed fields.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<FieldChange>,
    /// The calls that make the changes, in order.
    #[serde(skip)]
    pub calls: Vec<Call>,
}

impl Step {
    /// Returns the name of the repository that the step is about, if it is about one.
    pub fn repository(&self) -> Option<&RepositoryName> {
        self.key.repository()
    }
}

/// The changes to one registry.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Plan {
    /// The steps, in the order in which they are executed.
    pub steps: Vec<Step>,
    /// Resources that the plan does nothing for.
    pub refused: Vec<Refused>,
    /// Sentences about fields that have no effect here.
    pub notes: Vec<String>,
    /// Previews to start again although the policies have not changed, because images may have. They change nothing.
    #[serde(skip)]
    pub reevaluations: Vec<Step>,
}

impl Plan {
    /// Returns whether the plan has no steps.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Adds the decision about one resource.
    pub(crate) fn add(&mut self, decision: Result<Option<Step>, Refused>) {
        match decision {
            Ok(step) => self.steps.extend(step),
            Err(refused) => self.refused.push(refused),
        }
    }

    /// Removes and returns the steps that release or delete what no manifest declares any more.
    /// Steps by which a declared resource gives something up stay in the plan, such as a policy for
    /// a repository that its selector no longer chooses.
    #[must_use]
    pub fn take_orphans(&mut self, desired: &Desired) -> Vec<Step> {
        let declared: BTreeSet<&RepositoryName> =
            desired.repositories.iter().map(|it| &it.name).collect();
        let is_orphan = |step: &Step| {
            let gives_up = desired.declared.contains(&step.object)
                && (step.object.kind == repository::KIND
                    || step.repository().is_some_and(|name| declared.contains(name)));
            matches!(step.action, Action::Retain | Action::Delete) && !gives_up
        };
        let (orphans, steps) = std::mem::take(&mut self.steps).into_iter().partition(is_orphan);
        self.steps = steps;
        orphans
    }

    /// Returns the number of steps of each action that the plan has.
    pub fn counts(&self) -> Vec<(Action, usize)> {
        let count = |action| self.steps.iter().filter(|step| step.action == action).count();
        Action::ALL
            .into_iter()
            .map(|action| (action, count(action)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:<8}{}", self.action.sign(), self.action.as_str(), self.object)?;
        if let Some(name) = self.object.other_name(&self.key) {
            write!(f, " ({name})")?;
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
        let counts: Vec<String> = self
            .counts()
            .into_iter()
            .map(|(action, count)| format!("{count} to {}", action.as_str()))
            .collect();
        write!(f, "{}.", counts.join(", "))
    }
}
