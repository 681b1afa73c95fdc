//! Decides which Secrets and service accounts to change, so that they are as a PullSecret declares
//! them.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::annotations::HeldSecret;
use crate::secrets::{
    DesiredContent, SecretDeletion, SecretMark, SecretName, SecretOwner, SecretPlan, SecretWrite,
    WriteReason, plan_secrets, write_reason,
};

/// The desired and the current state.
#[derive(Debug, Clone)]
pub(crate) struct SecretInputs<'a> {
    /// The PullSecret.
    pub owner: &'a SecretOwner,
    /// The name of its Secret in every namespace.
    pub secret_name: &'a str,
    /// The service accounts that should name the Secret.
    pub service_accounts: &'a BTreeSet<String>,
    /// The namespaces that should have the Secret.
    pub served: &'a BTreeSet<String>,
    /// All Secrets that are marked as ours, of this PullSecret and of others.
    pub held: &'a [HeldSecret],
    /// The names in imagePullSecrets of every existing service account, by namespace and name.
    pub accounts: &'a BTreeMap<(String, String), Vec<String>>,
    /// The source of tokens (see [`super::annotations::source`]); nothing while that is unknown.
    pub source: Option<&'a str>,
    /// The digest of the content at hand: all Secrets should have the same.
    pub at_hand: Option<&'a str>,
    /// True if new tokens are requested, whatever there is.
    pub requested: bool,
    pub now: Timestamp,
}

/// The changes to make, in this order. Empty when everything is as it should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PullSecretChanges {
    /// Names to remove from service accounts.
    pub detach: Vec<Entry>,
    /// Secrets to delete, once no service account names them.
    pub delete: Vec<SecretDeletion>,
    /// Secrets to write.
    pub write: Vec<SecretWrite>,
    /// Names to add to service accounts, once the Secret exists.
    pub attach: Vec<Entry>,
}

/// A Secret's name in the imagePullSecrets of a service account.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    /// The namespace of both.
    pub namespace: String,
    pub account: String,
    pub secret: String,
}

/// Decides what to change.
pub(crate) fn decide(inputs: &SecretInputs<'_>) -> PullSecretChanges {
    let wanted: BTreeSet<_> =
        inputs.served.iter().map(|namespace| inputs.secret(namespace)).collect();
    let differs = |it: &HeldSecret| it.service_accounts != *inputs.service_accounts;
    let SecretPlan { delete, write } =
        plan_secrets(inputs.owner, &wanted, inputs.held, inputs.content(), differs);
    let mut decision = PullSecretChanges { delete, write, ..PullSecretChanges::default() };
    let is_deleted = |secret: &SecretName| decision.delete.iter().any(|it| it.secret == *secret);
    let none = BTreeSet::new();
    for held in inputs.held {
        if is_deleted(&held.secret.name) {
            decision.detach.extend(inputs.detach(held, &none));
        } else if wanted.contains(&held.secret.name) {
            decision.detach.extend(inputs.detach(held, inputs.service_accounts));
        }
    }
    for SecretName { namespace, name } in wanted.iter().filter(|secret| !is_deleted(secret)) {
        let unnamed = |account: &&String| inputs.names(namespace, account, name) == Some(false);
        decision.attach.extend(inputs.service_accounts.iter().filter(unnamed).map(|account| {
            Entry { namespace: namespace.clone(), account: account.clone(), secret: name.clone() }
        }));
    }
    decision
}

