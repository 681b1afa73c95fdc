//! Finds the images of a repository that are in use, and those that belong to them. No I/O.

use std::collections::{HashMap, HashSet};

use super::references::UsedHere;
use wharfage_domain::lifecycle::Image;
use wharfage_domain::names::{Digest, Tag};

/// Returns the images that must stay while `used` is used.
///
/// First, the used images: those that a used tag points to now, and those that are named by digest.
/// Then every index that holds one of them, and every `subject` of one of them: a Pod's status may
/// name a platform's image where its spec named the index. Then everything below these: children,
/// which a node of another platform needs, and referrers, such as signatures, which admission
/// requires.
pub fn protected<'a>(images: &'a [Image], used: &UsedHere) -> HashSet<&'a Digest> {
    let stored: HashMap<&Digest, &Image> =
        images.iter().map(|image| (&image.digest, image)).collect();
    let above = |digest: &&'a Digest| {
        let image = stored.get(digest);
        let above = image.into_iter().flat_map(|image| image.parents.iter().chain(&image.subject));
        above.filter(|digest| stored.contains_key(digest)).collect::<Vec<_>>()
    };
    let mut below: HashMap<Digest, Vec<&'a Digest>> = HashMap::new();
    for image in images {
        let by_tag = image.tags.iter().filter_map(subject_by_tag);
        for over in image.parents.iter().chain(&image.subject).cloned().chain(by_tag) {
            below.entry(over).or_default().push(&image.digest);
        }
    }

    let is_used = |image: &&Image| {
        used.digests.contains(&image.digest) || image.tags.iter().any(|tag| used.tags.contains(tag))
    };
    let themselves = images.iter().filter(is_used).map(|image| &image.digest);
    let with_those_above = reach(themselves, above);
    reach(with_those_above, |digest| below.get(digest).cloned().unwrap_or_default())
}

/// Returns the image that a tag such as `sha256-…` or `sha256-….sig` is about. Referrers had such
/// tags before `subject` existed (distribution-spec 1.1, "Referrers Tag Schema"), and cosign still
/// names signatures so.
fn subject_by_tag(tag: &Tag) -> Option<Digest> {
    let (algorithm, rest) = tag.as_str().split_once('-')?;
    let hex = rest.split_once('.').map_or(rest, |(hex, _)| hex);
    format!("{algorithm}:{hex}").parse().ok()
}

