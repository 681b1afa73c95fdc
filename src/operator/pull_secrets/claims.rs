//! The namespaces that a PullSecret serves: those that it selects, that the Registry allows, and where no older PullSecret
//! wants the same Secret.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt as _;

use super::annotations::HeldSecret;
use crate::secrets::SecretOwner;
use wharfage_crd::{PullSecret, Registry};

/// A namespace, as far as selectors and permissions need it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Namespace {
    pub labels: BTreeMap<String, String>,
    /// True if it is being deleted: nothing can be created in it any more.
    pub going: bool,
}

/// All namespaces by name.
pub(crate) type Namespaces = BTreeMap<String, Namespace>;

/// The namespaces that a PullSecret selects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Claims {
    /// Namespaces that should have the Secret.
    pub served: BTreeSet<String>,
    /// Namespaces where an older PullSecret wants a Secret of that name.
    pub taken: BTreeMap<String, SecretOwner>,
    /// Namespaces that may not use the Registry.
    pub not_allowed: BTreeSet<String>,
    /// True if the PullSecret's own namespace may not use the Registry: then no namespace is
    /// served.
    pub refused: bool,
}

/// Computes the claims of `pull_secret`, which may be among `all`, where these Secrets are `held`. A Registry that is not known
/// allows nothing new: a PullSecret that refers to it keeps its Secrets and gets no more.
pub(crate) fn claims<'a, 'r>(
    pull_secret: &'a PullSecret,
    all: impl IntoIterator<Item = &'a PullSecret>,
    registry: impl Fn(&str) -> Option<&'r Registry>,
    namespaces: &Namespaces,
    held: &[HeldSecret],
) -> Claims {
    let secret_name = pull_secret.secret_name();
    let held = held.iter().map(|it| &it.secret).filter(|it| it.name.name == secret_name);
    let held: BTreeSet<_> =
        held.filter_map(|it| Some((it.owner.as_ref()?, it.name.namespace.as_str()))).collect();
    let place = |it: &'a PullSecret| {
        let owner = SecretOwner::of(it);
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
        .filter(|other| {
            other.metadata.deletion_timestamp.is_none() && other.secret_name() == secret_name
        })
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
            // Nobody knows whether it is allowed.
        } else if let Some(rival) = rivals.iter().find(|rival| rival.wants(name, namespace)) {
            claims.taken.insert(name.clone(), SecretOwner::of(rival.pull_secret));
        } else {
            claims.served.insert(name.clone());
        }
    }
    claims
}

/// Returns the precedence of a PullSecret: the older first, and of two of the same second the first by name.
fn age(pull_secret: &PullSecret) -> (Option<jiff::Timestamp>, SecretOwner) {
    (
        pull_secret.metadata.creation_timestamp.as_ref().map(|time| time.0),
        SecretOwner::of(pull_secret),
    )
}

/// A PullSecret and its Registry.
struct Wants<'a, 'r> {
    pull_secret: &'a PullSecret,
    registry: Option<&'r Registry>,
    /// Namespaces that have its Secret.
    has: BTreeSet<String>,
}

impl Wants<'_, '_> {
    /// Returns whether the namespace may use the Registry; nothing if the Registry is not known.
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
    use crate::secrets::{OwnedSecret, SecretName};

    fn pull_secret(name: &str, created: i64, spec: &Value) -> PullSecret {
        let created = jiff::Timestamp::from_second(created).unwrap().to_string();
        let metadata =
            json!({ "name": name, "namespace": "platform", "creationTimestamp": created });
        let mut spec = spec.clone();
        spec["registryRef"] = json!({ "name": "home" });
        serde_json::from_value(json!({ "metadata": metadata, "spec": spec })).unwrap()
    }

    fn registry(allowed: &Value) -> Registry {
        let spec = json!({ "managed": {}, "allowedNamespaces": allowed });
        serde_json::from_value(json!({ "metadata": { "name": "home" }, "spec": spec })).unwrap()
    }

