//! Leader election: of all replicas of the operator one works, by a Lease (coordination.k8s.io/v1)
//! that it keeps renewing.
//!
//! Clocks of two machines are never compared. A candidate takes over the lease when, by its own
//! clock, the lease has not changed for its whole duration. The leader, by its own clock, stops
//! well before that. In between nobody works:
//!
//! ```text
//! leader      renewal sent ─────────── 6 s: the work is dropped and writes are refused
//! candidate     └► change seen ──────────────────────────── 10 s: takes over
//! ```
//!
//! Each write of the lease replaces one resourceVersion, so that one of two candidates wins. A
//! leader writes through its [`Term`], which refuses requests after the deadline. So a process that
//! was paused, and continues after another took over, cannot write.
//!
//! The crate kube-lease-manager does not give that. It compares the leader's `renewTime` with the
//! candidate's own clock, and its renewals and forced takeovers are patches without a
//! resourceVersion. It reports leadership as a flag, and has no term that tasks carry and that
//! refuses their late writes.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use futures::FutureExt as _;
use futures::future::Either;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::client::Body;
use kube::{Api, Client};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::policy_rule::{Feature, PolicyRule, RuleScope};

/// Permissions for the election.
pub(super) const RULES: &[PolicyRule] = &[PolicyRule {
    group: "coordination.k8s.io",
    resources: &["leases"],
    verbs: &["get", "create", "update"],
    scope: RuleScope::OwnNamespace,
    feature: Feature::Core,
    reason: "who works, of several replicas",
}];

/// The duration of the lease: a lease that is not renewed excludes others for this long.
const LEASE_DURATION: Duration = Duration::from_secs(10);
/// The time after the request of the last renewal until which the leader may work.
const RENEW_DEADLINE: Duration = Duration::from_secs(6);
const RENEW_INTERVAL: Duration = Duration::from_secs(2);
/// The interval at which a candidate reads the lease: a released lease is acquired within this
/// time.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// The pause after a failed renewal.
const RETRY_PERIOD: Duration = Duration::from_millis(500);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// The lease, and the candidate.
#[derive(Debug, Clone)]
pub struct Election {
    /// The namespace of the Lease.
    pub namespace: String,
    /// The name of the Lease.
    pub name: String,
    /// The candidate, unique to the process: a Pod's name survives the restart of its container.
    pub identity: String,
    /// The time that the work may take to end after a stop, before it is dropped and the lease is
    /// released.
    pub grace: Duration,
}

/// A time in which this replica leads. Clones share the term.
#[derive(Debug, Clone)]
pub struct Term {
    /// Nothing if the term has no end.
    until: Arc<Mutex<Option<Instant>>>,
    stopping: CancellationToken,
}

/// The error of a request that a [`Term`] refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this replica does not lead any more")]
pub struct NotLeading;

impl Term {
    fn new(until: Option<Instant>) -> Self {
        Self { until: Arc::new(Mutex::new(until)), stopping: CancellationToken::new() }
    }

    /// Makes a term that lasts as long as the process, without an election.
    pub fn unlimited() -> Self {
        Self::new(None)
    }

    /// Makes a term that ended at this time.
    #[cfg(test)]
    pub(super) fn ended_at(end: Instant) -> Self {
        Self::new(Some(end))
    }

    /// Returns whether the term lasts. A write after it may conflict with the next leader's.
    pub fn lasts(&self) -> bool {
        self.until().is_none_or(|until| Instant::now() < until)
    }

    /// Returns the time since the end of the term.
    pub fn over_for(&self) -> Option<Duration> {
        Instant::now().checked_duration_since(self.until()?)
    }

    /// Waits until the work should end: it finishes what runs, and begins nothing new.
    pub async fn stopping(&self) {
        self.stopping.cancelled().await;
    }

    /// Makes a client that refuses requests after the term.
    pub fn guard(&self, client: Client) -> Client {
        let (term, namespace) = (self.clone(), client.default_namespace().to_owned());
        let guarded = tower::service_fn(move |request: http::Request<Body>| {
            let (term, client) = (term.clone(), client.clone());
            async move {
                if !term.lasts() {
                    return Err(kube::Error::Service(NotLeading.into()));
                }
                client.send(request).await
            }
        });
        Client::new(guarded, namespace)
    }

    fn until(&self) -> Option<Instant> {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_until(&self, until: Instant) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }
}

