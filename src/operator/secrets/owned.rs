//! The marks of Secrets that objects of a kind own. A restart of the operator reads them, and writes nothing.
//!
//! | Mark | Value |
//! |---|---|
//! | the label of the kind ([`SecretClass::label`]) | a hash of the owner's name, which itself may be too long for a label |
//! | the annotation of the kind ([`SecretClass::owner`]) | the owner, as namespace/name |
//! | annotation `wharfage.dev/token-source` | a hash of what the content was made from |
//! | annotation `wharfage.dev/token-digest` | SHA-256 of the content, by which an edit is detected |
//! | annotations `wharfage.dev/expires-at`, `wharfage.dev/renews-at` | when the content expires and when it is renewed |

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt as _};
use serde::{Deserialize, Deserializer};
use sha2::{Digest as _, Sha256};

use super::content::SecretName;

const SOURCE: &str = "wharfage.dev/token-source";
const DIGEST: &str = "wharfage.dev/token-digest";
const EXPIRES_AT: &str = "wharfage.dev/expires-at";
const RENEWS_AT: &str = "wharfage.dev/renews-at";

/// The Secrets of one kind: how they are found again, and the shape of their content.
#[derive(Debug)]
pub(crate) struct SecretClass {
    /// The label that every Secret of the kind has, and no other Secret. It selects the Secrets to watch.
    pub label: &'static str,
    /// The annotation that names the owner. Like the label, no other class has it: objects of two kinds may have one name.
    pub owner: &'static str,
    /// The type of the Secrets. The type of a Secret cannot be changed.
    pub type_: &'static str,
    /// The keys of their content. Keys that others add are left unchanged.
    pub keys: &'static [&'static str],
}

/// The object that owns a Secret.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SecretOwner {
    pub namespace: String,
    pub name: String,
}

/// The content of a Secret, as its annotations record it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SecretMark {
    /// A hash of what the content was made from: another source needs another content.
    pub source: String,
    pub digest: String,
    pub expires_at: Timestamp,
    pub renews_at: Timestamp,
}

/// A Secret as it is watched: the digests of its values instead of the values, which nobody needs to keep in memory.
#[derive(Debug, Clone, PartialEq, Resource, Deserialize)]
#[resource(inherit = Secret)]
pub struct WatchedSecret {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// Its type.
    #[serde(rename = "type", default)]
    pub type_: Option<String>,
    /// The digest of each value, by its key.
    #[serde(rename = "data", default, deserialize_with = "digests")]
    pub(crate) digests: BTreeMap<String, String>,
}

/// A Secret that is marked as ours, and is not being deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnedSecret {
    pub name: SecretName,
    /// Names the object in every change, so that no other object of its name is hit.
    pub uid: String,
    /// Nobody if the marks contradict each other.
    pub owner: Option<SecretOwner>,
    /// Nothing if a mark is missing, or the content was edited.
    pub mark: Option<SecretMark>,
    /// True if it has the type of its class.
    pub has_type: bool,
}

impl fmt::Display for SecretOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl SecretOwner {
    pub fn of<K: Resource>(object: &K) -> Self {
        Self { namespace: object.namespace().unwrap_or_default(), name: object.name_any() }
    }

    /// Returns the value of the class's label on its Secrets.
    pub fn label_value(&self) -> String {
        hex::encode(&Sha256::digest(self.to_string())[..16])
    }

