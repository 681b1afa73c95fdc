//! A registry's scanning configuration: which repositories' images are scanned, and when. Pure.
//!
//! Source: Amazon ECR user guide, "Scan images for software vulnerabilities", "Using filters".

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::names::RepositoryName;
use crate::wildcard;

/// The pattern of a filter; 1 to 255 characters.
pub const FILTER_PATTERN: &str = r"^[a-z0-9*](?:[._\-/a-z0-9*]?[a-z0-9*]+)*$";

/// The type of a scan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ScanType {
    /// Packages of the operating system.
    #[default]
    Basic,
    /// Packages of languages, too.
    Enhanced,
}

impl ScanType {
    /// ECR's values, the default first.
    pub const ALL: [Self; 2] = [Self::Basic, Self::Enhanced];

    /// ECR's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Basic => "BASIC",
            Self::Enhanced => "ENHANCED",
        }
    }
}

/// ECR's `scanFrequency`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ScanFrequency {
    /// When an image is pushed.
    ScanOnPush,
    /// Then, and again when something new is known.
    ContinuousScan,
    /// On request.
    Manual,
}

impl ScanFrequency {
    /// ECR's values.
    pub const ALL: [Self; 3] = [Self::ScanOnPush, Self::ContinuousScan, Self::Manual];

    /// ECR's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ScanOnPush => "SCAN_ON_PUSH",
            Self::ContinuousScan => "CONTINUOUS_SCAN",
            Self::Manual => "MANUAL",
        }
    }
}

/// A rule about which repositories are scanned how often.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScanningRule {
    /// The frequency of scans.
    pub scan_frequency: ScanFrequency,
    /// Patterns of repository names; one that matches is enough.
    pub filters: Vec<String>,
}

/// ECR's `RegistryScanningConfiguration`. The default is that of a registry without a
/// configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScanningConfiguration {
    /// The scanner.
    pub scan_type: ScanType,
    /// In the order in which they were put.
    pub rules: Vec<ScanningRule>,
}

/// The effect of a scanning configuration on one repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryScanning<'a> {
    /// When its images are scanned.
    pub frequency: ScanFrequency,
    /// The filters by which a rule decided that; none where the repository's own setting did, or nothing.
    pub filters: Vec<&'a str>,
}

impl ScanningConfiguration {
    /// Returns why these rules don't go with the scan type or with each other, if they don't.
    pub fn fault(&self) -> Option<String> {
        let mut seen = BTreeSet::new();
        self.rules.iter().map(|rule| rule.scan_frequency).find_map(|frequency| {
            let (frequency_text, scan_type) = (frequency.as_str(), self.scan_type.as_str());
            match (self.scan_type, frequency) {
                (_, ScanFrequency::Manual) => Some(
                    "MANUAL cannot be a rule's scanFrequency: leave the rule out, as repositories that no rule is for are \
                     scanned when somebody asks"
                        .to_owned(),
                ),
                (ScanType::Basic, ScanFrequency::ContinuousScan) => Some(format!(
                    "the scanFrequency {frequency_text} does not go with the scanType {scan_type}: use SCAN_ON_PUSH, or the \
                     scanType ENHANCED"
                )),
                _ if !seen.insert(frequency) => {
                    Some(format!("two rules have the scanFrequency {frequency_text}: join their filters in one"))
                }
                _ => None,
            }
        })
    }

    /// When a repository's images are scanned; `scan_on_push` is its own setting, which counts with BASIC only.
    pub fn of_repository(
        &self,
        name: &RepositoryName,
        scan_on_push: bool,
    ) -> RepositoryScanning<'_> {
        for frequency in [ScanFrequency::ContinuousScan, ScanFrequency::ScanOnPush] {
            let rules = self.rules.iter().filter(|rule| rule.scan_frequency == frequency);
            let filters = rules.flat_map(|rule| &rule.filters).map(String::as_str);
            let filters: Vec<&str> =
                filters.filter(|filter| matches(filter, name.as_str())).collect();
            if !filters.is_empty() {
                return RepositoryScanning { frequency, filters };
            }
        }
        let own = scan_on_push && self.scan_type == ScanType::Basic;
        let frequency = if own { ScanFrequency::ScanOnPush } else { ScanFrequency::Manual };
        RepositoryScanning { frequency, filters: Vec::new() }
    }

    /// Returns whether the two mean the same: the order of rules and filters doesn't count.
    pub fn is_equivalent(&self, other: &Self) -> bool {
        self.scan_type == other.scan_type && self.by_frequency() == other.by_frequency()
    }

    fn by_frequency(&self) -> BTreeMap<ScanFrequency, BTreeSet<&str>> {
        let mut rules: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for ScanningRule { scan_frequency, filters } in &self.rules {
            rules.entry(*scan_frequency).or_default().extend(filters.iter().map(String::as_str));
        }
        // A rule without filters is for no repository.
        rules.retain(|_, filters| !filters.is_empty());
        rules
    }
}

impl std::fmt::Display for ScanningConfiguration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.scan_type.as_str())?;
        for ScanningRule { scan_frequency, filters } in &self.rules {
            write!(f, "; {} {}", scan_frequency.as_str(), filters.join(", "))?;
        }
        Ok(())
    }
}

/// Returns whether a text is a filter.
pub fn is_filter(text: &str) -> bool {
    static SYNTAX: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(FILTER_PATTERN).ok());
    SYNTAX.as_ref().is_some_and(|syntax| syntax.is_match(text))
}

