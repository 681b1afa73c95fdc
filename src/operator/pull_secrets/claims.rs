//! Which namespaces a PullSecret serves: those that it chooses, that the Registry allows, and where no older PullSecret
//! wants the same Secret.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt as _;

use super::marks::Owner;
use crate::crd::{PullSecret, Registry};

/// A namespace: what the choice needs to know of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it goes: nothing can be made in it any more.
    pub going: bool,
}

/// All namespaces by name.
pub type Namespaces = BTreeMap<String, Namespace>;

/// Where a PullSecret's Secret is to be, and where it can't be although the namespace is chosen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claims {
    /// Namespaces that are to have it.
    pub served: BTreeSet<String>,
    /// Namespaces where an older PullSecret wants a Secret of that name.
    pub taken: BTreeMap<String, Owner>,
    /// Namespaces that may not use the Registry.
    pub not_allowed: BTreeSet<String>,
    /// Whether the PullSecret's own namespace may not use the Registry: then no namespace is served.
    pub refused: bool,
}

/// The claims of `pull_secret`, which may be among `all`. Where the Registry isn't known, it forbids nothing.
pub fn claims<'a>(
    pull_secret: &'a PullSecret,
    all: impl IntoIterator<Item = &'a PullSecret>,
    registry: impl Fn(&str) -> Option<&'a Registry>,
    namespaces: &Namespaces,
) -> Claims {
    let place = |it: &'a PullSecret| Wants::new(it, registry(&it.registry_ref().name));
    let mine = place(pull_secret);
    let mut claims = Claims { refused: !mine.admits_own(namespaces), ..Claims::default() };
    let rivals: Vec<Wants<'_>> = all
        .into_iter()
        .filter(|other| other.metadata.deletion_timestamp.is_none() && other.secret_name() == pull_secret.secret_name())
        .filter(|other| age(other) < age(pull_secret))
        .map(place)
        .filter(|rival| rival.admits_own(namespaces))
        .collect();
    for (name, namespace) in namespaces {
        if namespace.going || !pull_secret.chooses(name, Some(&namespace.labels)) {
            continue;
        }
        if claims.refused || !mine.admits(namespace) {
            claims.not_allowed.insert(name.clone());
        } else if let Some(rival) = rivals.iter().find(|rival| rival.wants(name, namespace)) {
            claims.taken.insert(name.clone(), Owner::of(rival.pull_secret));
        } else {
            claims.served.insert(name.clone());
        }
    }
    claims
}

/// Which of two PullSecrets is the older; by name where the clock can't tell.
fn age(pull_secret: &PullSecret) -> (Option<jiff::Timestamp>, Owner) {
    (pull_secret.metadata.creation_timestamp.as_ref().map(|time| time.0), Owner::of(pull_secret))
}

/// A PullSecret beside its Registry.
struct Wants<'a> {
    pull_secret: &'a PullSecret,
    registry: Option<&'a Registry>,
}

impl<'a> Wants<'a> {
    fn new(pull_secret: &'a PullSecret, registry: Option<&'a Registry>) -> Self {
        Self { pull_secret, registry }
    }

    fn admits(&self, namespace: &Namespace) -> bool {
        self.registry.is_none_or(|registry| registry.admits(Some(&namespace.labels)))
    }

    fn admits_own(&self, namespaces: &Namespaces) -> bool {
        let own = self.pull_secret.namespace().unwrap_or_default();
        namespaces.get(&own).is_none_or(|own| self.admits(own))
    }

