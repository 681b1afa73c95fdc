//! Which tags may move: ECR's `imageTagMutability` with its exclusion filters. Pure.

use serde::{Deserialize, Serialize};

use crate::names::Tag;
use crate::wildcard;

/// ECR's `imageTagMutability`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Mutability {
    /// Tags may move.
    Mutable,
    /// Tags never move.
    Immutable,
    /// Tags never move, except those that match a filter.
    ImmutableWithExclusion,
    /// Tags may move, except those that match a filter.
    MutableWithExclusion,
}

impl Mutability {
    /// ECR's four values, in the order in which its service model lists them.
    pub const ALL: [Self; 4] =
        [Self::Mutable, Self::Immutable, Self::ImmutableWithExclusion, Self::MutableWithExclusion];

    /// ECR's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mutable => "MUTABLE",
            Self::Immutable => "IMMUTABLE",
            Self::ImmutableWithExclusion => "IMMUTABLE_WITH_EXCLUSION",
            Self::MutableWithExclusion => "MUTABLE_WITH_EXCLUSION",
        }
    }

    /// The value of ECR's spelling.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|value| value.as_str() == text)
    }

    /// Whether this value goes with exclusion filters.
    pub fn has_exclusions(self) -> bool {
        matches!(self, Self::ImmutableWithExclusion | Self::MutableWithExclusion)
    }
}

/// `imageTagMutability` with its exclusion filters (each a wildcard over whole tags, up to five).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagMutability {
    /// The rule.
    pub mode: Mutability,
    /// The filters; empty unless the rule has exclusions.
    pub exclusions: Vec<String>,
}

impl TagMutability {
    /// ECR's default.
    pub const MUTABLE: Self = Self { mode: Mutability::Mutable, exclusions: Vec::new() };

    /// Whether this very tag may move.
    pub fn allows_moving(&self, tag: &Tag) -> bool {
        let excluded = || self.exclusions.iter().any(|filter| wildcard::matches(filter, tag.as_str()));
        match self.mode {
            Mutability::Mutable => true,
            Mutability::Immutable => false,
            Mutability::ImmutableWithExclusion => excluded(),
            Mutability::MutableWithExclusion => !excluded(),
        }
    }
}
