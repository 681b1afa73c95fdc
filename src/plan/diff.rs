//! Compares two documents member by member, so that a change shows only what differs.
//!
//! The caller must already know that the documents differ in meaning: see [`wharfage_domain::policy::equivalent`] and
//! [`super::lifecycle_policy::equivalent`]. Different documents have at least one change, and no change has equal sides.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::FieldChange;
use super::field_change::change;
use wharfage_domain::lifecycle;
use wharfage_domain::policy::{Kind, Policy};

/// Returns the changes of a policy: its members, and those of each statement. Statements are matched by their meaning, by their
/// Sid, and by the number of equal members.
pub(super) fn policy_changes(
    kind: Kind,
    field: &str,
    from: Option<&Value>,
    to: Option<&Value>,
) -> Vec<FieldChange> {
    let whole = || vec![change(field, from.map(Value::to_string), to.map(Value::to_string))];
    let (Some(from), Some(to)) = (from, to) else { return whole() };
    let (Some(old), Some(new)) = (Statements::read(kind, from), Statements::read(kind, to)) else {
        return value_changes(field, from, to);
    };
    let mut changes = Vec::new();
    for member in ["Version", "Id"] {
        let (from, to) = (old.policy.get(member), new.policy.get(member));
        if from != to {
            changes.push(change(
                &format!("{field}.{member}"),
                from.map(Value::to_string),
                to.map(Value::to_string),
            ));
        }
    }
    for pair in pair(&old.statements, &new.statements) {
        let (from, to) =
            (pair.0.map(|at| &old.statements[at]), pair.1.map(|at| &new.statements[at]));
        let Some(name) =
            to.or(from).map(|statement| format!("{field}.Statement[{}]", statement.name))
        else {
            continue;
        };
        match (from, to) {
            (Some(from), Some(to)) => changes.extend(statement_changes(&name, from, to)),
            (from, to) => {
                let text = |statement: &Statement| statement.written.to_string();
                changes.push(change(&name, from.map(text), to.map(text)));
            }
        }
    }
    changes
}

/// Returns the changes of a lifecycle policy's rules. Rules are matched by their priority.
pub(super) fn lifecycle_changes(field: &str, from: &Value, to: &Value) -> Vec<FieldChange> {
    let (Ok(old), Ok(new)) =
        (lifecycle::Policy::from_value(from), lifecycle::Policy::from_value(to))
    else {
        return value_changes(field, from, to);
    };
    let priorities: BTreeSet<u32> =
        old.rules().iter().chain(new.rules()).map(|rule| rule.priority).collect();
    let mut changes = Vec::new();
    for priority in priorities {
        let rule = |policy: &lifecycle::Policy| {
            policy.rules().iter().find(|rule| rule.priority == priority).cloned()
        };
        let name = format!("{field}.rules[rulePriority={priority}]");
        match (rule(&old), rule(&new)) {
            (Some(from), Some(to)) => {
                changes.extend(value_changes(&name, &from.to_document(), &to.to_document()));
            }
            (from, to) => {
                let text = |rule: lifecycle::Rule| super::lifecycle_policy::show_rule(&rule);
                changes.push(change(&name, from.map(text), to.map(text)));
            }
        }
    }
    changes
}

/// Returns the changes of any JSON: those of an object's members, of the entries of a list of the same length, else the whole
/// value.
fn value_changes(field: &str, from: &Value, to: &Value) -> Vec<FieldChange> {
    match (from, to) {
        (from, to) if from == to => Vec::new(),
        (Value::Object(old), Value::Object(new)) => {
            let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            let member = |name: &String| match (old.get(name), new.get(name)) {
                (Some(from), Some(to)) => value_changes(&format!("{field}.{name}"), from, to),
                (from, to) => {
                    vec![change(
                        &format!("{field}.{name}"),
                        from.map(Value::to_string),
                        to.map(Value::to_string),
                    )]
                }
            };
            names.into_iter().flat_map(member).collect()
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            let entries = old.iter().zip(new).enumerate();
            entries
                .flat_map(|(index, (from, to))| {
                    value_changes(&format!("{field}[{index}]"), from, to)
                })
                .collect()
        }
        (from, to) => vec![change(field, Some(from.to_string()), Some(to.to_string()))],
    }
}

/// A policy's statements.
struct Statements {
    /// The canonical document.
    policy: Value,
    statements: Vec<Statement>,
}

/// A statement as its author wrote it, and its canonical form.
struct Statement {
    /// `Sid=…`, or its index in the document.
    name: String,
    written: Value,
    canonical: Map<String, Value>,
}

