//! Which tags may move: ECR's `imageTagMutability` with its exclusion filters. Pure.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::names::Tag;
use crate::wildcard;

/// Mutability of tags: ECR's `imageTagMutability`.
// In the order of the CRD; `ALL` has that of ECR's service model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Mutability {
    /// Tags may be moved.
    #[default]
    Mutable,
    /// Tags cannot be moved.
    Immutable,
    /// Tags may be moved, but for those that the filters name.
    MutableWithExclusion,
    /// Tags cannot be moved, but for those that the filters name.
    ImmutableWithExclusion,
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

    /// Returns whether this value allows exclusion filters.
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

    /// Returns whether this very tag may move.
    pub fn allows_moving(&self, tag: &Tag) -> bool {
        let excluded =
            || self.exclusions.iter().any(|filter| wildcard::matches(filter, tag.as_str()));
        match self.mode {
            Mutability::Mutable => true,
            Mutability::Immutable => false,
            Mutability::ImmutableWithExclusion => excluded(),
            Mutability::MutableWithExclusion => !excluded(),
        }
    }
}
