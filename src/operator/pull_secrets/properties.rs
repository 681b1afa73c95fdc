//! Properties of decisions: whatever exists and whatever is wanted, they lead there and change nothing of others.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use proptest::prelude::*;

use super::annotations::HeldSecret;
use super::decide::{Entry, PullSecretChanges, SecretInputs, decide};
use crate::secrets::{
    OwnedSecret, SecretDeletion, SecretMark, SecretName, SecretOwner, SecretWrite,
};

const NAMESPACES: [&str; 4] = ["a", "b", "c", "d"];
const ACCOUNTS: [&str; 3] = ["default", "builder", "runner"];
const NAMES: [&str; 2] = ["pull", "old-pull"];
const NOW: i64 = 1_000_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn owner(name: &str) -> SecretOwner {
    SecretOwner { namespace: "platform".to_owned(), name: name.to_owned() }
}

fn token(renews: i64) -> SecretMark {
    let (source, digest) = ("here".to_owned(), "d".to_owned());
    SecretMark { source, digest, expires_at: at(renews + 10_000), renews_at: at(renews) }
}

/// A cluster: its marked Secrets, and the names in each service account's imagePullSecrets.
#[derive(Debug, Clone)]
struct Cluster {
    held: Vec<HeldSecret>,
    accounts: BTreeMap<(String, String), Vec<String>>,
}

#[derive(Debug, Clone)]
struct Wanted {
    service_accounts: BTreeSet<String>,
    served: BTreeSet<String>,
}

fn some_of(names: &'static [&'static str]) -> impl Strategy<Value = BTreeSet<String>> {
    proptest::sample::subsequence(names, 0..=names.len())
        .prop_map(|names| names.into_iter().map(str::to_owned).collect())
}

fn held() -> impl Strategy<Value = HeldSecret> {
    let owners = prop_oneof![4 => Just(Some(owner("home"))), 1 => Just(Some(owner("other"))), 1 => Just(None)];
    let tokens = prop_oneof![
        3 => Just(Some(token(NOW + 1))),
        1 => Just(Some(token(NOW))),
        1 => Just(Some(SecretMark { source: "elsewhere".to_owned(), ..token(NOW + 1) })),
        1 => Just(None),
    ];
    let place = (proptest::sample::select(&NAMESPACES), proptest::sample::select(&NAMES));
    (place, owners, tokens, some_of(&ACCOUNTS), prop::bool::weighted(0.9)).prop_map(
        |((namespace, name), owner, mark, service_accounts, has_type)| HeldSecret {
            secret: OwnedSecret {
                name: SecretName::new(namespace, name),
                uid: format!("{namespace}-{name}"),
                owner,
                mark,
                has_type,
            },
            service_accounts,
        },
    )
}

fn cluster() -> impl Strategy<Value = Cluster> {
    let account = (
        (proptest::sample::select(&NAMESPACES), proptest::sample::select(&ACCOUNTS)),
        proptest::sample::subsequence(&["pull", "old-pull", "theirs"], 0..=3),
    );
    (proptest::collection::vec(held(), 0..8), proptest::collection::vec(account, 0..10)).prop_map(
        |(held, accounts)| {
            let places: BTreeMap<_, _> =
                held.into_iter().map(|held| (held.secret.name.clone(), held)).collect();
            let accounts = accounts.into_iter().map(|((namespace, account), names)| {
                (
                    (namespace.to_owned(), account.to_owned()),
                    names.into_iter().map(str::to_owned).collect(),
                )
            });
            Cluster { held: places.into_values().collect(), accounts: accounts.collect() }
        },
    )
}

fn wanted() -> impl Strategy<Value = Wanted> {
    (some_of(&ACCOUNTS), some_of(&NAMESPACES))
        .prop_map(|(service_accounts, served)| Wanted { service_accounts, served })
}

impl Cluster {
    fn decide(&self, wanted: &Wanted) -> PullSecretChanges {
        decide(&SecretInputs {
            owner: &owner("home"),
            secret_name: "pull",
            service_accounts: &wanted.service_accounts,
            served: &wanted.served,
            held: &self.held,
            accounts: &self.accounts,
            source: Some("here"),
            at_hand: None,
            requested: false,
            now: at(NOW),
        })
    }