impl Statements {
    /// Reads the statements; `None` if the document is not a policy of this kind.
    fn read(kind: Kind, document: &Value) -> Option<Self> {
        let policy = Policy::from_value(kind, document).ok()?.to_document();
        let written = match &document["Statement"] {
            Value::Array(statements) => statements.clone(),
            statement => vec![statement.clone()],
        };
        let statements = written.into_iter().enumerate().map(|(index, written)| {
            let alone =
                Policy::from_value(kind, &json!({ "Statement": [&written] })).ok()?.to_document();
            let name = written["Sid"]
                .as_str()
                .map_or_else(|| index.to_string(), |sid| format!("Sid={sid}"));
            Some(Statement { name, canonical: alone["Statement"][0].as_object()?.clone(), written })
        });
        Some(Self { policy, statements: statements.collect::<Option<_>>()? })
    }
}

/// Pairs old and new statements by index, without those of the same meaning.
fn pair(old: &[Statement], new: &[Statement]) -> Vec<(Option<usize>, Option<usize>)> {
    let mut left: Vec<usize> = (0..old.len()).collect();
    let mut pairs = Vec::new();
    let mut unpaired = Vec::new();
    let take = |left: &mut Vec<usize>, fits: &dyn Fn(&Statement) -> bool| {
        left.iter().position(|at| fits(&old[*at])).map(|position| left.remove(position))
    };
    for (at, statement) in new.iter().enumerate() {
        if take(&mut left, &|other| other.canonical == statement.canonical).is_none() {
            unpaired.push(at);
        }
    }
    unpaired.retain(|at| {
        let sid = new[*at].canonical.get("Sid");
        let same =
            sid.and_then(|sid| take(&mut left, &|other| other.canonical.get("Sid") == Some(sid)));
        pairs.extend(same.map(|same| (Some(same), Some(*at))));
        same.is_none()
    });
    for at in unpaired {
        let similarity = |other: &usize| {
            let other = &old[*other].canonical;
            new[at].canonical.iter().filter(|(name, value)| other.get(*name) == Some(value)).count()
        };
        // Nearly all have the same Effect, so one equal member is not enough.
        let most_similar =
            left.iter().copied().max_by_key(similarity).filter(|other| similarity(other) > 1);
        left.retain(|other| Some(*other) != most_similar);
        pairs.push((most_similar, Some(at)));
    }
    pairs.sort_by_key(|(_, new)| *new);
    pairs.extend(left.into_iter().map(|at| (Some(at), None)));
    pairs
}

