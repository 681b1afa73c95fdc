//! What a Secret of ours says of itself: whose it is, which token is in it, whose service accounts name it.
//!
//! | Mark | Value |
//! |---|---|
//! | label `wharfage.dev/pull-secret` | a hash of the owner's name, which itself may be too long for a label |
//! | annotation `wharfage.dev/owner` | the PullSecret, as namespace/name |
//! | annotation `wharfage.dev/token-source` | a hash of the registry and the identity that the token was asked of and with, and of the host of a managed one |
//! | annotation `wharfage.dev/token-digest` | SHA-256 of the content: an edit shows |
//! | annotations `wharfage.dev/expires-at`, `wharfage.dev/renews-at` | when the token ends, and when it is renewed |
//! | annotation `wharfage.dev/service-accounts` | service accounts whose imagePullSecrets name the Secret because of us |
//!
//! A restart of the operator reads them, and renews nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt as _};
use serde::{Deserialize, Deserializer};
use sha2::{Digest as _, Sha256};

use super::docker_config::SECRET_TYPE;

/// The label that every Secret of ours has, and no other.
pub const LABEL: &str = "wharfage.dev/pull-secret";
const OWNER: &str = "wharfage.dev/owner";
const SOURCE: &str = "wharfage.dev/token-source";
const DIGEST: &str = "wharfage.dev/token-digest";
const EXPIRES_AT: &str = "wharfage.dev/expires-at";
const RENEWS_AT: &str = "wharfage.dev/renews-at";
const SERVICE_ACCOUNTS: &str = "wharfage.dev/service-accounts";

/// The PullSecret that a Secret belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Owner {
    /// The PullSecret `object`.
    pub fn of(object: &wharfage_crd::PullSecret) -> Self {
        Self { namespace: object.namespace().unwrap_or_default(), name: object.name_any() }
    }

    /// The value of [`LABEL`] on its Secrets.
    pub fn label(&self) -> String {
        hex::encode(&Sha256::digest(self.to_string())[..16])
    }

    fn read(text: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/')?;
        Some(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

/// Which token is in a Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenMark {
    /// Of which registry, with which identity it was asked for, and for which host: see [`source`].
    pub source: String,
    /// Digest of the content.
    pub digest: String,
    /// When it ends.
    pub expires_at: Timestamp,
    /// When it is renewed.
    pub renews_at: Timestamp,
}

/// A Secret as it is watched: with the digest of its content in place of the content, which nobody needs to keep in memory.
#[derive(Debug, Clone, PartialEq, Resource, Deserialize)]
#[resource(inherit = Secret)]
pub struct WatchedSecret {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// Its type.
    #[serde(rename = "type", default)]
    pub type_: Option<String>,
    /// The digest of its content, if there is any.
    #[serde(rename = "data", default, deserialize_with = "digest_of_content")]
    pub digest: Option<String>,
}

impl WatchedSecret {
    /// The labels of the PullSecrets that it says it belongs to: one, unless somebody edited it.
    pub fn owners(&self) -> BTreeSet<String> {
        let named = self.annotations().get(OWNER).and_then(|owner| Owner::read(owner));
        self.labels().get(LABEL).cloned().into_iter().chain(named.map(|owner| owner.label())).collect()
    }
}

fn digest_of_content<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    struct Data {
        #[serde(rename = ".dockerconfigjson")]
        content: Option<ByteString>,
    }
    let data = Option::<Data>::deserialize(deserializer)?;
    Ok(data.and_then(|data| data.content).map(|content| digest(&content.0)))
}

/// A Secret that is marked as ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldSecret {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID: what is done to it is done to no other of its name.
    pub uid: String,
    /// Whose it is; nobody's if the marks contradict each other.
    pub owner: Option<Owner>,
    /// The token in it; none if there is no telling, or the content was edited.
    pub token: Option<TokenMark>,
    /// Service accounts that name it because of us.
    pub service_accounts: BTreeSet<String>,
    /// Whether it has the type that kubelets read. A Secret's type can't be changed.
    pub typed: bool,
}

/// Of which registry and with which identity tokens are asked for, as one word; `host` is the one that they are to be for, where
/// the Registry says that. Another host is another source, although the registry and the identity are the same.
pub fn source(identity: &str, host: Option<&str>) -> String {
    host.map_or_else(|| identity.to_owned(), |host| hex::encode(&Sha256::digest(format!("{identity} {host}"))[..16]))
}

/// The digest of a content.
pub fn digest(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content))
}

/// The labels of a Secret of `owner`.
pub fn labels(owner: &Owner) -> BTreeMap<String, String> {
    [("app.kubernetes.io/managed-by", "wharfage".to_owned()), (LABEL, owner.label())]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
}