/// Runs `work` in each term of this process, until `stop`. On `stop` the work may continue for the
/// election's grace; then, or when it has ended, the lease is released.
///
/// # Errors
/// Of the work; the lease is released before.
pub async fn lead<F, Fut>(
    client: Client,
    election: &Election,
    stop: impl Future<Output = ()>,
    mut work: F,
) -> anyhow::Result<()>
where
    F: FnMut(Term) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let stop = stop.shared();
    let mut candidate = Candidate::new(client, election);
    loop {
        let Some(until) = candidate.campaign(stop.clone()).await else { return Ok(()) };
        tracing::info!(lease = %election.name, identity = %election.identity, "leading");
        let (term, ended) = (Term::new(Some(until)), CancellationToken::new());
        // In its own task, so that busy work does not delay the renewal.
        let mut renewing = JoinSet::new();
        renewing.spawn(candidate.renew(term.clone(), ended.clone()));
        let outcome = tokio::select! {
            biased;
            Some(lost) = renewing.join_next() => Either::Left(lost),
            outcome = until_stop(work(term.clone()), &term, stop.clone(), election.grace) => Either::Right(outcome),
        };
        // The work is dropped by here. Requests of tasks that it left running are refused from now
        // on.
        match outcome {
            Either::Left(lost) => {
                term.set_until(Instant::now());
                candidate = lost.context("the task that renews the lease failed")?;
                tracing::warn!(lease = %election.name, "not leading any more: the lease was lost");
            }
            Either::Right(outcome) => {
                ended.cancel();
                let held = renewing.join_next().await;
                term.set_until(Instant::now());
                if let Some(Ok(mut candidate)) = held {
                    candidate.release().await;
                }
                return outcome;
            }
        }
    }
}

/// Runs `work` without an election, until `stop`, and then for `grace` at most.
pub async fn work_alone<F, Fut>(
    grace: Duration,
    stop: impl Future<Output = ()>,
    work: F,
) -> anyhow::Result<()>
where
    F: FnOnce(Term) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let term = Term::unlimited();
    until_stop(work(term.clone()), &term, stop, grace).await
}

/// Runs `work` to its end. On `stop` it is asked to end, and dropped if that takes longer than
/// `grace`.
async fn until_stop(
    work: impl Future<Output = anyhow::Result<()>>,
    term: &Term,
    stop: impl Future<Output = ()>,
    grace: Duration,
) -> anyhow::Result<()> {
    let mut work = pin!(work);
    tokio::select! {
        biased;
        () = stop => {}
        outcome = &mut work => return outcome,
    }
    term.stopping.cancel();
    timeout(grace, work).await.unwrap_or_else(|_elapsed| {
        tracing::warn!(grace_seconds = grace.as_secs(), "ended with reconciles still running");
        Ok(())
    })
}

/// The next action on the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LeaseDecision {
    /// No one holds it.
    Acquire,
    /// This candidate holds it.
    Renew,
    /// Another candidate holds it, for this long at least.
    Wait(Duration),
}

/// The lease as this candidate last observed it.
#[derive(Debug, Clone, Default)]
struct ObservedLease {
    /// The object, if it exists.
    lease: Option<Lease>,
    /// The last spec. A lease that is deleted by hand still counts for its duration: its holder
    /// works until it notices.
    spec: LeaseSpec,
    /// The time of its last change, by our clock.
    changed: Option<Instant>,
}

impl ObservedLease {
    /// Records the lease that was read at `at`.
    fn note(&mut self, lease: Option<Lease>, at: Instant) {
        if let Some(spec) = lease.as_ref().map(|lease| lease.spec.clone().unwrap_or_default())
            && (self.changed.is_none() || spec != self.spec)
        {
            self.spec = spec;
            self.changed = Some(at);
        }
        self.lease = lease;
    }

    /// Decides for the candidate `me` at `now`.
    fn decide(&self, me: &str, now: Instant) -> LeaseDecision {
        let holder = self.spec.holder_identity.as_deref().filter(|holder| !holder.is_empty());
        match (holder, self.changed) {
            (None, _) | (_, None) => LeaseDecision::Acquire,
            (Some(holder), _) if holder == me => LeaseDecision::Renew,
            (Some(_), Some(changed)) => {
                let seconds = self
                    .spec
                    .lease_duration_seconds
                    .and_then(|seconds| u64::try_from(seconds).ok());
                let lasts = seconds.map_or(LEASE_DURATION, Duration::from_secs);
                match (changed + lasts).saturating_duration_since(now) {
                    Duration::ZERO => LeaseDecision::Acquire,
                    rest => LeaseDecision::Wait(rest),
                }
            }
        }
    }

