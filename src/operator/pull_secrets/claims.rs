//! Which namespaces a PullSecret serves: those that it chooses, that the Registry allows, and where no older PullSecret
//! wants the same Secret.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt as _;

use super::annotations::{HeldSecret, Owner};
use wharfage_crd::{PullSecret, Registry};

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

/// The claims of `pull_secret`, which may be among `all`, where these Secrets are `held`. While a Registry isn't known nobody
/// knows what it allows: who refers to it keeps what it has, and gets nothing more.
pub fn claims<'a, 'r>(
    pull_secret: &'a PullSecret,
    all: impl IntoIterator<Item = &'a PullSecret>,
    registry: impl Fn(&str) -> Option<&'r Registry>,
    namespaces: &Namespaces,
    held: &[HeldSecret],
) -> Claims {
    let secret_name = pull_secret.secret_name();
    let held = held.iter().filter(|it| it.name == secret_name);
    let held: BTreeSet<_> = held.filter_map(|it| Some((it.owner.as_ref()?, it.namespace.as_str()))).collect();
    let place = |it: &'a PullSecret| {
        let owner = Owner::of(it);
        let of_it = held.iter().filter(|(of, _)| **of == owner);
        Wants {
            pull_secret: it,
            registry: registry(&it.registry_ref().name),
            has: of_it.map(|(_, namespace)| (*namespace).to_owned()).collect(),
        }
    };
    let mine = place(pull_secret);
    let mut claims = Claims { refused: !mine.admits_own(namespaces), ..Claims::default() };
    let rivals: Vec<Wants<'_, '_>> = all
        .into_iter()
        .filter(|other| other.metadata.deletion_timestamp.is_none() && other.secret_name() == secret_name)
        .filter(|other| age(other) < age(pull_secret))
        .map(place)
        .filter(|rival| rival.admits_own(namespaces))
        .collect();
    for (name, namespace) in namespaces {
        if namespace.going || !pull_secret.chooses(name, Some(&namespace.labels)) {
            continue;
        }
        if claims.refused || mine.admits(namespace) == Some(false) {
            claims.not_allowed.insert(name.clone());
        } else if !mine.wants(name, namespace) {
            // Whether it is allowed isn't known.
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
struct Wants<'a, 'r> {
    pull_secret: &'a PullSecret,
    registry: Option<&'r Registry>,
    /// Namespaces that have its Secret.
    has: BTreeSet<String>,
}

impl Wants<'_, '_> {
    /// Whether the namespace may use the Registry; nothing if there is no telling.
    fn admits(&self, namespace: &Namespace) -> Option<bool> {
        self.registry.map(|registry| registry.admits(Some(&namespace.labels)))
    }

    fn admits_own(&self, namespaces: &Namespaces) -> bool {
        let own = self.pull_secret.namespace().unwrap_or_default();
        namespaces.get(&own).and_then(|own| self.admits(own)).unwrap_or(true)
    }

    fn wants(&self, name: &str, namespace: &Namespace) -> bool {
        self.pull_secret.chooses(name, Some(&namespace.labels))
            && self.admits(namespace).unwrap_or_else(|| self.has.contains(name))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

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

    /// Registries of this name and of every other, that all may use.
    fn open(_: &str) -> Option<&'static Registry> {
        static OPEN: LazyLock<Registry> = LazyLock::new(|| {
            serde_json::from_value(json!({ "metadata": { "name": "home" }, "spec": { "managed": {} } })).unwrap()
        });
        Some(&OPEN)
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
        assert_eq!(names(&claims(&some, [&some], open, &namespaces, &[]).served), ["shop"]);
        let own = pull_secret("pull", 1, &json!({}));
        assert_eq!(names(&claims(&own, [&own], open, &namespaces, &[]).served), ["platform"]);
        let all = pull_secret("pull", 1, &json!({ "namespaceSelector": {} }));
        assert_eq!(names(&claims(&all, [&all], open, &namespaces, &[]).served), ["other", "platform", "shop"]);
    }

    #[test]
    fn the_registry_decides_which_namespaces_may_have_it() {
        let namespaces = namespaces(&[("platform", &[("team", "platform")]), ("shop", PULLS), ("web", &[])]);
        let all = pull_secret("pull", 1, &json!({ "namespaceSelector": {} }));
        let some = registry(&json!([
            { "selector": { "matchLabels": { "team": "platform" } } },
            { "selector": { "matchLabels": { "pulls-from": "home" } }, "repositoryPrefixes": ["shop/"] },
        ]));
        let claimed = claims(&all, [&all], |_| Some(&some), &namespaces, &[]);
        assert_eq!((names(&claimed.served), names(&claimed.not_allowed)), (vec!["platform", "shop"], vec!["web"]));
        assert!(!claimed.refused);
        let others = registry(&json!([{ "selector": { "matchLabels": { "pulls-from": "home" } } }]));
        let claimed = claims(&all, [&all], |_| Some(&others), &namespaces, &[]);
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
        assert_eq!(names(&claims(&older, all, open, &namespaces, &[]).served), ["shop"]);
        let claimed = claims(&younger, all, open, &namespaces, &[]);
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
        let known = |name: &str| if name == "closed" { Some(&closed) } else { open(name) };
        assert_eq!(names(&claims(&younger, [&older, &younger], known, &namespaces, &[]).served), ["platform"]);
        assert!(!claims(&younger, [&older, &younger], open, &namespaces, &[]).taken.is_empty());
        older.metadata.deletion_timestamp = older.metadata.creation_timestamp.clone();
        assert_eq!(names(&claims(&younger, [&older, &younger], open, &namespaces, &[]).served), ["platform"]);
    }

    #[test]
    fn while_a_registry_is_missing_everybody_keeps_what_they_have_and_no_more() {
        let namespaces = namespaces(&[("platform", &[]), ("shop", PULLS), ("web", &[])]);
        let held = |namespace: &str, owner: &PullSecret| HeldSecret {
            namespace: namespace.to_owned(),
            name: owner.secret_name(),
            uid: "u".to_owned(),
            owner: Some(Owner::of(owner)),
            token: None,
            service_accounts: BTreeSet::new(),
            typed: true,
        };
        let mut older = pull_secret("older", 1, &json!({ "secretName": "pull", "namespaceSelector": {} }));
        older.spec.registry_ref.name = "gone".to_owned();
        let younger = pull_secret("younger", 2, &json!({ "secretName": "pull", "namespaceSelector": {} }));
        let (known, all) = (|name: &str| (name == "home").then(|| open(name)).flatten(), [&older, &younger]);
        let there = [held("shop", &older), held("web", &younger)];
        let claimed = claims(&older, all, known, &namespaces, &there);
        assert_eq!(names(&claimed.served), ["shop"]);
        assert!(claimed.not_allowed.is_empty() && !claimed.refused, "nobody knows: {claimed:?}");
        let claimed = claims(&younger, all, known, &namespaces, &there);
        assert_eq!(names(&claimed.served), ["platform", "web"], "what the older can't have is in nobody's way");
        assert_eq!(claimed.taken["shop"].to_string(), "platform/older");
        let elsewhere = [HeldSecret { name: "other".to_owned(), ..held("shop", &older) }];
        assert!(claims(&older, all, known, &namespaces, &elsewhere).served.is_empty());
    }
}
