//! Enforces a lifecycle policy in one repository, or previews it, without the images in use.
//! [`decide`] alone decides; this file reads, reads once more before a deletion, and acts.
//!
//! Only the contents of indexes are kept between two runs, because their digests fix them. Each run
//! reads the rest again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use kube::Client;
use tokio::sync::Mutex as AsyncMutex;

use super::decision::{ImageAction, InUseDecision, UnreadableIndex, decide, selects_anything};
use super::references::{Hosts, InUse};
use super::workloads::{CannotTell, ImageScope, in_use};
use crate::registry_client::{RegistryClient, RegistryError};
use wharfage_apply::error::named;
use wharfage_apply::{
    Children, MAX_IMAGE_IDS, StoredImage, Undeleted, archive, children, delete, images,
    reread_images,
};
use wharfage_domain::lifecycle::{Action, ImageStatus, Policy};
use wharfage_domain::names::{Digest, RepositoryName, Tag};
use wharfage_plan::model::{ApiError, ErrorKind};

/// The number of cached children of indexes, over all registries: some ten MiB at most.
const REMEMBERED_CHILDREN: u64 = 50_000;
/// The age up to which a list of images in use serves a preview.
const LISTED_LATELY: Duration = Duration::from_secs(30);
/// The number of reported failures.
const FAILURES: usize = 10;

/// The reason for which a run stopped. Nothing was deleted after it.
#[derive(Debug)]
pub enum Failure {
    /// The registry is unavailable, or rejects a request.
    Registry(RegistryError),
    /// The images in use are unknown.
    CannotTell(CannotTell),
    /// The contents of an index in use are unknown.
    Index(UnreadableIndex),
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        Self::Registry(error)
    }
}

impl From<CannotTell> for Failure {
    fn from(error: CannotTell) -> Self {
        Self::CannotTell(error)
    }
}

impl From<UnreadableIndex> for Failure {
    fn from(error: UnreadableIndex) -> Self {
        Self::Index(error)
    }
}

/// The caches that all runs share.
pub struct Shared {
    /// By registry and digest.
    indexes: moka::sync::Cache<(u64, Digest), Arc<Children>>,
    /// Recent lists of images in use. One is made at a time.
    lists: AsyncMutex<Vec<(ImageScope, Instant, Arc<InUse>)>>,
}

impl Default for Shared {
    fn default() -> Self {
        let weight = |_: &(u64, Digest), children: &Arc<Children>| match &**children {
            Children::Listed(children) => {
                u32::try_from(children.len()).unwrap_or(u32::MAX).saturating_add(1)
            }
            Children::Unreadable => 1,
        };
        let indexes =
            moka::sync::Cache::builder().weigher(weight).max_capacity(REMEMBERED_CHILDREN).build();
        Self { indexes, lists: AsyncMutex::default() }
    }
}

impl Shared {
    /// Lists the images in use, starting after `not_before`. Concurrent callers share one list.
    ///
    /// # Errors
    /// When a list fails.
    pub async fn in_use(
        &self,
        client: &Client,
        scope: &ImageScope,
        not_before: Instant,
    ) -> Result<Arc<InUse>, CannotTell> {
        let mut lists = self.lists.lock().await;
        lists.retain(|(_, at, _)| at.elapsed() < LISTED_LATELY);
        if let Some((_, _, list)) =
            lists.iter().find(|(of, at, _)| of == scope && *at >= not_before)
        {
            return Ok(Arc::clone(list));
        }
        let at = Instant::now();
        let list = Arc::new(in_use(client, scope).await?);
        lists.retain(|(of, ..)| of != scope);
        lists.push((scope.clone(), at, Arc::clone(&list)));
        Ok(list)
    }
}

/// The result of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunReport {
    /// The executed actions, in their order.
    pub acts: Vec<ImageAction>,
    /// The number of images in use that a rule selected.
    pub protected: usize,
    /// The number of images that changed after the evaluation: pushed again, tagged, pulled, or
    /// deleted.
    pub changed: usize,
    /// The number of images in an index that was pushed meanwhile, or that cannot be read.
    pub held: usize,
    /// Some of the requests that the registry rejected.
    pub failures: Vec<ApiError>,
}

