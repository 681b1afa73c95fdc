//! What a policy came to in its repositories, as its status tells it. Pure.

use std::cmp::Reverse;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::apply::Previewed;
use crate::crd::lifecycle_policy::{ImageOutcome, OutcomeState, RepositoryOutcome, Totals};
use crate::lifecycle::{Action, Cause};
use crate::names::RepositoryName;
use crate::operator::in_use::decision::{Act, Counts};

/// Repositories that a status names.
const NAMED: usize = 100;
/// Images that a status names for each.
const SAMPLE: usize = 10;

/// A repository of which no more is known than how far the policy got.
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

/// What a registry's own preview says.
pub(super) fn previewed(name: &RepositoryName, found: &Previewed, bytes: u64, at: Time) -> RepositoryOutcome {
    let image = |it: &crate::apply::PreviewedImage| ImageOutcome {
        digest: it.digest.clone(),
        tags: it.tags.clone(),
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

/// What the operator does, or would do.
pub(super) fn acted(
    name: &RepositoryName,
    state: OutcomeState,
    acts: &[Act],
    protected: usize,
    at: Time,
) -> RepositoryOutcome {
    let counts = Counts::of(acts);
    let image = |act: &Act| ImageOutcome {
        digest: act.image.digest.to_string(),
        tags: act.image.tags.iter().map(ToString::to_string).collect(),
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

/// The repositories with the most to tell, and what all come to. What differs from `before` in nothing but the time at which
/// it was found out keeps that time: a look that finds nothing new is not written down.
pub(super) fn told(
    mut outcomes: Vec<RepositoryOutcome>,
    before: &[RepositoryOutcome],
) -> (Vec<RepositoryOutcome>, Totals) {
    let sum = |of: fn(&RepositoryOutcome) -> Option<i64>| {
        let numbers = outcomes.iter().filter_map(of);
        numbers.fold(None, |sum: Option<i64>, number| Some(sum.unwrap_or_default().saturating_add(number)))
    };
    let totals = Totals {
        repositories: number(outcomes.len()),
        expiring: sum(|it| it.expiring),
        transitioning: sum(|it| it.transitioning),
        bytes: sum(|it| it.bytes),
        protected: sum(|it| it.protected),
    };
    outcomes.sort_by_cached_key(|it| {
        let goes = it.expiring.unwrap_or_default().saturating_add(it.transitioning.unwrap_or_default());
        let waits = it.state == OutcomeState::Pending;
        (it.state != OutcomeState::Failed, Reverse((goes, it.protected)), !waits, it.name.clone())
    });
    outcomes.truncate(NAMED);
    for outcome in &mut outcomes {
        if let Some(was) = before.iter().find(|was| was.name == outcome.name) {
            let same = RepositoryOutcome { evaluated_at: was.evaluated_at.clone(), ..outcome.clone() };
            if same == *was {
                *outcome = same;
            }
        }
    }
    (outcomes, totals)
}

/// Names in a line, the first few of them.
pub(super) fn names<'a>(names: impl ExactSizeIterator<Item = &'a RepositoryName>) -> String {
    const ENOUGH: usize = 5;
    let all = names.len();
    let mut text = names.take(ENOUGH).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if all > ENOUGH {
        text.push_str(&format!(" and {} more", all - ENOUGH));
    }
    text
}

/// A number of things.
pub(super) fn counted(count: usize, one: &str, many: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {many}") }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn outcome(name: &str, state: OutcomeState, expiring: i64, protected: Option<i64>) -> RepositoryOutcome {
        let expiring = (expiring >= 0).then_some(expiring);
        RepositoryOutcome { expiring, protected, ..only(&name.parse().unwrap(), state) }
    }

    fn listed(outcomes: Vec<RepositoryOutcome>) -> Vec<String> {
        told(outcomes, &[]).0.into_iter().map(|it| it.name).collect()
    }

    #[test]
    fn what_failed_comes_first_and_then_what_has_the_most_to_tell() {
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
        let outcomes: Vec<_> =
            (0..250).map(|i| outcome(&format!("r{i:03}"), OutcomeState::Previewed, i, Some(1))).collect();
        let (named, totals) = told(outcomes, &[]);
        assert_eq!((named.len(), named[0].name.as_str(), named[99].name.as_str()), (100, "r249", "r150"));
        assert_eq!((totals.repositories, totals.expiring, totals.protected), (250, Some((0..250).sum()), Some(250)));
        assert_eq!((totals.bytes, totals.transitioning), (None, None));
    }

    #[test]
    fn a_look_that_finds_nothing_new_is_no_change() {
        let at = |second| Some(Time(Timestamp::from_second(second).unwrap()));
        let was = RepositoryOutcome { evaluated_at: at(1), ..outcome("aa", OutcomeState::Previewed, 2, None) };
        let same = RepositoryOutcome { evaluated_at: at(9), ..was.clone() };
        let other = RepositoryOutcome { expiring: Some(3), ..same.clone() };
        let told = |new: &RepositoryOutcome| told(vec![new.clone()], std::slice::from_ref(&was)).0.remove(0);
        assert_eq!(told(&same), was);
        assert_eq!(told(&other), other);
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
