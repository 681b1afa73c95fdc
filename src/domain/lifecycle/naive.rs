//! A second formulation of the evaluator, as plain as the rules read and with no care for time, to hold the fast one to.

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use regex::Regex;

use super::document::tests::policies;
use super::*;
use crate::names::{Digest, Tag};

const DAY: i64 = 86_400;

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn pushed(image: &Image) -> Timestamp {
    match image.activated_at {
        Some(activated) => activated,
        None => image.pushed_at,
    }
}

fn older_than(days: u32, at: Timestamp) -> bool {
    now().as_second() - at.as_second() > i64::from(days) * DAY
}

fn in_class(rule: &Rule, image: &Image) -> bool {
    match rule.count {
        Count::SinceTransitioned(_) => image.status == ImageStatus::Archived,
        _ => image.status == ImageStatus::Active,
    }
}

fn has_subject(image: &Image, images: &[Image]) -> bool {
    images.iter().any(|other| Some(&other.digest) == image.subject.as_ref())
}

fn matches(rule: &Rule, image: &Image, images: &[Image]) -> bool {
    let some_tag = |expression: String| {
        let expression = Regex::new(&expression).unwrap();
        image.tags.iter().any(|tag| expression.is_match(tag.as_str()))
    };
    let by_tags = match &rule.tags {
        TagSelection::Any => true,
        TagSelection::Untagged => image.tags.is_empty(),
        TagSelection::Prefixes(list) => {
            list.iter().all(|prefix| some_tag(format!("^{}", regex::escape(prefix))))
        }
        TagSelection::Patterns(list) => list
            .iter()
            .all(|pattern| some_tag(format!("^{}$", regex::escape(pattern).replace(r"\*", ".*")))),
    };
    by_tags && in_class(rule, image) && !has_subject(image, images)
}

fn selects(rule: &Rule, image: &Image, images: &[Image]) -> bool {
    let younger = |other: &&Image| (pushed(other), &other.digest) > (pushed(image), &image.digest);
    match rule.count {
        Count::MoreThan(n) => {
            images.iter().filter(|other| matches(rule, other, images)).filter(younger).count()
                >= n as usize
        }
        Count::SincePushed(days) => older_than(days, pushed(image)),
        Count::SincePulled(days) => {
            let pulled = image.last_pulled_at.unwrap_or(image.pushed_at);
            older_than(days, pulled)
                && image.activated_at.is_none_or(|restored| older_than(days, restored))
        }
        Count::SinceTransitioned(days) => image.archived_at.is_some_and(|at| older_than(days, at)),
    }
}

/// The first rule that matches an image is the only one that may act on it.
fn selection(policy: &Policy, image: &Image, images: &[Image]) -> Option<(Action, u32, Cause)> {
    let first = policy.rules().iter().find(|rule| matches(rule, image, images))?;
    selects(first, image, images).then_some((first.action, first.priority, Cause::Selected))
}

type Actions<'a> = Vec<(&'a Image, (Action, u32, Cause))>;

fn find_done(done: &Actions<'_>, digest: &Digest) -> Option<(Action, u32)> {
    done.iter()
        .find(|(image, _)| image.digest == *digest)
        .map(|(_, (action, priority, _))| (*action, *priority))
}

fn intent(
    policy: &Policy,
    image: &Image,
    images: &[Image],
    done: &Actions<'_>,
) -> Option<(Action, u32, Cause)> {
    if !has_subject(image, images) {
        return selection(policy, image, images);
    }
    let (action, priority) = find_done(done, image.subject.as_ref()?)?;
    let can = action == Action::Expire || image.status == ImageStatus::Active;
    can.then_some((action, priority, Cause::FollowsSubject))
}

/// Returns whether an index still refuses an action on its child.
fn refuses(index: &Digest, action: Action, images: &[Image], done: &Actions<'_>) -> bool {
    let stored = images.iter().find(|image| image.digest == *index);
    let was_archived = stored.is_some_and(|image| image.status == ImageStatus::Archived);
    match (action, find_done(done, index)) {
        (_, Some((Action::Expire, _))) => false,
        (Action::Expire, _) => true,
        (Action::Transition, Some((Action::Transition, _))) => false,
        (Action::Transition, None) => !was_archived,
    }
}