impl SecretInputs<'_> {
    fn secret(&self, namespace: &str) -> SecretName {
        SecretName::new(namespace, self.secret_name)
    }

    fn content(&self) -> DesiredContent<'_> {
        DesiredContent {
            source: self.source,
            digest: self.at_hand,
            requested: self.requested,
            now: self.now,
        }
    }

    /// Returns the entries of a Secret in the accounts that have it because of us, except those in `stay`.
    fn detach(&self, held: &HeldSecret, stay: &BTreeSet<String>) -> Vec<Entry> {
        let SecretName { namespace, name } = &held.secret.name;
        let accounts = held.service_accounts.difference(stay);
        // An entry that the watch has not reported yet counts, too: nothing knows of the account later.
        let exists = |account: &&String| self.names(namespace, account, name).is_some();
        let entry = |account: &String| Entry {
            namespace: namespace.clone(),
            account: account.clone(),
            secret: name.clone(),
        };
        accounts.filter(exists).map(entry).collect()
    }

    /// Returns whether a service account names a Secret; nothing if there is no such account.
    fn names(&self, namespace: &str, account: &str, secret: &str) -> Option<bool> {
        let names = self.accounts.get(&(namespace.to_owned(), account.to_owned()))?;
        Some(names.iter().any(|name| name == secret))
    }

    /// Returns the service accounts that the Secret of a namespace records: those that should name it, and those that could
    /// not be detached. Nothing else remembers them.
    pub fn marks(&self, namespace: &str, undetached: &[Entry]) -> BTreeSet<String> {
        let still = undetached
            .iter()
            .filter(|it| it.namespace == namespace && it.secret == self.secret_name);
        self.service_accounts.iter().chain(still.map(|it| &it.account)).cloned().collect()
    }

    /// Returns whether to write a Secret although these entries could not be detached. One that records just that already
    /// has nothing new to record.
    pub fn is_due(&self, write: &SecretWrite, undetached: &[Entry]) -> bool {
        let existing = || self.held.iter().find(|it| it.secret.name == write.secret);
        write.reason != WriteReason::Annotations
            || existing().is_none_or(|it| {
                it.service_accounts != self.marks(&write.secret.namespace, undetached)
            })
    }

    /// Returns whether the Secret of a namespace records that this service account names it because of us.
    pub fn records(&self, entry: &Entry) -> bool {
        let secret = SecretName::new(&entry.namespace, &entry.secret);
        let mut own = self.held.iter().filter(|it| it.secret.owner.as_ref() == Some(self.owner));
        own.any(|it| it.secret.name == secret && it.service_accounts.contains(&entry.account))
    }

    /// Returns the tokens in the PullSecret's Secrets by namespace: first those to pull with, whether or not they are to be
    /// replaced, then those that expired or have another source.
    pub fn tokens(&self) -> (BTreeMap<String, SecretMark>, BTreeMap<String, SecretMark>) {
        let own = self.held.iter().map(|it| &it.secret).filter(|it| {
            it.has_type
                && it.owner.as_ref() == Some(self.owner)
                && it.name.name == self.secret_name
                && self.served.contains(&it.name.namespace)
        });
        let is_good = |token: &SecretMark| {
            self.source.is_none_or(|source| source == token.source) && token.expires_at > self.now
        };
        own.filter_map(|it| Some((it.name.namespace.clone(), it.mark.clone()?)))
            .partition(|(_, token)| is_good(token))
    }

    /// Returns the reason to write an existing Secret, if there is one.
    pub fn write_reason(&self, existing: &HeldSecret) -> Option<WriteReason> {
        let differs = existing.service_accounts != *self.service_accounts;
        write_reason(self.owner, Some(&existing.secret), self.content())
            .or(differs.then_some(WriteReason::Annotations))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrets::OwnedSecret;

    fn owner(name: &str) -> SecretOwner {
        SecretOwner { namespace: "platform".to_owned(), name: name.to_owned() }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn held(namespace: &str, renews_at: i64) -> HeldSecret {
        let (source, digest) = ("here".to_owned(), "d".to_owned());
        HeldSecret {
            secret: OwnedSecret {
                name: SecretName::new(namespace, "pull"),
                uid: "u1".to_owned(),
                owner: Some(owner("home")),
                mark: Some(SecretMark {
                    source,
                    digest,
                    expires_at: at(2 * renews_at),
                    renews_at: at(renews_at),
                }),
                has_type: true,
            },
            service_accounts: BTreeSet::new(),
        }
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// Calls `check` with the inputs of a PullSecret whose Secret should be in `served`, and named by `service_accounts`.
    fn with_inputs(
        served: &[&str],
        service_accounts: &[&str],
        held: &[HeldSecret],
        check: impl FnOnce(&SecretInputs<'_>),
    ) {
        check(&SecretInputs {
            owner: &owner("home"),
            secret_name: "pull",
            service_accounts: &names(service_accounts),
            served: &names(served),
            held,
            accounts: &BTreeMap::new(),
            source: Some("here"),
            at_hand: None,
            requested: false,
            now: at(1000),
        });
    }

    #[test]
    fn other_service_accounts_are_a_reason_to_write() {
        let named = HeldSecret { service_accounts: names(&["default"]), ..held("shop", 1001) };
        for (service_accounts, expected) in
            [(["default"].as_slice(), None), (&[], Some(WriteReason::Annotations))]
        {
            with_inputs(&["shop"], service_accounts, std::slice::from_ref(&named), |inputs| {
                assert_eq!(inputs.write_reason(&named), expected);
                assert_eq!(decide(inputs).write.first().map(|it| it.reason), expected);
            });
        }
        let due = HeldSecret { service_accounts: names(&["default"]), ..held("shop", 1000) };
        with_inputs(&["shop"], &[], std::slice::from_ref(&due), |inputs| {
            assert_eq!(inputs.write_reason(&due), Some(WriteReason::Renewal));
        });
    }

    #[test]
    fn an_account_that_could_not_be_changed_is_remembered() {
        let both = names(&["builder", "default"]);
        let held = [HeldSecret { service_accounts: both.clone(), ..held("shop", 1001) }];
        let entry = |namespace: &str, account: &str, secret: &str| Entry {
            namespace: namespace.to_owned(),
            account: account.to_owned(),
            secret: secret.to_owned(),
        };
        let still = [
            entry("shop", "builder", "pull"),
            entry("web", "late", "pull"),
            entry("shop", "old", "old-pull"),
        ];
        let due =
            |reason| SecretWrite { secret: SecretName::new("shop", "pull"), uid: None, reason };
        with_inputs(&["shop"], &["default"], &held, |inputs| {
            assert_eq!(inputs.marks("shop", &still), both);
            assert_eq!(inputs.marks("shop", &[]), names(&["default"]));
            assert!(
                !inputs.is_due(&due(WriteReason::Annotations), &still),
                "it records that already"
            );
            assert!(inputs.is_due(&due(WriteReason::Annotations), &[]));
            assert!(inputs.is_due(&due(WriteReason::Renewal), &still));
            assert!(
                inputs.records(&still[0])
                    && !inputs.records(&still[1])
                    && !inputs.records(&still[2])
            );
        });
    }

    #[test]
    fn an_expired_token_is_reported_but_not_to_pull_with() {
        let mut elsewhere = held("elsewhere", 1500);
        elsewhere.secret.mark.as_mut().unwrap().source = "there".to_owned();
        let mut theirs = held("old", 250);
        theirs.secret.owner = None;
        let held = [held("shop", 501), held("web", 500), theirs, elsewhere, held("left", 50)];
        with_inputs(&["shop", "web", "old", "elsewhere"], &[], &held, |inputs| {
            let names =
                |tokens: BTreeMap<String, SecretMark>| tokens.into_keys().collect::<Vec<_>>();
            let (good, spent) = inputs.tokens();
            assert_eq!(names(good), ["shop"]);
            assert_eq!(names(spent), ["elsewhere", "web"]);
        });
    }
}
