//! Applies the settings of a registry: its policy, its scanning configuration, its account
//! settings. Settings that the Registry does not set are left unchanged.

use std::cmp::Ordering;

use kube::ResourceExt as _;

use super::super::converge::{Drift, corrected, failed, uncorrected};
use super::super::{LastSync, refusal, show};
use crate::context::Context;
use crate::kind::Kind as _;
use crate::registry_client::{RegistryClient, RegistryError};
use crate::status::{Cause, ReadyState, is_ready};
use wharfage_crd::common::{DEFAULT_INTERVAL, older};
use wharfage_crd::conditions::ConditionType;
use wharfage_crd::{Reason, Registry, condition};
use wharfage_plan::{Desired, FieldChange, Observed, Step, contested, desired_settings, plan};

/// The state of the settings.
pub(super) struct SettingsState {
    /// The state of the Registry, if the registry or the plan refuses the settings.
    pub(super) refused: Option<ReadyState>,
    /// True if another party changed them; nothing if the Registry sets none.
    pub(super) drifted: Option<(bool, Cause)>,
}

/// Applies the settings.
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
            // The reported conflict stays until that is known.
            let reported = condition(registry.conditions(), ConditionType::Ready)
                .filter(|it| it.has_reason(&Reason::OwnedByAnother));
            let refused = reported
                .map(|it| ReadyState::Stalled(Cause::new(Reason::OwnedByAnother, &*it.message)));
            return Ok(SettingsState { refused, drifted: None });
        }
        SettingsClaim::Contested(refused) => {
            return Ok(SettingsState { refused: Some(refused), drifted: None });
        }
    }
    let documents = desired.settings.documents();
    let Some(documents) = ctx.registry_clients.lock_documents(registry_client, documents).await
    else {
        return Ok(SettingsState { refused: None, drifted: None });
    };
    let settings = documents.observe(&desired.settings).await?;
    let plan = plan(&desired, &Observed { settings, ..Observed::default() });
    let (past, name) = (LastSync::of_object(registry), registry.name_any());
    let drift = Drift { ctx, kind: Registry::NAME, registry: &name };
    let mut changed: Vec<FieldChange> = Vec::new();
    for (index, step) in plan.steps.iter().enumerate() {
        match documents.execute(step).await {
            Ok(()) => emit_events(&drift, registry, step, past).await,
            Err(error @ RegistryError::Rejected(_)) if past.is_drift() => {
                let left: Vec<_> =
                    plan.steps.iter().skip(index).flat_map(|it| it.changes.clone()).collect();
                if past == LastSync::InSync {
                    drift.detected(left.len());
                }
                let (refused, _) = failed(&error, &name, registry.conditions(), DEFAULT_INTERVAL);
                return Ok(SettingsState {
                    refused: Some(refused),
                    drifted: Some(uncorrected(&left)),
                });
            }
            Err(error) => return Err(error),
        }
        changed.extend(step.changes.iter().cloned());
    }
    let refused = plan.refused.first().map(refusal);
    let corrections = if past.is_drift() { changed } else { Vec::new() };
    // Settings that could not be read have no drift condition.
    let drifted = (refused.is_none() || !corrections.is_empty())
        .then(|| corrected(past, registry.conditions(), &corrections));
    Ok(SettingsState { refused, drifted })
}

/// The right of a Registry to apply its settings.
enum SettingsClaim {
    Free,
    /// An older Registry with the same URL has other settings, and it is not known yet whether it
    /// is the same registry.
    Unknown,
    /// An older Registry points to the same registry, and has other settings, which count.
    Contested(ReadyState),
}

fn claim(
    ctx: &Context,
    registry: &Registry,
    registry_client: &RegistryClient,
    desired: &Desired,
) -> SettingsClaim {
    let Some(own) = registry_client.registry() else { return SettingsClaim::Unknown };
    let precedes = |it: &Registry| {
        it.metadata.deletion_timestamp.is_none() && older(it, registry) == Ordering::Less
    };
    let mut claim = SettingsClaim::Free;
    for other in ctx.stores.registries.state_filter(precedes) {
        let Some(field) = contested(desired, &desired_settings(&other, &ctx.settings.cluster))
        else {
            continue;
        };
        let name = other.name_any();
        match ctx.registry_clients.get(&name).and_then(|it| it.registry().cloned()) {
            Some(its) if its == *own => {
                let message = format!(
                    "{field} conflicts with Registry {name}, which points to the same registry and is older; \
                     leave {field} to one of them. No setting of this one is applied"
                );
                return SettingsClaim::Contested(ReadyState::Stalled(Cause::new(
                    Reason::OwnedByAnother,
                    message,
                )));
            }
            // It was Ready before this operator started, so it will be known.
            None if other.status.as_ref().is_some_and(|it| {
                is_ready(&it.conditions) && it.endpoint.as_ref() == Some(&own.0)
            }) =>
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
            .warning(
                registry,
                Reason::DriftCorrected,
                format!("drift of its settings was corrected: {changes}"),
            )
            .await;
    } else {
        events
            .normal(registry, Reason::Updated, format!("its settings were changed: {changes}"))
            .await;
    }
}
