//! Repository and registry policies: IAM documents about who may do what with one repository, or with a registry.
//!
//! Pure. Reads and validates them, compares them by meaning, and finds out whether one would lock
//! its author out. It decides no request: that needs identity policies and a request's context,
//! which aren't known here. Source: Amazon ECR user guide, "Private repository policies" and
//! "Private registry permissions"; IAM user guide, "Grammar of the JSON policy language".

mod grammar;
mod principal;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

pub use self::principal::Principal;
use crate::wildcard;

/// The most characters that a policy may have.
pub const MAX_LENGTH: usize = 10_240;

/// The resource that a policy is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One repository, which is what all its statements are about.
    Repository,
    /// A registry: each statement says which repositories it is about.
    Registry,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Repository => "repository",
            Self::Registry => "registry",
        })
    }
}

/// The reason for which a policy was refused; displayed, it is the whole message of ECR's InvalidParameterException.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPolicy {
    /// The text is longer than [`MAX_LENGTH`].
    #[error(
        "Invalid parameter at 'policyText' failed to satisfy constraint: \
         'Member must have length less than or equal to {MAX_LENGTH}'"
    )]
    TooLong,
    /// It is no policy of this kind. ECR doesn't say why, the reason here does.
    #[error(
        "Invalid parameter at 'PolicyText' failed to satisfy constraint: 'Invalid {kind} policy provided'"
    )]
    Document {
        /// The expected kind.
        kind: Kind,
        /// The reason for which it is not valid.
        reason: String,
    },
}

impl InvalidPolicy {
    /// Returns the fault, naming the offending value; for manifests and logs, as ECR's message
    /// leaves it out.
    pub fn reason(&self) -> String {
        match self {
            Self::TooLong => format!("it has more than {MAX_LENGTH} characters"),
            Self::Document { kind: _, reason } => reason.clone(),
        }
    }
}

/// A valid policy in canonical form: `==` is the semantic comparison.
///
/// Neither the order of statements, actions, principals, resources and condition values makes a difference, nor does a single
/// value instead of a list of one, the case of actions and condition keys, an account's id instead of its root ARN,
/// or `"*"` instead of `{"AWS": "*"}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The version of the policy language.
    pub version: Version,
    /// `Id`, a name that means nothing to ECR.
    pub id: Option<String>,
    /// Sorted, so that equal policies have equal statements.
    statements: Vec<Statement>,
}

/// The version of the policy language: only the newer one knows policy variables (`${…}`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Version {
    /// `2008-10-17`, what a document without a version has.
    #[default]
    V2008,
    /// `2012-10-17`.
    V2012,
}

impl Version {
    /// The version as a document has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V2008 => "2008-10-17",
            Self::V2012 => "2012-10-17",
        }
    }
}

/// One statement of a policy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Statement {
    /// `Sid`: any text, not necessarily unique.
    pub sid: Option<String>,
    /// The effect on the requests that it matches.
    pub effect: Effect,
    /// Whom it is about.
    pub principals: Matching<Principal>,
    /// The actions that it matches: patterns in lower case, `*` or `ecr:…` with `*` and `?`.
    pub actions: Matching<String>,
    /// The repositories that it is about: patterns of their ARNs with `*` and `?`, or `*`. None in
    /// a repository policy.
    pub resources: Option<Matching<String>>,
    /// When it holds: every condition must.
    pub conditions: BTreeMap<Condition, BTreeSet<String>>,
}

/// Allow or Deny; a Deny outweighs every Allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// `Allow`.
    Allow,
    /// `Deny`.
    Deny,
}

/// An element with its `Not…` twin. The set is not empty.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Matching<T> {
    /// `Principal`, `Action`, `Resource`: one of these.
    In(BTreeSet<T>),
    /// `NotPrincipal`, `NotAction`, `NotResource`: none of these.
    NotIn(BTreeSet<T>),
}

/// The key, operator and values that a condition compares.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Condition {
    /// The operator with its qualifier and `IfExists`, such as `ForAnyValue:StringLikeIfExists`.
    pub operator: String,
    /// The key in lower case, such as `aws:principalarn`.
    pub key: String,
}

impl Policy {
    /// Reads the text of SetRepositoryPolicy's or PutRegistryPolicy's `policyText`.
    pub fn parse(kind: Kind, text: &str) -> Result<Self, InvalidPolicy> {
        if text.chars().count() > MAX_LENGTH {
            return Err(InvalidPolicy::TooLong);
        }
        let document: Value = serde_json::from_str(text).map_err(|error| {
            InvalidPolicy::Document { kind, reason: format!("it is no JSON: {error}") }
        })?;
        Self::from_value(kind, &document)
    }

