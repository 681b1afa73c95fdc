//! Decides which Secrets of an owner are written and which are deleted. No I/O and no clock.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::content::SecretName;
use super::owned::{OwnedSecret, SecretOwner};

/// The content that the Secrets of an owner should have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DesiredContent<'a> {
    /// A hash of what the content is made from; nothing while that is unknown.
    pub source: Option<&'a str>,
    /// The digest of the content at hand, which all Secrets should have.
    pub digest: Option<&'a str>,
    /// True if a new content is requested, whatever there is.
    pub requested: bool,
    pub now: Timestamp,
}

/// The changes that give an owner the Secrets that it wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SecretPlan {
    pub delete: Vec<SecretDeletion>,
    pub write: Vec<SecretWrite>,
}

/// A Secret to delete.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SecretDeletion {
    pub secret: SecretName,
    pub uid: String,
}

/// A Secret to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SecretWrite {
    pub secret: SecretName,
    /// The UID of the existing Secret; nothing if it is to be created.
    pub uid: Option<String>,
    pub reason: WriteReason,
}

/// The reason to write a Secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum WriteReason {
    /// It does not exist.
    Missing,
    /// Somebody edited it, or another owner left it.
    Edited,
    /// Its content was made from something else.
    SourceChanged,
    /// Its content is due for renewal.
    Renewal,
    /// Somebody requested it, or the credentials changed.
    Requested,
    /// Other Secrets of the owner have a newer content.
    Superseded,
    /// Annotations of the kind's own differ.
    Annotations,
}

impl From<&OwnedSecret> for SecretDeletion {
    fn from(OwnedSecret { name, uid, .. }: &OwnedSecret) -> Self {
        Self { secret: name.clone(), uid: uid.clone() }
    }
}

/// Decides which Secrets of `owner` to write and to delete, of which the `wanted` ones should exist.
///
/// A Secret of another owner is changed only where `owner` wants it, and the caller wants a place only when no other owner
/// does. One of the wrong type is deleted; it is created again when it is gone. `differs` compares annotations of the kind's own.
pub(crate) fn plan_secrets<'s, S: AsRef<OwnedSecret> + 's>(
    owner: &SecretOwner,
    wanted: &BTreeSet<SecretName>,
    existing: impl IntoIterator<Item = &'s S>,
    content: DesiredContent<'_>,
    differs: impl Fn(&S) -> bool,
) -> SecretPlan {
    let mut plan = SecretPlan::default();
    let mut kept = BTreeMap::new();
    for existing in existing {
        let secret = existing.as_ref();
        if wanted.contains(&secret.name) && secret.has_type {
            kept.insert(&secret.name, existing);
        } else if wanted.contains(&secret.name) || secret.owner.as_ref() == Some(owner) {
            plan.delete.push(secret.into());
        }
    }
    for secret in wanted {
        if plan.delete.iter().any(|it| it.secret == *secret) {
            continue;
        }
        let existing = kept.get(secret).copied();
        let reason = write_reason(owner, existing.map(AsRef::as_ref), content)
            .or_else(|| existing.is_some_and(&differs).then_some(WriteReason::Annotations));
        if let Some(reason) = reason {
            let uid = existing.map(|it| it.as_ref().uid.clone());
            plan.write.push(SecretWrite { secret: secret.clone(), uid, reason });
        }
    }
    plan
}

/// Returns the reason to write a Secret that `owner` wants, if its content or its owner is not as wanted.
pub(crate) fn write_reason(
    owner: &SecretOwner,
    existing: Option<&OwnedSecret>,
    content: DesiredContent<'_>,
) -> Option<WriteReason> {
    let Some(existing) = existing else { return Some(WriteReason::Missing) };
    let Some(mark) = existing.mark.as_ref().filter(|_| existing.owner.as_ref() == Some(owner))
    else {
        return Some(WriteReason::Edited);
    };
    if content.source.is_some_and(|source| source != mark.source) {
        Some(WriteReason::SourceChanged)
    } else if mark.renews_at <= content.now {
        Some(WriteReason::Renewal)
    } else if content.requested {
        Some(WriteReason::Requested)
    } else if content.digest.is_some_and(|digest| digest != mark.digest) {
        Some(WriteReason::Superseded)
    } else {
        None
    }
}

impl AsRef<OwnedSecret> for OwnedSecret {
    fn as_ref(&self) -> &OwnedSecret {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrets::SecretMark;
    use crate::secrets::owned::tests::owner;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn content() -> DesiredContent<'static> {
        DesiredContent { source: Some("here"), digest: None, requested: false, now: at(1000) }
    }

