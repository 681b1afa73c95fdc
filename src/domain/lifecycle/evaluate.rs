//! The actions of a policy on the images of one repository at one moment.
//!
//! Two steps: rules *select* images, which depends only on the images' own members; then the
//! selected images are put in the order of *execution*, in which an index is deleted before its
//! children and referrers are deleted after their subject. Source: Amazon ECR user guide,
//! "Lifecycle policies", "How it works" and "Considerations on image expiration".

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};

use jiff::{SignedDuration, Timestamp};

use super::document::{Action, Count, Policy, Rule, StorageClass};
use crate::names::{Digest, Tag};

/// The data of an image that a lifecycle policy needs: a manifest or an index that a repository
/// stores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The manifest's digest, unique in the repository.
    pub digest: Digest,
    /// All its tags.
    pub tags: Vec<Tag>,
    /// `imagePushedAt`.
    pub pushed_at: Timestamp,
    /// `lastRecordedPullTime`; none when it was never pulled.
    pub last_pulled_at: Option<Timestamp>,
    /// The status, which says whether it can be pulled.
    pub status: ImageStatus,
    /// `lastArchivedAt`.
    pub archived_at: Option<Timestamp>,
    /// `lastActivatedAt`: when it was last restored from the archive.
    pub activated_at: Option<Timestamp>,
    /// The manifest that it refers to by `subject`, stored or not.
    pub subject: Option<Digest>,
    /// The stored indexes that have it as a child.
    pub parents: Vec<Digest>,
}

impl Image {
    /// The push time by which images are ordered and aged: a restored image starts again.
    pub fn effective_push_time(&self) -> Timestamp {
        self.activated_at.unwrap_or(self.pushed_at)
    }

    /// The time that `sinceImagePulled` counts from: never before the last restore.
    fn pull_reference(&self) -> Timestamp {
        let pulled = self.last_pulled_at.unwrap_or(self.pushed_at);
        self.activated_at.map_or(pulled, |activated| activated.max(pulled))
    }

    /// The class whose rules apply to it; none while it is on its way back from the archive.
    fn storage_class(&self) -> Option<StorageClass> {
        match self.status {
            ImageStatus::Active => Some(StorageClass::Standard),
            ImageStatus::Archived => Some(StorageClass::Archive),
            ImageStatus::Activating => None,
        }
    }
}

/// ECR's `imageStatus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageStatus {
    /// May be pulled.
    Active,
    /// In the archive storage class: listed, not pulled.
    Archived,
    /// On its way back from the archive: in neither storage class.
    Activating,
}

impl ImageStatus {
    /// ECR's spelling, which is also what databases hold.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Archived => "ARCHIVED",
            Self::Activating => "ACTIVATING",
        }
    }

    /// The value of ECR's spelling.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Active, Self::Archived, Self::Activating]
            .into_iter()
            .find(|value| value.as_str() == text)
    }
}

/// The outcome of [`evaluate`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Evaluation<'a> {
    /// The actions, in the order in which to do them: oldest first, but an index before its
    /// children and a subject before its referrers.
    pub marks: Vec<Mark<'a>>,
    /// The images that a rule selected, or that should have followed their subject, but that an
    /// index still needs; oldest first.
    pub protected: Vec<Protected<'a>>,
    /// By the priority of each rule that counts images: those that it keeps, youngest first. An
    /// image that the rule selects is one too many only while they are there. Images that another
    /// rule acts on are left out.
    pub kept: BTreeMap<u32, Vec<&'a Image>>,
}

/// An action on one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark<'a> {
    /// The image to act on.
    pub image: &'a Image,
    /// The action on the image.
    pub action: Action,
    /// The rule that did it: for a referrer, the one that acted on its subject.
    pub rule_priority: u32,
    /// The cause of the action: the rule selected the image itself, or acted on its subject.
    pub cause: Cause,
}

/// The reason for an action on an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// A rule selected it.
    Selected,
    /// A rule acted on its subject: referrers are never selected while their subject exists, they follow it.
    FollowsSubject,
}

/// An action that ECR refuses, ImageReferencedByManifestList, and that a later run may execute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protected<'a> {
    /// The action that doesn't happen.
    pub mark: Mark<'a>,
    /// The indexes that remain and reference the image, as [`Image::parents`] has them.
    pub blocked_by: Vec<&'a Digest>,
}

/// The number of images that a policy acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Selected and expiring: a preview's `expiringImageTotalCount`.
    pub expiring: usize,
    /// Selected and moving to the archive: a preview's one entry of `transitioningImageTotalCounts`, if not zero.
    pub transitioning: usize,
    /// Referrers that follow their subject.
    pub following: usize,
    /// Left alone because an index needs them.
    pub protected: usize,
}

