//! The Secrets: the root key, and what lets the pods into their database and their bucket. The latter is a copy, because a
//! pod can't read a Secret of another namespace; whoever changes the original changes the copy.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret as KubeSecret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use secrecy::{ExposeSecret as _, SecretString};

use super::{Names, WorkloadBuilder};
use wharfage_crd::common::SecretKeyRef;
use wharfage_crd::registry::DEFAULT_CONNECTION_KEY;
use wharfage_domain::access_key::AccessKey;

/// The keys of a Secret with an access key: what every AWS tool reads from its environment.
pub const ACCESS_KEY_ID: &str = "AWS_ACCESS_KEY_ID";
/// See [`ACCESS_KEY_ID`].
pub const SECRET_ACCESS_KEY: &str = "AWS_SECRET_ACCESS_KEY";

/// An access key, as a Secret holds it.
#[derive(Debug, Clone)]
pub struct KeyPair {
    /// Its id, which is no secret.
    pub id: String,
    /// Its secret.
    pub secret: SecretString,
}

/// What lets the pods into their database and their bucket.
#[derive(Debug, Clone, Default)]
pub struct Backends {
    /// The URI of the PostgreSQL database.
    pub database: Option<SecretString>,
    /// The access key of the bucket.
    pub bucket: Option<KeyPair>,
}

/// A Secret does not hold what is read from it. Says which, and never what it holds instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Secret {namespace}/{name} must have a key {key} with text in it")]
pub struct InvalidSecret {
    namespace: String,
    name: String,
    key: String,
}

/// A new Secret with this root key. It has no owner: it stays when its Registry goes, so that one of the same name that
/// comes later opens the same data with the same key.
pub fn root_key_secret(names: &Names, namespace: &str, key: &AccessKey) -> KubeSecret {
    let data = [(ACCESS_KEY_ID, &*key.id), (SECRET_ACCESS_KEY, key.secret.expose_secret())];
    KubeSecret {
        metadata: ObjectMeta {
            name: Some(names.root_key()),
            namespace: Some(namespace.to_owned()),
            labels: Some(names.labels()),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".to_owned()),
        data: Some(data.into_iter().map(|(key, value)| (key.to_owned(), bytes(value))).collect()),
        ..KubeSecret::default()
    }
}

/// The access key that a Secret holds.
///
/// # Errors
/// When it holds none.
pub fn key_pair(secret: &KubeSecret) -> Result<KeyPair, InvalidSecret> {
    Ok(KeyPair {
        id: text(secret, ACCESS_KEY_ID)?.to_owned(),
        secret: SecretString::from(text(secret, SECRET_ACCESS_KEY)?),
    })
}

/// The URI of a database that a Secret holds under the reference's key.
///
/// # Errors
/// When it holds none.
pub fn connection(secret: &KubeSecret, reference: &SecretKeyRef) -> Result<SecretString, InvalidSecret> {
    text(secret, reference.key.as_deref().unwrap_or(DEFAULT_CONNECTION_KEY)).map(SecretString::from)
}

/// The text under `key`, without the newline that an editor left.
fn text<'s>(secret: &'s KubeSecret, key: &str) -> Result<&'s str, InvalidSecret> {
    let bytes = secret.data.as_ref().and_then(|data| data.get(key));
    let text = bytes.and_then(|bytes| std::str::from_utf8(&bytes.0).ok()).map(str::trim);
    text.filter(|text| !text.is_empty()).ok_or_else(|| InvalidSecret {
        namespace: secret.namespace().unwrap_or_default(),
        name: secret.name_any(),
        key: key.to_owned(),
    })
}

fn bytes(text: &str) -> ByteString {
    ByteString(text.as_bytes().to_vec())
}

impl WorkloadBuilder<'_> {
    /// The Secret whose keys are the secret variables of `wharfage serve`; none if nothing is secret.
    pub(super) fn backends(&self) -> Option<KubeSecret> {
        let data = self.secret_variables();
        (!data.is_empty()).then(|| KubeSecret {
            metadata: self.metadata(self.names.backends()),
            type_: Some("Opaque".to_owned()),
            data: Some(data.into_iter().map(|(name, value)| (name.to_owned(), bytes(value.expose_secret()))).collect()),
            ..KubeSecret::default()
        })
    }

    pub(super) fn secret_variables(&self) -> BTreeMap<&'static str, SecretString> {
        let Backends { database, bucket } = &self.inputs.backends;
        let mut variables = BTreeMap::new();
        if let Some(url) = database {
            variables.insert("WHARFAGE_DATABASE_URL", url.clone());
        }
        if let Some(key) = bucket {
            variables.insert("WHARFAGE_S3_ACCESS_KEY_ID", SecretString::from(&*key.id));
            variables.insert("WHARFAGE_S3_SECRET_ACCESS_KEY", key.secret.clone());
        }
        variables
    }
}
