//! What is to be done so that Secrets and service accounts are as a PullSecret wants them.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::annotations::{HeldSecret, Owner, TokenMark};

/// What is wanted, and what there is.
#[derive(Debug, Clone)]
pub struct SecretInputs<'a> {
    /// The PullSecret.
    pub owner: &'a Owner,
    /// Name of its Secret in every namespace.
    pub secret_name: &'a str,
    /// Service accounts that are to name it.
    pub service_accounts: &'a BTreeSet<String>,
    /// Namespaces that are to have it.
    pub served: &'a BTreeSet<String>,
    /// Every Secret that is marked as ours, this PullSecret's or another's.
    pub held: &'a [HeldSecret],
    /// The names in imagePullSecrets of each service account that there is, by namespace and name.
    pub accounts: &'a BTreeMap<(String, String), Vec<String>>,
    /// The Registry, and the identity by which it is asked for tokens; none while they aren't known.
    pub source: Option<&'a str>,
    /// Digest of the content that is at hand: all Secrets are to have the same.
    pub at_hand: Option<&'a str>,
    /// Whether new tokens are wanted, whatever there is.
    pub requested: bool,
    /// The time.
    pub now: Timestamp,
}

/// What is to be done, in this order. Nothing, when all is as it should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// Names to take out of service accounts.
    pub detach: Vec<Entry>,
    /// Secrets to delete, once their names are out of all service accounts.
    pub delete: Vec<SecretDeletion>,
    /// Secrets to write.
    pub write: Vec<SecretWrite>,
    /// Names to put into service accounts, once the Secret is there.
    pub attach: Vec<Entry>,
}

/// A Secret's name in a service account's imagePullSecrets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The namespace of both.
    pub namespace: String,
    /// The service account.
    pub account: String,
    /// The Secret's name.
    pub secret: String,
}

/// A Secret to delete.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SecretDeletion {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// A Secret to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretWrite {
    /// Its namespace.
    pub namespace: String,
    /// The UID of the one that is there; none if it is to be created.
    pub uid: Option<String>,
    /// Why.
    pub why: WriteReason,
}

/// Why a Secret is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WriteReason {
    /// It isn't there.
    Missing,
    /// Somebody edited it, or it was another PullSecret's.
    Edited,
    /// Its token is of another registry or identity.
    SourceChanged,
    /// It is time.
    Renewal,
    /// Somebody asked, or the credentials changed.
    Requested,
    /// The others have a newer one.
    Superseded,
    /// It says of other service accounts that they name it.
    ServiceAccounts,
}

impl Decision {
    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        let Self { detach, delete, write, attach } = self;
        detach.is_empty() && delete.is_empty() && write.is_empty() && attach.is_empty()
    }
}

/// Decides.
pub fn decide(world: &SecretInputs<'_>) -> Decision {
    let mut decision = Decision::default();
    let mut there = BTreeMap::new();
    for held in world.held {
        let mine = held.owner.as_ref() == Some(world.owner);
        let wanted = held.name == world.secret_name && world.served.contains(&held.namespace);
        if !mine && !wanted {
            continue;
        }
        if wanted && held.typed {
            there.insert(held.namespace.as_str(), held);
            decision.detach(world, held, world.service_accounts);
        } else {
            // One of another type can only be made again; the deletion is what requeues us to do so.
            decision.detach(world, held, &BTreeSet::new());
            let HeldSecret { namespace, name, uid, .. } = held.clone();
            decision.delete.push(SecretDeletion { namespace, name, uid });
        }
    }
    for namespace in world.served {
        if decision.delete.iter().any(|it| it.namespace == *namespace && it.name == world.secret_name) {
            continue;
        }
        let held = there.get(namespace.as_str()).copied();
        if let Some(why) = world.due(held) {
            decision.write.push(SecretWrite { namespace: namespace.clone(), uid: held.map(|it| it.uid.clone()), why });
        }
        for account in world.service_accounts {
            if world.names(namespace, account, world.secret_name) == Some(false) {
                decision.attach.push(world.entry(namespace, account));
            }
        }
    }
    decision
}

impl Decision {
    /// Takes the Secret's name out of the accounts that have it because of us, but for those in `stay`.
    fn detach(&mut self, world: &SecretInputs<'_>, held: &HeldSecret, stay: &BTreeSet<String>) {
        for account in held.service_accounts.difference(stay) {
            // What the watch has yet to tell counts, too: this is the last time that anybody knows of the account.
            if world.names(&held.namespace, account, &held.name).is_some() {
                let (namespace, account, secret) = (held.namespace.clone(), account.clone(), held.name.clone());
                self.detach.push(Entry { namespace, account, secret });
            }
        }
    }
}

