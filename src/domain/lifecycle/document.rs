//! The lifecycle policy document as types that only hold what Amazon ECR accepts.
//!
//! Reading JSON, with ECR's words for faults in its shape, is [`super::grammar`]'s work; this
//! module holds the rules about rules. Source: Amazon ECR user guide, "Lifecycle policies"; API
//! reference, PutLifecyclePolicy.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::grammar;
use crate::names::Tag;
use crate::wildcard;

/// The fewest characters that PutLifecyclePolicy takes.
pub const MIN_LENGTH: usize = 100;
/// The most characters that a lifecycle policy may have.
pub const MAX_LENGTH: usize = 30_720;
/// The most rules that a policy may have.
const MAX_RULES: usize = 50;
/// The most `*` that one tag pattern may have.
const MAX_WILDCARDS: usize = 4;
/// The least days after which an archived image may expire: what an archived image is charged for anyway.
const MIN_ARCHIVED_DAYS: u32 = 90;

/// The reason for which a lifecycle policy was refused; displayed, it is the whole message of ECR's InvalidParameterException.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPolicy {
    /// The text is too short or too long.
    #[error("Invalid parameter at 'lifecyclePolicyText' failed to satisfy constraint: '{0}'")]
    Length(String),
    /// The document says something that a policy cannot.
    #[error(
        "Invalid parameter at 'LifecyclePolicyText' failed to satisfy constraint: \
         'Lifecycle policy validation failure: {0}'"
    )]
    Document(String),
}

impl InvalidPolicy {
    pub(super) fn document(reason: impl Into<String>) -> Self {
        Self::Document(reason.into())
    }

    /// The reason alone, for where the parameter's name would mislead (a manifest's `spec.rules`).
    pub fn reason(&self) -> &str {
        match self {
            Self::Length(reason) | Self::Document(reason) => reason,
        }
    }
}

/// Checks the length, in characters, of PutLifecyclePolicy's and StartLifecyclePolicyPreview's text.
pub fn check_length(text: &str) -> Result<(), InvalidPolicy> {
    if text.chars().count() < MIN_LENGTH {
        let reason = format!("Member must have length greater than or equal to {MIN_LENGTH}");
        return Err(InvalidPolicy::Length(reason));
    }
    check_template_length(text)
}

/// Checks the length, in characters, of a repository creation template's `lifecyclePolicy`, which has no minimum.
pub fn check_template_length(text: &str) -> Result<(), InvalidPolicy> {
    if text.chars().count() > MAX_LENGTH {
        let reason = format!("Member must have length less than or equal to {MAX_LENGTH}");
        return Err(InvalidPolicy::Length(reason));
    }
    Ok(())
}

/// A valid lifecycle policy in canonical form: `==` is the semantic comparison.
///
/// The order of rules and of tag lists, repeated list entries, an empty description and a spelled-out
/// `storageClass: standard` make no difference.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// By ascending priority.
    rules: Vec<Rule>,
}

/// One rule of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// `rulePriority`, 1 or more and unique in its policy; the lowest is applied first.
    pub priority: u32,
    /// Free text for readers; empty when there is none.
    pub description: String,
    /// The images that match the rule, by their tags.
    pub tags: TagSelection,
    /// The matching images that are acted on.
    pub count: Count,
    /// The action on these images.
    pub action: Action,
}

/// `tagStatus` with its list: what an image's tags must be for a rule to match it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TagSelection {
    /// Every image.
    Any,
    /// Images without a tag.
    Untagged,
    /// Each prefix starts at least one of the image's tags.
    Prefixes(BTreeSet<String>),
    /// Each pattern, with `*` for any run of characters, matches at least one whole tag of the image.
    Patterns(BTreeSet<String>),
}

impl TagSelection {
    /// Returns whether it matches an image with these tags. Case counts; one tag may satisfy
    /// several entries of a list.
    pub fn matches(&self, tags: &[Tag]) -> bool {
        match self {
            Self::Any => true,
            Self::Untagged => tags.is_empty(),
            Self::Prefixes(list) => list
                .iter()
                .all(|prefix| tags.iter().any(|tag| tag.as_str().starts_with(prefix.as_str()))),
            Self::Patterns(list) => list
                .iter()
                .all(|pattern| tags.iter().any(|tag| wildcard::matches(pattern, tag.as_str()))),
        }
    }
}

