//! A registry as the operator knows it: one client, one listing that all resources share, what was read of each repository,
//! and whether the registry answers at all.
//!
//! What is asked of a registry in steady state grows with the pages of its listing, not with the resources in it: the listing
//! is read once per interval; tags and policies, which ECR gives for one repository at a time, are read before anything is
//! changed, when somebody asks, and otherwise in rotation, about [`LOOKS_PER_INTERVAL`] repositories in an interval.

mod counting;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use crate::apply::{
    Ecr, ImageUsage, Listed, Listing, RepositoryNeeds, carry_out, find, list, look, pulse, registry_id, usage,
};
use crate::names::RepositoryName;
use crate::plan::model::{ApiError, ErrorKind, ObservedRepository};
use crate::plan::ownership::{LifecycleOwner, Ownership};
use crate::plan::{Call, Step};

pub use counting::Totals;

/// Repositories whose tags and policies are read again in an interval, when nothing else asks for it.
pub const LOOKS_PER_INTERVAL: usize = 100;
/// What was read this recently is what is there: a change may be based on it.
const JUST_READ: Duration = Duration::from_secs(5);
/// The first pause after a registry did not answer; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Why a look or a change came to nothing.
#[derive(Debug, Clone)]
pub enum Trouble {
    /// The registry is down, slow, throttling, or answers what makes no sense.
    Away(Away),
    /// It refused this.
    Refused(ApiError),
}

/// A registry that does not answer.
#[derive(Debug, Clone)]
pub struct Away {
    /// Since when.
    pub since: Timestamp,
    /// What happened.
    pub message: String,
    /// How long until it is tried again.
    pub retry: Duration,
}

impl Away {
    /// The sentence for a condition. It stays the same while the registry is away, so that it is written once.
    pub fn message(&self, registry: &str) -> String {
        let Self { since, message, retry: _ } = self;
        let since = since.strftime("%H:%M:%SZ on %F");
        let most = LONGEST_PAUSE.as_secs();
        format!("Registry {registry} does not answer since {since}: {message}; tried again every {most} s or sooner")
    }
}

/// Whether it is not well, or wants to be left alone for a while.
pub fn is_away(error: &ApiError) -> bool {
    error.kind.is_server_fault() || error.kind == ErrorKind::Throttled
}

/// Whether the registry answers.
#[derive(Debug, Default)]
struct Health {
    down: Option<Down>,
}

#[derive(Debug)]
struct Down {
    since: Timestamp,
    failures: u32,
    next: Instant,
    /// Whether one request was let through since the last failure that counted.
    probed: bool,
    message: String,
}

impl Down {
    fn away(&self, now: Instant) -> Away {
        Away { since: self.since, message: self.message.clone(), retry: self.next.saturating_duration_since(now) }
    }
}

impl Health {
    /// May it be asked? While it is down one is let through when a pause is over, to find out: true for that one.
    fn admit(&mut self, now: Instant) -> Result<bool, Away> {
        let Some(down) = &mut self.down else { return Ok(false) };
        if now >= down.next {
            down.next = now + pause(down.failures);
            down.probed = true;
            return Ok(true);
        }
        Err(down.away(now))
    }

    /// Of requests that were under way together only the first that fails counts.
    fn failed(&mut self, now: Instant, at: Timestamp, message: String) -> Away {
        let down =
            self.down.get_or_insert(Down { since: at, failures: 0, next: now, probed: true, message: String::new() });
        if down.probed {
            down.failures = down.failures.saturating_add(1);
            down.next = now + pause(down.failures);
            down.probed = false;
            // The first message stays, so that conditions do not change with each.
            if down.message.is_empty() {
                down.message = message;
            }
        }
        down.away(now)
    }

    /// Whether this is news.
    fn answered(&mut self) -> bool {
        self.down.take().is_some()
    }
}

fn pause(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(LONGEST_PAUSE)
}

/// How new what is known must be.
#[derive(Debug, Clone, Copy)]
pub struct Freshness {
    /// The resource's interval: what is older is read again.
    pub interval: Duration,
    /// Everything is read again now.
    pub now: bool,
}

struct Snapshot {
    at: Instant,
    repositories: Listing,
}

/// What was listed last, and what came of it when that was tried since.
#[derive(Default)]
struct Listings {
    last: Option<Arc<Snapshot>>,
    refused: Option<NotListed>,
}

/// A registry that answers, but does not list its repositories.
#[derive(Debug, Clone)]
struct NotListed {
    at: Instant,
    /// How often one after the other.
    times: u32,
    error: ApiError,
}

