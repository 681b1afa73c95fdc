//! Repository: one repository of a registry is made, kept as its manifest says, and let go of.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::runtime::reflector::Store;
use kube::{Api, ResourceExt as _};

use super::{
    Done, Error, KindController, Past, WAIT, away, is_outdated, jittered, next, plan_for, publish, refusal,
    refused_by_registry, registered, requested, show, step_for, unrepaired,
};
use crate::apply::{Listed, RepositoryNeeds};
use crate::crd::{AdoptionPolicy, Managed as _, ManagementPolicy, Reason, Registry, Repository, RepositoryStatus};
use crate::names::RepositoryName;
use crate::operator::access::{Access, own_kind};
use crate::operator::context::Context;
use crate::operator::session::{Freshness, Held, Session, Trouble};
use crate::operator::slice::Slice;
use crate::operator::status::{self, Cause, Findings, Standing};
use crate::operator::{finalizer, triggers};
use crate::plan::model::{Desired, ErrorKind, ObservedRepository, Refused};
use crate::plan::ownership::Ownership;
use crate::plan::{Action, FieldChange, Object, Step, desired_in_cluster, differences, on_removal, unenforced};

pub(in crate::operator) const ACCESS: &[Access] = &own_kind(&["repositories"], &["repositories/status"]);

const KIND: &str = "Repository";

/// Reconciles Repositories.
pub(in crate::operator) struct RepositoryController {
    ctx: Arc<Context>,
}

impl RepositoryController {
    pub(in crate::operator) fn new(ctx: Arc<Context>) -> Self {
        Self { ctx }
    }
}

impl KindController for RepositoryController {
    type Object = Repository;
    const KIND: &'static str = KIND;
    const CONCURRENCY: u16 = 32;

    fn context(&self) -> &Context {
        &self.ctx
    }

    fn store(&self) -> Store<Repository> {
        self.ctx.stores.repositories.clone()
    }

    async fn reconcile(self: Arc<Self>, repository: Arc<Repository>) -> Result<Done, Error> {
        let api = Api::namespaced(self.ctx.client.clone(), &repository.namespace().unwrap_or_default());
        let work = Work { ctx: &self.ctx, api, repository: &repository, object: object(&repository) };
        if repository.metadata.deletion_timestamp.is_some() {
            return work.let_go().await;
        }
        if repository.suspended() {
            return work.rest().await;
        }
        match work.bring_in_line().await? {
            Some(outcome) => work.conclude(outcome).await,
            None => Ok(Done::outdated()),
        }
    }
}

fn object(repository: &Repository) -> Object {
    Object { kind: KIND, namespace: repository.namespace().unwrap_or_default(), name: repository.name_any() }
}

/// What a reconcile found out.
struct Outcome {
    findings: Findings,
    /// What the registry says of the repository, if it was looked at.
    seen: Option<Seen>,
    next: std::time::Duration,
}

struct Seen {
    listed: Option<Listed>,
    images: Option<crate::apply::ImageUsage>,
}

impl Outcome {
    /// It has a Registry, and stands so.
    fn of(standing: Standing, next: std::time::Duration) -> Self {
        let findings = Findings { references: Some(Ok(())), ..Findings::of(standing) };
        Self { findings, seen: None, next }
    }
}

struct Work<'a> {
    ctx: &'a Context,
    api: Api<Repository>,
    repository: &'a Repository,
    object: Object,
}

