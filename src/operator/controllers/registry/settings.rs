//! A registry's own settings: its policy, its scanning configuration, its account's settings. What the Registry does not speak
//! of is left unchanged.

use std::cmp::Ordering;

use kube::ResourceExt as _;

use super::super::converge::{Drift, corrected, failed, uncorrected};
use super::super::finish::KindObject as _;
use super::super::{LastSync, refusal, show};
use crate::context::Context;
use crate::registry_client::{RegistryClient, RegistryError};
use crate::status::{Cause, ReadyState, is_ready};
use wharfage_crd::common::{DEFAULT_INTERVAL, older};
use wharfage_crd::conditions::ConditionType;
use wharfage_crd::{Reason, Registry, condition};
use wharfage_plan::{Desired, FieldChange, Observed, Step, contested, desired_settings, plan};

/// What became of the settings.
pub(super) struct SettingsState {
    /// What the registry, or the plan, has against them.
    pub(super) refused: Option<ReadyState>,
    /// Whether somebody else had changed them; nothing if the Registry speaks of none.
    pub(super) drifted: Option<(bool, Cause)>,
}

/// Brings the settings in line.
pub(super) async fn settle(
    ctx: &Context,
    registry: &Registry,
    registry_client: &RegistryClient,
) -> Result<SettingsState, RegistryError> {
    let desired = desired_settings(registry, &ctx.settings.cluster);
    if desired.settings.documents().is_empty() && desired.refused.is_empty() {
        return Ok(SettingsState { refused: None, drifted: None });
    }
    match claim(ctx, registry, registry_client, &desired) {
        SettingsClaim::Free => {}
        SettingsClaim::Unknown => {
            // What was said of it stands until that is known.
            let told = condition(registry.conditions(), ConditionType::Ready)
                .filter(|it| it.has_reason(&Reason::OwnedByAnother));
            let refused = told.map(|it| ReadyState::Stalled(Cause::new(Reason::OwnedByAnother, &*it.message)));
            return Ok(SettingsState { refused, drifted: None });
        }
        SettingsClaim::Contested(refused) => return Ok(SettingsState { refused: Some(refused), drifted: None }),
    }
    let documents = desired.settings.documents();
    let Some(documents) = ctx.registry_clients.lock_documents(registry_client, documents).await else {
        return Ok(SettingsState { refused: None, drifted: None });
    };
    let settings = documents.observe(&desired.settings).await?;
    let plan = plan(&desired, &Observed { settings, ..Observed::default() });
    let (past, name) = (registry.past(), registry.name_any());
    let drift = Drift { ctx, kind: super::KIND, registry: &name };
    let mut changed: Vec<FieldChange> = Vec::new();
    for (index, step) in plan.steps.iter().enumerate() {
        match documents.execute(step).await {
            Ok(()) => emit_events(&drift, registry, step, past).await,
            Err(trouble @ RegistryError::Rejected(_)) if past.is_drift() => {
                let left: Vec<_> = plan.steps.iter().skip(index).flat_map(|it| it.changes.clone()).collect();
                if past == LastSync::InSync {
                    drift.detected(left.len());
                }
                let (refused, _) = failed(&trouble, &name, registry.conditions(), DEFAULT_INTERVAL);
                return Ok(SettingsState { refused: Some(refused), drifted: Some(uncorrected(&left)) });
            }
            Err(trouble) => return Err(trouble),
        }
        changed.extend(step.changes.iter().cloned());
    }
    let refused = plan.refused.first().map(refusal);
    let corrections = if past.is_drift() { changed } else { Vec::new() };
    // Of settings that could not be read nothing is told.
    let drifted =
        (refused.is_none() || !corrections.is_empty()).then(|| corrected(past, registry.conditions(), &corrections));
    Ok(SettingsState { refused, drifted })
}

/// Whether a Registry's settings are its own.
enum SettingsClaim {
    Free,
    /// An older Registry at the same place wants something else, and did not say yet whose registry it is.
    Unknown,
    /// An older one is the same registry, and wants something else of it: that one has it, and neither is fought.
    Contested(ReadyState),
}

fn claim(ctx: &Context, registry: &Registry, registry_client: &RegistryClient, desired: &Desired) -> SettingsClaim {
    let Some(own) = registry_client.registry() else { return SettingsClaim::Unknown };
    let precedes = |it: &Registry| it.metadata.deletion_timestamp.is_none() && older(it, registry) == Ordering::Less;
    let mut claim = SettingsClaim::Free;
    for other in ctx.stores.registries.state_filter(precedes) {
        let Some(field) = contested(desired, &desired_settings(&other, &ctx.settings.cluster)) else { continue };
        let name = other.name_any();
        match ctx.registry_clients.get(&name).and_then(|it| it.registry().cloned()) {
            Some(its) if its == *own => {
                let message = format!(
                    "{field} conflicts with Registry {name}, which points to the same registry and is older; \
                     leave {field} to one of them. No setting of this one is applied"
                );
                return SettingsClaim::Contested(ReadyState::Stalled(Cause::new(Reason::OwnedByAnother, message)));
            }
            // It stood well before this operator began, so it will say.
            None if other
                .status
                .as_ref()
                .is_some_and(|it| is_ready(&it.conditions) && it.endpoint.as_ref() == Some(&own.0)) =>
            {
                claim = SettingsClaim::Unknown;
            }
            _ => {}
        }
    }
    claim
}

async fn emit_events(drift: &Drift<'_>, registry: &Registry, step: &Step, past: LastSync) {
    let (events, changes) = (&drift.ctx.events, show(&step.changes));
    if past.is_drift() {
        drift.corrected(past, step.changes.len());
        events
            .warning(registry, Reason::DriftCorrected, format!("drift of its settings was corrected: {changes}"))
            .await;
    } else {
        events.normal(registry, Reason::Updated, format!("its settings were changed: {changes}")).await;
    }
}
