//! A service account's imagePullSecrets: a list of which some entries are ours and the others none of our business.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use k8s_openapi::api::core::v1::{LocalObjectReference, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::Deserialize;

/// A service account as it is watched.
#[derive(Debug, Clone, PartialEq, Resource, Deserialize)]
#[resource(inherit = ServiceAccount)]
#[serde(rename_all = "camelCase")]
pub struct WatchedServiceAccount {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// The Secrets that its Pods pull with.
    #[serde(default)]
    pub image_pull_secrets: Vec<LocalObjectReference>,
}

/// What of a service account means something: which Secrets it names.
pub fn meaning(account: &WatchedServiceAccount) -> u64 {
    let mut hasher = DefaultHasher::new();
    account.metadata.uid.hash(&mut hasher);
    account.image_pull_secrets.iter().for_each(|entry| entry.name.hash(&mut hasher));
    hasher.finish()
}

impl WatchedServiceAccount {
    /// Whether it names the Secret.
    pub fn names(&self, secret: &str) -> bool {
        self.image_pull_secrets.iter().any(|entry| entry.name == secret)
    }

    /// The list with the Secret's name in it, or without; nothing if it is so already.
    pub fn with(&self, secret: &str, named: bool) -> Option<Vec<LocalObjectReference>> {
        if self.names(secret) == named {
            return None;
        }
        let others = self.image_pull_secrets.iter().filter(|entry| entry.name != secret).cloned();
        let own = named.then(|| LocalObjectReference { name: secret.to_owned() });
        Some(others.chain(own).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(names: &[&str]) -> WatchedServiceAccount {
        let entry = |name: &&str| LocalObjectReference { name: (*name).to_owned() };
        let image_pull_secrets = names.iter().map(entry).collect();
        WatchedServiceAccount { metadata: ObjectMeta::default(), image_pull_secrets }
    }

    #[test]
    fn only_our_entry_comes_and_goes() {
        let two = account(&["theirs", "pull"]);
        assert_eq!(account(&["theirs"]).with("pull", true), Some(two.image_pull_secrets.clone()));
        assert_eq!(two.with("pull", true), None);
        assert_eq!(two.with("pull", false), Some(account(&["theirs"]).image_pull_secrets));
        assert_eq!(account(&["theirs"]).with("pull", false), None);
        assert_eq!(account(&["pull"]).with("pull", false), Some(Vec::new()));
    }
}
