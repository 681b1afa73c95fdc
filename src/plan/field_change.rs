//! One changed field, and how it is shown to people.

use std::fmt;

use serde::Serialize;

/// A field that a step changes, both sides as ECR writes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldChange {
    /// ECR's name of the field. For a document it is the changed member, such as `repositoryPolicy.Statement[Sid=ci].Action`
    /// or `lifecyclePolicy.rules[rulePriority=1].selection.countNumber`.
    pub field: String,
    /// The whole current value; `None` if the field is new.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The whole new value; `None` if the field is removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

impl FieldChange {
    /// Returns both sides for people: on one line, and long ones from where they differ. Two sides that differ never have
    /// the same text.
    pub fn sides(&self) -> (Option<String>, Option<String>) {
        let (from, to) = (self.from.as_deref().map(visible), self.to.as_deref().map(visible));
        let common = match (&from, &to) {
            (Some(from), Some(to)) => {
                from.chars().zip(to.chars()).take_while(|(from, to)| from == to).count()
            }
            _ => 0,
        };
        let is_long = |side: &Option<String>| {
            side.as_ref().is_some_and(|side| side.chars().count() > MAX_SHOWN)
        };
        let start = if is_long(&from) || is_long(&to) { common.saturating_sub(CONTEXT) } else { 0 };
        (from.map(|from| cut(&from, start)), to.map(|to| cut(&to, start)))
    }
}

/// The most characters of a side that are shown.
const MAX_SHOWN: usize = 160;
/// The characters shown before the first difference.
const CONTEXT: usize = 16;

/// Quotes a text whose beginning or end would not be visible.
fn visible(text: &str) -> String {
    let hidden = |c: char| c.is_control() || c.is_whitespace() && c != ' ';
    if text.trim() != text || text.is_empty() || text.contains(hidden) {
        format!("{text:?}")
    } else {
        text.to_owned()
    }
}

/// Skips the first `start` characters, and cuts the rest at [`MAX_SHOWN`].
fn cut(text: &str, start: usize) -> String {
    let length = text.chars().count();
    let before = if start > 0 { "…" } else { "" };
    let shown: String = text.chars().skip(start).take(MAX_SHOWN).collect();
    if length - start.min(length) <= MAX_SHOWN {
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

pub(crate) fn change(field: &str, from: Option<String>, to: Option<String>) -> FieldChange {
    FieldChange { field: field.to_owned(), from, to }
}
