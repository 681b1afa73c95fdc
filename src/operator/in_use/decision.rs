//! Decides the actions of a lifecycle policy on one repository without the images in use. No I/O.
//!
//! The rules are evaluated over all images, as the registry's job and preview do it. Images in use
//! count in the rules; only the action is skipped for them.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;

use super::protect::protected;
use super::references::UsedHere;
use wharfage_apply::{Children, StoredImage};
use wharfage_domain::lifecycle::{Action, Cause, Image, Policy, evaluate};
use wharfage_domain::names::Digest;

/// The actions on one repository.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InUseDecision {
    /// The actions in their order, none on an image in use.
    pub acts: Vec<ImageAction>,
    /// The number of images in use that a rule selected.
    pub protected: usize,
}

/// An action on one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageAction {
    /// The image, with its parents.
    pub image: Image,
    pub action: Action,
    pub rule_priority: u32,
    /// The cause of the action: the rule selected the image itself, or acted on its subject.
    pub cause: Cause,
    /// The bytes of its own layers; an index has none.
    pub bytes: u64,
    /// True if it is an index.
    pub is_index: bool,
    /// One more than the highest order of its indexes and its subject that are acted on, which come
    /// first.
    pub layer: usize,
}

/// The contents of an index that must stay cannot be read, so the images to keep are unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the index {0} is in use and cannot be read, so it cannot be told which images it holds: restore it from the archive"
)]
pub struct UnreadableIndex(pub Digest);

/// Returns whether the policy selects any image. The contents of indexes do not matter for that.
pub fn selects_anything(policy: &Policy, stored: &[StoredImage], now: Timestamp) -> bool {
    let images: Vec<Image> = stored.iter().map(|it| it.image.clone()).collect();
    !evaluate(policy, &images, now).marks.is_empty()
}

/// Decides the actions at `now` on a repository that holds exactly `stored`. `children` has all its
/// indexes.
///
/// # Errors
/// When the images in use are unknown.
pub fn decide(
    policy: &Policy,
    stored: &[StoredImage],
    children: &HashMap<Digest, Children>,
    used: &UsedHere,
    now: Timestamp,
) -> Result<InUseDecision, UnreadableIndex> {
    let mut parents: HashMap<&Digest, Vec<Digest>> = HashMap::new();
    for (index, children) in children {
        let Children::Listed(children) = children else { continue };
        for child in children.iter().collect::<HashSet<_>>() {
            parents.entry(child).or_default().push(index.clone());
        }
    }
    let with_parents = |it: &StoredImage| {
        let mut parents = parents.remove(&it.image.digest).unwrap_or_default();
        parents.sort_unstable();
        Image { parents, ..it.image.clone() }
    };
    let images: Vec<Image> = stored.iter().map(with_parents).collect();
    let kept = protected(&images, used);
    let unreadable =
        |digest: &&&Digest| matches!(children.get(**digest), Some(Children::Unreadable));
    if let Some(index) = kept.iter().filter(unreadable).min() {
        return Err(UnreadableIndex((*index).clone()));
    }

    let facts: HashMap<&Digest, &StoredImage> =
        stored.iter().map(|it| (&it.image.digest, it)).collect();
    let mut layers: HashMap<&Digest, usize> = HashMap::new();
    let mut decision = InUseDecision::default();
    for mark in evaluate(policy, &images, now).marks {
        if kept.contains(&mark.image.digest) {
            decision.protected += usize::from(mark.cause == Cause::Selected);
            continue;
        }
        let before =
            mark.image.parents.iter().chain(&mark.image.subject).filter_map(|it| layers.get(it));
        let layer = before.max().map_or(0, |highest| highest + 1);
        layers.insert(&mark.image.digest, layer);
        let (is_index, bytes) =
            facts.get(&mark.image.digest).map_or((false, 0), |it| (it.is_index, it.bytes));
        decision.acts.push(ImageAction {
            image: mark.image.clone(),
            action: mark.action,
            rule_priority: mark.rule_priority,
            cause: mark.cause,
            bytes: if is_index { 0 } else { bytes },
            is_index,
            layer,
        });
    }
    Ok(decision)
}

