//! The faults of text that cannot be read, in the words of those who write manifests.
//!
//! The parser's own messages name its options and types. None of them is passed on.

use serde_saphyr::budget::BudgetBreach;
use serde_saphyr::{Error, Location};

use super::document::{MAX_DEPTH, MAX_REPEATED};

/// The line and the column at which text is no YAML, where that is known, and the fault there.
pub(super) fn explain(error: &Error) -> (Option<(u64, u64)>, String) {
    let error = error.without_snippet();
    let known = |location: &Location| location.line() > 0;
    let at = error.location().filter(known).map(|location| (location.line(), location.column()));
    (at, reason(error))
}

fn reason(error: &Error) -> String {
    let fixed = match error {
        // Ours: the document's own visitor writes no other.
        Error::Message { msg, .. } => return msg.clone(),
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            return format!("{} is given twice: take one out", cut(key));
        }
        Error::NonFiniteFloat { value, .. } => {
            let value = cut(value);
            return format!(
                "{value} is no number that JSON has: put it in quotes, or write another number"
            );
        }
        Error::AliasError { error, .. } => return reason(error),
        Error::ExternalMessage { msg, .. } => syntax(msg),
        Error::DuplicateMappingKey { key: None, .. } => "a key is given twice: take one out",
        Error::Budget { breach: BudgetBreach::Depth { .. }, .. } => {
            return format!("it nests more than {MAX_DEPTH} levels deep");
        }
        Error::Budget { breach, .. } if is_about_aliases(breach) => ALIASES,
        Error::Budget { .. } => "it holds too much for a manifest: divide it into several files",
        Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. }
        | Error::AliasReplayCounterOverflow { .. } => {
            return format!(
                "what its aliases (*) stand for makes more than {MAX_REPEATED} values: write them out"
            );
        }
        Error::UnknownAnchor { .. } => {
            "an alias (*) refers to nothing that was named (&) before: put text that begins with * in quotes"
        }
        Error::RecursiveReferencesRequireWeakTypes { .. } => {
            "an alias (*) refers to something that contains it"
        }
        Error::MergeValueNotMapOrSeqOfMaps { .. } => "<< takes a mapping, or a list of mappings",
        Error::NullIntoString { .. } | Error::Unexpected { .. } => {
            "a key must be text: put it in quotes, or give it one"
        }
        Error::Eof { .. } => "it ends too early",
        Error::InvalidBinaryBase64 { .. } | Error::BinaryNotUtf8 { .. } => {
            "!!binary precedes something that is not text in base64"
        }
        Error::TaggedScalarCannotDeserializeIntoString { .. }
        | Error::InvalidScalar { .. }
        | Error::UnsupportedTag { .. } => {
            "a tag (!) does not go with the value behind it: leave the tag out"
        }
        _ => UNREADABLE,
    };
    fixed.to_owned()
}

const UNREADABLE: &str = "the text is no YAML from here on";
const ALIASES: &str = "it has too many anchors (&) and aliases (*): write out what they stand for";

fn is_about_aliases(breach: &BudgetBreach) -> bool {
    matches!(
        breach,
        BudgetBreach::Aliases { .. }
            | BudgetBreach::Anchors { .. }
            | BudgetBreach::MergeKeys { .. }
            | BudgetBreach::AliasAnchorRatio { .. }
            | BudgetBreach::RecordedAnchorEvents { .. }
            | BudgetBreach::RecordedAnchorBytes { .. }
    )
}

/// The meanings of the YAML scanner's messages, by a part of the message: the first that fits.
const SYNTAX: [(&str, &str); 18] = [
    ("tab", "a tab is where YAML wants spaces: indent by spaces"),
    ("unclosed quote", UNCLOSED),
    ("multiline quoted", UNCLOSED),
    ("after single-quoted", QUOTED),
    ("after double-quoted", QUOTED),
    (
        "quoted scalar, found",
        "a backslash in double quotes begins nothing that is known: write two, or use single quotes",
    ),
    (
        "hexadecimal",
        "a backslash in double quotes begins nothing that is known: write two, or use single quotes",
    ),
    ("bracket", BRACKETS),
    ("flow", BRACKETS),
    ("',' or", BRACKETS),
    ("unexpected character", "a character here cannot begin a value: put the text in quotes"),
    ("mapping values are not allowed", COLON),
    ("simple key", COLON),
    ("':'", COLON),
    ("recursion limit", "it nests too deep"),
    (
        "anchor",
        "an anchor (&) or alias (*) lacks a name, or is not known: put text that begins with & or * in quotes",
    ),
    ("indent", INDENTATION),
    ("expected key", INDENTATION),
];
const UNCLOSED: &str =
    "a quotation mark has no partner, or the text behind it goes on in a line that is not indented";
const QUOTED: &str = "something follows the closing quotation mark: put all of the text in quotes";
const BRACKETS: &str =
    "a bracket ([ or {) has no partner, or a comma is missing between two entries";
const COLON: &str = "a colon is where none can be, or one is missing: put text with a colon in quotes, and check the indentation";
const INDENTATION: &str =
    "the line does not fit those above it: check its indentation, and the colon behind its key";

fn syntax(message: &str) -> &'static str {
    SYNTAX
        .iter()
        .find(|(part, _)| message.contains(part))
        .map_or(UNREADABLE, |(_, meaning)| meaning)
}

/// As much of an author's text as a message can hold.
fn cut(text: &str) -> &str {
    const LONGEST: usize = 100;
    text.char_indices().nth(LONGEST).map_or(text, |(end, _)| &text[..end])
}