impl SecretInputs<'_> {
    fn entry(&self, namespace: &str, account: &str) -> Entry {
        Entry { namespace: namespace.to_owned(), account: account.to_owned(), secret: self.secret_name.to_owned() }
    }

    /// Whether a service account names a Secret; nothing if there is no such account.
    fn names(&self, namespace: &str, account: &str, secret: &str) -> Option<bool> {
        let names = self.accounts.get(&(namespace.to_owned(), account.to_owned()))?;
        Some(names.iter().any(|name| name == secret))
    }

    /// What the Secret of a namespace is to say of service accounts: those that are to name it, and those out of which its name
    /// couldn't be taken. Nobody else remembers them.
    pub fn marks(&self, namespace: &str, undetached: &[Entry]) -> BTreeSet<String> {
        let still = undetached.iter().filter(|it| it.namespace == namespace && it.secret == self.secret_name);
        self.service_accounts.iter().chain(still.map(|it| &it.account)).cloned().collect()
    }

    /// Whether a Secret is to be written even though its name couldn't be taken out of these service accounts: one that says
    /// just that already has nothing new to say.
    pub fn is_due(&self, due: &SecretWrite, undetached: &[Entry]) -> bool {
        let says = || self.held.iter().find(|it| it.namespace == due.namespace && it.name == self.secret_name);
        due.why != WriteReason::ServiceAccounts
            || says().is_none_or(|it| it.service_accounts != self.marks(&due.namespace, undetached))
    }

    /// Whether the Secret of a namespace says that this service account names it because of us.
    pub fn says(&self, entry: &Entry) -> bool {
        let own = self.held.iter().filter(|it| it.owner.as_ref() == Some(self.owner));
        let mut of_it = own.filter(|it| it.namespace == entry.namespace && it.name == entry.secret);
        of_it.any(|it| it.service_accounts.contains(&entry.account))
    }

    /// The tokens in its Secrets, by namespace: those to pull with, whether or not they are to be written again, and those that
    /// have ended or are of another registry.
    pub fn there(&self) -> (BTreeMap<String, TokenMark>, BTreeMap<String, TokenMark>) {
        let own = self.held.iter().filter(|it| {
            it.typed
                && it.owner.as_ref() == Some(self.owner)
                && it.name == self.secret_name
                && self.served.contains(&it.namespace)
        });
        let good =
            |token: &TokenMark| self.source.is_none_or(|source| source == token.source) && token.expires_at > self.now;
        own.filter_map(|it| Some((it.namespace.clone(), it.token.clone()?))).partition(|(_, token)| good(token))
    }

    /// Why the Secret of a namespace is to be written, if it is.
    pub fn due(&self, held: Option<&HeldSecret>) -> Option<WriteReason> {
        let Some(held) = held else { return Some(WriteReason::Missing) };
        if held.owner.as_ref() != Some(self.owner) {
            return Some(WriteReason::Edited);
        }
        let Some(token) = &held.token else { return Some(WriteReason::Edited) };
        if self.source.is_some_and(|source| source != token.source) {
            Some(WriteReason::SourceChanged)
        } else if token.renews_at <= self.now {
            Some(WriteReason::Renewal)
        } else if self.requested {
            Some(WriteReason::Requested)
        } else if self.at_hand.is_some_and(|digest| digest != token.digest) {
            Some(WriteReason::Superseded)
        } else if held.service_accounts != *self.service_accounts {
            Some(WriteReason::ServiceAccounts)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(name: &str) -> Owner {
        Owner { namespace: "platform".to_owned(), name: name.to_owned() }
    }

    fn held(renews_at: i64) -> HeldSecret {
        let at = |second| Timestamp::from_second(second).unwrap();
        HeldSecret {
            namespace: "shop".to_owned(),
            name: "pull".to_owned(),
            uid: "u1".to_owned(),
            owner: Some(owner("home")),
            token: Some(TokenMark {
                source: "here".to_owned(),
                digest: "d".to_owned(),
                expires_at: at(2 * renews_at),
                renews_at: at(renews_at),
            }),
            service_accounts: BTreeSet::new(),
            typed: true,
        }
    }

    /// Why the Secret in namespace `shop` is written, and what else is done.
    fn why(
        held: Option<HeldSecret>,
        change: impl FnOnce(&mut SecretInputs<'_>),
    ) -> (Option<WriteReason>, Vec<SecretDeletion>) {
        let (owner, none, accounts) = (owner("home"), BTreeSet::new(), BTreeMap::new());
        let (served, held): (_, Vec<HeldSecret>) = (["shop".to_owned()].into(), held.into_iter().collect());
        let mut world = SecretInputs {
            owner: &owner,
            secret_name: "pull",
            service_accounts: &none,
            served: &served,
            held: &held,
            accounts: &accounts,
            source: Some("here"),
            at_hand: None,
            requested: false,
            now: Timestamp::from_second(1000).unwrap(),
        };
        change(&mut world);
        let decision = decide(&world);
        (decision.write.first().map(|due| due.why), decision.delete)
    }

    #[test]
    fn a_secret_is_written_for_a_reason() {
        assert_eq!(why(Some(held(1001)), |_| {}).0, None);
        assert_eq!(why(Some(held(1000)), |_| {}).0, Some(WriteReason::Renewal));
        assert_eq!(why(None, |_| {}).0, Some(WriteReason::Missing));
        assert_eq!(why(Some(held(1001)), |world| world.source = Some("there")).0, Some(WriteReason::SourceChanged));
        assert_eq!(
            why(Some(held(1001)), |world| world.source = None).0,
            None,
            "a Registry that is gone changes nothing"
        );
        assert_eq!(why(Some(held(1001)), |world| world.requested = true).0, Some(WriteReason::Requested));
        assert_eq!(why(Some(held(1001)), |world| world.at_hand = Some("d")).0, None);
        assert_eq!(why(Some(held(1001)), |world| world.at_hand = Some("newer")).0, Some(WriteReason::Superseded));
        let edited = HeldSecret { token: None, ..held(1001) };
        assert_eq!(why(Some(edited), |_| {}).0, Some(WriteReason::Edited));
        let named = HeldSecret { service_accounts: ["default".to_owned()].into(), ..held(1001) };
        assert_eq!(why(Some(named), |_| {}).0, Some(WriteReason::ServiceAccounts));
        let taken = HeldSecret { owner: Some(owner("younger")), ..held(1001) };
        assert_eq!(why(Some(taken), |_| {}).0, Some(WriteReason::Edited));
    }

    #[test]
    fn an_account_that_could_not_be_changed_is_remembered() {
        let (owner, accounts, wanted) = (owner("home"), BTreeMap::new(), BTreeSet::from(["default".to_owned()]));
        let served = ["shop".to_owned()].into();
        let both = BTreeSet::from(["builder".to_owned(), "default".to_owned()]);
        let held = [HeldSecret { service_accounts: both.clone(), ..held(1001) }];
        let world = SecretInputs {
            owner: &owner,
            secret_name: "pull",
            service_accounts: &wanted,
            served: &served,
            held: &held,
            accounts: &accounts,
            source: Some("here"),
            at_hand: None,
            requested: false,
            now: Timestamp::from_second(1000).unwrap(),
        };
        let entry = |namespace: &str, account: &str, secret: &str| Entry {
            namespace: namespace.to_owned(),
            account: account.to_owned(),
            secret: secret.to_owned(),
        };
        let still = [entry("shop", "builder", "pull"), entry("web", "late", "pull"), entry("shop", "old", "old-pull")];
        assert_eq!(world.marks("shop", &still), both);
        assert_eq!(world.marks("shop", &[]), wanted);
        let due = |why| SecretWrite { namespace: "shop".to_owned(), uid: None, why };
        assert!(!world.is_due(&due(WriteReason::ServiceAccounts), &still), "it says so already");
        assert!(world.is_due(&due(WriteReason::ServiceAccounts), &[]));
        assert!(world.is_due(&due(WriteReason::Renewal), &still));
        assert!(world.says(&still[0]) && !world.says(&still[1]) && !world.says(&still[2]));
    }

    #[test]
    fn what_has_ended_is_there_still_but_not_to_pull_with() {
        let (owner, none, accounts) = (owner("home"), BTreeSet::new(), BTreeMap::new());
        let served = ["shop", "web", "old", "elsewhere"].map(str::to_owned).into();
        let of = |namespace: &str, ends: i64| HeldSecret { namespace: namespace.to_owned(), ..held(ends / 2) };
        let mut elsewhere = of("elsewhere", 3000);
        elsewhere.token.as_mut().unwrap().source = "there".to_owned();
        let theirs = HeldSecret { owner: None, ..of("old", 500) };
        let held = [of("shop", 1002), of("web", 1000), theirs, elsewhere, of("left", 100)];
        let world = SecretInputs {
            owner: &owner,
            secret_name: "pull",
            service_accounts: &none,
            served: &served,
            held: &held,
            accounts: &accounts,
            source: Some("here"),
            at_hand: None,
            requested: false,
            now: Timestamp::from_second(1000).unwrap(),
        };
        let names = |tokens: BTreeMap<String, TokenMark>| tokens.into_keys().collect::<Vec<_>>();
        let (good, spent) = world.there();
        assert_eq!(names(good), ["shop"]);
        assert_eq!(names(spent), ["elsewhere", "web"]);
    }

    #[test]
    fn a_secret_of_another_type_is_deleted_to_be_made_anew() {
        let opaque = HeldSecret { typed: false, ..held(1001) };
        let (why, deleted) = why(Some(opaque), |_| {});
        assert_eq!((why, deleted.len()), (None, 1));
    }
}
