//! A repository that one reconcile has for itself: read, changed, and remembered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::OwnedMutexGuard;

use super::RegistryClient;
use super::cache::{CachedRepository, Freshness, Read, RefreshDue, Summary};
use super::health::RegistryError;
use wharfage_apply::{ImageUsage, Listed, RepositoryNeeds, execute, find, observe_repository, usage};
use wharfage_domain::names::RepositoryName;
use wharfage_plan::model::ObservedRepository;
use wharfage_plan::ownership::Ownership;
use wharfage_plan::{Call, Step};

/// What was read this recently is what is there: a change may be based on it.
const JUST_READ: Duration = Duration::from_secs(5);

/// A repository that nobody else looks at or changes meanwhile.
pub struct LockedRepository {
    pub(super) registry_client: Arc<RegistryClient>,
    pub(super) name: RepositoryName,
    pub(super) known: OwnedMutexGuard<CachedRepository>,
}

impl Drop for LockedRepository {
    fn drop(&mut self) {
        let summary = Summary::of(&self.known);
        if let Some(entry) = self.registry_client.places().get_mut(&self.name) {
            entry.summary = summary;
        }
    }
}

impl LockedRepository {
    /// What the repository is like; nothing if there is none.
    ///
    /// # Errors
    /// When the registry is unavailable, or refuses to say.
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
            let due = now || recreated || read.turn.is_over(Instant::now(), interval, rotation);
            if read.needs.covers(needs) && !due {
                read.observed.tag_mutability = listed.tag_mutability.clone();
                read.observed.scan_on_push = listed.scan_on_push;
                read.observed.encryption = listed.encryption.clone();
                return Ok(Some(read.observed.clone()));
            }
        }
        self.read(needs, &listed).await
    }

    /// Reads tags and policies, unless that was done just now: what is to be changed must be ours still.
    ///
    /// # Errors
    /// When the registry is unavailable, or refuses to say.
    pub async fn refresh_before_write(
        &mut self,
        needs: RepositoryNeeds,
    ) -> Result<Option<ObservedRepository>, RegistryError> {
        if let Some(read) = &self.known.read
            && read.turn.at.elapsed() < JUST_READ
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

    pub(super) async fn read(
        &mut self,
        needs: RepositoryNeeds,
        listed: &Listed,
    ) -> Result<Option<ObservedRepository>, RegistryError> {
        let needs = needs.and(self.known.asked);
        self.known.asked = needs;
        let at = Instant::now();
        let answer =
            self.registry_client.ask(observe_repository(&self.registry_client.ecr, &self.name, listed, needs)).await?;
        self.known.read = answer.clone().map(|observed| {
            // What the tags speak of was read in any case.
            let Ownership { manages, lifecycle, .. } = Ownership::read(&observed.tags);
            let read =
                RepositoryNeeds { policy: manages.policy, lifecycle_policy: lifecycle.is_some(), preview: false };
            Read { turn: RefreshDue::of(at), needs: needs.and(read), observed }
        });
        if answer.is_none() {
            self.known.listed = Some((at, None));
        }
        Ok(answer)
    }

    /// What the listing says of it, or a newer answer about it alone.
    pub(super) async fn listed(&mut self, max_age: Duration) -> Result<Option<Listed>, RegistryError> {
        if self.known.needs_refresh {
            return self.find().await;
        }
        let listing = self.registry_client.listing(max_age).await?;
        if let Some((at, listed)) = &self.known.listed
            && *at >= listing.at
        {
            return Ok(listed.clone());
        }
        listing.repositories.get(&self.name).cloned().transpose().map_err(RegistryError::Rejected)
    }

    /// Asks about it alone.
    pub(super) async fn find(&mut self) -> Result<Option<Listed>, RegistryError> {
        let at = Instant::now();
        let listed = self.registry_client.ask(find(&self.registry_client.ecr, &self.name)).await?;
        self.known.listed = Some((at, listed.clone()));
        self.known.needs_refresh = false;
        Ok(listed)
    }

    /// What is known of it from the listing, without asking.
    pub fn as_listed(&self) -> Option<Listed> {
        let listing = self.registry_client.last_listing();
        match &self.known.listed {
            Some((at, listed)) if listing.as_ref().is_none_or(|listing| listing.at <= *at) => listed.clone(),
            _ => listing?.repositories.get(&self.name).cloned()?.ok(),
        }
    }

    /// Carries a step out, and remembers what it did.
    ///
    /// # Errors
    /// When the registry is unavailable, or refuses.
    pub async fn execute(&mut self, step: &Step) -> Result<(), RegistryError> {
        let (registry_client, at) = (Arc::clone(&self.registry_client), Instant::now());
        let mut listed = self.as_listed();
        let known = &mut *self.known;
        let remember = |call: &Call, made: Option<Listed>| {
            if let Some(made) = made {
                let observed = ObservedRepository::made(made.arn.clone(), call);
                // All of it is known: it was made just now.
                let needs = RepositoryNeeds { policy: true, lifecycle_policy: true, preview: true };
                known.read = observed.map(|observed| Read { turn: RefreshDue::of(at), needs, observed });
                known.usage = Some((RefreshDue::of(at), ImageUsage::default()));
                listed = Some(made);
            } else if let Call::DeleteRepository { .. } = call {
                (known.read, known.usage, listed) = (None, None, None);
            } else if let Some(read) = &mut known.read {
                read.observed.after(call);
                if let Some(listed) = &mut listed {
                    listed.tag_mutability = read.observed.tag_mutability.clone();
                    listed.scan_on_push = read.observed.scan_on_push;
                }
            }
        };
        let outcome = registry_client.ask(execute(&registry_client.ecr, step, None, remember)).await;
        if outcome.is_ok() {
            known.listed = Some((at, listed));
        } else {
            (known.read, known.listed, known.needs_refresh) = (None, None, true);
        }
        outcome
    }

    /// Its images, counted within the rotation; nothing if nobody counted yet.
    ///
    /// # Errors
    /// When the registry is unavailable, or refuses to say.
    pub async fn usage(&mut self, freshness: Freshness) -> Result<ImageUsage, RegistryError> {
        let rotation = self.registry_client.rotation();
        if let Some((turn, usage)) = &self.known.usage
            && !freshness.now
            && !turn.is_over(Instant::now(), freshness.interval, rotation)
        {
            return Ok(usage.clone());
        }
        let at = Instant::now();
        let counted = self.registry_client.ask(usage(&self.registry_client.ecr, &self.name)).await?;
        self.known.usage = Some((RefreshDue::of(at), counted.clone()));
        Ok(counted)
    }

    /// The client that it belongs to.
    pub fn registry_client(&self) -> &Arc<RegistryClient> {
        &self.registry_client
    }
}
