//! The result of a reconcile of a PullSecret: its conditions and its next reconcile. No I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use crate::controllers::{Error, REQUEUE_WAITING, jittered};
use crate::secrets::{SecretMark, SecretOwner};
use crate::status::{Cause, ConditionSet, ReadyState};
use wharfage_crd::Reason;
use wharfage_crd::common::DEFAULT_INTERVAL;

/// The delay after a concurrent change.
pub(super) const REQUEUE_CONFLICT: Duration = Duration::from_secs(2);
/// The number of names in a message; the rest is counted.
const NAMED: usize = 5;

/// The result of a reconcile.
#[derive(Default)]
pub(super) struct Secrets {
    /// Namespaces that have the Secret, with its token.
    pub(super) have: BTreeMap<String, SecretMark>,
    /// Namespaces whose Secret has an expired token or one of another registry, because there was
    /// no other to write.
    pub(super) spent: BTreeMap<String, SecretMark>,
    /// Namespaces where another party has a Secret of that name, with its owner if that is another
    /// PullSecret.
    pub(super) taken: BTreeMap<String, Option<SecretOwner>>,
    /// Selected namespaces that may not use the Registry.
    pub(super) not_allowed: BTreeSet<String>,
    /// The namespace and the error of each request that the API server refused.
    pub(super) refused: Vec<(String, kube::core::Status)>,
    /// The conditions if no token can or may be written.
    pub(super) why_not: Option<ConditionSet>,
    /// The delay after which the registry may be asked again.
    pub(super) retry: Option<Duration>,
    /// True if something changed concurrently, so that it must be reconciled again.
    pub(super) unsettled: bool,
}

