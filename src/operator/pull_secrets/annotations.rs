//! The marks of a PullSecret's Secrets beyond those of every owned Secret ([`crate::secrets`]).
//!
//! The annotation `wharfage.dev/service-accounts` names the service accounts whose imagePullSecrets name the Secret because of
//! us. Nothing else remembers them.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt as _;
use sha2::{Digest as _, Sha256};

use super::docker_config::{SECRET_KEY, SECRET_TYPE};
use crate::secrets::{OwnedSecret, SecretClass, WatchedSecret};

/// The Secrets of PullSecrets.
pub(crate) const CLASS: SecretClass = SecretClass {
    label: "wharfage.dev/pull-secret",
    owner: "wharfage.dev/owner",
    type_: SECRET_TYPE,
    keys: &[SECRET_KEY],
};

const SERVICE_ACCOUNTS: &str = "wharfage.dev/service-accounts";

/// A Secret that is marked as a PullSecret's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HeldSecret {
    pub secret: OwnedSecret,
    /// The service accounts that name it because of us.
    pub service_accounts: BTreeSet<String>,
}

impl HeldSecret {
    /// Reads the marks of a Secret; nothing if it has none, or is being deleted.
    pub fn read(secret: &WatchedSecret) -> Option<Self> {
        let names =
            secret.annotations().get(SERVICE_ACCOUNTS).map(String::as_str).unwrap_or_default();
        let names = names.split(',').filter(|name| !name.is_empty());
        Some(Self {
            secret: CLASS.read(secret)?,
            service_accounts: names.map(str::to_owned).collect(),
        })
    }
}

impl AsRef<OwnedSecret> for HeldSecret {
    fn as_ref(&self) -> &OwnedSecret {
        &self.secret
    }
}

/// Returns the annotation that records service accounts.
pub(crate) fn annotations(service_accounts: &BTreeSet<String>) -> BTreeMap<String, String> {
    let names = service_accounts.iter().map(String::as_str).collect::<Vec<_>>().join(",");
    [(SERVICE_ACCOUNTS.to_owned(), names)].into()
}

/// Returns the source of a token as one word: the registry, the identity that requests it, and the `host` that it should be
/// for, where the Registry says that. Another host is another source, although the registry and the identity are the same.
pub(crate) fn source(identity: &str, host: Option<&str>) -> String {
    host.map_or_else(
        || identity.to_owned(),
        |host| hex::encode(&Sha256::digest(format!("{identity} {host}"))[..16]),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::secrets::SecretOwner;

    #[test]
    fn service_accounts_are_read_as_they_are_written() {
        let owner = SecretOwner { namespace: "platform".to_owned(), name: "home".to_owned() };
        let read = |annotations: BTreeMap<String, String>| {
            let labels = CLASS.labels(&owner);
            let metadata = json!({ "name": "pull", "namespace": "shop", "labels": labels, "annotations": annotations });
            HeldSecret::read(&serde_json::from_value(json!({ "metadata": metadata })).unwrap())
                .unwrap()
                .service_accounts
        };
        for names in [BTreeSet::new(), ["builder".to_owned(), "default".to_owned()].into()] {
            assert_eq!(read(annotations(&names)), names);
        }
        assert_eq!(read(BTreeMap::new()), BTreeSet::new());
    }

    #[test]
    fn another_host_is_another_source() {
        assert_eq!(
            source("identity", None),
            "identity",
            "Secrets from before hosts were recorded are not written again"
        );
        let (one, other) =
            (source("identity", Some("r.example.com")), source("identity", Some("s.example.com")));
        assert_eq!(
            (one.len(), one == other, one == source("another", Some("r.example.com"))),
            (32, false, false)
        );
    }
}