/// `countType` with its `countNumber`: which of a rule's matching images are acted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// `imageCountMoreThan`: all but the N youngest.
    MoreThan(u32),
    /// `sinceImagePushed`: pushed, or restored from the archive, more than N days ago.
    SincePushed(u32),
    /// `sinceImagePulled`: last pulled (never: pushed; restored since: restored) more than N days ago.
    SincePulled(u32),
    /// `sinceImageTransitioned`: archived more than N days ago.
    SinceTransitioned(u32),
}

impl Count {
    /// The storage class that a rule of this kind looks at: only `sinceImageTransitioned` is about archived images.
    pub fn storage_class(self) -> StorageClass {
        match self {
            Self::MoreThan(_) | Self::SincePushed(_) | Self::SincePulled(_) => {
                StorageClass::Standard
            }
            Self::SinceTransitioned(_) => StorageClass::Archive,
        }
    }

    /// `countNumber`: images or days, as the kind says.
    pub fn number(self) -> u32 {
        match self {
            Self::MoreThan(n)
            | Self::SincePushed(n)
            | Self::SincePulled(n)
            | Self::SinceTransitioned(n) => n,
        }
    }
}

/// The storage class of an image.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "camelCase")]
pub enum StorageClass {
    /// Ready to be pulled.
    #[default]
    Standard,
    /// Archived: to be restored before it is pulled.
    Archive,
}

/// The action of a rule on an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Delete it, with all its tags.
    Expire,
    /// Archive it; ECR knows no other target.
    Transition,
}

impl Policy {
    /// Reads a document from JSON text. The text's length is [`check_length`]'s matter.
    pub fn parse(text: &str) -> Result<Self, InvalidPolicy> {
        let document: Value = serde_json::from_str(text).map_err(|_| grammar::not_a_policy())?;
        Self::from_value(&document)
    }

    /// Reads a document (`{"rules": […]}`) from JSON.
    pub fn from_value(document: &Value) -> Result<Self, InvalidPolicy> {
        Self::new(grammar::read_rules(document)?)
    }

    /// A policy of these rules, in any order.
    pub fn new(mut rules: Vec<Rule>) -> Result<Self, InvalidPolicy> {
        grammar::at_most(MAX_RULES, rules.len())?;
        for rule in &rules {
            rule.check()?;
        }
        rules.sort_by_key(|rule| rule.priority);
        check_together(&rules)?;
        Ok(Self { rules })
    }

    /// The rules by ascending priority: the order in which they claim images.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The canonical document: what [`Policy::from_value`] reads back as the same policy.
    pub fn to_document(&self) -> Value {
        json!({ "rules": self.rules.iter().map(Rule::to_document).collect::<Vec<_>>() })
    }
}

impl Rule {
    /// The storage class whose images the rule looks at.
    pub fn storage_class(&self) -> StorageClass {
        self.count.storage_class()
    }

    /// Returns what must hold within one rule.
    fn check(&self) -> Result<(), InvalidPolicy> {
        grammar::at_least(1, self.priority.into())?;
        let minimum = match self.count {
            Count::SinceTransitioned(_) => MIN_ARCHIVED_DAYS,
            Count::MoreThan(_) | Count::SincePushed(_) | Count::SincePulled(_) => 1,
        };
        grammar::at_least(minimum.into(), self.count.number().into())?;
        match (self.count, self.action) {
            (Count::SincePulled(_), Action::Expire) => {
                return Err(InvalidPolicy::document(
                    "countType sinceImagePulled can only be used with the transition action.",
                ));
            }
            (Count::SinceTransitioned(_), Action::Transition) => {
                return Err(InvalidPolicy::document(
                    "countType sinceImageTransitioned can only be used with the expire action.",
                ));
            }
            _ => {}
        }
        match &self.tags {
            TagSelection::Any | TagSelection::Untagged => Ok(()),
            TagSelection::Prefixes(prefixes) => check_list(prefixes),
            TagSelection::Patterns(patterns) => {
                check_list(patterns)?;
                match patterns.iter().find(|pattern| pattern.matches('*').count() > MAX_WILDCARDS) {
                    None => Ok(()),
                    Some(pattern) => Err(InvalidPolicy::document(format!(
                        "The tag pattern \"{pattern}\" has more than {MAX_WILDCARDS} wildcards (*)."
                    ))),
                }
            }
        }
    }