    /// Reads a document from JSON.
    pub fn from_value(kind: Kind, document: &Value) -> Result<Self, InvalidPolicy> {
        let mut policy = grammar::read_policy(kind, document)
            .map_err(|reason| InvalidPolicy::Document { kind, reason })?;
        policy.statements.sort();
        Ok(policy)
    }

    /// The statements, in an order that doesn't depend on the document's.
    pub fn statements(&self) -> &[Statement] {
        &self.statements
    }

    /// The canonical document: lists everywhere, sorted, keys and actions in lower case. Meant for comparing; what is
    /// stored and shown should be what the author wrote.
    pub fn to_document(&self) -> Value {
        let mut document = json!({
            "Version": self.version.as_str(),
            "Statement": self.statements.iter().map(Statement::to_document).collect::<Vec<_>>(),
        });
        if let Some(id) = &self.id {
            document["Id"] = id.as_str().into();
        }
        document
    }

    /// Returns whether any statement is a Deny.
    pub fn denies(&self) -> bool {
        self.statements.iter().any(|statement| statement.effect == Effect::Deny)
    }

    /// Returns whether the policy explicitly denies ecr:SetRepositoryPolicy to a caller, an ARN of
    /// IAM or STS. Such a document is set only with `force`, as its author could not take it back.
    ///
    /// Statements with conditions are passed over: whether they hold depends on requests that
    /// aren't made yet.
    pub fn locks_out(&self, caller: &Principal) -> bool {
        self.statements.iter().any(|statement| {
            statement.effect == Effect::Deny
                && statement.conditions.is_empty()
                && statement.concerns(caller)
                && statement.covers("ecr:SetRepositoryPolicy")
        })
    }
}

impl Statement {
    /// Returns whether the statement's principals include this caller.
    pub fn concerns(&self, caller: &Principal) -> bool {
        match &self.principals {
            Matching::In(principals) => {
                principals.iter().any(|principal| principal.includes(caller))
            }
            // Excepting an account excepts its root alone, not everyone who belongs to it.
            Matching::NotIn(principals) => {
                !principals.iter().any(|principal| principal.names(caller))
            }
        }
    }

    /// Returns whether the statement's actions include this one, such as `ecr:PutImage`.
    pub fn covers(&self, action: &str) -> bool {
        let matches = |pattern: &String| wildcard::matches_action(pattern, action);
        match &self.actions {
            Matching::In(patterns) => patterns.iter().any(matches),
            Matching::NotIn(patterns) => !patterns.iter().any(matches),
        }
    }

    fn to_document(&self) -> Value {
        let mut document = Map::new();
        if let Some(sid) = &self.sid {
            document.insert("Sid".to_owned(), sid.as_str().into());
        }
        let effect = match self.effect {
            Effect::Allow => "Allow",
            Effect::Deny => "Deny",
        };
        document.insert("Effect".to_owned(), effect.into());
        let (element, principals) = self.principals.named("Principal", "NotPrincipal");
        document.insert(element.to_owned(), principal::to_document(principals));
        let (element, actions) = self.actions.named("Action", "NotAction");
        document.insert(element.to_owned(), json!(actions));
        if let Some(resources) = &self.resources {
            let (element, resources) = resources.named("Resource", "NotResource");
            document.insert(element.to_owned(), json!(resources));
        }
        let mut conditions: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for (Condition { operator, key }, values) in &self.conditions {
            conditions.entry(operator).or_default().insert(key, values);
        }
        if !conditions.is_empty() {
            document.insert("Condition".to_owned(), json!(conditions));
        }
        document.into()
    }
}

impl<T> Matching<T> {
    fn named(&self, element: &'static str, not: &'static str) -> (&'static str, &BTreeSet<T>) {
        match self {
            Self::In(set) => (element, set),
            Self::NotIn(set) => (not, set),
        }
    }
}

/// The canonical form of a document. One that isn't a valid policy is its own canonical form, so that a registry which knows
/// more of the grammar can still be compared with.
pub fn normalize(kind: Kind, document: &Value) -> Value {
    Policy::from_value(kind, document)
        .map_or_else(|_| document.clone(), |policy| policy.to_document())
}

/// Returns whether two documents mean the same.
pub fn equivalent(kind: Kind, one: &Value, other: &Value) -> bool {
    normalize(kind, one) == normalize(kind, other)
}