impl<'a> Evaluation<'a> {
    /// The marks of images that a rule selected itself: what a preview lists.
    pub fn selected(&self) -> impl Iterator<Item = &Mark<'a>> {
        self.marks.iter().filter(|mark| mark.cause == Cause::Selected)
    }

    /// The counts.
    pub fn summary(&self) -> Summary {
        let mut summary = Summary { protected: self.protected.len(), ..Summary::default() };
        for mark in &self.marks {
            match (mark.cause, mark.action) {
                (Cause::FollowsSubject, _) => summary.following += 1,
                (Cause::Selected, Action::Expire) => summary.expiring += 1,
                (Cause::Selected, Action::Transition) => summary.transitioning += 1,
            }
        }
        summary
    }
}

/// Returns what `policy` does at `now` to a repository that stores exactly `images`, in any order.
///
/// Images of the same age are ordered by digest, so that equal inputs give equal outcomes.
pub fn evaluate<'a>(policy: &Policy, images: &'a [Image], now: Timestamp) -> Evaluation<'a> {
    let repository = Repository::new(images);
    let (intents, kept) = select(policy, &repository, now);
    let stays = |i: &usize| intents[*i].is_none();
    let kept = kept
        .into_iter()
        .map(|(rule, kept)| (rule, kept.into_iter().filter(stays).map(|i| &images[i]).collect()))
        .collect();
    Execution::new(&repository, intents).run(kept)
}

/// The images with their order and the edges between those that are stored; images are named by their index.
struct Repository<'a> {
    images: &'a [Image],
    /// Youngest first.
    by_age: Vec<usize>,
    has_subject: Vec<bool>,
    /// Of a subject.
    referrers: HashMap<usize, Vec<usize>>,
    /// Of an index.
    children: HashMap<usize, Vec<usize>>,
    places: HashMap<&'a Digest, usize>,
}

impl<'a> Repository<'a> {
    fn new(images: &'a [Image]) -> Self {
        let mut by_age: Vec<_> = (0..images.len()).collect();
        by_age
            .sort_by_cached_key(|&i| Reverse((images[i].effective_push_time(), &images[i].digest)));
        let places: HashMap<_, _> =
            images.iter().enumerate().map(|(i, image)| (&image.digest, i)).collect();
        let mut has_subject = vec![false; images.len()];
        let mut referrers: HashMap<_, Vec<_>> = HashMap::new();
        let mut children: HashMap<_, Vec<_>> = HashMap::new();
        for (i, image) in images.iter().enumerate() {
            if let Some(&subject) = image.subject.as_ref().and_then(|subject| places.get(subject)) {
                has_subject[i] = true;
                referrers.entry(subject).or_default().push(i);
            }
            for parent in image.parents.iter().filter_map(|parent| places.get(parent)) {
                children.entry(*parent).or_default().push(i);
            }
        }
        Self { images, by_age, has_subject, referrers, children, places }
    }
}

/// An action on an image, and the priority of the rule that it comes from.
#[derive(Debug, Clone, Copy)]
struct Intent {
    action: Action,
    rule_priority: u32,
    cause: Cause,
}

/// Returns the actions of the rules that select images, and by a counting rule's priority the
/// images that it keeps. A matching rule claims an image from all later rules of its class, acting
/// on it or not.
fn select(
    policy: &Policy,
    repository: &Repository<'_>,
    now: Timestamp,
) -> (Vec<Option<Intent>>, BTreeMap<u32, Vec<usize>>) {
    let mut intents = vec![None; repository.images.len()];
    let mut kept: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for class in [StorageClass::Standard, StorageClass::Archive] {
        let candidates: Vec<usize> = repository
            .by_age
            .iter()
            .copied()
            .filter(|&i| {
                repository.images[i].storage_class() == Some(class) && !repository.has_subject[i]
            })
            .collect();
        let mut claimed = vec![false; repository.images.len()];
        for rule in policy.rules().iter().filter(|rule| rule.storage_class() == class) {
            let matching = candidates
                .iter()
                .copied()
                .filter(|&i| rule.tags.matches(&repository.images[i].tags));
            // Claimed images count as much as others do: only the action is kept from them.
            for (younger, i) in matching.enumerate() {
                if matches!(rule.count, Count::MoreThan(n) if u32::try_from(younger).is_ok_and(|younger| younger < n))
                {
                    kept.entry(rule.priority).or_default().push(i);
                }
                let claimed = std::mem::replace(&mut claimed[i], true);
                if !claimed && selects(rule, younger, &repository.images[i], now) {
                    let Rule { action, priority, .. } = *rule;
                    intents[i] =
                        Some(Intent { action, rule_priority: priority, cause: Cause::Selected });
                }
            }
        }
    }
    (intents, kept)
}

/// Returns whether a rule acts on a matching image that has `younger` younger ones among the matching.
fn selects(rule: &Rule, younger: usize, image: &Image, now: Timestamp) -> bool {
    match rule.count {
        Count::MoreThan(n) => u32::try_from(younger).map_or(true, |younger| younger >= n),
        Count::SincePushed(days) => is_past(image.effective_push_time(), days, now),
        Count::SincePulled(days) => is_past(image.pull_reference(), days, now),
        Count::SinceTransitioned(days) => {
            image.archived_at.is_some_and(|at| is_past(at, days, now))
        }
    }
}

