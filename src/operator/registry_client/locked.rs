//! A locked repository: read, changed and cached by one reconcile at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::RegistryClient;
use super::cache::{CachedObject, LockedObject};
use super::health::RegistryError;
use super::rotation::{Freshness, RefreshDue};
use wharfage_apply::{
    ImageUsage, Listed, RepositoryNeeds, execute, find, observe_repository, usage,
};
use wharfage_domain::names::RepositoryName;
use wharfage_plan::model::ObservedRepository;
use wharfage_plan::ownership::{LifecycleOwner, Ownership};
use wharfage_plan::{Call, RepositoryCall, Step};

/// The age up to which a cached state is current enough for a change.
const MAX_AGE_FOR_WRITE: Duration = Duration::from_secs(5);

/// The cached state of one repository.
#[derive(Debug, Default)]
pub(super) struct CachedRepository {
    /// The parts that any resource needs. They are read together, so that resources with different needs do not cause a read
    /// each.
    needs: RepositoryNeeds,
    /// The last response about this repository alone; a newer listing replaces it.
    pub(super) listed: Option<(Instant, Option<Listed>)>,
    /// A change failed, and its effect is unknown: the repository is read alone before a listing counts again.
    needs_refresh: bool,
    read: Option<CachedRead>,
    pub(super) usage: Option<(RefreshDue, ImageUsage)>,
}

/// The part of a repository's state that is read without its lock.
#[derive(Debug, Clone, Default)]
pub(super) struct RepositorySummary {
    pub(super) lifecycle: Option<LifecycleOwner>,
    pub(super) usage: Option<(RefreshDue, ImageUsage)>,
}

#[derive(Debug)]
struct CachedRead {
    due: RefreshDue,
    needs: RepositoryNeeds,
    observed: ObservedRepository,
}

impl CachedObject for CachedRepository {
    type Summary = RepositorySummary;

    fn summary(&self) -> RepositorySummary {
        let tags = self.read.as_ref().map(|read| &read.observed.tags);
        RepositorySummary {
            lifecycle: tags.and_then(LifecycleOwner::read),
            usage: self.usage.clone(),
        }
    }
}

/// A repository that no other reconcile reads or changes meanwhile.
pub struct LockedRepository {
    pub(super) registry_client: Arc<RegistryClient>,
    pub(super) name: RepositoryName,
    pub(super) known: LockedObject<CachedRepository>,
}

impl LockedRepository {
    /// Returns the repository's state; `None` if it does not exist.
    ///
    /// # Errors
    /// When the registry is unavailable or rejects the request.
    pub async fn observe(
        &mut self,
        needs: RepositoryNeeds,
        freshness: Freshness,
    ) -> Result<Option<ObservedRepository>, RegistryError> {
        let Freshness { interval, now } = freshness;
        let listed = if now { self.find().await? } else { self.listed(interval).await? };
        let Some(listed) = listed else {
            self.known.read = None;
            self.known.usage = None;
            return Ok(None);
        };
        if let Some(read) = &mut self.known.read {
            let recreated = read.observed.arn != listed.arn;
            let rotation = self.registry_client.rotation();
            let due = now || recreated || read.due.is_over(Instant::now(), interval, rotation);
            if read.needs.covers(needs) && !due {
                read.observed.tag_mutability = listed.tag_mutability.clone();
                read.observed.scan_on_push = listed.scan_on_push;
                read.observed.encryption = listed.encryption.clone();
                return Ok(Some(read.observed.clone()));
            }
        }
        self.read(needs, &listed).await
    }

    /// Reads tags and policies before a change, unless they were read moments ago: the repository may have another owner by
    /// now.
    ///
    /// # Errors
    /// When the registry is unavailable or rejects the request.
    pub async fn refresh_before_write(
        &mut self,
        needs: RepositoryNeeds,
    ) -> Result<Option<ObservedRepository>, RegistryError> {
        if let Some(read) = &self.known.read
            && read.due.at.elapsed() < MAX_AGE_FOR_WRITE
            && read.needs.covers(needs)
        {
            return Ok(Some(read.observed.clone()));
        }
        let Some(listed) = self.find().await? else {
            self.known.read = None;
            return Ok(None);
        };
        self.read(needs, &listed).await
    }