/// Unlike other patterns, one without a star need only occur in the name.
fn matches(filter: &str, name: &str) -> bool {
    if filter.contains('*') { wildcard::matches(filter, name) } else { name.contains(filter) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(scan_frequency: ScanFrequency, filters: &[&str]) -> ScanningRule {
        ScanningRule {
            scan_frequency,
            filters: filters.iter().map(|filter| (*filter).to_owned()).collect(),
        }
    }

    fn configuration(scan_type: ScanType, rules: Vec<ScanningRule>) -> ScanningConfiguration {
        ScanningConfiguration { scan_type, rules }
    }

    #[test]
    fn a_filter_without_a_star_occurs_anywhere_and_one_with_a_star_matches_whole() {
        let names = ["prod", "repo-prod", "prod-repo", "repo-prod-repo", "prodrepo"];
        for (filter, expected) in [
            ("prod", [true, true, true, true, true]),
            ("*prod", [true, true, false, false, false]),
            ("prod*", [true, false, true, false, true]),
            ("*prod*", [true, true, true, true, true]),
            ("prod*repo", [false, false, true, false, true]),
        ] {
            assert_eq!(names.map(|name| matches(filter, name)), expected, "{filter}");
        }
        assert!(matches("*", "a/b") && matches("a*c", "a/b/c"), "a star stands for slashes, too");
    }

    #[test]
    fn filters_are_made_of_names_and_stars() {
        for good in ["a", "*", "prod-*", "a/b", "a.b_c", "*-*"] {
            assert!(is_filter(good), "{good}");
        }
        for bad in ["", "-a", "a-", "a--b", "A", "a b", "/a"] {
            assert!(!is_filter(bad), "{bad}");
        }
    }

    #[test]
    fn a_repository_is_scanned_by_the_rule_that_matches_it_or_by_its_own_setting() {
        use ScanFrequency::{ContinuousScan, Manual, ScanOnPush};
        let enhanced = configuration(
            ScanType::Enhanced,
            vec![
                rule(ScanOnPush, &["*", "team"]),
                rule(ContinuousScan, &["prod*", "*-live", "prod"]),
            ],
        );
        let basic = configuration(ScanType::Basic, vec![rule(ScanOnPush, &["prod*"])]);
        let narrow = configuration(ScanType::Enhanced, vec![rule(ContinuousScan, &["prod*"])]);
        for (configuration, name, scan_on_push, frequency, filters) in [
            (&enhanced, "prod-live", false, ContinuousScan, &["prod*", "*-live", "prod"][..]),
            (&enhanced, "team/prod", false, ContinuousScan, &["prod"]),
            (&enhanced, "team/api", true, ScanOnPush, &["*", "team"]),
            (&narrow, "team/api", true, Manual, &[]),
            (&basic, "prod/api", false, ScanOnPush, &["prod*"]),
            (&basic, "team/api", false, Manual, &[]),
            (&basic, "team/api", true, ScanOnPush, &[]),
        ] {
            let found = configuration.of_repository(&name.parse().unwrap(), scan_on_push);
            assert_eq!(
                found,
                RepositoryScanning { frequency, filters: filters.to_vec() },
                "{configuration}: {name}"
            );
        }
    }

    #[test]
    fn rules_must_go_with_the_scan_type_and_with_each_other() {
        use ScanFrequency::{ContinuousScan, Manual, ScanOnPush};
        let fault = |scan_type, frequencies: &[ScanFrequency]| {
            configuration(scan_type, frequencies.iter().map(|it| rule(*it, &["*"])).collect())
                .fault()
        };
        assert_eq!(fault(ScanType::Basic, &[]), None);
        assert_eq!(fault(ScanType::Basic, &[ScanOnPush]), None);
        assert_eq!(fault(ScanType::Enhanced, &[ScanOnPush, ContinuousScan]), None);
        for (scan_type, frequencies, expected) in [
            (ScanType::Basic, &[ContinuousScan][..], "does not go with the scanType BASIC"),
            (
                ScanType::Basic,
                &[ScanOnPush, ScanOnPush],
                "two rules have the scanFrequency SCAN_ON_PUSH",
            ),
            (
                ScanType::Enhanced,
                &[ContinuousScan, ContinuousScan],
                "two rules have the scanFrequency CONTINUOUS_SCAN",
            ),
            (ScanType::Enhanced, &[Manual], "MANUAL cannot be"),
        ] {
            let fault = fault(scan_type, frequencies).unwrap();
            assert!(fault.contains(expected), "{fault}");
        }
    }

    #[test]
    fn neither_the_order_nor_what_is_for_nothing_makes_a_difference() {
        use ScanFrequency::{ContinuousScan, ScanOnPush};
        let one = configuration(
            ScanType::Enhanced,
            vec![rule(ScanOnPush, &["a", "b"]), rule(ContinuousScan, &["c"])],
        );
        let same = configuration(
            ScanType::Enhanced,
            vec![rule(ContinuousScan, &["c"]), rule(ScanOnPush, &["b", "a", "a"])],
        );
        assert!(one.is_equivalent(&same));
        assert!(
            ScanningConfiguration::default()
                .is_equivalent(&configuration(ScanType::Basic, vec![rule(ScanOnPush, &[])]))
        );
        for other in [
            configuration(ScanType::Basic, one.rules.clone()),
            configuration(ScanType::Enhanced, vec![one.rules[0].clone()]),
            configuration(
                ScanType::Enhanced,
                vec![rule(ScanOnPush, &["a"]), rule(ContinuousScan, &["c"])],
            ),
            configuration(
                ScanType::Enhanced,
                vec![rule(ScanOnPush, &["c"]), rule(ContinuousScan, &["a", "b"])],
            ),
        ] {
            assert!(!one.is_equivalent(&other), "{other}");
        }
    }
}