    /// Returns the spec with which `me` acquires or renews it.
    fn claimed(&self, me: &str, now: Timestamp) -> LeaseSpec {
        let held_before = self.spec.holder_identity.as_deref() == Some(me);
        let transitions = self.spec.lease_transitions.unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(me.to_owned()),
            lease_duration_seconds: Some(LEASE_DURATION.as_secs() as i32),
            acquire_time: if held_before {
                self.spec.acquire_time.clone()
            } else {
                Some(MicroTime(now))
            },
            renew_time: Some(MicroTime(now)),
            // The first holder takes it from no one.
            lease_transitions: Some(
                transitions + i32::from(!held_before && self.changed.is_some()),
            ),
            ..self.spec.clone()
        }
    }

    /// Returns the spec with which its holder releases it.
    fn released(&self, now: Timestamp) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            renew_time: Some(MicroTime(now)),
            ..self.spec.clone()
        }
    }
}

/// The result of an attempt to hold the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    /// This candidate holds it; the request was sent at this time.
    Held(Instant),
    /// Another candidate holds it, for this long at least.
    Taken(Duration),
    /// Another candidate wrote it at the same time.
    Conflict,
}

struct Candidate {
    api: Api<Lease>,
    election: Election,
    seen: ObservedLease,
    /// True if `seen` is the last own write, so that a renewal needs no read.
    fresh: bool,
    /// True if the last request failed. The first and the last failure of a series are logged.
    failing: bool,
}

impl Candidate {
    fn new(client: Client, election: &Election) -> Self {
        Self {
            api: Api::namespaced(client, &election.namespace),
            election: election.clone(),
            seen: ObservedLease::default(),
            fresh: false,
            failing: false,
        }
    }

    /// Waits until this candidate leads. Returns the deadline of the term, or nothing if `stop`
    /// came before.
    async fn campaign(&mut self, stop: impl Future<Output = ()>) -> Option<Instant> {
        let mut stop = pin!(stop);
        loop {
            // A request is never cancelled: it could make us the leader without our knowledge.
            let pause = match self.attempt(&[LeaseDecision::Acquire, LeaseDecision::Renew]).await {
                Some(Attempt::Held(since)) => return Some(since + RENEW_DEADLINE),
                Some(Attempt::Taken(rest)) => rest.min(POLL_INTERVAL),
                Some(Attempt::Conflict) | None => POLL_INTERVAL,
            };
            tokio::select! {
                biased;
                () = &mut stop => return None,
                () = sleep(pause) => {}
            }
        }
    }

    /// Renews the lease until `ended`, or until it is lost.
    async fn renew(mut self, term: Term, ended: CancellationToken) -> Self {
        let mut pause = RENEW_INTERVAL;
        loop {
            let Some(until) = term.until() else { return self };
            tokio::select! {
                biased;
                () = ended.cancelled() => return self,
                () = sleep_until(until) => return self,
                () = sleep(pause) => {}
            }
            let attempt = tokio::select! {
                biased;
                attempt = self.attempt(&[LeaseDecision::Renew]) => attempt,
                () = sleep_until(until) => {
                    self.fresh = false;
                    return self;
                }
            };
            pause = match attempt {
                Some(Attempt::Held(since)) => {
                    term.set_until(since + RENEW_DEADLINE);
                    RENEW_INTERVAL
                }
                Some(Attempt::Taken(_)) => return self,
                Some(Attempt::Conflict) | None => RETRY_PERIOD,
            };
        }
    }

