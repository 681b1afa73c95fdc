//! Makes an object of a registry what one resource asks for: decide, refresh, decide again,
//! execute. Reports drift.

use std::time::Duration;

use super::{LastSync, next, refused_by_registry, show, unavailable};
use crate::context::Context;
use crate::registry_client::{Freshness, LockedRepository, RegistryError};
use crate::status::{Cause, ReadyState};
use wharfage_apply::RepositoryNeeds;
use wharfage_crd::{Condition, Reason};
use wharfage_plan::model::{ApiError, ObservedRepository, Refused};
use wharfage_plan::{FieldChange, Step};

/// An object of a registry that one reconcile has for itself.
pub(crate) trait LockedObject: Send {
    /// The parts of the object that are read.
    type Needs: Copy + Default + Send + Sync;
    type Observed: Clone + Send + Sync;

    /// Returns the object; nothing if it does not exist.
    fn observe(
        &mut self,
        needs: Self::Needs,
        freshness: Freshness,
    ) -> impl Future<Output = Result<Option<Self::Observed>, RegistryError>> + Send;

    /// Reads the object, unless it was read just now.
    fn refresh_before_write(
        &mut self,
        needs: Self::Needs,
    ) -> impl Future<Output = Result<Option<Self::Observed>, RegistryError>> + Send;

    fn execute(&mut self, step: &Step) -> impl Future<Output = Result<(), RegistryError>> + Send;
}

impl LockedObject for LockedRepository {
    type Needs = RepositoryNeeds;
    type Observed = ObservedRepository;

    async fn observe(
        &mut self,
        needs: RepositoryNeeds,
        freshness: Freshness,
    ) -> Result<Option<ObservedRepository>, RegistryError> {
        Self::observe(self, needs, freshness).await
    }

    async fn refresh_before_write(
        &mut self,
        needs: RepositoryNeeds,
    ) -> Result<Option<ObservedRepository>, RegistryError> {
        Self::refresh_before_write(self, needs).await
    }

    async fn execute(&mut self, step: &Step) -> Result<(), RegistryError> {
        Self::execute(self, step).await
    }
}

/// The rules of one resource for an object of a registry.
pub(super) trait Converge: Sync {
    type Locked: LockedObject;

    fn needs(&self) -> Needs<Self>;

    /// Plans for this resource; nothing if the resource changed since the reconcile began.
    fn decide(&self, found: Option<Observed<Self>>) -> Option<Result<Option<Step>, Refused>>;

    /// Returns whether the object must be read once more before the step: it may have another owner
    /// by now.
    fn must_refresh(&self, step: &Step, found: Option<&Observed<Self>>) -> bool;

    /// Returns whether an error means that the listing was stale.
    fn is_stale(&self, error: &ApiError) -> bool;

    /// Returns whether the step corrects drift.
    fn is_drift(&self, step: &Step, found: Option<&Observed<Self>>) -> bool;

    /// Returns whether to read the object again after the step, since another cluster may have
    /// written it as well.
    fn must_verify(&self, step: &Step) -> bool;
}

type Needs<C> = <<C as Converge>::Locked as LockedObject>::Needs;
type Observed<C> = <<C as Converge>::Locked as LockedObject>::Observed;

/// A step, and whether it corrects drift.
pub(super) struct Correction {
    pub(super) step: Step,
    pub(super) is_drift: bool,
}

/// The end of converging.
pub(super) enum Converged {
    /// The object is as the resource asks.
    InSync,
    /// The resource changed since the reconcile began.
    Outdated,
    /// The plan refuses the resource.
    Refused(Refused),
    /// The object could not be read.
    Unread(RegistryError),
    /// A step failed.
    Failed(Correction, RegistryError),
}

/// The result of converging.
pub(super) struct Convergence<O> {
    pub(super) executed: Vec<Correction>,
    /// The object as it was last read.
    pub(super) found: Option<O>,
    pub(super) end: Converged,
}

/// Converges a locked object, of which `found` was read before.
pub(super) async fn converge<C: Converge>(
    rules: &C,
    locked: &mut C::Locked,
    freshness: Freshness,
    found: Option<Observed<C>>,
) -> Convergence<Observed<C>> {
    let mut convergence = Convergence { executed: Vec::new(), found, end: Converged::InSync };
    convergence.end = match run(rules, locked, freshness, &mut convergence).await {
        Ok(end) => end,
        Err(error) => Converged::Unread(error),
    };
    convergence
}