    fn parse(text: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/')?;
        Some(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

impl SecretClass {
    /// Returns the digest that records a content.
    pub fn digest<'c>(&self, content: impl IntoIterator<Item = (&'c str, &'c [u8])>) -> String {
        let digests =
            content.into_iter().map(|(key, value)| (key.to_owned(), sha256(value))).collect();
        self.join_digests(&digests).unwrap_or_default()
    }

    /// Returns the digest of a content from the digests of its values; nothing if a value is missing.
    fn join_digests(&self, digests: &BTreeMap<String, String>) -> Option<String> {
        let of_keys = self
            .keys
            .iter()
            .map(|key| Some(digests.get(*key)?.as_str()))
            .collect::<Option<Vec<_>>>()?;
        match of_keys.as_slice() {
            [only] => Some((*only).to_owned()),
            several => Some(sha256(several.join(" ").as_bytes())),
        }
    }

    /// Returns the labels of a Secret of `owner`.
    pub fn labels(&self, owner: &SecretOwner) -> BTreeMap<String, String> {
        [("app.kubernetes.io/managed-by", "wharfage".to_owned()), (self.label, owner.label_value())]
            .map(|(key, value)| (key.to_owned(), value))
            .into()
    }

    /// Returns the annotations of a Secret of `owner` with this content.
    pub fn annotations(&self, owner: &SecretOwner, mark: &SecretMark) -> BTreeMap<String, String> {
        let SecretMark { source, digest, expires_at, renews_at } = mark;
        [
            (self.owner, owner.to_string()),
            (SOURCE, source.clone()),
            (DIGEST, digest.clone()),
            (EXPIRES_AT, expires_at.to_string()),
            (RENEWS_AT, renews_at.to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }

    /// Returns the owners that a Secret names, by their label values: one, unless somebody edited it.
    pub fn owners(&self, secret: &WatchedSecret) -> BTreeSet<String> {
        let named =
            secret.annotations().get(self.owner).and_then(|owner| SecretOwner::parse(owner));
        secret
            .labels()
            .get(self.label)
            .cloned()
            .into_iter()
            .chain(named.map(|owner| owner.label_value()))
            .collect()
    }

    /// Reads the marks of a Secret; nothing if it has none, or is being deleted.
    pub fn read(&self, secret: &WatchedSecret) -> Option<OwnedSecret> {
        let labels = secret.labels();
        let annotation = |key: &str| secret.annotations().get(key).map(String::as_str);
        let owner = annotation(self.owner).and_then(SecretOwner::parse);
        let label = labels.get(self.label);
        if label.is_none() && owner.is_none() || secret.meta().deletion_timestamp.is_some() {
            return None;
        }
        let owner = owner.filter(|owner| label.is_none_or(|label| *label == owner.label_value()));
        let is_labeled = owner.as_ref().is_some_and(|owner| {
            self.labels(owner).iter().all(|(key, value)| labels.get(key) == Some(value))
        });
        let time = |key: &str| annotation(key).and_then(|time| time.parse::<Timestamp>().ok());
        let mark = || {
            let digest = annotation(DIGEST)?.to_owned();
            let source = annotation(SOURCE)?.to_owned();
            let is_unedited = self.join_digests(&secret.digests).as_ref() == Some(&digest);
            let mark = SecretMark {
                source,
                digest,
                expires_at: time(EXPIRES_AT)?,
                renews_at: time(RENEWS_AT)?,
            };
            is_unedited.then_some(mark)
        };
        Some(OwnedSecret {
            name: SecretName::new(secret.namespace().unwrap_or_default(), secret.name_any()),
            uid: secret.uid().unwrap_or_default(),
            mark: if is_labeled { mark() } else { None },
            owner,
            has_type: secret.type_.as_deref() == Some(self.type_),
        })
    }
}

fn sha256(value: &[u8]) -> String {
    hex::encode(Sha256::digest(value))
}

fn digests<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    let values =
        Option::<BTreeMap<String, ByteString>>::deserialize(deserializer)?.unwrap_or_default();
    Ok(values.into_iter().map(|(key, value)| (key, sha256(&value.0))).collect())
}

#[cfg(test)]
pub(crate) mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    pub(crate) const CLASS: SecretClass = SecretClass {
        label: "wharfage.dev/test",
        owner: "wharfage.dev/test-owner",
        type_: "test",
        keys: &["value"],
    };
    const PAIR: SecretClass = SecretClass {
        label: "wharfage.dev/pair",
        owner: "wharfage.dev/pair-owner",
        type_: "Opaque",
        keys: &["id", "secret"],
    };

    pub(crate) fn owner(name: &str) -> SecretOwner {
        SecretOwner { namespace: "platform".to_owned(), name: name.to_owned() }
    }

    fn mark(content: &[u8]) -> SecretMark {
        SecretMark {
            source: "s".to_owned(),
            digest: CLASS.digest([("value", content)]),
            expires_at: "2026-11-21T17:00:00Z".parse().unwrap(),
            renews_at: "2026-11-21T11:00:00Z".parse().unwrap(),
        }
    }

    pub(crate) fn secret(content: &[u8]) -> Secret {
        Secret {
            metadata: ObjectMeta {
                name: Some("pull".to_owned()),
                namespace: Some("shop".to_owned()),
                uid: Some("u1".to_owned()),
                labels: Some(CLASS.labels(&owner("home"))),
                annotations: Some(CLASS.annotations(&owner("home"), &mark(content))),
                ..ObjectMeta::default()
            },
            type_: Some("test".to_owned()),
            data: Some([("value".to_owned(), ByteString(content.to_vec()))].into()),
            ..Secret::default()
        }
    }

    /// Returns what a watch keeps of a Secret that the API server sends.
    pub(crate) fn watched(secret: &Secret) -> WatchedSecret {
        serde_json::from_value(serde_json::to_value(secret).unwrap()).unwrap()
    }

    fn read(secret: &Secret) -> Option<OwnedSecret> {
        CLASS.read(&watched(secret))
    }

    #[test]
    fn marks_are_read_as_they_are_written() {
        let expected = OwnedSecret {
            name: SecretName::new("shop", "pull"),
            uid: "u1".to_owned(),
            owner: Some(owner("home")),
            mark: Some(mark(b"content")),
            has_type: true,
        };
        assert_eq!(read(&secret(b"content")), Some(expected));
    }

    #[test]
    fn an_edited_content_has_no_mark() {
        for data in [None, Some(("value", "edited")), Some(("other", "content"))] {
            let mut edited = secret(b"content");
            edited.data =
                data.map(|(key, value)| [(key.to_owned(), ByteString(value.into()))].into());
            assert_eq!(read(&edited).unwrap().mark, None);
        }
        let mut extended = secret(b"content");
        extended.data.as_mut().unwrap().insert("theirs".to_owned(), ByteString(b"x".to_vec()));
        assert_eq!(
            read(&extended).unwrap().mark,
            Some(mark(b"content")),
            "what others add is left unchanged"
        );
    }

    #[test]
    fn marks_that_are_removed_or_changed_are_detected() {
        let mut unlabeled = secret(b"content");
        unlabeled.metadata.labels = None;
        let owned = read(&unlabeled).unwrap();
        assert_eq!((owned.owner, owned.mark), (Some(owner("home")), None));
        let mut relabeled = secret(b"content");
        relabeled
            .metadata
            .labels
            .as_mut()
            .unwrap()
            .insert(CLASS.label.to_owned(), owner("other").label_value());
        let owned = read(&relabeled).unwrap();
        assert_eq!((owned.owner, owned.mark), (None, None));
        assert_eq!(CLASS.owners(&watched(&relabeled)).len(), 2, "both are requeued");
        for key in [CLASS.owner, SOURCE, DIGEST, EXPIRES_AT, RENEWS_AT] {
            let mut unmarked = secret(b"content");
            unmarked.metadata.annotations.as_mut().unwrap().remove(key);
            assert_eq!(read(&unmarked).unwrap().mark, None, "{key}");
        }
    }

    #[test]
    fn a_foreign_secret_and_one_that_is_being_deleted_are_not_ours() {
        let mut foreign = secret(b"content");
        foreign.metadata.labels = None;
        foreign.metadata.annotations = None;
        assert_eq!(read(&foreign), None);
        assert_eq!(PAIR.owners(&watched(&foreign)).len(), 0);
        let mut deleted = secret(b"content");
        deleted.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        assert_eq!(read(&deleted), None);
    }

    #[test]
    fn a_secret_of_another_class_is_not_ours_even_if_the_owners_have_one_name() {
        let other = watched(&secret(b"content"));
        assert_eq!(PAIR.read(&other), None);
        let mut unlabeled = secret(b"content");
        unlabeled.metadata.labels = None;
        assert_eq!(PAIR.read(&watched(&unlabeled)), None);
    }

    #[test]
    fn a_digest_covers_every_key_of_the_class() {
        let digest = |id: &[u8], secret: &[u8]| PAIR.digest([("id", id), ("secret", secret)]);
        assert_eq!(digest(b"a", b"b"), digest(b"a", b"b"));
        assert_ne!(digest(b"a", b"b"), digest(b"b", b"a"));
        assert_ne!(digest(b"a", b"b"), digest(b"a", b"c"));
        assert_eq!(CLASS.digest([("value", b"content".as_slice())]), sha256(b"content"));
    }

    #[test]
    fn a_label_fits_however_long_the_name() {
        let long = SecretOwner { namespace: "n".repeat(63), name: "a".repeat(253) };
        assert!(long.label_value().len() <= 63);
        assert_ne!(long.label_value(), owner("home").label_value());
    }
}