    /// Attempts to hold the lease, if the decision is one of `willing`. Returns nothing if the
    /// request failed.
    async fn attempt(&mut self, willing: &[LeaseDecision]) -> Option<Attempt> {
        let attempt = timeout(REQUEST_TIMEOUT, self.try_to_hold(willing)).await;
        let failure = match attempt {
            Ok(Ok(attempt)) => {
                if std::mem::take(&mut self.failing) {
                    tracing::info!(lease = %self.election.name, "the lease can be written again");
                }
                return Some(attempt);
            }
            Ok(Err(kube::Error::Api(refused))) if refused.code == 403 => format!(
                "{}: the service account needs get, create and update of leases in namespace {}",
                refused.message, self.election.namespace
            ),
            Ok(Err(error)) => error.to_string(),
            Err(_elapsed) => "no answer in time".to_owned(),
        };
        self.fresh = false;
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(lease = %self.election.name, failure, "the lease cannot be read or written; trying on");
        }
        None
    }

    async fn try_to_hold(&mut self, willing: &[LeaseDecision]) -> Result<Attempt, kube::Error> {
        if !std::mem::take(&mut self.fresh) {
            let lease = self.api.get_opt(&self.election.name).await?;
            self.seen.note(lease, Instant::now());
        }
        let asked = Instant::now();
        let decision = self.seen.decide(&self.election.identity, asked);
        if let LeaseDecision::Wait(rest) = decision {
            return Ok(Attempt::Taken(rest));
        }
        if !willing.contains(&decision) {
            return Ok(Attempt::Taken(Duration::ZERO));
        }
        let spec = self.seen.claimed(&self.election.identity, Timestamp::now());
        match self.write(spec).await {
            Ok(()) => {
                self.fresh = true;
                Ok(Attempt::Held(asked))
            }
            // Written, created or deleted by another candidate meanwhile.
            Err(kube::Error::Api(refused)) if matches!(refused.code, 404 | 409) => {
                Ok(Attempt::Conflict)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes the lease onto the observed version, with a new spec. Another write meanwhile is a
    /// conflict.
    async fn write(&mut self, spec: LeaseSpec) -> Result<(), kube::Error> {
        let parameters =
            PostParams { field_manager: Some("wharfage".into()), ..PostParams::default() };
        let name = &self.election.name;
        let written = match &self.seen.lease {
            Some(lease) => {
                let lease = Lease { metadata: lease.metadata.clone(), spec: Some(spec) };
                self.api.replace(name, &parameters, &lease).await?
            }
            None => {
                let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
                self.api.create(&parameters, &Lease { metadata, spec: Some(spec) }).await?
            }
        };
        self.seen.note(Some(written), Instant::now());
        Ok(())
    }

    /// Releases the lease, so that the next leader does not wait until it ends.
    async fn release(&mut self) {
        // After a failed renewal its holder is unknown. The lease then expires.
        if !self.fresh {
            return;
        }
        self.fresh = false;
        let spec = self.seen.released(Timestamp::now());
        match timeout(REQUEST_TIMEOUT, self.write(spec)).await {
            Ok(Ok(())) => tracing::info!(lease = %self.election.name, "gave the lease back"),
            Ok(Err(error)) => {
                tracing::warn!(lease = %self.election.name, %error, "cannot give the lease back")
            }
            Err(_elapsed) => {
                tracing::warn!(lease = %self.election.name, "cannot give the lease back: no answer in time")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_by(holder: &str, transitions: i32, renewed: i64) -> Lease {
        let renewed = MicroTime(Timestamp::from_second(renewed).unwrap());
        let spec = LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(10),
            lease_transitions: Some(transitions),
            acquire_time: Some(renewed.clone()),
            renew_time: Some(renewed),
            ..LeaseSpec::default()
        };
        Lease { metadata: ObjectMeta::default(), spec: Some(spec) }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_free_lease_is_acquired_at_once() {
        let now = Instant::now();
        let mut seen = ObservedLease::default();
        seen.note(None, now);
        assert_eq!(seen.decide("me", now), LeaseDecision::Acquire);
        assert_eq!(seen.claimed("me", Timestamp::UNIX_EPOCH).lease_transitions, Some(0));

        seen.note(Some(held_by("", 3, 0)), now);
        assert_eq!(seen.decide("me", now), LeaseDecision::Acquire);
        assert_eq!(seen.claimed("me", Timestamp::UNIX_EPOCH).lease_transitions, Some(4));

        let mut empty = ObservedLease::default();
        empty.note(Some(Lease::default()), now);
        assert_eq!(empty.decide("me", now), LeaseDecision::Acquire);
    }

    #[test]
    fn anothers_lease_is_taken_when_it_has_not_changed_for_as_long_as_it_lasts() {
        let start = Instant::now();
        let mut seen = ObservedLease::default();
        seen.note(Some(held_by("other", 0, 100)), start);
        seen.note(Some(held_by("other", 0, 100)), start + seconds(4));
        assert_eq!(seen.decide("me", start + seconds(4)), LeaseDecision::Wait(seconds(6)));
        assert_eq!(seen.decide("me", start + seconds(10)), LeaseDecision::Acquire);

        seen.note(Some(held_by("other", 0, 102)), start + seconds(5));
        assert_eq!(seen.decide("me", start + seconds(10)), LeaseDecision::Wait(seconds(5)));
    }

    #[test]
    fn the_holders_clock_does_not_count() {
        let now = Instant::now();
        for renewed in [0, 4_000_000_000] {
            let mut seen = ObservedLease::default();
            seen.note(Some(held_by("other", 0, renewed)), now);
            assert_eq!(seen.decide("me", now), LeaseDecision::Wait(seconds(10)));
        }
    }

    #[test]
    fn a_deleted_lease_counts_until_its_end() {
        let start = Instant::now();
        let mut seen = ObservedLease::default();
        seen.note(Some(held_by("other", 2, 100)), start);
        seen.note(None, start + seconds(3));
        assert_eq!(seen.decide("me", start + seconds(3)), LeaseDecision::Wait(seconds(7)));
        assert_eq!(seen.decide("me", start + seconds(10)), LeaseDecision::Acquire);
        assert_eq!(seen.decide("other", start + seconds(3)), LeaseDecision::Renew);
        assert_eq!(seen.claimed("other", Timestamp::UNIX_EPOCH).lease_transitions, Some(2));
    }

    #[test]
    fn renewing_changes_nothing_but_the_time() {
        let mut seen = ObservedLease::default();
        seen.note(Some(held_by("me", 2, 100)), Instant::now());
        let later = Timestamp::from_second(102).unwrap();
        let expected = LeaseSpec { renew_time: Some(MicroTime(later)), ..seen.spec.clone() };
        assert_eq!(seen.claimed("me", later), expected);
    }

    #[test]
    fn a_released_lease_is_free_and_keeps_its_transitions() {
        let now = Instant::now();
        let mut seen = ObservedLease::default();
        seen.note(Some(held_by("me", 2, 100)), now);
        let released = seen.released(Timestamp::UNIX_EPOCH);
        seen.note(Some(Lease { metadata: ObjectMeta::default(), spec: Some(released) }), now);
        assert_eq!(seen.decide("other", now), LeaseDecision::Acquire);
        assert_eq!(seen.claimed("other", Timestamp::UNIX_EPOCH).lease_transitions, Some(3));
    }

    #[test]
    fn a_leader_stops_well_before_another_may_begin() {
        assert!(
            RENEW_DEADLINE + REQUEST_TIMEOUT < LEASE_DURATION
                && RENEW_INTERVAL + REQUEST_TIMEOUT < RENEW_DEADLINE
        );
    }

    #[test]
    fn a_term_is_over_at_its_deadline() {
        let now = Instant::now();
        assert!(Term::new(Some(now + RENEW_DEADLINE)).lasts());
        assert!(!Term::new(Some(now)).lasts());
        assert!(Term::unlimited().lasts());
    }

    #[tokio::test]
    async fn a_client_sends_nothing_after_its_term() {
        let nobody = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let client = Client::try_from(nobody).unwrap();
        let ask =
            async |term: Term| term.guard(client.clone()).apiserver_version().await.unwrap_err();
        let refused = |error: &kube::Error| matches!(error, kube::Error::Service(why) if why.is::<NotLeading>());
        assert!(!refused(&ask(Term::unlimited()).await));
        let error = ask(Term::ended_at(Instant::now())).await;
        assert!(refused(&error), "{error:?}");
    }

    #[tokio::test]
    async fn work_is_asked_to_end_and_dropped_if_it_does_not() {
        let term = Term::unlimited();
        let obliging = term.clone();
        let work = async move {
            obliging.stopping().await;
            anyhow::bail!("ended by itself")
        };
        let outcome = until_stop(work, &term, async {}, seconds(3600)).await;
        assert_eq!(outcome.unwrap_err().to_string(), "ended by itself");

        let endless = std::future::pending();
        until_stop(endless, &Term::unlimited(), async {}, Duration::ZERO).await.unwrap();
    }
}
