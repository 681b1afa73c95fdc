//! Counts the objects in the stores when the metrics are read, so that nothing is kept twice.

use kube::ResourceExt as _;

use super::context::Context;
use super::kind::{Kind, for_each_kind};
use super::metrics::{Resources, StateSource, TokenEnd};
use super::stores::{KindStore, Stores};
use wharfage_crd::PullSecret;
use wharfage_crd::conditions::{Condition, ConditionStatus, ConditionType, condition};

/// Counts the objects of all kinds.
macro_rules! count_kinds {
    ($($field:ident: $kind:ty => $controller:path;)*) => {
        fn count_kinds(stores: &Stores) -> Vec<Resources> {
            [$(count(&stores.$field)),*].concat()
        }
    };
}
for_each_kind!(count_kinds);

/// Counts the objects of a kind by their state.
fn count<K: Kind>(store: &KindStore<K>) -> [Resources; 3] {
    let mut counted = [("ready", 0), ("reconciling", 0), ("stalled", 0)];
    for object in store.state() {
        let state = state(object.conditions());
        for (_, count) in counted.iter_mut().filter(|(name, _)| *name == state) {
            *count += 1;
        }
    }
    counted.map(|(state, count)| Resources { kind: K::NAME, state, count })
}

impl StateSource for Context {
    fn resources(&self) -> Vec<Resources> {
        count_kinds(&self.stores)
    }

    fn tokens(&self) -> Vec<TokenEnd> {
        let end = |it: &PullSecret| {
            let ends = it.status.as_ref()?.expires_at.as_ref()?.0;
            Some(TokenEnd { namespace: it.namespace()?, name: it.name_any(), ends })
        };
        self.stores.pull_secrets.state().iter().filter_map(|it| end(it)).collect()
    }
}

/// Returns the state of a resource with these conditions. One without conditions waits for its
/// first reconcile.
fn state(conditions: &[Condition]) -> &'static str {
    let holds =
        |type_| condition(conditions, type_).is_some_and(|it| it.status == ConditionStatus::True);
    if holds(ConditionType::Stalled) {
        "stalled"
    } else if holds(ConditionType::Ready) {
        "ready"
    } else {
        "reconciling"
    }
}
