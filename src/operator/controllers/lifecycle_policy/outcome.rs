//! Builds the results of a policy in its repositories for its status. No I/O.

use std::cmp::Reverse;
use std::fmt;
use std::ops::Add;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::in_use::decision::{Counts, ImageAction};
use crate::in_use::run::RunReport;
use wharfage_apply::Previewed;
use wharfage_crd::lifecycle_policy::{ImageOutcome, OutcomeState, RepositoryOutcome, Totals};
use wharfage_domain::lifecycle::{Action, Cause};
use wharfage_domain::names::RepositoryName;

/// The number of repositories in a status.
const NAMED: usize = 100;
/// The number of images for each repository.
const SAMPLE: usize = 10;
/// The number of tags for each image. An object can hold 1.5 MiB, a tag may have 128
/// characters, and an image a thousand tags.
const TAGS: usize = 5;

/// Makes the result of a repository of which only the state is known.
pub(super) fn only(name: &RepositoryName, state: OutcomeState) -> RepositoryOutcome {
    RepositoryOutcome {
        name: name.to_string(),
        state,
        expiring: None,
        transitioning: None,
        bytes: None,
        protected: None,
        evaluated_at: None,
        sample: Vec::new(),
    }
}

/// Makes the result of a registry's own preview.
pub(super) fn previewed(
    name: &RepositoryName,
    found: &Previewed,
    bytes: u64,
    at: Time,
) -> RepositoryOutcome {
    let image = |it: &wharfage_apply::PreviewedImage| ImageOutcome {
        digest: it.digest.clone(),
        tags: it.tags.iter().take(TAGS).cloned().collect(),
        action: it.action.clone(),
        rule_priority: it.rule_priority,
    };
    RepositoryOutcome {
        expiring: Some(number(found.expiring)),
        transitioning: Some(number(found.transitioning)),
        bytes: Some(number(bytes)),
        evaluated_at: Some(at),
        sample: found.sample.iter().take(SAMPLE).map(image).collect(),
        ..only(name, OutcomeState::Previewed)
    }
}

/// Makes the result of the operator's own run or preview.
pub(super) fn acted(
    name: &RepositoryName,
    state: OutcomeState,
    acts: &[ImageAction],
    protected: usize,
    at: Time,
) -> RepositoryOutcome {
    let counts = Counts::of(acts);
    let image = |act: &ImageAction| ImageOutcome {
        digest: act.image.digest.to_string(),
        tags: act.image.tags.iter().take(TAGS).map(ToString::to_string).collect(),
        action: match act.action {
            Action::Expire => "EXPIRE".to_owned(),
            Action::Transition => "TRANSITION".to_owned(),
        },
        rule_priority: i32::try_from(act.rule_priority).unwrap_or(i32::MAX),
    };
    let selected = acts.iter().filter(|act| act.cause == Cause::Selected);
    RepositoryOutcome {
        expiring: Some(number(counts.expiring)),
        transitioning: Some(number(counts.transitioning)),
        bytes: Some(number(counts.bytes)),
        protected: Some(number(protected)),
        evaluated_at: Some(at),
        sample: selected.take(SAMPLE).map(image).collect(),
        ..only(name, state)
    }
}

fn number(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}

/// Returns the most important repositories, and the totals of all. A result that differs from
/// `before` only in its time keeps the earlier time, so that a reconcile without news writes
/// nothing.
pub(super) fn report(
    mut outcomes: Vec<RepositoryOutcome>,
    before: &[RepositoryOutcome],
) -> (Vec<RepositoryOutcome>, Totals) {
    let sum = |of: fn(&RepositoryOutcome) -> Option<i64>| {
        let numbers = outcomes.iter().filter_map(of);
        numbers.fold(None, |sum: Option<i64>, number| {
            Some(sum.unwrap_or_default().saturating_add(number))
        })
    };
    let totals = Totals {
        repositories: number(outcomes.len()),
        expiring: sum(|it| it.expiring),
        transitioning: sum(|it| it.transitioning),
        bytes: sum(|it| it.bytes),
        protected: sum(|it| it.protected),
    };
    outcomes.sort_by_cached_key(|it| {
        let affected =
            it.expiring.unwrap_or_default().saturating_add(it.transitioning.unwrap_or_default());
        let waits = it.state == OutcomeState::Pending;
        (
            it.state != OutcomeState::Failed,
            Reverse((affected, it.protected)),
            !waits,
            it.name.clone(),
        )
    });
    outcomes.truncate(NAMED);
    for outcome in &mut outcomes {
        if let Some(was) = before.iter().find(|was| was.name == outcome.name) {
            let same =
                RepositoryOutcome { evaluated_at: was.evaluated_at.clone(), ..outcome.clone() };
            if same == *was {
                *outcome = same;
            }
        }
    }
    (outcomes, totals)
}

