//! What there is, counted when somebody reads the metrics: from the stores, so that nothing is kept twice.

use kube::ResourceExt as _;

use super::context::Context;
use super::metrics::{Resources, StateSource, TokenEnd};
use wharfage_crd::PullSecret;
use wharfage_crd::conditions::{Condition, ConditionStatus, ConditionType, condition};

impl StateSource for Context {
    fn resources(&self) -> Vec<Resources> {
        /// Counts a store's objects by how they stand.
        macro_rules! count {
            ($kind:literal, $store:ident) => {{
                let mut counted = [("ready", 0), ("reconciling", 0), ("stalled", 0)];
                for object in self.stores.$store.state() {
                    let state = state(object.status.as_ref().map_or(&[], |status| &status.conditions));
                    for (_, count) in counted.iter_mut().filter(|(name, _)| *name == state) {
                        *count += 1;
                    }
                }
                counted.map(|(state, count)| Resources { kind: $kind, state, count })
            }};
        }
        [
            count!("Registry", registries),
            count!("Repository", repositories),
            count!("LifecyclePolicy", lifecycle_policies),
            count!("PullSecret", pull_secrets),
        ]
        .concat()
    }

    fn tokens(&self) -> Vec<TokenEnd> {
        let end = |it: &PullSecret| {
            let ends = it.status.as_ref()?.expires_at.as_ref()?.0;
            Some(TokenEnd { namespace: it.namespace()?, name: it.name_any(), ends })
        };
        self.stores.pull_secrets.state().iter().filter_map(|it| end(it)).collect()
    }
}

/// How a resource with these conditions stands. One without waits for its first reconcile.
fn state(conditions: &[Condition]) -> &'static str {
    let holds = |type_| condition(conditions, type_).is_some_and(|it| it.status == ConditionStatus::True);
    if holds(ConditionType::Stalled) {
        "stalled"
    } else if holds(ConditionType::Ready) {
        "ready"
    } else {
        "reconciling"
    }
}