impl Work<'_> {
    fn status(&self) -> RepositoryStatus {
        self.repository.status.clone().unwrap_or_default()
    }

    fn generation(&self) -> Option<i64> {
        self.repository.metadata.generation
    }

    /// The Registry and its session, or why there is none.
    fn registry(&self) -> Result<(Arc<Registry>, Arc<Session>), Box<Outcome>> {
        registered(self.ctx, &self.repository.spec.registry_ref.name)
            .map_err(|findings| Box::new(Outcome { findings: *findings, seen: None, next: jittered(WAIT) }))
    }

    /// Nothing if the resource is another one by now.
    async fn bring_in_line(&self) -> Result<Option<Outcome>, Error> {
        let (registry, session) = match self.registry() {
            Ok(found) => found,
            Err(outcome) => return Ok(Some(*outcome)),
        };
        let interval = self.repository.interval();
        let name = match self.repository.repository_name() {
            Ok(name) => name,
            Err(error) => {
                let because = Cause::new(Reason::InvalidParameterException, format!("{error}: set repositoryName"));
                return Ok(Some(Outcome::of(Standing::Stalled(because), jittered(interval))));
            }
        };
        let observe = self.repository.management_policy() == ManagementPolicy::Observe;
        if !observe {
            finalizer::add(&self.api, self.repository).await?;
        }
        let mut held = session.repository(&name).await;
        let now = requested(self.repository, self.status().last_handled_reconcile_at.as_ref()).is_some();
        let freshness = Freshness { interval, now };
        let looked = if observe {
            self.observe(&registry, &name, &mut held, freshness).await
        } else {
            self.manage(&registry, &name, &mut held, freshness).await
        };
        let mut findings = match looked {
            Ok(Some(findings)) => findings,
            Ok(None) => return Ok(None),
            Err(trouble) => return Ok(Some(self.trouble(trouble))),
        };
        findings.references = Some(Ok(()));
        let mut seen = Seen { listed: None, images: None };
        if !matches!(findings.standing, Standing::Stalled(_)) {
            seen.listed = held.as_listed();
            if seen.listed.is_some() {
                match held.usage(freshness).await {
                    Ok(usage) => seen.images = Some(usage),
                    Err(Trouble::Away(away)) => return Ok(Some(self.trouble(Trouble::Away(away)))),
                    // Counting images takes a permission of its own: a registry that does not give it is not counted.
                    Err(Trouble::Refused(error)) => tracing::debug!(%name, %error, "images cannot be counted"),
                }
            }
        }
        let next = next(&findings.standing, &self.status().conditions, interval, Timestamp::now());
        Ok(Some(Outcome { findings, seen: Some(seen), next }))
    }

    fn trouble(&self, trouble: Trouble) -> Outcome {
        match trouble {
            Trouble::Away(it) => {
                let (standing, next) = away(&it, &self.repository.spec.registry_ref.name);
                Outcome::of(standing, next)
            }
            Trouble::Refused(error) => {
                let standing = refused_by_registry(error);
                let next = next(&standing, &self.status().conditions, self.repository.interval(), Timestamp::now());
                Outcome::of(standing, next)
            }
        }
    }

    /// What is wanted of this name, by whoever asks for it; nothing if this resource is another one by now.
    fn wanted(&self, registry: &Registry, name: &RepositoryName) -> Option<Desired> {
        let slice = Slice::new(&self.ctx.stores, &self.ctx.sessions, registry, name);
        // Whatever the slice was made of, a change of this resource that is in it is seen here.
        let outdated = is_outdated(&self.ctx.stores.repositories, self.repository);
        (!outdated).then(|| desired_in_cluster(&slice, registry, &self.ctx.settings.cluster))
    }

    fn needs(&self) -> RepositoryNeeds {
        RepositoryNeeds { policy: self.repository.spec.repository_policy.is_some(), ..RepositoryNeeds::default() }
    }

    /// What is there. Where nothing is made that is not there, a listing that is a while old does not do.
    async fn look(&self, held: &mut Held, freshness: Freshness) -> Result<Option<ObservedRepository>, Trouble> {
        let found = held.look(self.needs(), freshness).await?;
        let makes = self.repository.management_policy() == ManagementPolicy::Full
            && self.repository.adoption_policy() != AdoptionPolicy::Adopt;
        match found {
            None if !makes => held.look(self.needs(), Freshness { now: true, ..freshness }).await,
            found => Ok(found),
        }
    }

    async fn manage(
        &self,
        registry: &Registry,
        name: &RepositoryName,
        held: &mut Held,
        freshness: Freshness,
    ) -> Result<Option<Findings>, Trouble> {
        let before = self.status();
        let past = Past::of(self.generation(), before.observed_generation, &before.conditions);
        let mut found = self.look(held, freshness).await?;
        let mut drift: Vec<FieldChange> = Vec::new();
        let mut notes: Vec<String>;
        let mut tries = 0;
        loop {
            let Some(desired) = self.wanted(registry, name) else { return Ok(None) };
            let wanted = desired.repositories.iter().find(|it| it.object == self.object);
            notes = wanted.map(|wanted| unenforced(registry, wanted)).unwrap_or_default();
            let mut step = match self.decide(&desired, name, found) {
                Err(refused) => return Ok(Some(Findings::of(refusal(&refused)))),
                Ok(None) => break,
                Ok(Some(step)) => step,
            };
            if step.action != Action::Create {
                // What was read a while ago may have become somebody else's.
                found = held.look_before_change(self.needs()).await?;
                step = match self.decide(&desired, name, found) {
                    Err(refused) => return Ok(Some(Findings::of(refusal(&refused)))),
                    Ok(None) => break,
                    Ok(Some(step)) => step,
                };
            }
            tries += 1;
            match held.carry_out(&step).await {
                Ok(()) => {}
                // The listing was old: it is there already, or gone.
                Err(Trouble::Refused(error))
                    if tries == 1
                        && matches!(error.kind, ErrorKind::RepositoryAlreadyExists | ErrorKind::RepositoryNotFound) =>
                {
                    found = held.look(self.needs(), Freshness { now: true, ..freshness }).await?;
                    continue;
                }
                Err(trouble) if past.is_drift() => return Ok(Some(self.unrepaired(&trouble, &step, past))),
                Err(trouble) => return Err(trouble),
            }
            self.tell(&step, past).await;
            if past.is_drift() {
                drift = drifted(&step);
            }
            if step.action != Action::Adopt || tries > 1 {
                break;
            }
            // Two clusters may have taken it over at the same moment: the tags say who has it now.
            found = held.look(self.needs(), Freshness { now: true, ..freshness }).await?;
        }
        let message = format!("{name} in {} is as this resource says", registry.name_any());
        let mut findings = Findings::of(Standing::Ready(Cause::new(Reason::InSync, message)).with_notes(&notes));
        findings.drifted = Some(if drift.is_empty() {
            let in_sync = || (false, Cause::new(Reason::InSync, "nobody else changed it"));
            past.still_told(&before.conditions).unwrap_or_else(in_sync)
        } else {
            (
                false,
                Cause::new(
                    Reason::DriftCorrected,
                    format!("somebody else changed it, and it was put back: {}", show(&drift)),
                ),
            )
        });
        Ok(Some(findings))
    }

    /// Somebody else changed the repository, and what the step says did not put it back.
    fn unrepaired(&self, trouble: &Trouble, step: &Step, past: Past) -> Findings {
        let registry = &self.repository.spec.registry_ref.name;
        if past == Past::Settled {
            self.ctx.metrics.drift_found(KIND, registry, properties(step));
        }
        let standing = match trouble {
            Trouble::Away(it) => away(it, registry).0,
            Trouble::Refused(error) => refused_by_registry(error.clone()),
        };
        Findings { drifted: Some(unrepaired(&drifted(step))), ..Findings::of(standing) }
    }

    async fn observe(
        &self,
        registry: &Registry,
        name: &RepositoryName,
        held: &mut Held,
        freshness: Freshness,
    ) -> Result<Option<Findings>, Trouble> {
        let found = self.look(held, freshness).await?;
        let Some(desired) = self.wanted(registry, name) else { return Ok(None) };
        if let Err(refused) = self.decide(&desired, name, found.clone()) {
            return Ok(Some(Findings::of(refusal(&refused))));
        }
        let wanted = desired.repositories.iter().find(|it| it.object == self.object);
        let changes = match (wanted, found) {
            (Some(wanted), Some(found)) => differences(wanted, &found),
            _ => Vec::new(),
        };
        let message = format!("{name} in {} is observed, and never changed", registry.name_any());
        let mut findings = Findings::of(Standing::Ready(Cause::new(Reason::Observed, message)));
        findings.drifted = Some(if changes.is_empty() {
            (false, Cause::new(Reason::InSync, "it is as this resource says"))
        } else {
            (true, Cause::new(Reason::DriftDetected, format!("it is not as this resource says: {}", show(&changes))))
        });
        Ok(Some(findings))
    }

    /// What the plan says for this resource.
    fn decide(
        &self,
        desired: &Desired,
        name: &RepositoryName,
        found: Option<ObservedRepository>,
    ) -> Result<Option<Step>, Refused> {
        step_for(plan_for(desired, name, found), &self.object)
    }

    async fn tell(&self, step: &Step, past: Past) {
        let events = &self.ctx.events;
        let name = step.repository.as_ref().map(ToString::to_string).unwrap_or_default();
        let changes = if step.changes.is_empty() { String::new() } else { format!(": {}", show(&step.changes)) };
        if past.is_drift() {
            let registry = &self.repository.spec.registry_ref.name;
            if past == Past::Settled {
                self.ctx.metrics.drift_found(KIND, registry, properties(step));
            }
            self.ctx.metrics.drift_repaired(KIND, registry, properties(step));
            let note = format!("{name} was changed by somebody else, and put back{changes}");
            events.warning(self.repository, Reason::DriftCorrected, note).await;
            return;
        }
        let (reason, done) = match step.action {
            Action::Create => (Reason::Created, "created"),
            Action::Adopt => (Reason::Adopted, "taken over"),
            Action::Delete => (Reason::Deleted, "deleted"),
            Action::Retain => (Reason::Retained, "let go of, and stays in the registry"),
            Action::Update | Action::Preview => (Reason::Updated, "updated"),
        };
        events.normal(self.repository, reason, format!("{name} was {done}{changes}")).await;
    }

    /// Writes the status, tells what is new in it, and says when to look again.
    async fn conclude(&self, outcome: Outcome) -> Result<Done, Error> {
        let Outcome { findings, seen, next } = outcome;
        let before = self.status();
        let now = Time(Timestamp::now());
        let mut after = RepositoryStatus {
            observed_generation: self.generation(),
            conditions: status::conditions(&before.conditions, self.generation(), &findings, &now),
            ..before.clone()
        };
        if let Some(Seen { listed, images }) = seen {
            if let Some(listed) = listed {
                after.repository_arn = Some(listed.arn);
                after.repository_uri = Some(listed.uri);
                after.registry_id = Some(listed.registry_id);
            }
            if let Some(images) = images {
                after.image_count = Some(images.images);
                after.image_size_bytes = Some(images.bytes);
                after.finding_severity_counts = images.findings;
            }
        }
        if let Some(asked) = requested(self.repository, before.last_handled_reconcile_at.as_ref())
            && !matches!(findings.standing, Standing::Waiting(_))
        {
            after.last_handled_reconcile_at = Some(asked);
        }
        if after != before {
            // A look that finds nothing new is not written down: that would be a write for every resource and interval.
            after.last_sync_time = Some(now);
        }
        let status = (self.repository.status.as_ref(), &after);
        publish(KIND, self.ctx, &self.api, self.repository, status, &before.conditions, &findings).await?;
        if let (false, Standing::Ready(_)) = (status::is_ready(&before.conditions), &findings.standing) {
            triggers::repository_ready(&self.ctx.stores, &self.ctx.triggers, self.repository);
        }
        Ok(Done::standing(&findings.standing, next))
    }

    /// Nothing is done for a suspended resource.
    async fn rest(&self) -> Result<Done, Error> {
        let before = self.status();
        let after = RepositoryStatus {
            observed_generation: self.generation(),
            conditions: status::suspended(&before.conditions),
            ..before.clone()
        };
        super::rest(self.ctx, &self.api, self.repository, (self.repository.status.as_ref(), &after)).await
    }

    /// The resource goes: its repository is let go of, or deleted if it says so.
    async fn let_go(&self) -> Result<Done, Error> {
        if !finalizer::has(self.repository) {
            return Ok(Done::resting());
        }
        let deletes = self.repository.deletes() && !self.repository.suspended();
        let outcome = match self.release().await {
            Ok(true) => {
                finalizer::remove(&self.api, self.repository).await?;
                return Ok(Done::resting());
            }
            Ok(false) => return Ok(Done::outdated()),
            Err(outcome) => outcome,
        };
        if !deletes {
            // What stays in the registry needs no word from it: what could not be untagged there is nobody's all the same,
            // once this resource is gone.
            let why = &outcome.findings.standing.because().message;
            tracing::info!(object = %self.object, why, "let go of without the registry");
            finalizer::remove(&self.api, self.repository).await?;
            return Ok(Done::resting());
        }
        self.conclude(*outcome).await
    }

    /// Lets go of its repository, or deletes it; false if what the resource says changed meanwhile, and nothing was done.
    async fn release(&self) -> Result<bool, Box<Outcome>> {
        if self.repository.management_policy() == ManagementPolicy::Observe || self.repository.suspended() {
            return Ok(true);
        }
        let (registry, session) = self.registry()?;
        let Ok(name) = self.repository.repository_name() else { return Ok(true) };
        let mut held = session.repository(&name).await;
        let freshness = Freshness { interval: self.repository.interval(), now: true };
        let mut found =
            held.look(RepositoryNeeds::default(), freshness).await.map_err(|it| Box::new(self.trouble(it)))?;
        if let Some(found) = &mut found {
            // The tags say what the manifest said of its removal when it was last applied; it may have been changed since.
            let mut ownership = Ownership::read(&found.tags);
            ownership.manages.on_removal = on_removal(self.repository);
            found.tags.extend(ownership.tags());
        }
        // It is among those that are wanted no more, as it is being deleted.
        let Some(mut desired) = self.wanted(&registry, &name) else { return Ok(false) };
        desired.declared.remove(&self.object);
        let steps = plan_for(&desired, &name, found).steps;
        for step in steps.into_iter().filter(|it| it.object == self.object) {
            held.carry_out(&step).await.map_err(|it| Box::new(self.trouble(it)))?;
            self.tell(&step, Past::Unsettled).await;
        }
        Ok(true)
    }
}

/// What somebody else had changed, if the step puts it back.
fn drifted(step: &Step) -> Vec<FieldChange> {
    if step.changes.is_empty() {
        return vec![FieldChange { field: "ownership tags".to_owned(), from: None, to: None }];
    }
    step.changes.clone()
}

/// How many properties that is, for the metrics.
fn properties(step: &Step) -> u64 {
    u64::try_from(drifted(step).len()).unwrap_or(u64::MAX)
}