/// Returns whether `at` is more than `days` days of 86,400 seconds ago; at exactly that age it isn't yet.
fn is_past(at: Timestamp, days: u32, now: Timestamp) -> bool {
    now.duration_since(at) > SignedDuration::from_secs(i64::from(days) * 86_400)
}

/// Simulates intents: which image can be deleted once everything before it has been deleted.
struct Execution<'r, 'a> {
    repository: &'r Repository<'a>,
    intents: Vec<Option<Intent>>,
    done: Vec<bool>,
    /// Of an image with an intent: how many of its parents stand in the way.
    blockers: Vec<usize>,
    /// Place in the order of age; the oldest has the highest and is acted on first.
    ranks: Vec<usize>,
    ready: BinaryHeap<(usize, usize)>,
    marks: Vec<Mark<'a>>,
}

impl<'r, 'a> Execution<'r, 'a> {
    fn new(repository: &'r Repository<'a>, intents: Vec<Option<Intent>>) -> Self {
        let count = repository.images.len();
        let mut ranks = vec![0; count];
        for (rank, &i) in repository.by_age.iter().enumerate() {
            ranks[i] = rank;
        }
        Self {
            repository,
            intents,
            done: vec![false; count],
            blockers: vec![0; count],
            ranks,
            ready: BinaryHeap::new(),
            marks: Vec::new(),
        }
    }

    fn run(mut self, kept: BTreeMap<u32, Vec<&'a Image>>) -> Evaluation<'a> {
        for i in 0..self.intents.len() {
            if let Some(intent) = self.intents[i] {
                self.enqueue(i, intent);
            }
        }
        while let Some((_, i)) = self.ready.pop() {
            let Some(intent) = self.intents[i] else { continue };
            self.done[i] = true;
            self.marks.push(self.mark(i, intent));
            self.release_children(i, intent);
            self.call_referrers(i, intent);
        }
        let protected = self.protected();
        Evaluation { marks: self.marks, protected, kept }
    }

    fn mark(&self, i: usize, intent: Intent) -> Mark<'a> {
        let Intent { action, rule_priority, cause } = intent;
        Mark { image: &self.repository.images[i], action, rule_priority, cause }
    }

    /// Readies an image, or has it wait for the indexes that need it.
    fn enqueue(&mut self, i: usize, intent: Intent) {
        self.blockers[i] = self.blocked_by(i, intent.action).count();
        if self.blockers[i] == 0 {
            self.ready.push((self.ranks[i], i));
        }
    }

    /// The parents because of which `action` on an image is refused now. A parent that isn't among the images stays.
    fn blocked_by(&self, i: usize, action: Action) -> impl Iterator<Item = &'a Digest> {
        let images = self.repository.images;
        images[i].parents.iter().filter(move |parent| match self.repository.places.get(parent) {
            None => true,
            Some(&parent) if self.done[parent] => {
                !self.intents[parent].is_some_and(|done| releases(done.action, action))
            }
            Some(&parent) => blocks(&images[parent], action),
        })
    }

    fn release_children(&mut self, parent: usize, done: Intent) {
        let repository = self.repository;
        for &child in repository.children.get(&parent).into_iter().flatten() {
            let Some(Intent { action, .. }) = self.intents[child] else { continue };
            let was_counted = !self.done[child] && blocks(&repository.images[parent], action);
            if was_counted && releases(done.action, action) {
                self.blockers[child] -= 1;
                if self.blockers[child] == 0 {
                    self.ready.push((self.ranks[child], child));
                }
            }
        }
    }

    /// Has the referrers of an image do as it did.
    fn call_referrers(&mut self, subject: usize, done: Intent) {
        for &referrer in self.repository.referrers.get(&subject).into_iter().flatten() {
            let can = done.action == Action::Expire
                || self.repository.images[referrer].status == ImageStatus::Active;
            if can {
                let intent = Intent { cause: Cause::FollowsSubject, ..done };
                self.intents[referrer] = Some(intent);
                self.enqueue(referrer, intent);
            }
        }
    }

    fn protected(&self) -> Vec<Protected<'a>> {
        let waiting = self.repository.by_age.iter().rev().filter(|&&i| !self.done[i]);
        let protect = |&i: &usize| {
            let intent = self.intents[i]?;
            let blocked_by = self.blocked_by(i, intent.action).collect();
            Some(Protected { mark: self.mark(i, intent), blocked_by })
        };
        waiting.filter_map(protect).collect()
    }
}

/// Returns whether an index that nothing happened to refuses an action on its child: to expire, an image must not be
/// referenced at all; to be archived, not by an index that can be pulled.
fn blocks(parent: &Image, child: Action) -> bool {
    child == Action::Expire || parent.status != ImageStatus::Archived
}

/// Returns whether what happened to an index makes way for what shall happen to its child.
fn releases(parent: Action, child: Action) -> bool {
    parent == Action::Expire || child == Action::Transition
}
