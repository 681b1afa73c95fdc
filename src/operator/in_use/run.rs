//! Carries a lifecycle policy out in one repository, or tells what it would do, and spares what is in use. What goes is
//! [`decide`]'s decision alone; this file loads, looks once more, and acts.
//!
//! Nothing is kept between two runs but what indexes hold, which their digests fix. Each run reads the rest again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use kube::Client;
use tokio::sync::Mutex as AsyncMutex;

use super::decision::{Decision, ImageAction, UnreadableIndex, decide, selects_anything};
use super::references::{Hosts, InUse};
use super::workloads::{CannotTell, ImageScope, in_use};
use crate::registry_client::{RegistryClient, RegistryError};
use wharfage_apply::error::named;
use wharfage_apply::{
    Children, MAX_IMAGE_IDS, StoredImage, Undeleted, archive, children, delete, images, reread_images,
};
use wharfage_domain::lifecycle::{Action, ImageStatus, Policy};
use wharfage_domain::names::{Digest, RepositoryName, Tag};
use wharfage_plan::model::{ApiError, ErrorKind};

/// Children of indexes that are remembered, over all registries: some ten MiB at most.
const REMEMBERED_CHILDREN: u64 = 50_000;
/// How old a list of what is in use may be that nothing is deleted by.
const LISTED_LATELY: Duration = Duration::from_secs(30);
/// Failures that are told.
const FAILURES: usize = 10;

/// Why a run came to nothing. Nothing was deleted since.
#[derive(Debug)]
pub enum Failure {
    /// The registry is unavailable, or refuses.
    Registry(RegistryError),
    /// It can't be told what is in use.
    CannotTell(CannotTell),
    /// It can't be told what an index in use holds.
    Index(UnreadableIndex),
}

impl From<RegistryError> for Failure {
    fn from(trouble: RegistryError) -> Self {
        Self::Registry(trouble)
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

/// What all runs share.
pub struct Shared {
    /// By registry and digest.
    indexes: moka::sync::Cache<(u64, Digest), Arc<Children>>,
    /// The lists of what is in use that were made lately. One is made at a time.
    lists: AsyncMutex<Vec<(ImageScope, Instant, Arc<InUse>)>>,
}

impl Default for Shared {
    fn default() -> Self {
        let weight = |_: &(u64, Digest), children: &Arc<Children>| match &**children {
            Children::Listed(children) => u32::try_from(children.len()).unwrap_or(u32::MAX).saturating_add(1),
            Children::Unreadable => 1,
        };
        let indexes = moka::sync::Cache::builder().weigher(weight).max_capacity(REMEMBERED_CHILDREN).build();
        Self { indexes, lists: AsyncMutex::default() }
    }
}

impl Shared {
    /// What is in use. The list was begun after `not_before`: of those who wait for one to begin, one makes it for all.
    ///
    /// # Errors
    /// When it can't be told.
    pub async fn in_use(
        &self,
        client: &Client,
        scope: &ImageScope,
        not_before: Instant,
    ) -> Result<Arc<InUse>, CannotTell> {
        let mut lists = self.lists.lock().await;
        lists.retain(|(_, at, _)| at.elapsed() < LISTED_LATELY);
        if let Some((_, _, list)) = lists.iter().find(|(of, at, _)| of == scope && *at >= not_before) {
            return Ok(Arc::clone(list));
        }
        let at = Instant::now();
        let list = Arc::new(in_use(client, scope).await?);
        lists.retain(|(of, ..)| of != scope);
        lists.push((scope.clone(), at, Arc::clone(&list)));
        Ok(list)
    }
}

/// What a run did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunReport {
    /// What was done, in this order.
    pub acts: Vec<ImageAction>,
    /// How many images that are in use a rule selected.
    pub protected: usize,
    /// How many images were no more what they had been when the policy was evaluated: they were pushed again, tagged, pulled,
    /// or deleted.
    pub changed: usize,
    /// How many images an index holds that was pushed meanwhile, or that can't be read.
    pub held: usize,
    /// What the registry would not do, some of it.
    pub failures: Vec<ApiError>,
}

/// A repository whose lifecycle policy the operator carries out.
pub struct Run<'a> {
    /// Its registry.
    pub registry_client: &'a RegistryClient,
    /// Its name.
    pub name: &'a RepositoryName,
    /// The hosts by which Pods know the registry.
    pub hosts: &'a Hosts,
    /// The policy.
    pub policy: &'a Policy,
    /// The API server, where Pods are.
    pub client: &'a Client,
    /// Whose images are in use.
    pub scope: &'a ImageScope,
    /// What all runs share.
    pub shared: &'a Shared,
    /// Somebody asks how it is now: what was listed lately doesn't do.
    pub anew: bool,
}

