//! The principals of a policy, and which callers they are.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::{Map, Value, json};

use crate::names::AccountId;

/// Whom a statement is about, or who makes a request.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Principal {
    /// `*`: everyone.
    Anyone,
    /// An account, written as its id or as its root's ARN. As a caller it is the account's root.
    Account {
        /// `aws`, `aws-cn` and the like.
        partition: String,
        /// Which.
        account: AccountId,
    },
    /// A user, a role, or a session of a role or of a federated user.
    Identity {
        /// `aws`, `aws-cn` and the like.
        partition: String,
        /// The account that it belongs to.
        account: AccountId,
        /// `user/NAME`, `role/NAME` (both may have a path), `assumed-role/ROLE/SESSION` or `federated-user/NAME`.
        resource: String,
    },
    /// A service of AWS, such as `codebuild.amazonaws.com`.
    Service(String),
}

impl Principal {
    /// Reads a value of the `AWS` principal: `*`, an account's id, or an ARN of IAM or STS. Groups are none.
    pub fn parse_aws(text: &str) -> Result<Self, String> {
        let invalid = || {
            format!(
                "principal {text:?} is not valid: give *, a twelve-digit account or the ARN of an account's root, \
                 a user, a role or a session"
            )
        };
        if text == "*" {
            return Ok(Self::Anyone);
        }
        if let Ok(account) = text.parse() {
            return Ok(Self::Account { partition: "aws".to_owned(), account });
        }
        let parts: Vec<_> = text.splitn(6, ':').collect();
        let ["arn", partition, service, "", account, resource] = parts[..] else {
            return Err(invalid());
        };
        let partition =
            Some(partition).filter(|name| is_partition(name)).ok_or_else(invalid)?.to_owned();
        let account: AccountId = account.parse().map_err(|_| invalid())?;
        if service == "iam" && resource == "root" {
            return Ok(Self::Account { partition, account });
        }
        if !is_identity(service, resource) {
            return Err(invalid());
        }
        Ok(Self::Identity { partition, account, resource: resource.to_owned() })
    }

    /// Reads a value of the `Service` principal.
    pub fn parse_service(text: &str) -> Result<Self, String> {
        let name =
            text.strip_suffix(".amazonaws.com.cn").or_else(|| text.strip_suffix(".amazonaws.com"));
        let label = |label: &str| {
            !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        if name.is_some_and(|name| name.split('.').all(label)) {
            Ok(Self::Service(text.to_owned()))
        } else {
            Err(format!(
                "service principal {text:?} is not valid: give one such as codebuild.amazonaws.com"
            ))
        }
    }

    /// Returns whether a `Principal` element with this value includes `caller`: an account
    /// includes all that belong to it.
    pub fn includes(&self, caller: &Self) -> bool {
        match (self, caller) {
            (Self::Anyone, _) => true,
            (
                Self::Account { partition, account },
                Self::Identity { partition: callers_partition, account: callers, .. },
            ) => partition == callers_partition && account == callers,
            _ => self.names(caller),
        }
    }

    /// Returns whether this is `caller` itself; a role is each of its sessions.
    pub fn names(&self, caller: &Self) -> bool {
        self == caller || self.as_role().is_some_and(|role| Some(role) == caller.as_session())
    }

    /// Partition, account and name of a role. Its path doesn't count, as a session's ARN leaves it out.
    fn as_role(&self) -> Option<(&str, &AccountId, &str)> {
        let Self::Identity { partition, account, resource } = self else { return None };
        let path = resource.strip_prefix("role/")?;
        Some((partition, account, path.rsplit_once('/').map_or(path, |(_, name)| name)))
    }

    /// Partition, account and name of the role that a session is of.
    fn as_session(&self) -> Option<(&str, &AccountId, &str)> {
        let Self::Identity { partition, account, resource } = self else { return None };
        let (role, _) = resource.strip_prefix("assumed-role/")?.split_once('/')?;
        Some((partition, account, role))
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anyone => f.write_str("*"),
            Self::Account { partition, account } => {
                write!(f, "arn:{partition}:iam::{account}:root")
            }
            Self::Identity { partition, account, resource } => {
                let service = if is_identity("iam", resource) { "iam" } else { "sts" };
                write!(f, "arn:{partition}:{service}::{account}:{resource}")
            }
            Self::Service(name) => f.write_str(name),
        }
    }
}

/// The `Principal` element of a canonical document.
pub(super) fn to_document(principals: &BTreeSet<Principal>) -> Value {
    let mut document: Map<String, Value> = Map::new();
    for principal in principals {
        let kind = if matches!(principal, Principal::Service(_)) { "Service" } else { "AWS" };
        let values = document.entry(kind).or_insert_with(|| json!([]));
        if let Value::Array(values) = values {
            values.push(principal.to_string().into());
        }
    }
    document.into()
}

fn is_partition(name: &str) -> bool {
    name == "aws"
        || name
            .strip_prefix("aws-")
            .is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'))
}

fn is_identity(service: &str, resource: &str) -> bool {
    let Some((kind, rest)) = resource.split_once('/') else { return false };
    match (service, kind) {
        ("iam", "user" | "role") => match rest.rsplit_once('/') {
            None => is_name(rest),
            Some((path, name)) => path.split('/').all(is_path_segment) && is_name(name),
        },
        ("sts", "assumed-role") => {
            rest.split_once('/').is_some_and(|(role, session)| is_name(role) && is_name(session))
        }
        ("sts", "federated-user") => is_name(rest),
        _ => false,
    }
}

/// The names of users, roles and sessions; no wildcards, which principals don't have.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b))
}

fn is_path_segment(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && b != b'*' && b != b'?')
}
