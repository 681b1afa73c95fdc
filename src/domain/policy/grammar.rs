//! Reads a policy out of JSON, refusing whatever the grammar doesn't name.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::principal::Principal;
use super::{Condition, Effect, Kind, Matching, Policy, Statement, Version};

/// The error is the reason, for people.
type Result<T> = std::result::Result<T, String>;

/// The operators that may have `IfExists` behind them: all but `Null`.
const OPERATORS: [&str; 27] = [
    "StringEquals",
    "StringNotEquals",
    "StringEqualsIgnoreCase",
    "StringNotEqualsIgnoreCase",
    "StringLike",
    "StringNotLike",
    "NumericEquals",
    "NumericNotEquals",
    "NumericLessThan",
    "NumericLessThanEquals",
    "NumericGreaterThan",
    "NumericGreaterThanEquals",
    "DateEquals",
    "DateNotEquals",
    "DateLessThan",
    "DateLessThanEquals",
    "DateGreaterThan",
    "DateGreaterThanEquals",
    "Bool",
    "BinaryEquals",
    "IpAddress",
    "NotIpAddress",
    "ArnEquals",
    "ArnLike",
    "ArnNotEquals",
    "ArnNotLike",
    "Null",
];

pub(super) fn read_policy(kind: Kind, document: &Value) -> Result<Policy> {
    let document = members(document, "the policy", &["Version", "Id", "Statement"])?;
    let version = match document.get("Version") {
        None => Version::default(),
        Some(version) => match version.as_str() {
            Some("2008-10-17") => Version::V2008,
            Some("2012-10-17") => Version::V2012,
            _ => {
                return Err(format!(
                    "Version {version} is not valid: give \"2012-10-17\" or \"2008-10-17\""
                ));
            }
        },
    };
    let id = optional_text(document, "Id")?;
    let statements = match document.get("Statement") {
        Some(Value::Array(statements)) if !statements.is_empty() => {
            statements.iter().map(|statement| read_statement(kind, statement)).collect()
        }
        Some(statement @ Value::Object(_)) => {
            read_statement(kind, statement).map(|statement| vec![statement])
        }
        _ => Err("Statement must be a statement or a list of at least one".to_owned()),
    }?;
    Ok(Policy { version, id, statements })
}

fn read_statement(kind: Kind, value: &Value) -> Result<Statement> {
    const RESOURCE: [&str; 2] = ["Resource", "NotResource"];
    let known = ["Sid", "Effect", "Principal", "NotPrincipal", "Action", "NotAction", "Condition"];
    let statement = match kind {
        Kind::Registry => members(value, "a statement", &[&known[..], &RESOURCE].concat())?,
        Kind::Repository => {
            if let Some(name) = RESOURCE.into_iter().find(|name| value.get(name).is_some()) {
                return Err(format!(
                    "{name} can't stand in a repository policy: take it out, the repository is implied"
                ));
            }
            members(value, "a statement", &known)?
        }
    };
    let effect = match statement.get("Effect").and_then(Value::as_str) {
        Some("Allow") => Effect::Allow,
        Some("Deny") => Effect::Deny,
        _ => return Err("Effect must be \"Allow\" or \"Deny\"".to_owned()),
    };
    Ok(Statement {
        sid: optional_text(statement, "Sid")?,
        effect,
        principals: read_twin(statement, "Principal", "NotPrincipal", read_principals)?,
        actions: read_twin(statement, "Action", "NotAction", read_actions)?,
        resources: match kind {
            Kind::Registry => {
                Some(read_twin(statement, "Resource", "NotResource", read_resources)?)
            }
            Kind::Repository => None,
        },
        conditions: statement
            .get("Condition")
            .map(read_conditions)
            .transpose()?
            .unwrap_or_default(),
    })
}

/// Reads an element of which exactly one of two forms must be there.
fn read_twin<T>(
    statement: &Map<String, Value>,
    element: &str,
    not: &str,
    read: impl Fn(&Value) -> Result<BTreeSet<T>>,
) -> Result<Matching<T>> {
    match (statement.get(element), statement.get(not)) {
        (Some(value), None) => read(value).map(Matching::In),
        (None, Some(value)) => read(value).map(Matching::NotIn),
        _ => Err(format!("a statement must have exactly one of {element} and {not}")),
    }
}

fn read_principals(value: &Value) -> Result<BTreeSet<Principal>> {
    if value == "*" {
        return Ok([Principal::Anyone].into());
    }
    let mut principals = BTreeSet::new();
    for (kind, values) in members(value, "a principal other than \"*\"", &["AWS", "Service"])? {
        let parse = if kind == "AWS" { Principal::parse_aws } else { Principal::parse_service };
        for text in texts(values, kind)? {
            principals.insert(parse(text)?);
        }
    }
    if principals.is_empty() {
        return Err("a principal must have AWS or Service".to_owned());
    }
    Ok(principals)
}