    /// The canonical document of the rule alone.
    pub fn to_document(&self) -> Value {
        let mut selection = match &self.tags {
            TagSelection::Any => json!({ "tagStatus": "any" }),
            TagSelection::Untagged => json!({ "tagStatus": "untagged" }),
            TagSelection::Prefixes(list) => json!({ "tagStatus": "tagged", "tagPrefixList": list }),
            TagSelection::Patterns(list) => {
                json!({ "tagStatus": "tagged", "tagPatternList": list })
            }
        };
        let (count_type, in_days) = match self.count {
            Count::MoreThan(_) => ("imageCountMoreThan", false),
            Count::SincePushed(_) => ("sinceImagePushed", true),
            Count::SincePulled(_) => ("sinceImagePulled", true),
            Count::SinceTransitioned(_) => ("sinceImageTransitioned", true),
        };
        selection["countType"] = count_type.into();
        selection["countNumber"] = self.count.number().into();
        if in_days {
            selection["countUnit"] = "days".into();
        }
        if self.storage_class() == StorageClass::Archive {
            selection["storageClass"] = "archive".into();
        }
        let action = match self.action {
            Action::Expire => json!({ "type": "expire" }),
            Action::Transition => json!({ "type": "transition", "targetStorageClass": "archive" }),
        };
        let mut rule =
            json!({ "rulePriority": self.priority, "selection": selection, "action": action });
        if !self.description.is_empty() {
            rule["description"] = self.description.as_str().into();
        }
        rule
    }
}

/// Refuses empty entries: one would match every tag, which nobody who types it means.
fn check_list(entries: &BTreeSet<String>) -> Result<(), InvalidPolicy> {
    grammar::not_empty(entries.len())?;
    if entries.contains("") {
        return Err(InvalidPolicy::document(
            "string \"\" is too short (length: 0, required minimum: 1)",
        ));
    }
    Ok(())
}