/// Again and again does what the oldest image that may be acted on is due, until there is none.
fn execute<'a>(policy: &Policy, images: &'a [Image]) -> Actions<'a> {
    let mut done = Vec::new();
    loop {
        let can_go = |image: &&Image| match intent(policy, image, images, &done) {
            None => false,
            Some((action, _, _)) => {
                find_done(&done, &image.digest).is_none()
                    && !image.parents.iter().any(|parent| refuses(parent, action, images, &done))
            }
        };
        let Some(oldest) =
            images.iter().filter(can_go).min_by_key(|image| (pushed(image), &image.digest))
        else {
            return done;
        };
        let intent = intent(policy, oldest, images, &done).unwrap();
        done.push((oldest, intent));
    }
}

fn number_digest(number: usize) -> Digest {
    Digest::sha256(&number.to_le_bytes())
}

prop_compose! {
    /// Times around the limits of the policies' rules, with seconds to either side.
    fn times()(days in prop_oneof![0..7i64, 88..97i64], seconds in -1..2i64) -> Timestamp {
        now() - SignedDuration::from_secs(days * DAY + seconds)
    }
}

prop_compose! {
    /// An image whose edges make no circle, as digests can't: its subject has a lower number, its parents have
    /// higher ones. Some of them aren't stored.
    fn numbered_image(number: usize)(
        tags in proptest::collection::btree_set("[ab]{1,3}", 0..3),
        pushed_at in times(),
        last_pulled_at in proptest::option::of(times()),
        status in prop_oneof![3 => Just(ImageStatus::Active), 2 => Just(ImageStatus::Archived), 1 => Just(ImageStatus::Activating)],
        archived_at in times(),
        activated_at in proptest::option::weighted(0.2, times()),
        subject in proptest::option::weighted(0.3, 0..number.max(1)),
        missing_subject in proptest::bool::weighted(0.1),
        parents in proptest::collection::vec(1..5usize, 0..=2),
    ) -> Image {
        let missing = number_digest(1_000);
        Image {
            digest: number_digest(number),
            tags: tags.iter().map(|tag| tag.parse::<Tag>().unwrap()).collect(),
            pushed_at,
            last_pulled_at,
            status,
            archived_at: (status == ImageStatus::Archived).then_some(archived_at),
            activated_at,
            subject: if missing_subject { Some(missing) } else { subject.filter(|_| number > 0).map(number_digest) },
            parents: parents.into_iter().map(|step| number_digest(number + step)).collect(),
        }
    }
}

fn repositories() -> impl Strategy<Value = Vec<Image>> {
    (0..9usize)
        .prop_flat_map(|count| (0..count).map(numbered_image).collect::<Vec<_>>())
        .prop_shuffle()
}

proptest! {
    #[test]
    fn the_evaluator_does_what_the_rules_read(policy in policies(), images in repositories()) {
        let expected = execute(&policy, &images);
        let evaluation = evaluate(&policy, &images, now());
        let marks: Vec<_> = evaluation.marks.iter()
            .map(|mark| (mark.image, (mark.action, mark.rule_priority, mark.cause)))
            .collect();
        prop_assert_eq!(&marks, &expected);

        for image in &images {
            let due = intent(&policy, image, &images, &expected);
            let protected = evaluation.protected.iter().find(|protected| protected.mark.image == image);
            let acted_on = find_done(&expected, &image.digest).is_some();
            prop_assert_eq!(protected.is_some(), due.is_some() && !acted_on);
            if let (Some(protected), Some((action, _, _))) = (protected, due) {
                let blocked_by: Vec<_> =
                    image.parents.iter().filter(|parent| refuses(parent, action, &images, &expected)).collect();
                prop_assert_eq!(&protected.blocked_by, &blocked_by);
            }
        }
    }

    #[test]
    fn after_a_run_nothing_that_an_index_still_has_is_gone(policy in policies(), images in repositories()) {
        let evaluation = evaluate(&policy, &images, now());
        let expired: Vec<_> =
            evaluation.marks.iter().filter(|mark| mark.action == Action::Expire).map(|mark| &mark.image.digest).collect();
        for (place, mark) in evaluation.marks.iter().enumerate() {
            if mark.action == Action::Expire {
                let before = &evaluation.marks[..place];
                let gone = |digest: &Digest| before.iter().any(|m| m.action == Action::Expire && m.image.digest == *digest);
                prop_assert!(mark.image.parents.iter().all(gone));
            }
        }
        // Remaining images keep their children: no surviving image has an expired child.
        for image in images.iter().filter(|image| expired.contains(&&image.digest)) {
            prop_assert!(image.parents.iter().all(|parent| expired.contains(&parent)));
        }
    }
}