fn read_actions(value: &Value) -> Result<BTreeSet<String>> {
    texts(value, "Action")?.into_iter().map(read_action).collect()
}

fn read_action(text: &str) -> Result<String> {
    let lower = text.to_ascii_lowercase();
    let is_pattern = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'*' | b'?'))
    };
    if lower == "*" || lower.strip_prefix("ecr:").is_some_and(is_pattern) {
        Ok(lower)
    } else {
        Err(format!(
            "action {text:?} is not valid: give *, or ecr: and the name of an action, in which * and ? match"
        ))
    }
}

fn read_resources(value: &Value) -> Result<BTreeSet<String>> {
    texts(value, "Resource")?.into_iter().map(read_resource).collect()
}

fn read_resource(text: &str) -> Result<String> {
    let is_segment = |segment: &str| {
        !segment.is_empty()
            && segment.bytes().all(|b| {
                b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'*' | b'?')
            })
    };
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic());
    let is_arn = match text.splitn(6, ':').collect::<Vec<_>>()[..] {
        ["arn", partition, "ecr", region, account, resource] => {
            [partition, region, account].into_iter().all(is_segment)
                && (resource == "*" || resource.strip_prefix("repository/").is_some_and(is_name))
        }
        _ => false,
    };
    if text == "*" || is_arn {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "resource {text:?} is not valid: give *, or a repository's ARN such as \
             arn:aws:ecr:eu-1:123456789012:repository/team/*, in which * and ? match"
        ))
    }
}

fn read_conditions(value: &Value) -> Result<BTreeMap<Condition, BTreeSet<String>>> {
    let mut conditions = BTreeMap::new();
    for (operator, keys) in object(value, "Condition")? {
        if !is_operator(operator) {
            return Err(format!("condition operator {operator:?} is not known"));
        }
        for (key, values) in object(keys, operator)? {
            if !key
                .split_once(':')
                .is_some_and(|(prefix, name)| !prefix.is_empty() && !name.is_empty())
            {
                return Err(format!(
                    "condition key {key:?} is not valid: give one such as aws:SourceIp"
                ));
            }
            let condition = Condition { operator: operator.clone(), key: key.to_lowercase() };
            let values = scalars(values, key)?;
            if conditions.insert(condition, values).is_some() {
                return Err(format!(
                    "condition key {key:?} is there twice for {operator}: give its values as one list"
                ));
            }
        }
    }
    Ok(conditions)
}

fn is_operator(name: &str) -> bool {
    let name = name
        .strip_prefix("ForAllValues:")
        .or_else(|| name.strip_prefix("ForAnyValue:"))
        .unwrap_or(name);
    let bare = name.strip_suffix("IfExists").filter(|bare| *bare != "Null").unwrap_or(name);
    OPERATORS.contains(&bare)
}

/// The members of an object that has none but the `known` ones.
fn members<'a>(value: &'a Value, what: &str, known: &[&str]) -> Result<&'a Map<String, Value>> {
    let object = object(value, what)?;
    match object.keys().find(|name| !known.contains(&name.as_str())) {
        None => Ok(object),
        Some(name) => Err(format!("{what} can't have {name:?}: known are {}", known.join(", "))),
    }
}

fn object<'a>(value: &'a Value, what: &str) -> Result<&'a Map<String, Value>> {
    value.as_object().ok_or_else(|| format!("{what} must be an object"))
}

fn optional_text(object: &Map<String, Value>, name: &str) -> Result<Option<String>> {
    match object.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(format!("{name} must be a string")),
    }
}

/// One value, or a list of at least one.
fn values(value: &Value) -> &[Value] {
    match value {
        Value::Array(values) => values,
        value => std::slice::from_ref(value),
    }
}

fn texts<'a>(value: &'a Value, what: &str) -> Result<Vec<&'a str>> {
    let texts: Option<Vec<_>> = values(value).iter().map(Value::as_str).collect();
    texts
        .filter(|texts| !texts.is_empty())
        .ok_or_else(|| format!("{what} must be a string or a list of at least one"))
}

/// The values of a condition: IAM takes numbers and booleans for the strings that they are written as.
fn scalars(value: &Value, what: &str) -> Result<BTreeSet<String>> {
    let scalar = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    };
    let scalars: Option<BTreeSet<_>> = values(value).iter().map(scalar).collect();
    scalars
        .filter(|set| !set.is_empty())
        .ok_or_else(|| format!("{what} must have a value or a list of at least one"))
}