/// Returns what must hold between rules; `rules` is sorted by priority.
fn check_together(rules: &[Rule]) -> Result<(), InvalidPolicy> {
    if let Some(pair) = rules.windows(2).find(|pair| pair[0].priority == pair[1].priority) {
        let priority = pair[0].priority;
        return Err(InvalidPolicy::document(format!(
            "rulePriority must be unique in a policy, {priority} is used more than once."
        )));
    }
    for class in [StorageClass::Standard, StorageClass::Archive] {
        let of_class = || rules.iter().filter(move |rule| rule.storage_class() == class);
        if of_class().filter(|rule| rule.tags == TagSelection::Untagged).count() > 1 {
            return Err(InvalidPolicy::document(
                "Only one rule can select Untagged images per storage class.",
            ));
        }
        // A rule that follows an `any` rule could never match an image that it hasn't claimed.
        if of_class().rev().skip(1).any(|rule| rule.tags == TagSelection::Any) {
            return Err(InvalidPolicy::document(
                "Rule for tagStatus=ANY must have the lowest priority per storage class",
            ));
        }
        let mut lists = BTreeMap::new();
        for rule in of_class() {
            let list = match &rule.tags {
                TagSelection::Any | TagSelection::Untagged => continue,
                TagSelection::Prefixes(list) => ("tagPrefixList", list),
                TagSelection::Patterns(list) => ("tagPatternList", list),
            };
            if let Some(first) = lists.insert(list, rule.priority) {
                return Err(InvalidPolicy::document(format!(
                    "Rules {first} and {} of one storage class have the same {}.",
                    rule.priority, list.0
                )));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tag_selections() -> impl Strategy<Value = TagSelection> {
        let list = |entry: &'static str| proptest::collection::btree_set(entry, 1..3);
        prop_oneof![
            Just(TagSelection::Any),
            Just(TagSelection::Untagged),
            list("[ab]{1,2}").prop_map(TagSelection::Prefixes),
            list("[ab*]{1,4}").prop_map(TagSelection::Patterns),
        ]
    }

    fn counts() -> impl Strategy<Value = (Count, Action)> {
        let action = prop_oneof![Just(Action::Expire), Just(Action::Transition)];
        (0..4, 1..6u32, action).prop_map(|(kind, n, action)| match kind {
            0 => (Count::MoreThan(n), action),
            1 => (Count::SincePushed(n), action),
            2 => (Count::SincePulled(n), Action::Transition),
            _ => (Count::SinceTransitioned(n + 89), Action::Expire),
        })
    }

    prop_compose! {
        fn any_rule()(
            priority in 1..20u32,
            description in "[a-z ]{0,3}",
            tags in tag_selections(),
            (count, action) in counts(),
        ) -> Rule {
            Rule { priority, description, tags, count, action }
        }
    }

    /// Valid policies: each random rule joins when the rules so far allow it.
    pub fn policies() -> impl Strategy<Value = Policy> {
        proptest::collection::vec(any_rule(), 0..8).prop_map(|rules| {
            rules.into_iter().fold(Policy::default(), |policy, rule| {
                let joined = policy.rules.iter().cloned().chain([rule]).collect();
                Policy::new(joined).unwrap_or(policy)
            })
        })
    }

    fn rule(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    fn reason(rules: &[Value]) -> String {
        let refused = Policy::from_value(&json!({ "rules": rules })).unwrap_err();
        refused.reason().to_owned()
    }

    /// `priority: selection, action` for short tables.
    fn short(priority: u32, tags: Value, count: Value, action: &str) -> Value {
        let mut rule =
            json!({ "rulePriority": priority, "selection": tags, "action": { "type": action } });
        if action == "transition" {
            rule["action"]["targetStorageClass"] = "archive".into();
        }
        for (key, value) in count.as_object().unwrap() {
            rule["selection"][key] = value.clone();
        }
        rule
    }

    fn any() -> Value {
        json!({ "tagStatus": "any" })
    }
    fn untagged() -> Value {
        json!({ "tagStatus": "untagged" })
    }
    fn prefixes(list: &[&str]) -> Value {
        json!({ "tagStatus": "tagged", "tagPrefixList": list })
    }
    fn patterns(list: &[&str]) -> Value {
        json!({ "tagStatus": "tagged", "tagPatternList": list })
    }
    fn more_than(n: u32) -> Value {
        json!({ "countType": "imageCountMoreThan", "countNumber": n })
    }
    fn pushed(n: u32) -> Value {
        json!({ "countType": "sinceImagePushed", "countUnit": "days", "countNumber": n })
    }
    fn pulled(n: u32) -> Value {
        json!({ "countType": "sinceImagePulled", "countUnit": "days", "countNumber": n })
    }
    fn archived(n: u32) -> Value {
        json!({ "countType": "sinceImageTransitioned", "countUnit": "days", "countNumber": n, "storageClass": "archive" })
    }

    #[test]
    fn the_text_has_100_to_30720_characters_and_a_templates_any_up_to_that() {
        let refused = check_length(r#"{"rules":[]}"#).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "Invalid parameter at 'lifecyclePolicyText' failed to satisfy constraint: \
             'Member must have length greater than or equal to 100'"
        );
        assert_eq!(check_length(&"é".repeat(100)), Ok(()), "characters count, not bytes");
        assert_eq!(check_length(&"é".repeat(30_720)), Ok(()));
        let refused = check_length(&"x".repeat(30_721)).unwrap_err();
        assert_eq!(refused.reason(), "Member must have length less than or equal to 30720");
        assert_eq!(check_template_length(""), Ok(()));
        assert!(check_template_length(&"x".repeat(30_721)).is_err());
    }

    #[test]
    fn every_fault_gets_ecrs_text() {
        let refused = Policy::parse("[]").unwrap_err();
        assert_eq!(
            refused.to_string(),
            "Invalid parameter at 'LifecyclePolicyText' failed to satisfy constraint: \
             'Lifecycle policy validation failure: Could not map policyString into LifecyclePolicy.'"
        );
        let five = patterns(&["a*b*c*d*e*"]);
        let table: &[(&str, Vec<Value>)] = &[
            (
                "numeric instance is lower than the required minimum (minimum: 1, found: 0)",
                vec![short(0, any(), more_than(1), "expire")],
            ),
            (
                "numeric instance is lower than the required minimum (minimum: 1, found: 0)",
                vec![short(1, any(), more_than(0), "expire")],
            ),
            (
                "numeric instance is lower than the required minimum (minimum: 90, found: 89)",
                vec![short(1, any(), archived(89), "expire")],
            ),
            (
                "array is too short: must have at least 1 elements but instance has 0 elements",
                vec![short(1, prefixes(&[]), more_than(1), "expire")],
            ),
            (
                "string \"\" is too short (length: 0, required minimum: 1)",
                vec![short(1, prefixes(&["a", ""]), more_than(1), "expire")],
            ),
            (
                "rulePriority must be unique in a policy, 7 is used more than once.",
                vec![
                    short(7, prefixes(&["a"]), more_than(1), "expire"),
                    short(7, any(), more_than(1), "expire"),
                ],
            ),
            (
                "Only one rule can select Untagged images per storage class.",
                vec![
                    short(1, untagged(), pushed(7), "expire"),
                    short(2, untagged(), more_than(5), "expire"),
                ],
            ),
            (
                "Rule for tagStatus=ANY must have the lowest priority per storage class",
                vec![
                    short(1, any(), more_than(3), "expire"),
                    short(2, untagged(), pushed(7), "expire"),
                ],
            ),
            (
                "Rule for tagStatus=ANY must have the lowest priority per storage class",
                vec![short(1, any(), more_than(3), "expire"), short(2, any(), pushed(7), "expire")],
            ),
            (
                "Rules 1 and 3 of one storage class have the same tagPrefixList.",
                vec![
                    short(3, prefixes(&["b", "a"]), pushed(7), "expire"),
                    short(1, prefixes(&["a", "b", "a"]), more_than(3), "expire"),
                ],
            ),
            (
                "countType sinceImagePulled can only be used with the transition action.",
                vec![short(1, any(), pulled(90), "expire")],
            ),
            (
                "countType sinceImageTransitioned can only be used with the expire action.",
                vec![short(1, any(), archived(90), "transition")],
            ),
            (
                "The tag pattern \"a*b*c*d*e*\" has more than 4 wildcards (*).",
                vec![short(1, five, pushed(7), "expire")],
            ),
        ];
        for (text, rules) in table {
            assert_eq!(&reason(rules), text);
        }
        let many: Vec<_> = (1..=51)
            .map(|p| short(p, prefixes(&[&format!("p{p}-")]), more_than(1), "expire"))
            .collect();
        assert_eq!(
            reason(&many),
            "array is too long: must have at most 50 elements but instance has 51 elements"
        );
        assert!(Policy::from_value(&json!({ "rules": &many[..50] })).is_ok());
    }

    #[test]
    fn rules_of_different_storage_classes_and_overlapping_lists_live_together() {
        let rules = [
            short(1, untagged(), pulled(30), "transition"),
            short(2, untagged(), archived(365), "expire"),
            short(3, prefixes(&["a"]), pushed(9), "expire"),
            short(4, patterns(&["a"]), pushed(9), "expire"),
            short(5, prefixes(&["a", "b"]), pushed(9), "expire"),
            short(6, any(), more_than(9), "transition"),
            short(7, any(), archived(365), "expire"),
        ];
        assert_eq!(Policy::from_value(&json!({ "rules": rules })).unwrap().rules().len(), 7);
    }

    #[test]
    fn documents_that_mean_the_same_are_equal() {
        let one = r#"{"rules":[
            {"rulePriority":2,"selection":{"tagStatus":"any","storageClass":"standard","countType":"imageCountMoreThan","countNumber":9},"action":{"type":"expire"}},
            {"rulePriority":1,"description":"","selection":{"tagStatus":"tagged","tagPrefixList":["b","a","b"],"countType":"imageCountMoreThan","countNumber":3},"action":{"type":"expire"}}]}"#;
        let other = r#"{"rules":[
            {"action":{"type":"expire"},"rulePriority":1,"selection":{"tagPrefixList":["a","b"],"countNumber":3,"countType":"imageCountMoreThan","tagStatus":"tagged"}},
            {"action":{"type":"expire"},"rulePriority":2,"selection":{"countNumber":9,"countType":"imageCountMoreThan","tagStatus":"any"}}]}"#;
        assert_eq!(Policy::parse(one).unwrap(), Policy::parse(other).unwrap());
        let priority = other.replace(r#""rulePriority":2"#, r#""rulePriority":3"#);
        assert_ne!(Policy::parse(one).unwrap(), Policy::parse(&priority).unwrap());
        let list = other.replace(r#"["a","b"]"#, r#"["a"]"#);
        assert_ne!(Policy::parse(one).unwrap(), Policy::parse(&list).unwrap());
    }

    #[test]
    fn the_document_leaves_defaults_out_and_has_ecrs_words() {
        let text = r#"{"rulePriority":1,"description":"old ones","selection":{"tagStatus":"untagged","storageClass":"standard","countType":"sinceImagePulled","countUnit":"days","countNumber":60},"action":{"type":"transition","targetStorageClass":"archive"}}"#;
        let policy = Policy::from_value(&json!({ "rules": [rule(text)] })).unwrap();
        let without = rule(&text.replace(r#""storageClass":"standard","#, ""));
        assert_eq!(policy.to_document(), json!({ "rules": [without] }));
    }

    proptest! {
        #[test]
        fn a_policy_reads_back_from_its_document(policy in policies()) {
            let text = policy.to_document().to_string();
            prop_assert_eq!(Policy::parse(&text), Ok(policy));
        }
    }
}
