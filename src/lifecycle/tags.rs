//! A rule's tag selection, prepared once so that matching an image allocates nothing.

use super::document::TagSelection;
use crate::names::Tag;

/// Decides whether an image's tags match a rule.
pub(super) enum Matcher<'p> {
    Any,
    Untagged,
    /// Each entry must match at least one tag; one tag may satisfy several entries.
    Each(Vec<Glob<'p>>),
}

impl<'p> Matcher<'p> {
    pub(super) fn new(selection: &'p TagSelection) -> Self {
        match selection {
            TagSelection::Any => Self::Any,
            TagSelection::Untagged => Self::Untagged,
            TagSelection::Prefixes(list) => Self::Each(list.iter().map(|prefix| Glob::prefix(prefix)).collect()),
            TagSelection::Patterns(list) => Self::Each(list.iter().map(|pattern| Glob::new(pattern)).collect()),
        }
    }

    pub(super) fn matches(&self, tags: &[Tag]) -> bool {
        match self {
            Self::Any => true,
            Self::Untagged => tags.is_empty(),
            Self::Each(globs) => globs.iter().all(|glob| tags.iter().any(|tag| glob.matches(tag.as_str()))),
        }
    }
}

/// A case-sensitive pattern for a whole text, in which `*` stands for any run of characters.
pub(super) enum Glob<'p> {
    Literal(&'p str),
    Wild { head: &'p str, middle: Vec<&'p str>, tail: &'p str },
}

impl<'p> Glob<'p> {
    fn new(pattern: &'p str) -> Self {
        let mut parts = pattern.split('*');
        let head = parts.next().unwrap_or_default();
        match parts.next_back() {
            None => Self::Literal(head),
            Some(tail) => Self::Wild { head, middle: parts.filter(|part| !part.is_empty()).collect(), tail },
        }
    }

    /// Prefixes are plain text: a `*` in one stands for itself.
    fn prefix(prefix: &'p str) -> Self {
        Self::Wild { head: prefix, middle: Vec::new(), tail: "" }
    }

    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Literal(literal) => text == *literal,
            Self::Wild { head, middle, tail } => {
                let Some(mut rest) = text.strip_prefix(head).and_then(|rest| rest.strip_suffix(tail)) else {
                    return false;
                };
                // The leftmost place of each part leaves the most to the parts after it.
                middle.iter().all(|part| match rest.split_once(part) {
                    Some((_, after)) => {
                        rest = after;
                        true
                    }
                    None => false,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use regex::Regex;

    use super::*;

    #[test]
    fn patterns_match_whole_texts_and_prefixes_their_start() {
        for (pattern, text, expected) in [
            ("v*", "v1", true),
            ("v*", "v", true),
            ("v*", "V1", false),
            ("*rc*", "v1-rc2", true),
            ("latest", "latest", true),
            ("latest", "latest-1", false),
            ("a*a", "a", false),
            ("a*b*b", "ab", false),
            ("a.c", "abc", false),
            ("**", "", true),
        ] {
            assert_eq!(Glob::new(pattern).matches(text), expected, "{pattern} {text}");
        }
        assert!(Glob::prefix("v1").matches("v1.2"));
        assert!(!Glob::prefix("v*").matches("v1.2"));
    }

    proptest! {
        #[test]
        fn a_pattern_matches_as_its_regular_expression_does(pattern in "[ab.*]{0,6}", text in "[ab.]{0,8}") {
            let regex = format!("^{}$", regex::escape(&pattern).replace(r"\*", ".*"));
            prop_assert_eq!(Glob::new(&pattern).matches(&text), Regex::new(&regex).unwrap().is_match(&text));
        }
    }
}
