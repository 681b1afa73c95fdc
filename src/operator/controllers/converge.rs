//! Makes a repository what one resource asks for: decide, refresh, decide again, execute; and what is told of drift.

use std::time::Duration;

use super::{LastSync, next, refused_by_registry, show, unavailable};
use crate::context::Context;
use crate::registry_client::{Freshness, LockedRepository, RegistryError};
use crate::status::{Cause, ReadyState};
use wharfage_apply::RepositoryNeeds;
use wharfage_crd::{Condition, Reason};
use wharfage_plan::model::{ApiError, ObservedRepository, Refused};
use wharfage_plan::{FieldChange, Step};

/// What one resource asks of a repository.
pub(super) trait Converge {
    /// What must be known of the repository.
    fn needs(&self) -> RepositoryNeeds;

    /// Plans for this resource; nothing if the resource is another one by now.
    fn decide(&self, found: Option<ObservedRepository>) -> Option<Result<Option<Step>, Refused>>;

    /// Returns whether the repository must be read once more before the step: it may belong to somebody else by now.
    fn must_refresh(&self, step: &Step, found: Option<&ObservedRepository>) -> bool;

    /// Returns whether an error says that the listing was old.
    fn is_stale(&self, error: &ApiError) -> bool;

    /// Returns whether the step corrects drift.
    fn is_drift(&self, step: &Step, found: Option<&ObservedRepository>) -> bool;

    /// Returns whether to read the repository again after the step, since another cluster may have written it as well.
    fn must_verify(&self, step: &Step) -> bool;
}

/// A step, and whether it corrects drift.
pub(super) struct Correction {
    pub(super) step: Step,
    pub(super) is_drift: bool,
}

/// How converging ended.
pub(super) enum Ending {
    /// The repository is as the resource asks.
    InSync,
    /// The resource is another one by now.
    Outdated,
    /// The plan refuses the resource.
    Refused(Refused),
    /// The repository could not be read.
    Unread(RegistryError),
    /// A step failed.
    Failed(Correction, RegistryError),
}

/// What converging did.
pub(super) struct Convergence {
    /// The executed steps.
    pub(super) executed: Vec<Correction>,
    /// The repository as it was last read.
    pub(super) found: Option<ObservedRepository>,
    /// How it ended.
    pub(super) ending: Ending,
}

/// Converges a locked repository, of which `found` was read before.
pub(super) async fn converge<C: Converge>(
    rules: &C,
    held: &mut LockedRepository,
    freshness: Freshness,
    found: Option<ObservedRepository>,
) -> Convergence {
    let mut convergence = Convergence { executed: Vec::new(), found, ending: Ending::InSync };
    convergence.ending = match run(rules, held, freshness, &mut convergence).await {
        Ok(ending) => ending,
        Err(trouble) => Ending::Unread(trouble),
    };
    convergence
}

async fn run<C: Converge>(
    rules: &C,
    held: &mut LockedRepository,
    freshness: Freshness,
    convergence: &mut Convergence,
) -> Result<Ending, RegistryError> {
    let needs = rules.needs();
    let anew = Freshness { now: true, ..freshness };
    let Convergence { executed, found, .. } = convergence;
    let mut attempts = 0;
    loop {
        let Some(mut decision) = rules.decide(found.clone()) else { return Ok(Ending::Outdated) };
        if let Ok(Some(step)) = &decision
            && rules.must_refresh(step, found.as_ref())
        {
            *found = held.refresh_before_write(needs).await?;
            let Some(refreshed) = rules.decide(found.clone()) else { return Ok(Ending::Outdated) };
            decision = refreshed;
        }
        let step = match decision {
            Err(refused) => return Ok(Ending::Refused(refused)),
            Ok(None) => return Ok(Ending::InSync),
            Ok(Some(step)) => step,
        };
        attempts += 1;
        let is_drift = rules.is_drift(&step, found.as_ref());
        match held.execute(&step).await {
            Ok(()) => {}
            Err(RegistryError::Rejected(error)) if attempts == 1 && rules.is_stale(&error) => {
                *found = held.observe(needs, anew).await?;
                continue;
            }
            Err(trouble) => return Ok(Ending::Failed(Correction { step, is_drift }, trouble)),
        }
        let verify = attempts == 1 && rules.must_verify(&step);
        executed.push(Correction { step, is_drift });
        if !verify {
            return Ok(Ending::InSync);
        }
        *found = held.observe(needs, anew).await?;
    }
}

/// How a resource stands whose registry did not do what was asked, and when to try again.
pub(super) fn failed(
    trouble: &RegistryError,
    registry: &str,
    before: &[Condition],
    interval: Duration,
) -> (ReadyState, Duration) {
    match trouble {
        RegistryError::Unavailable(it) => unavailable(it, registry),
        RegistryError::Rejected(error) => {
            let state = refused_by_registry(error.clone());
            let retry = next(&state, before, interval, jiff::Timestamp::now());
            (state, retry)
        }
    }
}

/// Counts and tells of what somebody else changed in a registry.
pub(super) struct Drift<'a> {
    pub(super) ctx: &'a Context,
    pub(super) kind: &'static str,
    pub(super) registry: &'a str,
}

impl Drift<'_> {
    /// Counts properties that were found to differ.
    pub(super) fn detected(&self, properties: usize) {
        if properties == 0 {
            return;
        }
        self.ctx.metrics.drift_detected(self.kind, self.registry, u64::try_from(properties).unwrap_or(u64::MAX));
    }

    /// Counts properties that were corrected. Drift that was told before is not detected again.
    pub(super) fn corrected(&self, past: LastSync, properties: usize) {
        if past == LastSync::InSync {
            self.detected(properties);
        }
        self.ctx.metrics.drift_corrected(self.kind, self.registry, u64::try_from(properties).unwrap_or(u64::MAX));
    }
}

/// The condition of a resource whose drift was corrected, or that had none. A correction stays told until there is other news.
pub(super) fn corrected(past: LastSync, conditions: &[Condition], drift: &[FieldChange]) -> (bool, Cause) {
    if drift.is_empty() {
        let in_sync = || (false, Cause::new(Reason::InSync, "no drift"));
        return past.still_told(conditions).unwrap_or_else(in_sync);
    }
    (false, Cause::new(Reason::DriftCorrected, format!("drift corrected: {}", show(drift))))
}

/// The condition of a resource that is only observed.
pub(super) fn observed(differences: &[FieldChange]) -> (bool, Cause) {
    if differences.is_empty() {
        return (false, Cause::new(Reason::InSync, "it is as this resource says"));
    }
    let message = format!("it is not as this resource says: {}", show(differences));
    (true, Cause::new(Reason::DriftDetected, message))
}

/// The condition of what somebody else changed, and what could not be corrected.
pub(super) fn uncorrected(changes: &[FieldChange]) -> (bool, Cause) {
    let message = format!("drift detected, and not corrected yet: {}", show(changes));
    (true, Cause::new(Reason::DriftDetected, message))
}