impl Listings {
    /// What serves somebody who asked then, for a listing at most this old: one that began since, too. A refusal serves those
    /// that waited for it, and for a while everybody but who wants it now: each try may take as long as a registry is waited for.
    fn serve(&self, asked: Instant, max_age: Duration) -> Option<Result<Arc<Snapshot>, Trouble>> {
        let now = Instant::now();
        if let Some(last) = self.last.as_ref().filter(|it| it.at >= asked || now.duration_since(it.at) < max_age) {
            return Some(Ok(Arc::clone(last)));
        }
        let NotListed { at, times, error } = self.refused.as_ref()?;
        let rest = if max_age.is_zero() { Duration::ZERO } else { pause(*times) };
        (asked < *at + rest).then(|| Err(Trouble::Refused(error.clone())))
    }
}

/// A registry.
pub struct Session {
    name: String,
    ecr: Ecr,
    /// Of what it was made: a Registry that asks for something else gets another session.
    fingerprint: u64,
    listings: Mutex<Listings>,
    /// Held by whoever lists, for all.
    listing: AsyncMutex<()>,
    repositories: Mutex<HashMap<RepositoryName, Place>>,
    health: Mutex<Health>,
    /// Where it is and which account's, once it answered that.
    registry: OnceLock<(String, String)>,
    /// When images were counted last that nobody else counts.
    counting: Mutex<Option<Instant>>,
    /// Held by whoever finds out whether it is the registry that fails, or one operation.
    doubting: AsyncMutex<()>,
    recovered: Box<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Where what is known of one repository lies.
#[derive(Debug, Clone, Default)]
struct Place {
    known: Arc<AsyncMutex<Known>>,
    told: Told,
}

/// What others are told of a repository without waiting for whoever is busy with it: as it was when the last one let go of it.
#[derive(Debug, Clone, Default)]
struct Told {
    lifecycle: Option<LifecycleOwner>,
    usage: Option<(Turn, ImageUsage)>,
}

impl Told {
    fn of(known: &Known) -> Self {
        let tags = known.read.as_ref().map(|read| &read.observed.tags);
        Self { lifecycle: tags.and_then(LifecycleOwner::read), usage: known.usage.clone() }
    }
}

/// What is known of one repository.
#[derive(Debug, Default)]
struct Known {
    /// What anybody asked for: read together, so that those who ask for different things do not read in turns.
    asked: RepositoryNeeds,
    /// From an answer about it alone; a newer listing replaces it.
    listed: Option<(Instant, Option<Listed>)>,
    /// A change of it failed, and nobody knows how far that came: what a listing says of it does not do until it was asked for.
    doubtful: bool,
    read: Option<Read>,
    usage: Option<(Turn, ImageUsage)>,
}

/// When something was read, and for what part of a rotation that serves: half of it at least. Each time another part, so that
/// what was read together is not read again together.
#[derive(Debug, Clone, Copy)]
struct Turn {
    at: Instant,
    part: f64,
}

impl Turn {
    fn of(at: Instant) -> Self {
        Self { at, part: 0.5 + 0.5 * fastrand::f64() }
    }

    /// Whether it is to be read again; never before an interval is over.
    fn is_over(self, now: Instant, interval: Duration, rotation: u32) -> bool {
        let intervals = (f64::from(rotation) * self.part).max(1.0);
        now.duration_since(self.at) >= interval.mul_f64(intervals)
    }
}

#[derive(Debug)]
struct Read {
    turn: Turn,
    needs: RepositoryNeeds,
    observed: ObservedRepository,
}

impl Session {
    /// A session; nothing is sent yet. `recovered` is called when the registry answers again after it did not.
    pub fn new(name: &str, ecr: Ecr, fingerprint: u64, recovered: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            name: name.to_owned(),
            ecr,
            fingerprint,
            listings: Mutex::default(),
            listing: AsyncMutex::default(),
            repositories: Mutex::default(),
            health: Mutex::default(),
            registry: OnceLock::new(),
            counting: Mutex::default(),
            doubting: AsyncMutex::default(),
            recovered: Box::new(recovered),
        }
    }

    /// Of what it was made.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// It answered that it is the registry of this account, at this place. A session never becomes another registry's.
    pub fn found(&self, place: &str, account: &str) {
        self.registry.get_or_init(|| (place.to_owned(), account.to_owned()));
    }

    /// Where it is and which account's, once that is known.
    pub fn registry(&self) -> Option<&(String, String)> {
        self.registry.get()
    }

