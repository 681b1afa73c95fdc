//! The Secrets: the root key, and the credentials of database and bucket. Those are a copy, because a pod cannot read a Secret
//! of another namespace; a change of the original changes the copy.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret as KubeSecret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use secrecy::{ExposeSecret as _, SecretString};

use super::{Names, WorkloadBuilder};
use crate::secrets::KeyPair;

/// The credentials of the pods for their database and their bucket.
#[derive(Debug, Clone, Default)]
pub(crate) struct Backends {
    /// The URI of the PostgreSQL database.
    pub database: Option<SecretString>,
    /// The access key of the bucket.
    pub bucket: Option<KeyPair>,
}

/// Returns a new Secret with this root key. It has no owner: it stays when its Registry is deleted, so that a later one of the
/// same name opens the same data with the same key.
pub(crate) fn root_key_secret(names: &Names, namespace: &str, key: &KeyPair) -> KubeSecret {
    KubeSecret {
        metadata: ObjectMeta {
            name: Some(names.root_key()),
            namespace: Some(namespace.to_owned()),
            labels: Some(names.labels()),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".to_owned()),
        data: Some(key.data().into()),
        ..KubeSecret::default()
    }
}

impl WorkloadBuilder<'_> {
    /// Returns the Secret whose keys are the secret variables of `wharfage serve`; nothing if there are none.
    pub(super) fn backends(&self) -> Option<KubeSecret> {
        let data = self.secret_variables();
        let bytes = |value: SecretString| ByteString(value.expose_secret().as_bytes().to_vec());
        (!data.is_empty()).then(|| KubeSecret {
            metadata: self.metadata(self.names.backends()),
            type_: Some("Opaque".to_owned()),
            data: Some(
                data.into_iter().map(|(name, value)| (name.to_owned(), bytes(value))).collect(),
            ),
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