    fn execute(&mut self, wanted: &Wanted, decision: &PullSecretChanges) {
        let PullSecretChanges { detach, delete, write, attach } = decision;
        for Entry { namespace, account, secret } in detach {
            let names = self.accounts.get_mut(&(namespace.clone(), account.clone())).unwrap();
            names.retain(|name| name != secret);
        }
        for SecretDeletion { uid, .. } in delete {
            self.held.retain(|held| held.secret.uid != *uid);
        }
        for SecretWrite { secret, uid, reason: _ } in write {
            let place = self.held.iter().position(|held| held.secret.name == *secret);
            assert_eq!(
                place.map(|index| &self.held[index].secret.uid),
                uid.as_ref(),
                "another Secret is overwritten"
            );
            place.map(|index| self.held.remove(index));
            self.held.push(HeldSecret {
                secret: OwnedSecret {
                    name: secret.clone(),
                    uid: uid.clone().unwrap_or_else(|| format!("{secret}-new")),
                    owner: Some(owner("home")),
                    mark: Some(token(NOW + 500)),
                    has_type: true,
                },
                service_accounts: wanted.service_accounts.clone(),
            });
        }
        for Entry { namespace, account, secret } in attach {
            let names = self.accounts.get_mut(&(namespace.clone(), account.clone())).unwrap();
            assert!(!names.contains(secret), "named twice");
            names.push(secret.clone());
        }
    }

    /// Returns what the PullSecret must not change.
    fn of_others(&self, wanted: &Wanted) -> (Vec<HeldSecret>, Vec<String>) {
        let wants = |SecretName { namespace, name }: &SecretName| {
            name == "pull" && wanted.served.contains(namespace)
        };
        let foreign = |held: &&HeldSecret| {
            held.secret.owner != Some(owner("home")) && !wants(&held.secret.name)
        };
        let names = self
            .accounts
            .iter()
            .map(|(place, names)| format!("{place:?} {}", names.contains(&"theirs".to_owned())));
        (self.held.iter().filter(foreign).cloned().collect(), names.collect())
    }
}

proptest! {
    #[test]
    fn a_decision_leads_to_what_is_wanted(mut cluster in cluster(), wanted in wanted()) {
        let before = cluster.clone();
        // A Secret of another type is deleted first and created again by the next reconcile.
        for _ in 0..2 {
            let decision = cluster.decide(&wanted);
            cluster.execute(&wanted, &decision);
        }
        prop_assert_eq!(cluster.decide(&wanted), PullSecretChanges::default());
        let mine = cluster.held.iter().filter(|held| held.secret.owner == Some(owner("home")));
        let places: BTreeSet<_> = mine.map(|held| held.secret.name.clone()).collect();
        prop_assert_eq!(places, wanted.served.iter().map(|it| SecretName::new(it, "pull")).collect::<BTreeSet<_>>());
        for ((namespace, account), names) in &cluster.accounts {
            if wanted.served.contains(namespace) && wanted.service_accounts.contains(account) {
                prop_assert!(names.contains(&"pull".to_owned()));
            }
        }
        prop_assert_eq!(cluster.of_others(&wanted), before.of_others(&wanted));
    }

    #[test]
    fn a_deleted_pull_secret_leaves_nothing_behind(mut cluster in cluster(), wanted in wanted()) {
        for _ in 0..2 {
            let decision = cluster.decide(&wanted);
            cluster.execute(&wanted, &decision);
        }
        let nothing = Wanted { served: BTreeSet::new(), ..wanted.clone() };
        let decision = cluster.decide(&nothing);
        prop_assert!(decision.write.is_empty() && decision.attach.is_empty());
        cluster.execute(&nothing, &decision);
        prop_assert!(cluster.held.iter().all(|held| held.secret.owner != Some(owner("home"))));
        for ((namespace, account), names) in &cluster.accounts {
            if wanted.served.contains(namespace) && wanted.service_accounts.contains(account) {
                prop_assert!(!names.contains(&"pull".to_owned()));
            }
        }
    }

    #[test]
    fn a_fresh_secret_as_wanted_is_not_written(accounts in some_of(&ACCOUNTS), renews in 1_i64..1000) {
        let held = HeldSecret {
            secret: OwnedSecret {
                name: SecretName::new("a", "pull"),
                uid: "u".to_owned(),
                owner: Some(owner("home")),
                mark: Some(token(NOW + renews)),
                has_type: true,
            },
            service_accounts: accounts.clone(),
        };
        let wanted = Wanted { service_accounts: accounts, served: ["a".to_owned()].into() };
        let cluster = Cluster { held: vec![held], accounts: BTreeMap::new() };
        prop_assert_eq!(cluster.decide(&wanted), PullSecretChanges::default());
    }
}