    /// The client. What is asked with it goes through [`Self::ask`].
    pub fn ecr(&self) -> &Ecr {
        &self.ecr
    }

    /// Asks the registry something, unless it is known to be away. What it never gets right, while it answers otherwise, is
    /// refused with the error's name.
    ///
    /// # Errors
    /// When it is away, or refuses.
    pub async fn ask<T>(&self, question: impl Future<Output = Result<T, ApiError>>) -> Result<T, Trouble> {
        let finds_out = self.health().admit(Instant::now()).map_err(Trouble::Away)?;
        if finds_out {
            // The question may be the very one that never works, so that it is not what finds out.
            self.pulse().await?;
        }
        match question.await {
            Err(error) if error.kind.is_server_fault() && finds_out => {
                self.answered();
                Err(Trouble::Refused(error))
            }
            Err(error) if error.kind.is_server_fault() && self.answers_otherwise().await => {
                Err(Trouble::Refused(error))
            }
            answer => self.note(answer),
        }
    }

    /// Whether the registry gets something else right. One finds out for all: those that wait for it learn of it.
    async fn answers_otherwise(&self) -> bool {
        let _one_asks = self.doubting.lock().await;
        let down = self.health().down.is_some();
        !down && self.pulse().await.is_ok()
    }

    /// Whether it answers at all. That it refuses to say who it is is an answer, too.
    async fn pulse(&self) -> Result<(), Trouble> {
        match pulse(&self.ecr).await {
            Err(error) if is_away(&error) => self.note(Err(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Remembers from an answer whether the registry is there.
    fn note<T>(&self, answer: Result<T, ApiError>) -> Result<T, Trouble> {
        match answer {
            Err(error) if is_away(&error) => {
                let message = match error.kind {
                    ErrorKind::Unavailable | ErrorKind::CredentialsUnavailable => error.message,
                    _ => error.to_string(),
                };
                tracing::debug!(registry = self.name, message, "the registry is away");
                Err(Trouble::Away(self.health().failed(Instant::now(), Timestamp::now(), message)))
            }
            answer => {
                self.answered();
                answer.map_err(Trouble::Refused)
            }
        }
    }

    fn answered(&self) {
        if self.health().answered() {
            tracing::info!(registry = self.name, "the registry answers again");
            (self.recovered)();
        }
    }

    fn health(&self) -> std::sync::MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The listing, at most this old: read again by one for all.
    async fn listing(&self, max_age: Duration) -> Result<Arc<Snapshot>, Trouble> {
        let asked = Instant::now();
        if let Some(served) = self.listings().serve(asked, max_age) {
            return served;
        }
        let _one_lists = match self.listing.try_lock() {
            Ok(free) => free,
            Err(_) => {
                // What was refused before is tried again by one: nobody else stands and waits for that.
                let refused = self.listings().refused.clone().filter(|_| !max_age.is_zero());
                if let Some(NotListed { error, .. }) = refused {
                    return Err(Trouble::Refused(error));
                }
                self.listing.lock().await
            }
        };
        if let Some(served) = self.listings().serve(asked, max_age) {
            return served;
        }
        // A repository made while the listing goes on may be missing in it, so its time is that of its beginning.
        let at = Instant::now();
        match self.ask(list(&self.ecr)).await {
            Ok(repositories) => {
                self.forget_what_is_gone(&repositories, at);
                let new = Arc::new(Snapshot { at, repositories });
                let before =
                    std::mem::replace(&mut *self.listings(), Listings { last: Some(Arc::clone(&new)), refused: None });
                if before.refused.is_some() {
                    tracing::info!(registry = self.name, "the registry lists its repositories again");
                    (self.recovered)();
                }
                Ok(new)
            }
            Err(Trouble::Refused(error)) => {
                let mut listings = self.listings();
                let times = listings.refused.as_ref().map_or(0, |it| it.times).saturating_add(1);
                listings.refused = Some(NotListed { at: Instant::now(), times, error: error.clone() });
                Err(Trouble::Refused(error))
            }
            // All learn of that from its health.
            Err(Trouble::Away(away)) => Err(Trouble::Away(away)),
        }
    }

    fn listings(&self) -> std::sync::MutexGuard<'_, Listings> {
        self.listings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last_listing(&self) -> Option<Arc<Snapshot>> {
        self.listings().last.clone()
    }

    /// What was known of repositories that are listed no more, and that nobody is busy with.
    fn forget_what_is_gone(&self, listed: &Listing, at: Instant) {
        self.places().retain(|name, Place { known, .. }| {
            let busy = || known.try_lock().map_or(true, |it| it.listed.as_ref().is_some_and(|(when, _)| *when >= at));
            listed.contains_key(name) || busy()
        });
    }

    /// The repositories that are known to have a lifecycle policy of such an owner.
    pub fn governed_by(&self, owner: impl Fn(&LifecycleOwner) -> bool) -> Vec<RepositoryName> {
        let places = self.places();
        let governed = places.iter().filter(|(_, it)| it.told.lifecycle.as_ref().is_some_and(&owner));
        governed.map(|(name, _)| name.clone()).collect()
    }

    /// One repository, for oneself: two resources that mean the same one come one after the other.
    pub async fn repository(self: &Arc<Self>, name: &RepositoryName) -> Held {
        let known = self.known(name);
        Held { session: Arc::clone(self), name: name.clone(), known: known.lock_owned().await }
    }

    /// The same, unless somebody else is busy with it.
    fn idle_repository(self: &Arc<Self>, name: &RepositoryName) -> Option<Held> {
        let known = self.known(name).try_lock_owned().ok()?;
        Some(Held { session: Arc::clone(self), name: name.clone(), known })
    }

    fn known(&self, name: &RepositoryName) -> Arc<AsyncMutex<Known>> {
        Arc::clone(&self.places().entry(name.clone()).or_default().known)
    }

    fn places(&self) -> std::sync::MutexGuard<'_, HashMap<RepositoryName, Place>> {
        self.repositories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what another session knows of repositories, if both are of the same registry by what it answers. The listing
    /// it makes anew: that tells what is there still.
    pub async fn take_over(&self, other: &Self, place: &str) {
        let Some((its_place, account)) = other.registry() else { return };
        if its_place == place && self.ask(registry_id(&self.ecr)).await.is_ok_and(|answered| answered == *account) {
            let known = other.places().clone();
            *self.places() = known;
        }
    }
}

/// A repository that nobody else looks at or changes meanwhile.
pub struct Held {
    session: Arc<Session>,
    name: RepositoryName,
    known: OwnedMutexGuard<Known>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let told = Told::of(&self.known);
        if let Some(place) = self.session.places().get_mut(&self.name) {
            place.told = told;
        }
    }
}

impl Held {
    /// What the repository is like; nothing if there is none.
    ///
    /// # Errors
    /// When the registry is away, or refuses to say.
    pub async fn look(
        &mut self,
        needs: RepositoryNeeds,
        freshness: Freshness,
    ) -> Result<Option<ObservedRepository>, Trouble> {
        let Freshness { interval, now } = freshness;
        let listed = if now { self.find().await? } else { self.listed(interval).await? };
        let Some(listed) = listed else {
            self.known.read = None;
            self.known.usage = None;
            return Ok(None);
        };
        if let Some(read) = &mut self.known.read {
            let recreated = read.observed.arn != listed.arn;
            let rotation = self.session.rotation();
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
    /// When the registry is away, or refuses to say.
    pub async fn look_before_change(&mut self, needs: RepositoryNeeds) -> Result<Option<ObservedRepository>, Trouble> {
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

    async fn read(&mut self, needs: RepositoryNeeds, listed: &Listed) -> Result<Option<ObservedRepository>, Trouble> {
        let needs = needs.and(self.known.asked);
        self.known.asked = needs;
        let at = Instant::now();
        let answer = self.session.ask(look(&self.session.ecr, &self.name, listed, needs)).await?;
        self.known.read = answer.clone().map(|observed| {
            // What the tags speak of was read in any case.
            let Ownership { manages, lifecycle, .. } = Ownership::read(&observed.tags);
            let read =
                RepositoryNeeds { policy: manages.policy, lifecycle_policy: lifecycle.is_some(), preview: false };
            Read { turn: Turn::of(at), needs: needs.and(read), observed }
        });
        if answer.is_none() {
            self.known.listed = Some((at, None));
        }
        Ok(answer)
    }

    /// What the listing says of it, or a newer answer about it alone.
    async fn listed(&mut self, max_age: Duration) -> Result<Option<Listed>, Trouble> {
        if self.known.doubtful {
            return self.find().await;
        }
        let listing = self.session.listing(max_age).await?;
        if let Some((at, listed)) = &self.known.listed
            && *at >= listing.at
        {
            return Ok(listed.clone());
        }
        listing.repositories.get(&self.name).cloned().transpose().map_err(Trouble::Refused)
    }

    /// Asks about it alone.
    async fn find(&mut self) -> Result<Option<Listed>, Trouble> {
        let at = Instant::now();
        let listed = self.session.ask(find(&self.session.ecr, &self.name)).await?;
        self.known.listed = Some((at, listed.clone()));
        self.known.doubtful = false;
        Ok(listed)
    }

    /// What is known of it from the listing, without asking.
    pub fn as_listed(&self) -> Option<Listed> {
        let listing = self.session.last_listing();
        match &self.known.listed {
            Some((at, listed)) if listing.as_ref().is_none_or(|listing| listing.at <= *at) => listed.clone(),
            _ => listing?.repositories.get(&self.name).cloned()?.ok(),
        }
    }

    /// Carries a step out, and remembers what it did.
    ///
    /// # Errors
    /// When the registry is away, or refuses.
    pub async fn carry_out(&mut self, step: &Step) -> Result<(), Trouble> {
        let (session, at) = (Arc::clone(&self.session), Instant::now());
        let mut listed = self.as_listed();
        let known = &mut *self.known;
        let remember = |call: &Call, made: Option<Listed>| {
            if let Some(made) = made {
                let observed = ObservedRepository::made(made.arn.clone(), call);
                // All of it is known: it was made just now.
                let needs = RepositoryNeeds { policy: true, lifecycle_policy: true, preview: true };
                known.read = observed.map(|observed| Read { turn: Turn::of(at), needs, observed });
                known.usage = Some((Turn::of(at), ImageUsage::default()));
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
        let outcome = session.ask(carry_out(&session.ecr, step, None, remember)).await;
        if outcome.is_ok() {
            known.listed = Some((at, listed));
        } else {
            (known.read, known.listed, known.doubtful) = (None, None, true);
        }
        outcome
    }

    /// Its images, counted within the rotation; nothing if nobody counted yet.
    ///
    /// # Errors
    /// When the registry is away, or refuses to say.
    pub async fn usage(&mut self, freshness: Freshness) -> Result<ImageUsage, Trouble> {
        let rotation = self.session.rotation();
        if let Some((turn, usage)) = &self.known.usage
            && !freshness.now
            && !turn.is_over(Instant::now(), freshness.interval, rotation)
        {
            return Ok(usage.clone());
        }
        let at = Instant::now();
        let counted = self.session.ask(usage(&self.session.ecr, &self.name)).await?;
        self.known.usage = Some((Turn::of(at), counted.clone()));
        Ok(counted)
    }

    /// The session that it belongs to.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }
}

impl Session {
    /// In how many intervals each repository is looked at once.
    pub fn rotation(&self) -> u32 {
        let repositories = self.last_listing().map_or(0, |it| it.repositories.len());
        u32::try_from(repositories.div_ceil(LOOKS_PER_INTERVAL)).unwrap_or(u32::MAX).max(1)
    }
}

/// The registries that are known, by the names of their Registry resources.
#[derive(Debug, Default)]
pub struct Sessions(RwLock<HashMap<String, Last>>);

/// A Registry's last session, and whether it goes on.
#[derive(Debug)]
struct Last {
    session: Arc<Session>,
    goes_on: bool,
}

impl Sessions {
    /// The session of a Registry, if it has one.
    pub fn get(&self, registry: &str) -> Option<Arc<Session>> {
        let sessions = self.0.read().unwrap_or_else(PoisonError::into_inner);
        sessions.get(registry).filter(|it| it.goes_on).map(|it| Arc::clone(&it.session))
    }

    /// The session that a Registry has or had: what it knows serves the next one.
    pub fn last(&self, registry: &str) -> Option<Arc<Session>> {
        let sessions = self.0.read().unwrap_or_else(PoisonError::into_inner);
        sessions.get(registry).map(|it| Arc::clone(&it.session))
    }

    /// Whether two Registries are the same registry; nothing if one of them did not answer yet, or has no session.
    pub fn same_registry(&self, one: &str, other: &str) -> Option<bool> {
        let (one, other) = (self.get(one)?, self.get(other)?);
        Some(one.registry()? == other.registry()?)
    }

    /// Gives a Registry its session.
    pub fn put(&self, registry: &str, session: Arc<Session>) {
        self.write().insert(registry.to_owned(), Last { session, goes_on: true });
    }

    /// Takes a Registry's session away; says whether it had one.
    pub fn remove(&self, registry: &str) -> bool {
        self.write().get_mut(registry).is_some_and(|it| std::mem::take(&mut it.goes_on))
    }

    /// Forgets a Registry that is gone.
    pub fn forget(&self, registry: &str) {
        self.write().remove(registry);
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<String, Last>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