/// The annotations of a Secret of `owner` with this token.
pub fn annotations(owner: &Owner, token: &TokenMark, service_accounts: &BTreeSet<String>) -> BTreeMap<String, String> {
    let TokenMark { source, digest, expires_at, renews_at } = token;
    [
        (OWNER, owner.to_string()),
        (SOURCE, source.clone()),
        (DIGEST, digest.clone()),
        (EXPIRES_AT, expires_at.to_string()),
        (RENEWS_AT, renews_at.to_string()),
        (SERVICE_ACCOUNTS, service_accounts.iter().map(String::as_str).collect::<Vec<_>>().join(",")),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

impl HeldSecret {
    /// What a Secret says of itself. Nothing if it isn't marked as ours, or goes already.
    pub fn read(secret: &WatchedSecret) -> Option<Self> {
        let labels = secret.labels();
        let annotation = |key: &str| secret.annotations().get(key).map(String::as_str);
        let owner = annotation(OWNER).and_then(Owner::read);
        let label = labels.get(LABEL);
        if label.is_none() && owner.is_none() || secret.meta().deletion_timestamp.is_some() {
            return None;
        }
        let owner = owner.filter(|owner| label.is_none_or(|label| *label == owner.label()));
        let marked = owner
            .as_ref()
            .is_some_and(|owner| self::labels(owner).iter().all(|(key, value)| labels.get(key) == Some(value)));
        let time = |key: &str| annotation(key).and_then(|time| time.parse::<Timestamp>().ok());
        let token = || {
            let digest = annotation(DIGEST).filter(|marked| secret.digest.as_deref() == Some(*marked))?;
            Some(TokenMark {
                source: annotation(SOURCE)?.to_owned(),
                digest: digest.to_owned(),
                expires_at: time(EXPIRES_AT)?,
                renews_at: time(RENEWS_AT)?,
            })
        };
        let accounts = annotation(SERVICE_ACCOUNTS).unwrap_or_default().split(',').filter(|name| !name.is_empty());
        Some(Self {
            namespace: secret.namespace().unwrap_or_default(),
            name: secret.name_any(),
            uid: secret.uid().unwrap_or_default(),
            token: if marked { token() } else { None },
            owner,
            service_accounts: accounts.map(str::to_owned).collect(),
            typed: secret.type_.as_deref() == Some(SECRET_TYPE),
        })
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::pull_secrets::docker_config::SECRET_KEY;

    fn owner(name: &str) -> Owner {
        Owner { namespace: "platform".to_owned(), name: name.to_owned() }
    }

    fn token(content: &[u8]) -> TokenMark {
        TokenMark {
            source: "s".to_owned(),
            digest: digest(content),
            expires_at: "2026-11-21T17:00:00Z".parse().unwrap(),
            renews_at: "2026-11-21T11:00:00Z".parse().unwrap(),
        }
    }

    fn accounts() -> BTreeSet<String> {
        ["builder".to_owned(), "default".to_owned()].into()
    }

    fn secret(content: &[u8]) -> Secret {
        Secret {
            metadata: ObjectMeta {
                name: Some("pull".to_owned()),
                namespace: Some("shop".to_owned()),
                uid: Some("u1".to_owned()),
                labels: Some(labels(&owner("home"))),
                annotations: Some(annotations(&owner("home"), &token(content), &accounts())),
                ..ObjectMeta::default()
            },
            type_: Some(SECRET_TYPE.to_owned()),
            data: Some([(SECRET_KEY.to_owned(), ByteString(content.to_vec()))].into()),
            ..Secret::default()
        }
    }

    /// What is read of a Secret that the API server sends.
    fn read(secret: Secret) -> Option<HeldSecret> {
        let watched: WatchedSecret = serde_json::from_value(serde_json::to_value(secret).unwrap()).unwrap();
        HeldSecret::read(&watched)
    }

    #[test]
    fn a_secret_says_what_was_written_on_it() {
        let held = read(secret(b"content")).unwrap();
        let expected = HeldSecret {
            namespace: "shop".to_owned(),
            name: "pull".to_owned(),
            uid: "u1".to_owned(),
            owner: Some(owner("home")),
            token: Some(token(b"content")),
            service_accounts: accounts(),
            typed: true,
        };
        assert_eq!(held, expected);
    }

    #[test]
    fn an_edited_content_is_no_token_of_ours() {
        let mut edited = secret(b"content");
        edited.data = Some([(SECRET_KEY.to_owned(), ByteString(b"other".to_vec()))].into());
        assert_eq!(read(edited).unwrap().token, None);
        let mut emptied = secret(b"content");
        emptied.data = None;
        assert_eq!(read(emptied).unwrap().token, None);
        let mut others = secret(b"content");
        others.data = Some([("other".to_owned(), ByteString(b"content".to_vec()))].into());
        assert_eq!(read(others).unwrap().token, None);
    }

    #[test]
    fn marks_that_are_taken_off_or_changed_are_seen() {
        let mut unlabeled = secret(b"content");
        unlabeled.metadata.labels = None;
        let held = read(unlabeled).unwrap();
        assert_eq!((held.owner, held.token), (Some(owner("home")), None));
        let mut relabelled = secret(b"content");
        relabelled.metadata.labels.as_mut().unwrap().insert(LABEL.to_owned(), owner("other").label());
        let held = read(relabelled).unwrap();
        assert_eq!((held.owner, held.token), (None, None));
        for key in [OWNER, SOURCE, DIGEST, EXPIRES_AT, RENEWS_AT] {
            let mut unsaid = secret(b"content");
            unsaid.metadata.annotations.as_mut().unwrap().remove(key);
            assert_eq!(read(unsaid).unwrap().token, None, "{key}");
        }
        let mut foreign = secret(b"content");
        foreign.metadata.labels = None;
        foreign.metadata.annotations = None;
        assert_eq!(read(foreign), None);
    }

    #[test]
    fn a_secret_that_goes_already_counts_as_gone() {
        let mut going = secret(b"content");
        going.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        assert_eq!(read(going), None);
    }

    #[test]
    fn another_host_is_another_source() {
        assert_eq!(source("identity", None), "identity", "what was written before hosts were told apart holds");
        let (one, other) = (source("identity", Some("r.example.com")), source("identity", Some("s.example.com")));
        assert_eq!((one.len(), one == other, one == source("another", Some("r.example.com"))), (32, false, false));
    }

    #[test]
    fn the_label_fits_however_long_the_name() {
        let long = Owner { namespace: "n".repeat(63), name: "a".repeat(253) };
        assert!(long.label().len() <= 63);
        assert_ne!(long.label(), owner("home").label());
    }
}