impl Secrets {
    /// Records a failed request, and returns whether it succeeded. A refusal in one namespace does
    /// not block the others.
    ///
    /// # Errors
    /// When the API server cannot be reached.
    pub(super) fn note(
        &mut self,
        namespace: &str,
        done: Result<bool, kube::Error>,
    ) -> Result<bool, Error> {
        match done {
            Ok(done) => {
                self.unsettled |= !done;
                Ok(done)
            }
            Err(kube::Error::Api(status)) => {
                self.refused.push((namespace.to_owned(), *status));
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Records that the namespace has the Secret with this token.
    pub(super) fn has(&mut self, namespace: String, token: SecretMark) {
        self.spent.remove(&namespace);
        self.have.insert(namespace, token);
    }

    /// Returns the earliest expiry of all tokens, including expired ones, so that the alert does
    /// not clear when a token expires.
    pub(super) fn ends(&self) -> Option<Timestamp> {
        self.have.values().chain(self.spent.values()).map(|it| it.expires_at).min()
    }

    /// Returns the cause if the API server refused a request: always the same of several, so that
    /// it is reported once.
    pub(super) fn refusal(&self) -> Option<Cause> {
        let (namespace, status) = self
            .refused
            .iter()
            .min_by_key(|(namespace, it)| (namespace, &it.reason, &it.message))?;
        let message =
            format!("the API server refused a change in namespace {namespace}: {}", status.message);
        Some(Cause::new(Reason::of_error(&status.reason), message))
    }

    /// Returns the earliest of these times of all valid tokens.
    pub(super) fn first(&self, time: fn(&SecretMark) -> Timestamp) -> Option<Timestamp> {
        self.have.values().map(time).min()
    }

    /// Returns the delay of the next reconcile, if nothing requeues the object before.
    pub(super) fn next(&self, state: &ReadyState, now: Timestamp) -> Duration {
        let rest = if matches!(state, ReadyState::Ready(_)) {
            None
        } else {
            Some(jittered(REQUEUE_WAITING))
        };
        // A renewal that is already due waits for something else.
        let renewal = self.first(|it| it.renews_at).filter(|renews_at| *renews_at > now);
        let renewal = renewal.and_then(|it| Duration::try_from(it.duration_since(now)).ok());
        let moment = self.unsettled.then_some(REQUEUE_CONFLICT);
        let times = [self.retry.or(rest), renewal, moment];
        times.into_iter().flatten().min().unwrap_or_else(|| jittered(DEFAULT_INTERVAL))
    }

    /// Returns the conditions, for this name of the Secret and this Registry.
    pub(super) fn findings(&self, secret: &str, registry: &str) -> ConditionSet {
        let Self { have, spent: _, taken, not_allowed, refused: _, why_not, retry: _, unsettled } =
            self;
        let served = format!("Secret {secret} is in {}", namespaces(have.len()));
        if let Some(why_not) = why_not {
            let mut findings = why_not.clone();
            if let Some(end) = self.first(|it| it.expires_at) {
                let add = |it: Cause| {
                    Cause::new(it.reason, format!("{}; {served} until {end}", it.message))
                };
                findings.state = match findings.state {
                    ReadyState::Ready(it) => ReadyState::Ready(add(it)),
                    ReadyState::Reconciling(it) => ReadyState::Reconciling(add(it)),
                    ReadyState::Stalled(it) => ReadyState::Stalled(add(it)),
                };
            }
            return findings;
        }
        let state = if let Some(message) = conflict(secret, taken) {
            ReadyState::Stalled(Cause::new(Reason::OwnedByAnother, format!("{message}; {served}")))
        } else if let Some(Cause { reason, message }) = self.refusal() {
            ReadyState::Reconciling(Cause::new(reason, format!("{message}; {served}")))
        } else if *unsettled {
            let message =
                format!("something changed at the same moment, and is reconciled again; {served}");
            ReadyState::Reconciling(Cause::new(Reason::Progressing, message))
        } else {
            let mut message =
                if have.is_empty() { "no namespace is chosen yet".to_owned() } else { served };
            if !not_allowed.is_empty() {
                message += &format!(
                    "; chosen, but not allowed to use Registry {registry}: {}",
                    some(not_allowed)
                );
            }
            ReadyState::Ready(Cause::new(Reason::InSync, message))
        };
        ConditionSet { references: Some(Ok(())), ..ConditionSet::of(state) }
    }
}

/// Returns the message if another party has a Secret of that name.
fn conflict(secret: &str, taken: &BTreeMap<String, Option<SecretOwner>>) -> Option<String> {
    let theirs: BTreeSet<String> = taken
        .iter()
        .filter(|(_, owner)| owner.is_none())
        .map(|(namespace, _)| namespace.clone())
        .collect();
    if !theirs.is_empty() {
        return Some(format!(
            "a Secret {secret} that is not this PullSecret's is in {}: delete it there, or set another secretName",
            some(&theirs)
        ));
    }
    let (namespace, owner) = taken.first_key_value()?;
    let owner = owner.as_ref()?;
    let more =
        if taken.len() > 1 { format!(" and {} more", taken.len() - 1) } else { String::new() };
    Some(format!(
        "Secret {secret} in {namespace}{more} is managed by PullSecret {owner}: set another secretName, or choose other namespaces"
    ))
}

fn namespaces(count: usize) -> String {
    if count == 1 { "1 namespace".to_owned() } else { format!("{count} namespaces") }
}

/// Lists some of the names, and counts the rest.
pub(super) fn some(names: &BTreeSet<String>) -> String {
    let named = names.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn mark(end: i64) -> SecretMark {
        SecretMark {
            source: String::new(),
            digest: String::new(),
            expires_at: at(end),
            renews_at: at(end / 2),
        }
    }

    fn having(namespaces: &[&str]) -> Secrets {
        let have = namespaces
            .iter()
            .zip(1..)
            .map(|(name, number)| ((*name).to_owned(), mark(1000 * number)))
            .collect();
        Secrets { have, ..Secrets::default() }
    }

    fn message(outcome: &Secrets) -> String {
        let findings = outcome.findings("pull", "home");
        let cause = findings.state.cause();
        format!("{} {}: {}", findings.state.as_str(), cause.reason, cause.message)
    }

    #[test]
    fn the_message_says_what_is_wrong_and_what_to_do() {
        assert_eq!(message(&Secrets::default()), "ready InSync: no namespace is chosen yet");
        let not_allowed = ["web".to_owned()].into();
        assert_eq!(
            message(&Secrets { not_allowed, ..having(&["a", "b"]) }),
            "ready InSync: Secret pull is in 2 namespaces; chosen, but not allowed to use Registry home: web"
        );
        let unavailable = ConditionSet::of(ReadyState::Reconciling(Cause::new(
            Reason::RegistryUnavailable,
            "it is unreachable",
        )));
        assert_eq!(
            message(&Secrets { why_not: Some(unavailable.clone()), ..having(&["a"]) }),
            "reconciling RegistryUnavailable: it is unreachable; Secret pull is in 1 namespace until 1970-01-01T00:16:40Z"
        );
        assert_eq!(
            message(&Secrets { why_not: Some(unavailable), ..Secrets::default() }),
            "reconciling RegistryUnavailable: it is unreachable"
        );
        let older = SecretOwner { namespace: "team".to_owned(), name: "older".to_owned() };
        let taken: BTreeMap<_, _> =
            [("a".to_owned(), Some(older.clone())), ("b".to_owned(), Some(older))].into();
        assert_eq!(
            message(&Secrets { taken: taken.clone(), ..having(&["c"]) }),
            "stalled OwnedByAnother: Secret pull in a and 1 more is managed by PullSecret team/older: set another secretName, \
             or choose other namespaces; Secret pull is in 1 namespace"
        );
        let taken =
            taken.into_iter().chain((0..7).map(|number| (format!("n{number}"), None))).collect();
        assert_eq!(
            message(&Secrets { taken, ..Secrets::default() }),
            "stalled OwnedByAnother: a Secret pull that is not this PullSecret's is in n0, n1, n2, n3, n4 and 2 more: delete it \
             there, or set another secretName; Secret pull is in 0 namespaces"
        );
    }

    #[test]
    fn it_is_reconciled_when_the_first_token_is_due() {
        let outcome = having(&["a", "b"]);
        let ready = outcome.findings("pull", "home").state;
        assert_eq!(outcome.next(&ready, at(100)), Duration::from_secs(400));
        let unsettled = Secrets { unsettled: true, ..having(&["a"]) };
        assert_eq!(
            unsettled.next(&unsettled.findings("pull", "home").state, at(100)),
            REQUEUE_CONFLICT
        );
    }

    #[test]
    fn of_several_refusals_always_the_same_is_reported() {
        let refused = |namespace: &str| {
            let status = kube::core::Status::failure("no", "Forbidden");
            (namespace.to_owned(), status)
        };
        let refusal = |namespaces: [&str; 2]| {
            Secrets { refused: namespaces.map(refused).into(), ..Secrets::default() }.refusal()
        };
        let cause =
            Cause::new(Reason::Forbidden, "the API server refused a change in namespace a: no");
        assert_eq!((refusal(["a", "b"]), refusal(["b", "a"])), (Some(cause.clone()), Some(cause)));
        assert_eq!(Secrets::default().refusal(), None);
    }

    #[test]
    fn an_expired_token_is_reported_until_it_is_replaced() {
        let mut outcome = having(&["a"]);
        outcome.spent = [("b".to_owned(), mark(10))].into();
        assert_eq!((outcome.ends(), outcome.have.len()), (Some(at(10)), 1));
        outcome.has("b".to_owned(), mark(2000));
        assert_eq!((outcome.ends(), outcome.have.len()), (Some(at(1000)), 2));
    }

    #[test]
    fn an_overdue_renewal_is_not_retried_without_pause() {
        let unavailable =
            ConditionSet::of(ReadyState::Reconciling(Cause::new(Reason::RegistryUnavailable, "")));
        let outcome = Secrets { why_not: Some(unavailable), ..having(&["a"]) };
        assert!(
            outcome.next(&outcome.findings("pull", "home").state, at(600))
                > Duration::from_secs(30)
        );
    }
}