async fn run<C: Converge>(
    rules: &C,
    locked: &mut C::Locked,
    freshness: Freshness,
    convergence: &mut Convergence<Observed<C>>,
) -> Result<Converged, RegistryError> {
    let needs = rules.needs();
    let again = Freshness { now: true, ..freshness };
    let Convergence { executed, found, .. } = convergence;
    let mut attempts = 0;
    loop {
        let Some(mut decision) = rules.decide(found.clone()) else {
            return Ok(Converged::Outdated);
        };
        if let Ok(Some(step)) = &decision
            && rules.must_refresh(step, found.as_ref())
        {
            *found = locked.refresh_before_write(needs).await?;
            let Some(refreshed) = rules.decide(found.clone()) else {
                return Ok(Converged::Outdated);
            };
            decision = refreshed;
        }
        let step = match decision {
            Err(refused) => return Ok(Converged::Refused(refused)),
            Ok(None) => return Ok(Converged::InSync),
            Ok(Some(step)) => step,
        };
        attempts += 1;
        let is_drift = rules.is_drift(&step, found.as_ref());
        match locked.execute(&step).await {
            Ok(()) => {}
            Err(RegistryError::Rejected(error)) if attempts == 1 && rules.is_stale(&error) => {
                *found = locked.observe(needs, again).await?;
                continue;
            }
            Err(error) => return Ok(Converged::Failed(Correction { step, is_drift }, error)),
        }
        let verify = attempts == 1 && rules.must_verify(&step);
        executed.push(Correction { step, is_drift });
        if !verify {
            return Ok(Converged::InSync);
        }
        *found = locked.observe(needs, again).await?;
    }
}

/// Returns the state of a resource whose registry does not answer or rejects a request, and when to
/// try again.
pub(super) fn failed(
    error: &RegistryError,
    registry: &str,
    before: &[Condition],
    interval: Duration,
) -> (ReadyState, Duration) {
    match error {
        RegistryError::Unavailable(it) => unavailable(it, registry),
        RegistryError::Rejected(rejected) => {
            let state = refused_by_registry(rejected.clone());
            let retry = next(&state, before, interval, jiff::Timestamp::now());
            (state, retry)
        }
    }
}

/// Counts drift: what another party changed in a registry.
pub(super) struct Drift<'a> {
    pub(super) ctx: &'a Context,
    pub(super) kind: &'static str,
    pub(super) registry: &'a str,
}

impl Drift<'_> {
    /// Counts properties that differ.
    pub(super) fn detected(&self, properties: usize) {
        if properties == 0 {
            return;
        }
        self.ctx.metrics.drift_detected(
            self.kind,
            self.registry,
            u64::try_from(properties).unwrap_or(u64::MAX),
        );
    }

    /// Counts corrected properties. Drift that was reported before is not detected again.
    pub(super) fn corrected(&self, past: LastSync, properties: usize) {
        if past == LastSync::InSync {
            self.detected(properties);
        }
        self.ctx.metrics.drift_corrected(
            self.kind,
            self.registry,
            u64::try_from(properties).unwrap_or(u64::MAX),
        );
    }
}

/// Returns the condition of a resource whose drift was corrected, or that had none. A correction is
/// reported until there is other news.
pub(super) fn corrected(
    past: LastSync,
    conditions: &[Condition],
    drift: &[FieldChange],
) -> (bool, Cause) {
    if drift.is_empty() {
        let in_sync = || (false, Cause::new(Reason::InSync, "no drift"));
        return past.still_reported(conditions).unwrap_or_else(in_sync);
    }
    (false, Cause::new(Reason::DriftCorrected, format!("drift corrected: {}", show(drift))))
}

/// Returns the condition of a resource that is only observed.
pub(super) fn observed(differences: &[FieldChange]) -> (bool, Cause) {
    if differences.is_empty() {
        return (false, Cause::new(Reason::InSync, "it is as this resource says"));
    }
    let message = format!("it is not as this resource says: {}", show(differences));
    (true, Cause::new(Reason::DriftDetected, message))
}

/// Returns the condition of a resource whose drift could not be corrected.
pub(super) fn uncorrected(changes: &[FieldChange]) -> (bool, Cause) {
    let message = format!("drift detected, and not corrected yet: {}", show(changes));
    (true, Cause::new(Reason::DriftDetected, message))
}
