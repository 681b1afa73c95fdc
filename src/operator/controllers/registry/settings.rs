//! A registry's own settings: its policy, its scanning configuration, its account's settings. What the Registry does not speak
//! of is let be.

use std::cmp::Ordering;

use kube::ResourceExt as _;

use super::super::{refusal, show};
use crate::apply::{carry_out, observe_settings};
use crate::crd::conditions::ConditionType;
use crate::crd::{Registry, condition};
use crate::operator::context::Context;
use crate::operator::session::{Session, Trouble};
use crate::operator::slice::older;
use crate::operator::status::{self, Because, Standing};
use crate::plan::{Desired, Step, contested, desired_settings, plan};

/// What became of the settings.
pub(super) struct Settled {
    /// What the registry, or the plan, has against them.
    pub(super) refused: Option<Standing>,
    /// Whether somebody else had changed them; nothing if the Registry speaks of none.
    pub(super) drifted: Option<(bool, Because)>,
}

/// Brings the settings in line.
pub(super) async fn settle(ctx: &Context, registry: &Registry, session: &Session) -> Result<Settled, Trouble> {
    let desired = desired_settings(registry, &ctx.settings.cluster);
    let spoken_of = !desired.account_settings.is_empty()
        || desired.policy.is_some()
        || desired.scanning_configuration.is_some()
        || !desired.refused.is_empty();
    if !spoken_of {
        return Ok(Settled { refused: None, drifted: None });
    }
    if let Some(refused) = contested_by(ctx, registry, session, &desired) {
        return Ok(Settled { refused: Some(refused), drifted: None });
    }
    let observed = session.ask(async { Ok(observe_settings(session.ecr(), &desired).await) }).await?;
    let plan = plan(&desired, &observed);
    let before = registry.status.clone().unwrap_or_default();
    // A change of what was in line, and of what nobody asked for, is drift.
    let settled = before.observed_generation == registry.metadata.generation && status::is_ready(&before.conditions);
    for step in &plan.steps {
        session.ask(carry_out(session.ecr(), step, None, |_, _| {})).await?;
        tell(ctx, registry, step, settled).await;
    }
    let drifted = if settled && !plan.steps.is_empty() {
        let changes: Vec<_> = plan.steps.iter().flat_map(|it| it.changes.clone()).collect();
        let message = format!("somebody else changed it, and it was put back: {}", show(&changes));
        (false, Because::new("Repaired", message))
    } else {
        match condition(&before.conditions, ConditionType::Drifted) {
            Some(told) if settled && told.reason == "Repaired" => (false, Because::new("Repaired", &told.message)),
            _ => (false, Because::new("InSync", "nobody else changed its settings")),
        }
    };
    let refused = plan.refused.first().map(refusal);
    Ok(Settled { refused, drifted: Some(drifted) })
}

/// An older Registry that is the same registry, and wants something else of it: that one has it, and neither is fought.
fn contested_by(ctx: &Context, registry: &Registry, session: &Session, desired: &Desired) -> Option<Standing> {
    let is_same = |it: &Registry| ctx.sessions.get(&it.name_any()).is_some_and(|it| it.is_same_registry(session));
    let precedes = |it: &Registry| {
        it.metadata.deletion_timestamp.is_none() && older(it, registry) == Ordering::Less && is_same(it)
    };
    let others = ctx.stores.registries.state_filter(precedes);
    let (other, field) = others.iter().find_map(|other| {
        let field = contested(desired, &desired_settings(other, &ctx.settings.cluster))?;
        Some((other.name_any(), field))
    })?;
    let message = format!(
        "{field} is what Registry {other} has, too, with another value: it is the same registry, and {other} is older; leave \
         {field} to one of them. No setting of this one is applied"
    );
    Some(Standing::Stalled(Because::new("OwnedByAnother", message)))
}

async fn tell(ctx: &Context, registry: &Registry, step: &Step, drifted: bool) {
    let changes = show(&step.changes);
    if drifted {
        let name = registry.metadata.name.as_deref().unwrap_or_default();
        let properties = u64::try_from(step.changes.len()).unwrap_or(u64::MAX);
        ctx.metrics.drift_found(super::KIND, name, properties);
        ctx.metrics.drift_repaired(super::KIND, name, properties);
        let note = format!("its settings were changed by somebody else, and put back: {changes}");
        ctx.events.warning(registry, "DriftRepaired", note).await;
    } else {
        ctx.events.normal(registry, "Updated", format!("its settings were changed: {changes}")).await;
    }
}