/// Lists the first few names in one line.
pub(super) fn names<'a>(names: impl ExactSizeIterator<Item = &'a RepositoryName>) -> String {
    const ENOUGH: usize = 5;
    let all = names.len();
    let mut text = names.take(ENOUGH).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if all > ENOUGH {
        text.push_str(&format!(" and {} more", all - ENOUGH));
    }
    text
}

/// The images that the operator deleted or archived, in one repository or in several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct RunTotals {
    counts: Counts,
    protected: usize,
}

impl RunTotals {
    pub(super) fn of(done: &RunReport) -> Self {
        Self { counts: Counts::of(&done.acts), protected: done.protected }
    }
}

impl Add for RunTotals {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let (one, two) = (self.counts, other.counts);
        let counts = Counts {
            expiring: one.expiring.saturating_add(two.expiring),
            transitioning: one.transitioning.saturating_add(two.transitioning),
            bytes: one.bytes.saturating_add(two.bytes),
        };
        Self { counts, protected: self.protected.saturating_add(other.protected) }
    }
}

impl fmt::Display for RunTotals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let images = |count| counted(count, "image", "images");
        let Self { counts: Counts { expiring, transitioning, bytes }, protected } = *self;
        let (expired, archived, kept) =
            (images(expiring), images(transitioning), images(protected));
        write!(f, "{expired} expired ({bytes} bytes), {archived} archived, {kept} in use kept")
    }
}

/// Lists the actions by repository. Repositories beyond `limit` bytes are summed up.
pub(super) fn enforced(ran: &[(RepositoryName, RunTotals)], limit: usize) -> String {
    let lines_of = |named: usize| {
        let (named, others) = ran.split_at(named);
        let mut lines: Vec<String> =
            named.iter().map(|(name, totals)| format!("{name}: {totals}")).collect();
        if !others.is_empty() {
            let totals = others.iter().fold(RunTotals::default(), |sum, (_, totals)| sum + *totals);
            let more = if named.is_empty() { "" } else { "more " };
            let (one, many) = (format!("{more}repository"), format!("{more}repositories"));
            lines.push(format!("{}: {totals}", counted(others.len(), &one, &many)));
        }
        lines.join("; ")
    };
    (0..=ran.len())
        .rev()
        .map(lines_of)
        .find(|text| text.len() <= limit)
        .unwrap_or_else(|| lines_of(0))
}