    fn wants(&self, name: &str, namespace: &Namespace) -> bool {
        self.pull_secret.chooses(name, Some(&namespace.labels)) && self.admits(namespace)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pull_secret(name: &str, created: i64, spec: &Value) -> PullSecret {
        let created = jiff::Timestamp::from_second(created).unwrap().to_string();
        let metadata = json!({ "name": name, "namespace": "platform", "creationTimestamp": created });
        let mut spec = spec.clone();
        spec["registryRef"] = json!({ "name": "home" });
        serde_json::from_value(json!({ "metadata": metadata, "spec": spec })).unwrap()
    }

    fn registry(allowed: &Value) -> Registry {
        let spec = json!({ "managed": {}, "allowedNamespaces": allowed });
        serde_json::from_value(json!({ "metadata": { "name": "home" }, "spec": spec })).unwrap()
    }

    fn namespaces(names: &[(&str, &[(&str, &str)])]) -> Namespaces {
        let namespace = |(name, labels): &(&str, &[(&str, &str)])| {
            let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            ((*name).to_owned(), Namespace { labels, going: false })
        };
        names.iter().map(namespace).collect()
    }

    fn names(names: &BTreeSet<String>) -> Vec<&str> {
        names.iter().map(String::as_str).collect()
    }

    const PULLS: &[(&str, &str)] = &[("pulls-from", "home")];

    #[test]
    fn the_chosen_namespaces_are_served_but_for_those_that_go() {
        let mut namespaces = namespaces(&[("platform", &[]), ("shop", PULLS), ("web", PULLS), ("other", &[])]);
        namespaces.get_mut("web").unwrap().going = true;
        let some = pull_secret("pull", 1, &json!({ "namespaceSelector": { "matchLabels": { "pulls-from": "home" } } }));
        assert_eq!(names(&claims(&some, [&some], |_| None, &namespaces).served), ["shop"]);
        let own = pull_secret("pull", 1, &json!({}));
        assert_eq!(names(&claims(&own, [&own], |_| None, &namespaces).served), ["platform"]);
        let all = pull_secret("pull", 1, &json!({ "namespaceSelector": {} }));
        assert_eq!(names(&claims(&all, [&all], |_| None, &namespaces).served), ["other", "platform", "shop"]);
    }

    #[test]
    fn the_registry_decides_which_namespaces_may_have_it() {
        let namespaces = namespaces(&[("platform", &[("team", "platform")]), ("shop", PULLS), ("web", &[])]);
        let all = pull_secret("pull", 1, &json!({ "namespaceSelector": {} }));
        let some = registry(&json!([
            { "selector": { "matchLabels": { "team": "platform" } } },
            { "selector": { "matchLabels": { "pulls-from": "home" } }, "repositoryPrefixes": ["shop/"] },
        ]));
        let claimed = claims(&all, [&all], |_| Some(&some), &namespaces);
        assert_eq!((names(&claimed.served), names(&claimed.not_allowed)), (vec!["platform", "shop"], vec!["web"]));
        assert!(!claimed.refused);
        let others = registry(&json!([{ "selector": { "matchLabels": { "pulls-from": "home" } } }]));
        let claimed = claims(&all, [&all], |_| Some(&others), &namespaces);
        assert!(claimed.refused && claimed.served.is_empty(), "{claimed:?}");
    }

    #[test]
    fn of_two_that_want_the_same_secret_the_older_has_it() {
        let namespaces = namespaces(&[("platform", &[]), ("shop", PULLS)]);
        let older = pull_secret(
            "z-older",
            1,
            &json!({ "secretName": "pull", "namespaceSelector": { "matchLabels": { "pulls-from": "home" } } }),
        );
        let younger = pull_secret("a-younger", 2, &json!({ "secretName": "pull", "namespaceSelector": {} }));
        let elsewhere = pull_secret("other", 0, &json!({ "namespaceSelector": {} }));
        let all = [&older, &younger, &elsewhere];
        assert_eq!(names(&claims(&older, all, |_| None, &namespaces).served), ["shop"]);
        let claimed = claims(&younger, all, |_| None, &namespaces);
        assert_eq!(names(&claimed.served), ["platform"]);
        assert_eq!(claimed.taken["shop"].to_string(), "platform/z-older");
    }

    #[test]
    fn one_that_is_deleted_or_refused_stands_in_nobodys_way() {
        let namespaces = namespaces(&[("platform", &[])]);
        let mut older = pull_secret("older", 1, &json!({ "secretName": "pull" }));
        older.spec.registry_ref.name = "closed".to_owned();
        let younger = pull_secret("younger", 2, &json!({ "secretName": "pull" }));
        let closed = registry(&json!([]));
        let known = |name: &str| (name == "closed").then_some(&closed);
        assert_eq!(names(&claims(&younger, [&older, &younger], known, &namespaces).served), ["platform"]);
        assert!(!claims(&younger, [&older, &younger], |_| None, &namespaces).taken.is_empty());
        older.metadata.deletion_timestamp = older.metadata.creation_timestamp.clone();
        assert_eq!(names(&claims(&younger, [&older, &younger], |_| None, &namespaces).served), ["platform"]);
    }
}