/// Returns everything reachable from `start`, with `start`.
fn reach<'a>(
    start: impl IntoIterator<Item = &'a Digest>,
    next: impl Fn(&&'a Digest) -> Vec<&'a Digest>,
) -> HashSet<&'a Digest> {
    let mut reached: HashSet<&Digest> = start.into_iter().collect();
    let mut open: Vec<&Digest> = reached.iter().copied().collect();
    while let Some(digest) = open.pop() {
        open.extend(next(&digest).into_iter().filter(|digest| reached.insert(digest)));
    }
    reached
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::*;
    use wharfage_domain::lifecycle::ImageStatus;

    fn digest(index: usize) -> Digest {
        Digest::sha256(&index.to_be_bytes())
    }

    /// Image number `index`, with the tag `t{index}`.
    fn image(index: usize, parents: &[usize], subject: Option<usize>) -> Image {
        Image {
            digest: digest(index),
            tags: vec![format!("t{index}").parse().unwrap()],
            pushed_at: Timestamp::UNIX_EPOCH,
            last_pulled_at: None,
            status: ImageStatus::Active,
            archived_at: None,
            activated_at: None,
            subject: subject.map(digest),
            parents: parents.iter().copied().map(digest).collect(),
        }
    }

    fn by_tag(index: usize) -> UsedHere {
        UsedHere {
            tags: HashSet::from([format!("t{index}").parse().unwrap()]),
            ..UsedHere::default()
        }
    }

    fn by_digest(index: usize) -> UsedHere {
        UsedHere { digests: HashSet::from([digest(index)]), ..UsedHere::default() }
    }

    fn kept(images: &[Image], used: &UsedHere) -> Vec<usize> {
        let protected = protected(images, used);
        (0..100).filter(|&index| protected.contains(&digest(index))).collect()
    }

    /// Two indexes, 0 and 1, that share the child 3; 5 signs the index 0, 6 signs the child 2, 7
    /// signs the signature 5; 8 is on its own.
    fn images() -> Vec<Image> {
        vec![
            image(0, &[], None),
            image(1, &[], None),
            image(2, &[0], None),
            image(3, &[0, 1], None),
            image(4, &[1], None),
            image(5, &[], Some(0)),
            image(6, &[], Some(2)),
            image(7, &[], Some(5)),
            image(8, &[], None),
        ]
    }

    #[test]
    fn an_image_is_kept_by_tag_and_by_digest() {
        assert_eq!(kept(&images(), &by_tag(8)), [8]);
        assert_eq!(kept(&images(), &by_digest(8)), [8]);
        assert_eq!(kept(&images(), &by_digest(99)), [] as [usize; 0]);
        assert_eq!(kept(&images(), &UsedHere::default()), [] as [usize; 0]);
    }

    #[test]
    fn an_index_keeps_children_and_signatures_but_no_other_index() {
        assert_eq!(kept(&images(), &by_tag(0)), [0, 2, 3, 5, 6, 7]);
    }

    #[test]
    fn a_child_keeps_every_index_that_holds_it_with_all_that_they_hold() {
        assert_eq!(kept(&images(), &by_digest(2)), [0, 2, 3, 5, 6, 7]);
        assert_eq!(kept(&images(), &by_digest(3)), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn a_used_artifact_keeps_its_subject_because_it_would_follow_it() {
        assert_eq!(kept(&images(), &by_digest(7)), [0, 2, 3, 5, 6, 7]);
    }

    #[test]
    fn a_signature_that_is_kept_by_its_tag_stays_with_its_image() {
        let signature = |index: usize, tag: String| Image {
            tags: vec![tag.parse().unwrap()],
            ..image(index, &[], None)
        };
        let tag = digest(8).to_string().replace(':', "-");
        let images = [
            image(8, &[], None),
            signature(10, format!("{tag}.sig")),
            signature(11, tag),
            image(12, &[], None),
        ];
        assert_eq!(kept(&images, &by_tag(8)), [8, 10, 11]);
        assert_eq!(kept(&images, &by_digest(10)), [10]);
    }

    #[test]
    fn edges_to_missing_images_are_ignored_and_cycles_end() {
        let images = [image(0, &[1, 50], Some(51)), image(1, &[0], Some(1))];
        assert_eq!(kept(&images, &by_digest(0)), [0, 1]);
    }

    proptest! {
        #[test]
        fn what_is_kept_is_closed_and_what_is_not_hangs_on_nothing_used(
            edges in proptest::collection::vec((proptest::collection::vec(0..12usize, 0..3), proptest::option::of(0..14usize)), 12),
            used in proptest::collection::hash_set(0..12usize, 0..3),
        ) {
            let images: Vec<Image> =
                edges.iter().enumerate().map(|(index, (parents, subject))| image(index, parents, *subject)).collect();
            let here = UsedHere { digests: used.iter().copied().map(digest).collect(), ..UsedHere::default() };
            let kept = protected(&images, &here);
            prop_assert!(used.iter().all(|&index| kept.contains(&digest(index))));
            for image in &images {
                let over: Vec<&Digest> = image.parents.iter().chain(&image.subject).collect();
                if here.digests.contains(&image.digest) {
                    let stored = |it: &&&Digest| images.iter().any(|image| image.digest == ***it);
                    prop_assert!(over.iter().filter(stored).all(|it| kept.contains(*it)), "what is above a used one");
                }
                if over.iter().any(|it| kept.contains(*it)) {
                    prop_assert!(kept.contains(&image.digest), "what is below a kept one");
                }
            }
            if used.is_empty() {
                prop_assert!(kept.is_empty());
            }
        }
    }
}