/// Returns the members of a statement whose meaning changed, as they are written.
fn statement_changes(name: &str, from: &Statement, to: &Statement) -> Vec<FieldChange> {
    let members: BTreeSet<&String> = from.canonical.keys().chain(to.canonical.keys()).collect();
    let different = members
        .into_iter()
        .filter(|member| from.canonical.get(*member) != to.canonical.get(*member));
    let text = |statement: &Statement, member: &String| {
        statement.written.get(member).map(Value::to_string)
    };
    different
        .map(|member| change(&format!("{name}.{member}"), text(from, member), text(to, member)))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use wharfage_domain::policy;

    fn lines(changes: &[FieldChange]) -> Vec<String> {
        changes.iter().map(ToString::to_string).collect()
    }

    fn repository_policy(from: &Value, to: &Value) -> Vec<String> {
        lines(&policy_changes(Kind::Repository, "repositoryPolicy", Some(from), Some(to)))
    }

    fn statement(sid: Option<&str>, principal: &str, actions: &[&str]) -> Value {
        let mut statement =
            json!({ "Effect": "Allow", "Principal": { "AWS": principal }, "Action": actions });
        if let Some(sid) = sid {
            statement["Sid"] = sid.into();
        }
        statement
    }

    fn document(statements: &[Value]) -> Value {
        json!({ "Version": "2012-10-17", "Statement": statements })
    }

    #[test]
    fn the_changed_member_of_the_changed_statement_is_shown() {
        let ci = |actions: &[&str]| statement(Some("ci"), "111111111111", actions);
        let (plain, other) =
            (statement(None, "222222222222", &["ecr:PutImage"]), statement(None, "*", &["ecr:*"]));
        let from = document(&[plain.clone(), ci(&["ecr:BatchGetImage"])]);
        for (to, expected) in [
            (
                document(&[ci(&["ecr:PutImage", "ecr:BatchGetImage"]), plain.clone()]),
                vec![
                    r#"repositoryPolicy.Statement[Sid=ci].Action: ["ecr:BatchGetImage"] -> ["ecr:PutImage","ecr:BatchGetImage"]"#,
                ],
            ),
            (
                document(&[
                    statement(None, "333333333333", &["ecr:PutImage"]),
                    ci(&["ecr:BatchGetImage"]),
                ]),
                vec![
                    r#"repositoryPolicy.Statement[0].Principal: {"AWS":"222222222222"} -> {"AWS":"333333333333"}"#,
                ],
            ),
            (
                document(&[ci(&["ecr:BatchGetImage"])]),
                vec![
                    r#"repositoryPolicy.Statement[0]: {"Action":["ecr:PutImage"],"Effect":"Allow","Principal":{"AWS":"222222222222"}} -> (none)"#,
                ],
            ),
            (
                document(&[plain.clone(), other, ci(&["ecr:BatchGetImage"])]),
                vec![
                    r#"repositoryPolicy.Statement[1]: {"Action":["ecr:*"],"Effect":"Allow","Principal":{"AWS":"*"}}"#,
                ],
            ),
            (
                json!({ "Id": "x", "Statement": [plain, ci(&["ecr:BatchGetImage"])] }),
                vec![
                    r#"repositoryPolicy.Version: "2012-10-17" -> "2008-10-17""#,
                    r#"repositoryPolicy.Id: "x""#,
                ],
            ),
        ] {
            assert_eq!(repository_policy(&from, &to), expected);
        }
    }

    #[test]
    fn the_changed_member_of_the_changed_rule_is_shown() {
        let rule = |priority: u32, days: u32, description: &str| {
            json!({
                "rulePriority": priority, "description": description,
                "selection": { "tagStatus": "tagged", "tagPrefixList": [format!("v{priority}")],
                               "countType": "sinceImagePushed", "countUnit": "days", "countNumber": days },
                "action": { "type": "expire" },
            })
        };
        let from = json!({ "rules": [rule(1, 14, "old"), rule(2, 30, "")] });
        let to = json!({ "rules": [rule(3, 1, ""), rule(1, 15, "new")] });
        assert_eq!(
            lines(&lifecycle_changes("lifecyclePolicy", &from, &to)),
            [
                r#"lifecyclePolicy.rules[rulePriority=1].description: "old" -> "new""#,
                "lifecyclePolicy.rules[rulePriority=1].selection.countNumber: 14 -> 15",
                "lifecyclePolicy.rules[rulePriority=2]: expire tagged v2* sinceImagePushed 30 days -> (none)",
                "lifecyclePolicy.rules[rulePriority=3]: expire tagged v3* sinceImagePushed 1 days",
            ]
        );
    }

    #[test]
    fn a_document_that_is_not_understood_is_compared_as_json() {
        let changes = repository_policy(
            &json!({ "Statement": [], "New": { "a": 1, "b": "1", "c": [1, 2] } }),
            &json!({ "Statement": [], "New": { "a": "1", "b": "1", "c": [1] } }),
        );
        assert_eq!(
            changes,
            [r#"repositoryPolicy.New.a: 1 -> "1""#, "repositoryPolicy.New.c: [1,2] -> [1]"]
        );
    }

    #[test]
    fn sides_are_cut_where_they_differ() {
        let actions = |more: &[&str]| {
            let many = (0..60).map(|n| format!("ecr:Action{n}"));
            document(&[json!({
                "Effect": "Allow", "Principal": "*",
                "Action": many.chain(more.iter().map(|it| (*it).to_owned())).collect::<Vec<_>>(),
            })])
        };
        let [line] = &repository_policy(&actions(&[]), &actions(&["ecr:PutImage"]))[..] else {
            panic!("one change")
        };
        assert_eq!(
            line,
            r#"repositoryPolicy.Statement[0].Action: …","ecr:Action59"] -> …","ecr:Action59","ecr:PutImage"]"#
        );
    }

    fn any_policy() -> impl Strategy<Value = Value> {
        let statement = (
            "[ab]?",
            "[12]",
            proptest::sample::subsequence(vec!["ecr:a", "ecr:B", "ecr:*"], 1..3),
            any::<bool>(),
        );
        let statements = proptest::collection::vec(statement, 1..4);
        (statements, proptest::bool::weighted(0.1)).prop_map(|(statements, unknown)| {
            let statements = statements.into_iter().map(|(sid, account, actions, allow)| {
                let mut statement = json!({
                    "Effect": if allow { "Allow" } else { "Deny" }, "Principal": { "AWS": account.repeat(12) }, "Action": actions,
                });
                if !sid.is_empty() {
                    statement["Sid"] = sid.into();
                }
                statement
            });
            let mut document = document(&statements.collect::<Vec<_>>());
            if unknown {
                document["Unknown"] = true.into();
            }
            document
        })
    }

    /// Documents that differ have changes, and no change has equal sides, in data or in text.
    fn well_shown(equivalent: bool, changes: &[FieldChange]) -> Result<(), TestCaseError> {
        prop_assert_eq!(equivalent, changes.is_empty());
        for it in changes {
            prop_assert_ne!(&it.from, &it.to);
            let (from, to) = it.sides();
            prop_assert_ne!(from, to);
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn policies_that_differ_are_shown_to_differ(from in any_policy(), to in any_policy()) {
            let changes = policy_changes(Kind::Repository, "policy", Some(&from), Some(&to));
            well_shown(policy::equivalent(Kind::Repository, &from, &to), &changes)?;
        }

        #[test]
        fn any_two_texts_that_differ_look_different(
            head in "[ab]{0,300}", from in "[abé ]{0,200}", to in "[abé ]{0,200}", tail in "[ab]{0,300}",
        ) {
            let change = change("x", Some(format!("{head}{from}{tail}")), Some(format!("{head}{to}{tail}")));
            well_shown(change.from == change.to, if change.from == change.to { &[] } else { std::slice::from_ref(&change) })?;
        }
    }
}