    async fn read(
        &mut self,
        needs: RepositoryNeeds,
        listed: &Listed,
    ) -> Result<Option<ObservedRepository>, RegistryError> {
        let needs = needs.and(self.known.needs);
        self.known.needs = needs;
        let at = Instant::now();
        let answer = self
            .registry_client
            .ask(observe_repository(&self.registry_client.ecr, &self.name, listed, needs))
            .await?;
        self.known.read = answer.clone().map(|observed| {
            // The parts that the tags record were read in any case.
            let Ownership { manages, lifecycle, .. } = Ownership::read(&observed.tags);
            let read = RepositoryNeeds {
                policy: manages.policy,
                lifecycle_policy: lifecycle.is_some(),
                preview: false,
            };
            CachedRead { due: RefreshDue::of(at), needs: needs.and(read), observed }
        });
        if answer.is_none() {
            self.known.listed = Some((at, None));
        }
        Ok(answer)
    }

    /// Returns the repository in a listing at most this old, or in a newer response about it alone.
    async fn listed(&mut self, max_age: Duration) -> Result<Option<Listed>, RegistryError> {
        if self.known.needs_refresh {
            return self.find().await;
        }
        let listing = self.registry_client.listing(max_age).await?;
        if let Some((at, listed)) = &self.known.listed
            && *at >= listing.at
        {
            return Ok(listed.clone());
        }
        listing.objects.get(&self.name).cloned().transpose().map_err(RegistryError::Rejected)
    }

    /// Reads the repository alone.
    async fn find(&mut self) -> Result<Option<Listed>, RegistryError> {
        let at = Instant::now();
        let listed = self.registry_client.ask(find(&self.registry_client.ecr, &self.name)).await?;
        self.known.listed = Some((at, listed.clone()));
        self.known.needs_refresh = false;
        Ok(listed)
    }

    /// Returns the repository as it was last listed, without calling the registry.
    pub fn as_listed(&self) -> Option<Listed> {
        let listing = self.registry_client.last_listing();
        match &self.known.listed {
            Some((at, listed)) if listing.as_ref().is_none_or(|listing| listing.at <= *at) => {
                listed.clone()
            }
            _ => listing?.objects.get(&self.name).cloned()?.ok(),
        }
    }

    /// Executes a step, and updates the cached state.
    ///
    /// # Errors
    /// When the registry is unavailable or rejects a call.
    pub async fn execute(&mut self, step: &Step) -> Result<(), RegistryError> {
        let (registry_client, at) = (Arc::clone(&self.registry_client), Instant::now());
        let mut listed = self.as_listed();
        let known = &mut *self.known;
        let remember = |call: &Call, created: Option<Listed>| {
            let Some(call) = call.repository() else { return };
            if let Some(created) = created {
                let observed = ObservedRepository::created(created.arn.clone(), call);
                // Its whole state is known, because it was created just now.
                let needs = RepositoryNeeds { policy: true, lifecycle_policy: true, preview: true };
                known.read = observed.map(|observed| CachedRead {
                    due: RefreshDue::of(at),
                    needs,
                    observed,
                });
                known.usage = Some((RefreshDue::of(at), ImageUsage::default()));
                listed = Some(created);
            } else if let RepositoryCall::DeleteRepository { .. } = call {
                (known.read, known.usage, listed) = (None, None, None);
            } else if let Some(read) = &mut known.read {
                read.observed.simulate(call);
                if let Some(listed) = &mut listed {
                    listed.tag_mutability = read.observed.tag_mutability.clone();
                    listed.scan_on_push = read.observed.scan_on_push;
                }
            }
        };
        let outcome =
            registry_client.ask(execute(&registry_client.ecr, step, None, remember)).await;
        if outcome.is_ok() {
            known.listed = Some((at, listed));
        } else {
            (known.read, known.listed, known.needs_refresh) = (None, None, true);
        }
        outcome
    }

    /// Returns its images, counted once per rotation.
    ///
    /// # Errors
    /// When the registry is unavailable or rejects the request.
    pub async fn usage(&mut self, freshness: Freshness) -> Result<ImageUsage, RegistryError> {
        let rotation = self.registry_client.rotation();
        if let Some((due, usage)) = &self.known.usage
            && !freshness.now
            && !due.is_over(Instant::now(), freshness.interval, rotation)
        {
            return Ok(usage.clone());
        }
        let at = Instant::now();
        let counted =
            self.registry_client.ask(usage(&self.registry_client.ecr, &self.name)).await?;
        self.known.usage = Some((RefreshDue::of(at), counted.clone()));
        Ok(counted)
    }

    /// Returns the client of its registry.
    pub fn registry_client(&self) -> &Arc<RegistryClient> {
        &self.registry_client
    }
}