    fn owned(namespace: &str, by: Option<&str>) -> OwnedSecret {
        let (source, digest) = ("here".to_owned(), "d".to_owned());
        OwnedSecret {
            name: SecretName::new(namespace, "pull"),
            uid: format!("{namespace}-uid"),
            owner: by.map(owner),
            mark: Some(SecretMark { source, digest, expires_at: at(2002), renews_at: at(1001) }),
            has_type: true,
        }
    }

    fn wanted(namespaces: &[&str]) -> BTreeSet<SecretName> {
        namespaces.iter().map(|namespace| SecretName::new(*namespace, "pull")).collect()
    }

    fn plan(owner_name: &str, namespaces: &[&str], existing: &[OwnedSecret]) -> SecretPlan {
        plan_secrets(&owner(owner_name), &wanted(namespaces), existing, content(), |_| false)
    }

    #[test]
    fn a_secret_is_written_for_a_reason() {
        let reason = |existing: Option<&OwnedSecret>, content| {
            write_reason(&owner("home"), existing, content)
        };
        let fresh = owned("shop", Some("home"));
        assert_eq!(reason(None, content()), Some(WriteReason::Missing));
        assert_eq!(reason(Some(&fresh), content()), None);
        for (changed, expected) in [
            (DesiredContent { now: at(1001), ..content() }, Some(WriteReason::Renewal)),
            (
                DesiredContent { source: Some("there"), ..content() },
                Some(WriteReason::SourceChanged),
            ),
            (DesiredContent { source: None, ..content() }, None),
            (DesiredContent { requested: true, ..content() }, Some(WriteReason::Requested)),
            (DesiredContent { digest: Some("d"), ..content() }, None),
            (DesiredContent { digest: Some("newer"), ..content() }, Some(WriteReason::Superseded)),
        ] {
            assert_eq!(reason(Some(&fresh), changed), expected, "{changed:?}");
        }
        for edited in [
            OwnedSecret { mark: None, ..fresh.clone() },
            owned("shop", Some("other")),
            owned("shop", None),
        ] {
            assert_eq!(reason(Some(&edited), content()), Some(WriteReason::Edited));
        }
    }

    #[test]
    fn annotations_are_compared_last() {
        let existing =
            [owned("shop", Some("home")), OwnedSecret { mark: None, ..owned("web", Some("home")) }];
        let both = wanted(&["shop", "web"]);
        let plan = plan_secrets(&owner("home"), &both, &existing, content(), |_| true);
        let reasons: Vec<_> = plan.write.iter().map(|it| it.reason).collect();
        assert_eq!(reasons, [WriteReason::Annotations, WriteReason::Edited]);
    }

    #[test]
    fn a_secret_of_another_owner_is_never_touched_where_it_is_not_wanted() {
        let existing = [owned("shop", Some("other")), owned("web", None)];
        assert_eq!(plan("home", &[], &existing), SecretPlan::default());
    }

    #[test]
    fn of_two_owners_of_one_secret_only_the_one_that_wants_it_writes() {
        let existing = [owned("shop", Some("older"))];
        // As claims decide: the younger wants the Secret only after the older left.
        assert_eq!(plan("older", &["shop"], &existing), SecretPlan::default());
        assert_eq!(plan("younger", &[], &existing), SecretPlan::default());
        let left = plan("older", &[], &existing);
        assert_eq!(left.delete, [SecretDeletion::from(&existing[0])]);
        let taken = plan("younger", &["shop"], &existing);
        assert_eq!(
            (taken.write[0].uid.as_deref(), taken.write[0].reason),
            (Some("shop-uid"), WriteReason::Edited)
        );
        assert_eq!(plan("younger", &["shop"], &[]).write[0].reason, WriteReason::Missing);
    }

    #[test]
    fn when_the_owner_is_gone_only_its_secrets_are_deleted() {
        let existing =
            [owned("a", Some("home")), owned("b", Some("other")), owned("c", Some("home"))];
        let SecretPlan { delete, write } = plan("home", &[], &existing);
        let names: Vec<_> = delete.iter().map(|it| it.secret.namespace.as_str()).collect();
        assert_eq!((names, write), (vec!["a", "c"], Vec::new()));
    }

    #[test]
    fn a_secret_of_another_type_is_deleted_before_it_is_created_again() {
        let opaque = OwnedSecret { has_type: false, ..owned("shop", Some("home")) };
        let SecretPlan { delete, write } = plan("home", &["shop"], &[opaque]);
        assert_eq!((delete.len(), write), (1, Vec::new()));
        assert_eq!(plan("home", &["shop"], &[]).write.len(), 1);
    }
}