/// The number of images by action, and the bytes that expire. As in a preview, only images that a
/// rule selected count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub expiring: usize,
    pub transitioning: usize,
    /// The bytes of the images that expire.
    pub bytes: u64,
}

impl Counts {
    /// Sums up these actions.
    pub fn of(acts: &[ImageAction]) -> Self {
        let mut counts = Self::default();
        for act in acts {
            match (act.action, act.cause) {
                (Action::Expire, Cause::Selected) => {
                    counts.expiring += 1;
                    counts.bytes += act.bytes;
                }
                (Action::Transition, Cause::Selected) => counts.transitioning += 1,
                (_, Cause::FollowsSubject) => {}
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use wharfage_domain::lifecycle::{Count, ImageStatus, Rule, TagSelection};

    fn digest(index: usize) -> Digest {
        Digest::sha256(&index.to_be_bytes())
    }

    /// Image number `index`, pushed so many days before day 100, with a tag if it has one.
    fn stored(index: usize, age: i64, tag: Option<&str>) -> StoredImage {
        StoredImage {
            image: Image {
                digest: digest(index),
                tags: tag.map(|tag| tag.parse().unwrap()).into_iter().collect(),
                pushed_at: Timestamp::from_second((100 - age) * 86_400).unwrap(),
                last_pulled_at: None,
                status: ImageStatus::Active,
                archived_at: None,
                activated_at: None,
                subject: None,
                parents: Vec::new(),
            },
            bytes: 10,
            is_index: false,
        }
    }

    fn index(index: usize, age: i64, tag: Option<&str>) -> StoredImage {
        StoredImage { is_index: true, ..stored(index, age, tag) }
    }

    fn day_100() -> Timestamp {
        Timestamp::from_second(100 * 86_400).unwrap()
    }

    /// Expires all but the youngest `keep`.
    fn keep(keep: u32) -> Policy {
        let rule = Rule {
            priority: 1,
            description: String::new(),
            tags: TagSelection::Any,
            count: Count::MoreThan(keep),
            action: Action::Expire,
        };
        Policy::new(vec![rule]).unwrap()
    }

    fn children(of: &[(usize, &[usize])]) -> HashMap<Digest, Children> {
        let listed =
            |children: &[usize]| Children::Listed(children.iter().copied().map(digest).collect());
        of.iter().map(|(index, children)| (digest(*index), listed(children))).collect()
    }

    fn by_tag(tag: &str) -> UsedHere {
        UsedHere { tags: HashSet::from([tag.parse().unwrap()]), ..UsedHere::default() }
    }

    fn acted_on(decision: &InUseDecision) -> Vec<usize> {
        (0..100)
            .filter(|&index| decision.acts.iter().any(|act| act.image.digest == digest(index)))
            .collect()
    }

    #[test]
    fn images_in_use_count_and_stay() {
        let images = [
            stored(0, 3, Some("a")),
            stored(1, 2, Some("b")),
            stored(2, 1, Some("c")),
            stored(3, 0, Some("d")),
        ];
        let decision = decide(&keep(2), &images, &HashMap::new(), &by_tag("a"), day_100()).unwrap();
        assert_eq!(
            (acted_on(&decision), decision.protected),
            (vec![1], 1),
            "the kept one takes nobody's place"
        );
        let decision = decide(&keep(2), &images, &HashMap::new(), &by_tag("d"), day_100()).unwrap();
        assert_eq!(
            (acted_on(&decision), decision.protected),
            (vec![0, 1], 0),
            "what no rule selects needs no protection"
        );
    }

    #[test]
    fn an_index_expires_before_its_children_and_keeps_them_in_use() {
        let images = [
            stored(1, 9, None),
            stored(2, 9, None),
            index(0, 8, Some("v1")),
            stored(3, 0, Some("v2")),
        ];
        let children = children(&[(0, &[1, 2])]);
        let decision =
            decide(&keep(1), &images, &children, &UsedHere::default(), day_100()).unwrap();
        let order: Vec<_> = decision
            .acts
            .iter()
            .map(|act| (act.image.digest.clone(), act.layer, act.bytes))
            .collect();
        assert_eq!(order[0], (digest(0), 0, 0));
        assert_eq!(
            order[1..].iter().map(|(_, layer, bytes)| (*layer, *bytes)).collect::<Vec<_>>(),
            [(1, 10), (1, 10)]
        );
        let decision = decide(&keep(1), &images, &children, &by_tag("v1"), day_100()).unwrap();
        assert_eq!((acted_on(&decision), decision.protected), (vec![], 3));
    }

    #[test]
    fn an_unreadable_index_stops_the_run_only_if_in_use() {
        let images = [index(0, 9, Some("v1")), stored(1, 8, Some("v0")), stored(2, 0, Some("v2"))];
        let children = HashMap::from([(digest(0), Children::Unreadable)]);
        let refused = decide(&keep(1), &images, &children, &by_tag("v1"), day_100()).unwrap_err();
        assert_eq!(refused, UnreadableIndex(digest(0)));
        let decision = decide(&keep(1), &images, &children, &by_tag("v0"), day_100()).unwrap();
        assert_eq!((acted_on(&decision), decision.protected), (vec![0], 1));
    }

    proptest! {
        /// Protection removes actions from the evaluator's result, adds none, and keeps their
        /// order.
        #[test]
        fn acts_are_the_evaluators_marks_without_what_is_in_use(
            shape in proptest::collection::vec((0..20i64, proptest::option::of(0..12usize), proptest::option::of(0..12usize)), 12),
            used in proptest::collection::hash_set(0..12usize, 0..3),
            keep_youngest in 1..6u32,
        ) {
            let mut of: HashMap<Digest, Vec<Digest>> = HashMap::new();
            let mut images: Vec<StoredImage> = Vec::new();
            for (i, (age, parent, subject)) in shape.iter().enumerate() {
                let mut image = stored(i, *age, None);
                image.image.subject = subject.filter(|subject| *subject < i).map(digest);
                if let Some(parent) = parent.filter(|parent| *parent < i) {
                    of.entry(digest(parent)).or_default().push(digest(i));
                }
                images.push(image);
            }
            for image in &mut images {
                image.is_index = of.contains_key(&image.image.digest);
            }
            let children = of.iter().map(|(index, of)| (index.clone(), Children::Listed(of.clone()))).collect();
            let policy = keep(keep_youngest);
            let here = UsedHere { digests: used.iter().copied().map(digest).collect(), ..UsedHere::default() };
            let decision = decide(&policy, &images, &children, &here, day_100()).unwrap();

            let whole: Vec<Image> = images.iter().map(|it| {
                let mut parents: Vec<Digest> =
                    of.iter().filter(|(_, of)| of.contains(&it.image.digest)).map(|(index, _)| index.clone()).collect();
                parents.sort_unstable();
                Image { parents, ..it.image.clone() }
            }).collect();
            let kept = protected(&whole, &here);
            let evaluation = evaluate(&policy, &whole, day_100());
            let expected: Vec<&Digest> =
                evaluation.marks.iter().map(|mark| &mark.image.digest).filter(|it| !kept.contains(it)).collect();
            prop_assert_eq!(decision.acts.iter().map(|act| &act.image.digest).collect::<Vec<_>>(), expected);
            prop_assert_eq!(!decision.acts.is_empty() || decision.protected > 0, selects_anything(&policy, &images, day_100()) && !evaluation.marks.is_empty());
            for act in &decision.acts {
                let first = |it: &&ImageAction| act.image.parents.contains(&it.image.digest) || act.image.subject.as_ref() == Some(&it.image.digest);
                prop_assert!(decision.acts.iter().filter(first).all(|before| before.layer < act.layer));
            }
        }
    }
}