/// Writes a number with its noun.
pub(super) fn counted(count: usize, one: &str, many: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {many}") }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use wharfage_apply::PreviewedImage;
    use wharfage_domain::lifecycle::{Image, ImageStatus};

    fn outcome(
        name: &str,
        state: OutcomeState,
        expiring: i64,
        protected: Option<i64>,
    ) -> RepositoryOutcome {
        let expiring = (expiring >= 0).then_some(expiring);
        RepositoryOutcome { expiring, protected, ..only(&name.parse().unwrap(), state) }
    }

    fn listed(outcomes: Vec<RepositoryOutcome>) -> Vec<String> {
        report(outcomes, &[]).0.into_iter().map(|it| it.name).collect()
    }

    #[test]
    fn failures_come_first_and_then_the_most_affected() {
        use OutcomeState::{Failed, Pending, Previewed};
        let outcomes = vec![
            outcome("ab", Previewed, 0, None),
            outcome("pending", Pending, -1, None),
            outcome("much", Previewed, 9, None),
            outcome("kept", Previewed, 0, Some(4)),
            outcome("failed", Failed, -1, None),
            outcome("aa", Previewed, 0, None),
        ];
        assert_eq!(listed(outcomes), ["failed", "much", "kept", "pending", "aa", "ab"]);
    }

    #[test]
    fn a_status_names_a_hundred_repositories_and_counts_all() {
        let outcomes: Vec<_> = (0..250)
            .map(|i| outcome(&format!("r{i:03}"), OutcomeState::Previewed, i, Some(1)))
            .collect();
        let (named, totals) = report(outcomes, &[]);
        assert_eq!(
            (named.len(), named[0].name.as_str(), named[99].name.as_str()),
            (100, "r249", "r150")
        );
        assert_eq!(
            (totals.repositories, totals.expiring, totals.protected),
            (250, Some((0..250).sum()), Some(250))
        );
        assert_eq!((totals.bytes, totals.transitioning), (None, None));
    }

    #[test]
    fn a_result_without_news_is_no_change() {
        let at = |second| Some(Time(Timestamp::from_second(second).unwrap()));
        let was = RepositoryOutcome {
            evaluated_at: at(1),
            ..outcome("aa", OutcomeState::Previewed, 2, None)
        };
        let same = RepositoryOutcome { evaluated_at: at(9), ..was.clone() };
        let other = RepositoryOutcome { expiring: Some(3), ..same.clone() };
        let reported = |new: &RepositoryOutcome| {
            report(vec![new.clone()], std::slice::from_ref(&was)).0.remove(0)
        };
        assert_eq!(reported(&same), was);
        assert_eq!(reported(&other), other);
    }

    /// The longest that ECR allows: a thousand tags of an image, 128 characters a tag, 256 a
    /// repository's name.
    #[test]
    fn a_status_leaves_room_for_the_rest_of_its_object() {
        let tags: Vec<String> = (0..1000).map(|i| format!("{i:0>128}")).collect();
        let digest = format!("sha256:{}", "0".repeat(64));
        let image = PreviewedImage {
            digest: digest.clone(),
            tags: tags.clone(),
            action: "TRANSITION".to_owned(),
            rule_priority: i32::MAX,
        };
        let found = Previewed {
            expiring: u64::MAX,
            transitioning: u64::MAX,
            sample: vec![image; SAMPLE + 1],
        };
        let image = Image {
            digest: digest.parse().unwrap(),
            tags: tags.iter().map(|it| it.parse().unwrap()).collect(),
            pushed_at: Timestamp::UNIX_EPOCH,
            last_pulled_at: None,
            status: ImageStatus::Active,
            archived_at: None,
            activated_at: None,
            subject: None,
            parents: Vec::new(),
        };
        let act = ImageAction {
            image,
            action: Action::Transition,
            rule_priority: u32::MAX,
            cause: Cause::Selected,
            bytes: u64::MAX,
            is_index: false,
            layer: 0,
        };
        let acts = vec![act; SAMPLE + 1];
        let at = || Time(Timestamp::UNIX_EPOCH);
        let names = (0..250)
            .map(|i| format!("{i:0>256}").parse::<RepositoryName>().unwrap())
            .collect::<Vec<_>>();
        for outcomes in [
            names.iter().map(|name| previewed(name, &found, u64::MAX, at())).collect::<Vec<_>>(),
            names
                .iter()
                .map(|name| acted(name, OutcomeState::Enforced, &acts, usize::MAX, at()))
                .collect(),
        ] {
            let (named, _) = report(outcomes, &[]);
            assert!(named.iter().all(|it| it.sample.iter().all(|image| image.tags.len() == TAGS)));
            let bytes = serde_json::to_vec(&named).unwrap().len();
            assert!(bytes < 1 << 20, "{bytes} of the 1.5 MiB that an object may have");
        }
    }

    #[test]
    fn one_event_names_the_actions_in_all_repositories() {
        let totals = |expiring, bytes| RunTotals {
            counts: Counts { expiring, transitioning: 1, bytes },
            protected: 2,
        };
        let ran: Vec<(RepositoryName, RunTotals)> =
            (1..4).map(|i| (format!("shop/r{i}").parse().unwrap(), totals(i, 10))).collect();
        let one = |i: usize, images: &str| {
            format!(
                "shop/r{i}: {i} {images} expired (10 bytes), 1 image archived, 2 images in use kept"
            )
        };
        let all = format!("{}; {}; {}", one(1, "image"), one(2, "images"), one(3, "images"));
        assert_eq!(enforced(&ran[..1], 1024), one(1, "image"));
        assert_eq!(enforced(&ran, all.len()), all);
        let rest = "2 more repositories: 5 images expired (20 bytes), 2 images archived, 4 images in use kept";
        assert_eq!(enforced(&ran, all.len() - 1), format!("{}; {rest}", one(1, "image")));
        let none =
            "3 repositories: 6 images expired (30 bytes), 3 images archived, 6 images in use kept";
        assert_eq!(enforced(&ran, 0), none);
        let many: Vec<_> = (0..100)
            .map(|i| (format!("{i:0>256}").parse().unwrap(), totals(i, u64::MAX)))
            .collect();
        assert!(enforced(&many, 1024).len() <= 1024);
    }

    #[test]
    fn a_line_names_a_few() {
        let all: Vec<RepositoryName> = (0..7).map(|i| format!("r{i}").parse().unwrap()).collect();
        assert_eq!(names(all[..2].iter()), "r0, r1");
        assert_eq!(names(all.iter()), "r0, r1, r2, r3, r4 and 2 more");
        assert_eq!(
            (counted(1, "image", "images"), counted(0, "image", "images")),
            ("1 image".into(), "0 images".into())
        );
    }
}