    /// Returns a Registry that every namespace may use, whatever its name.
    fn open(_: &str) -> Option<&'static Registry> {
        static OPEN: LazyLock<Registry> = LazyLock::new(|| {
            serde_json::from_value(
                json!({ "metadata": { "name": "home" }, "spec": { "managed": {} } }),
            )
            .unwrap()
        });
        Some(&OPEN)
    }

    fn namespaces(names: &[(&str, &[(&str, &str)])]) -> Namespaces {
        let namespace = |(name, labels): &(&str, &[(&str, &str)])| {
            let labels = labels
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect();
            ((*name).to_owned(), Namespace { labels, going: false })
        };
        names.iter().map(namespace).collect()
    }

    fn names(names: &BTreeSet<String>) -> Vec<&str> {
        names.iter().map(String::as_str).collect()
    }

    const PULLS: &[(&str, &str)] = &[("pulls-from", "home")];

    #[test]
    fn selected_namespaces_are_served_unless_they_are_being_deleted() {
        let mut namespaces =
            namespaces(&[("platform", &[]), ("shop", PULLS), ("web", PULLS), ("other", &[])]);
        namespaces.get_mut("web").unwrap().going = true;
        let some = pull_secret(
            "pull",
            1,
            &json!({ "namespaceSelector": { "matchLabels": { "pulls-from": "home" } } }),
        );
        assert_eq!(names(&claims(&some, [&some], open, &namespaces, &[]).served), ["shop"]);
        let own = pull_secret("pull", 1, &json!({}));
        assert_eq!(names(&claims(&own, [&own], open, &namespaces, &[]).served), ["platform"]);
        let all = pull_secret("pull", 1, &json!({ "namespaceSelector": {} }));
        assert_eq!(
            names(&claims(&all, [&all], open, &namespaces, &[]).served),
            ["other", "platform", "shop"]
        );
    }

    #[test]
    fn the_registry_decides_which_namespaces_are_allowed() {
        let namespaces =
            namespaces(&[("platform", &[("team", "platform")]), ("shop", PULLS), ("web", &[])]);
        let all = pull_secret("pull", 1, &json!({ "namespaceSelector": {} }));
        let some = registry(&json!([
            { "selector": { "matchLabels": { "team": "platform" } } },
            { "selector": { "matchLabels": { "pulls-from": "home" } }, "repositoryPrefixes": ["shop/"] },
        ]));
        let claimed = claims(&all, [&all], |_| Some(&some), &namespaces, &[]);
        assert_eq!(
            (names(&claimed.served), names(&claimed.not_allowed)),
            (vec!["platform", "shop"], vec!["web"])
        );
        assert!(!claimed.refused);
        let others =
            registry(&json!([{ "selector": { "matchLabels": { "pulls-from": "home" } } }]));
        let claimed = claims(&all, [&all], |_| Some(&others), &namespaces, &[]);
        assert!(claimed.refused && claimed.served.is_empty(), "{claimed:?}");
    }

    #[test]
    fn of_two_that_want_the_same_secret_the_older_gets_it() {
        let namespaces = namespaces(&[("platform", &[]), ("shop", PULLS)]);
        let older = pull_secret(
            "z-older",
            1,
            &json!({ "secretName": "pull", "namespaceSelector": { "matchLabels": { "pulls-from": "home" } } }),
        );
        let younger =
            pull_secret("a-younger", 2, &json!({ "secretName": "pull", "namespaceSelector": {} }));
        let elsewhere = pull_secret("other", 0, &json!({ "namespaceSelector": {} }));
        let all = [&older, &younger, &elsewhere];
        assert_eq!(names(&claims(&older, all, open, &namespaces, &[]).served), ["shop"]);
        let claimed = claims(&younger, all, open, &namespaces, &[]);
        assert_eq!(names(&claimed.served), ["platform"]);
        assert_eq!(claimed.taken["shop"].to_string(), "platform/z-older");
    }

    #[test]
    fn one_that_is_deleted_or_refused_blocks_nobody() {
        let namespaces = namespaces(&[("platform", &[])]);
        let mut older = pull_secret("older", 1, &json!({ "secretName": "pull" }));
        older.spec.registry_ref.name = "closed".to_owned();
        let younger = pull_secret("younger", 2, &json!({ "secretName": "pull" }));
        let closed = registry(&json!([]));
        let known = |name: &str| if name == "closed" { Some(&closed) } else { open(name) };
        assert_eq!(
            names(&claims(&younger, [&older, &younger], known, &namespaces, &[]).served),
            ["platform"]
        );
        assert!(!claims(&younger, [&older, &younger], open, &namespaces, &[]).taken.is_empty());
        older.metadata.deletion_timestamp = older.metadata.creation_timestamp.clone();
        assert_eq!(
            names(&claims(&younger, [&older, &younger], open, &namespaces, &[]).served),
            ["platform"]
        );
    }

    #[test]
    fn without_its_registry_a_pull_secret_keeps_its_secrets_and_gets_no_more() {
        let namespaces = namespaces(&[("platform", &[]), ("shop", PULLS), ("web", &[])]);
        let held = |namespace: &str, name: &str, owner: &PullSecret| HeldSecret {
            secret: OwnedSecret {
                name: SecretName::new(namespace, name),
                uid: "u".to_owned(),
                owner: Some(SecretOwner::of(owner)),
                mark: None,
                has_type: true,
            },
            service_accounts: BTreeSet::new(),
        };
        let mut older =
            pull_secret("older", 1, &json!({ "secretName": "pull", "namespaceSelector": {} }));
        older.spec.registry_ref.name = "gone".to_owned();
        let younger =
            pull_secret("younger", 2, &json!({ "secretName": "pull", "namespaceSelector": {} }));
        let (known, all) =
            (|name: &str| (name == "home").then(|| open(name)).flatten(), [&older, &younger]);
        let there = [held("shop", "pull", &older), held("web", "pull", &younger)];
        let claimed = claims(&older, all, known, &namespaces, &there);
        assert_eq!(names(&claimed.served), ["shop"]);
        assert!(claimed.not_allowed.is_empty() && !claimed.refused, "nobody knows: {claimed:?}");
        let claimed = claims(&younger, all, known, &namespaces, &there);
        assert_eq!(
            names(&claimed.served),
            ["platform", "web"],
            "what the older cannot have does not block the younger"
        );
        assert_eq!(claimed.taken["shop"].to_string(), "platform/older");
        let elsewhere = [held("shop", "other", &older)];
        assert!(claims(&older, all, known, &namespaces, &elsewhere).served.is_empty());
    }
}