/// What a repository holds, and what is in it.
struct Looked {
    stored: Vec<StoredImage>,
    children: HashMap<Digest, Children>,
}

impl Run<'_> {
    /// What the policy would do.
    ///
    /// # Errors
    /// When that can't be told.
    pub async fn preview(&self) -> Result<Decision, Failure> {
        let now = Timestamp::now();
        let Some(looked) = self.look(now).await? else { return Ok(Decision::default()) };
        let latest = Instant::now();
        let not_before = if self.anew { latest } else { latest.checked_sub(LISTED_LATELY).unwrap_or(latest) };
        self.decide(&looked, not_before, now).await
    }

    /// Does it.
    ///
    /// # Errors
    /// When it can't be told what is in use: then nothing is done. When the registry is unavailable: then what was done is done, and
    /// the next run goes on.
    pub async fn enforce(&self) -> Result<RunReport, Failure> {
        let now = Timestamp::now();
        let Some(looked) = self.look(now).await? else { return Ok(RunReport::default()) };
        let Decision { acts, protected } = self.decide(&looked, Instant::now(), now).await?;
        // Deleting an image tag by tag is safe against a push, deleting it by its digest against an index that holds it.
        let by_digest = looked.children.values().any(|children| *children == Children::Unreadable);
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

    /// What there is; nothing if the policy selects nothing of it.
    async fn look(&self, now: Timestamp) -> Result<Option<Looked>, Failure> {
        let ecr = self.registry_client.ecr();
        let stored = self.registry_client.ask(images(ecr, self.name)).await?;
        // What indexes hold is asked for only now: ECR counts that as pulling them.
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
        for (digest, children) in self.registry_client.ask(children(ecr, self.name, &unknown)).await? {
            if let Children::Listed(_) = children {
                self.shared.indexes.insert((registry, digest.clone()), Arc::new(children.clone()));
            }
            known.insert(digest, children);
        }
        Ok(Some(Looked { stored, children: known }))
    }

    async fn decide(&self, looked: &Looked, not_before: Instant, now: Timestamp) -> Result<Decision, Failure> {
        let in_use = self.shared.in_use(self.client, self.scope, not_before).await?;
        let used = in_use.of(self.hosts, self.name);
        Ok(evaluating(|| decide(self.policy, &looked.stored, &looked.children, &used, now))?)
    }

    /// Acts on images of which none holds another, or refers to another. What is not as it was is left unchanged, and so is then what
    /// it holds, and what refers to it.
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

        let by_tags = expiring.iter().map(|ImageAction { image, .. }| match image.tags.as_slice() {
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
                Err(trouble) => return Err(trouble.into()),
            }
        }
        Ok(())
    }
}

impl RunReport {
    /// What the registry says of an image that it lets be.
    fn note(&mut self, error: ApiError) {
        match error.kind {
            ErrorKind::ImageReferenced => self.held += 1,
            // Without support for the new class it is archived already, or an index holds it: which of the two is not said.
            ErrorKind::ImageNotFound | ErrorKind::ImageTagMoved | ErrorKind::StorageClassNotSupported => {
                self.changed += 1;
            }
            _ if self.failures.len() < FAILURES => self.failures.push(error),
            _ => {}
        }
    }
}

/// Whether UpdateImageStorageClass refuses one image that is no longer what it was. All else is about the registry.
fn is_about_one_image(error: &ApiError) -> bool {
    matches!(error.kind, ErrorKind::ImageNotFound | ErrorKind::StorageClassNotSupported)
}

/// Whether an image is still what was decided about. That an index was pulled doesn't count: we did that ourselves.
fn is_as_it_was(act: &ImageAction, now: &StoredImage) -> bool {
    let (was, now) = (&act.image, &now.image);
    let (tags, tags_now): (HashSet<_>, HashSet<_>) = (was.tags.iter().collect(), now.tags.iter().collect());
    let pulled = act.action == Action::Transition && !act.is_index && was.last_pulled_at != now.last_pulled_at;
    tags == tags_now
        && !pulled
        && (was.status, was.pushed_at, was.activated_at) == (now.status, now.pushed_at, now.activated_at)
        && now.status != ImageStatus::Activating
}

/// Runs what may take a good part of a second beside what answers.
fn evaluating<T>(evaluate: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(evaluate)
}