/// A repository whose lifecycle policy the operator enforces.
pub struct Run<'a> {
    pub registry_client: &'a RegistryClient,
    pub name: &'a RepositoryName,
    /// The hosts by which Pods know the registry.
    pub hosts: &'a Hosts,
    pub policy: &'a Policy,
    pub client: &'a Client,
    /// The workloads whose images count as in use.
    pub scope: &'a ImageScope,
    pub shared: &'a Shared,
    /// True if a reconcile was requested, so that a recent list is not enough.
    pub is_requested: bool,
}

/// The images of a repository, and the contents of its indexes.
struct RepositoryImages {
    stored: Vec<StoredImage>,
    children: HashMap<Digest, Children>,
}

impl Run<'_> {
    /// Previews the policy.
    ///
    /// # Errors
    /// When the images in use or the images of the repository are unknown.
    pub async fn preview(&self) -> Result<InUseDecision, Failure> {
        let now = Timestamp::now();
        let Some(images) = self.read_images(now).await? else {
            return Ok(InUseDecision::default());
        };
        let latest = Instant::now();
        let not_before = if self.is_requested {
            latest
        } else {
            latest.checked_sub(LISTED_LATELY).unwrap_or(latest)
        };
        self.decide(&images, not_before, now).await
    }

    /// Enforces the policy.
    ///
    /// # Errors
    /// When the images in use are unknown: then nothing is deleted. When the registry is
    /// unavailable: then the next run continues.
    pub async fn enforce(&self) -> Result<RunReport, Failure> {
        let now = Timestamp::now();
        let Some(images) = self.read_images(now).await? else { return Ok(RunReport::default()) };
        let InUseDecision { acts, protected } = self.decide(&images, Instant::now(), now).await?;
        // Deleting an image tag by tag is safe against a push. Deleting it by digest is safe
        // against an index that holds it.
        let by_digest = images.children.values().any(|children| *children == Children::Unreadable);
        let mut done = RunReport { protected, ..RunReport::default() };
        let mut kept = HashSet::new();
        let layers = acts.iter().map(|act| act.layer + 1).max().unwrap_or_default();
        for layer in 0..layers {
            let acts: Vec<&ImageAction> = acts.iter().filter(|act| act.layer == layer).collect();
            for acts in acts.chunks(MAX_IMAGE_IDS) {
                self.act(acts, by_digest, &mut kept, &mut done).await?;
            }
        }
        tracing::info!(
            repository = %self.name,
            acts = done.acts.len(),
            protected = done.protected,
            changed = done.changed,
            held = done.held,
            failures = done.failures.len(),
            "enforced a lifecycle policy"
        );
        Ok(done)
    }

    /// Reads the repository; nothing if the policy selects no image.
    async fn read_images(&self, now: Timestamp) -> Result<Option<RepositoryImages>, Failure> {
        let ecr = self.registry_client.ecr();
        let stored = self.registry_client.ask(images(ecr, self.name)).await?;
        // Indexes are read only now: ECR counts a read as a pull.
        if !evaluating(|| selects_anything(self.policy, &stored, now)) {
            return Ok(None);
        }
        let registry = self.registry_client.fingerprint();
        let mut known = HashMap::new();
        let mut unknown = Vec::new();
        for index in stored.iter().filter(|it| it.is_index) {
            let digest = &index.image.digest;
            match self.shared.indexes.get(&(registry, digest.clone())) {
                Some(children) => {
                    known.insert(digest.clone(), (*children).clone());
                }
                None => unknown.push(digest),
            }
        }
        for (digest, children) in
            self.registry_client.ask(children(ecr, self.name, &unknown)).await?
        {
            if let Children::Listed(_) = children {
                self.shared.indexes.insert((registry, digest.clone()), Arc::new(children.clone()));
            }
            known.insert(digest, children);
        }
        Ok(Some(RepositoryImages { stored, children: known }))
    }

    async fn decide(
        &self,
        images: &RepositoryImages,
        not_before: Instant,
        now: Timestamp,
    ) -> Result<InUseDecision, Failure> {
        let in_use = self.shared.in_use(self.client, self.scope, not_before).await?;
        let used = in_use.of(self.hosts, self.name);
        Ok(evaluating(|| decide(self.policy, &images.stored, &images.children, &used, now))?)
    }

    /// Acts on images of which none holds another, or refers to another. An image that changed
    /// stays, with what it holds and what refers to it.
    async fn act(
        &self,
        acts: &[&ImageAction],
        by_digest: bool,
        kept: &mut HashSet<Digest>,
        done: &mut RunReport,
    ) -> Result<(), Failure> {
        let ecr = self.registry_client.ecr();
        let digests: Vec<&Digest> = acts.iter().map(|act| &act.image.digest).collect();
        let now = self.registry_client.ask(reread_images(ecr, self.name, &digests)).await?;
        let (mut expiring, mut archiving) = (Vec::new(), Vec::new());
        for act in acts {
            let image = &act.image;
            if image.parents.iter().chain(&image.subject).any(|it| kept.contains(it)) {
                done.held += 1;
                kept.insert(image.digest.clone());
            } else if !now.get(&image.digest).is_some_and(|now| is_as_it_was(act, now)) {
                done.changed += 1;
                kept.insert(image.digest.clone());
            } else {
                match act.action {
                    Action::Expire => expiring.push(*act),
                    Action::Transition => archiving.push(*act),
                }
            }
        }

        let by_tags =
            expiring.iter().map(|ImageAction { image, .. }| match image.tags.as_slice() {
                tags if by_digest && tags.len() > 1 => (&image.digest, [].as_slice()),
                tags => (&image.digest, tags),
            });
        let images: Vec<(&Digest, &[Tag])> = by_tags.collect();
        let undeleted = self.registry_client.ask(delete(ecr, self.name, &images)).await?;
        for act in expiring {
            match undeleted.iter().find(|it| it.digest == act.image.digest) {
                None => done.acts.push(act.clone()),
                Some(Undeleted { digest, code, reason }) => {
                    kept.insert(digest.clone());
                    done.note(named(code, format!("{digest}: {reason}")));
                }
            }
        }
        for act in archiving {
            let digest = &act.image.digest;
            match self.registry_client.ask(archive(ecr, self.name, digest)).await {
                Ok(()) => done.acts.push(act.clone()),
                Err(RegistryError::Rejected(error)) if is_about_one_image(&error) => {
                    kept.insert(digest.clone());
                    done.note(error.with_prefix(digest));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl RunReport {
    /// Returns the reason for which the registry leaves an image unchanged.
    fn note(&mut self, error: ApiError) {
        match error.kind {
            ErrorKind::ImageReferenced => self.held += 1,
            // The image is archived already, or an index holds it: the answer does not say which.
            ErrorKind::ImageNotFound
            | ErrorKind::ImageTagMoved
            | ErrorKind::StorageClassNotSupported => {
                self.changed += 1;
            }
            _ if self.failures.len() < FAILURES => self.failures.push(error),
            _ => {}
        }
    }
}

/// Returns whether UpdateImageStorageClass rejects one image that changed. Any other error is about
/// the registry.
fn is_about_one_image(error: &ApiError) -> bool {
    matches!(error.kind, ErrorKind::ImageNotFound | ErrorKind::StorageClassNotSupported)
}

/// Returns whether an image is the one that was decided about. A pull of an index does not count,
/// because this run causes it.
fn is_as_it_was(act: &ImageAction, now: &StoredImage) -> bool {
    let (was, now) = (&act.image, &now.image);
    let (tags, tags_now): (HashSet<_>, HashSet<_>) =
        (was.tags.iter().collect(), now.tags.iter().collect());
    let pulled = act.action == Action::Transition
        && !act.is_index
        && was.last_pulled_at != now.last_pulled_at;
    tags == tags_now
        && !pulled
        && (was.status, was.pushed_at, was.activated_at)
            == (now.status, now.pushed_at, now.activated_at)
        && now.status != ImageStatus::Activating
}

/// Runs a computation that may take a good part of a second on another thread.
fn evaluating<T>(evaluate: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(evaluate)
}
