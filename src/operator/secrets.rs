//! The Secrets that Registries name: each is followed by its name, so that a credential that comes late, or is renewed, is
//! used at once, and no other Secret is ever read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::core::v1::Secret;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::{ObjectRef, store};
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::task::AbortHandle;

use super::policy_rule::{Feature, PolicyRule, RuleScope};
use super::triggers::Triggers;
use super::watch::{any_change, watch_kind};
use wharfage_crd::Registry;

/// What the following and reading of named Secrets takes.
pub(super) const RULES: &[PolicyRule] = &[PolicyRule {
    group: "",
    resources: &["secrets"],
    verbs: &["get", "list", "watch"],
    scope: RuleScope::Cluster,
    feature: Feature::Core,
    reason: "credentials and certificates that Registries name; only those are read",
}];

/// A Secret's namespace and name.
pub type SecretName = (String, String);

/// The Secrets that are followed: one watch for each Registry and Secret that it names.
#[derive(Default)]
pub struct SecretWatches(Mutex<HashMap<(String, SecretName), AbortHandle>>);

impl SecretWatches {
    /// Follows exactly these Secrets for a Registry from now on.
    pub fn follow(&self, client: &Client, triggers: &Triggers, registry: &str, secrets: &BTreeSet<SecretName>) {
        let mut watches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        watches.retain(|(whose, secret), task| {
            let keep = whose != registry || secrets.contains(secret);
            if !keep {
                task.abort();
            }
            keep
        });
        for secret in secrets {
            watches.entry((registry.to_owned(), secret.clone())).or_insert_with(|| {
                let (client, triggers, (namespace, name)) = (client.clone(), triggers.clone(), secret.clone());
                let object = ObjectRef::<Registry>::new(registry);
                let task = tokio::spawn(async move {
                    let api: Api<PartialObjectMeta<Secret>> = Api::namespaced(client, &namespace);
                    let selection = watcher::Config::default().fields(&format!("metadata.name={name}"));
                    let (_reader, writer) = store();
                    watch_kind(api, selection, writer, any_change, |_| triggers.registry(object.clone())).await;
                });
                task.abort_handle()
            });
        }
    }
}

impl Drop for SecretWatches {
    fn drop(&mut self) {
        let watches = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        watches.values().for_each(AbortHandle::abort);
    }
}

/// The data of a Secret, as text; nothing if it is not there.
///
/// # Errors
/// What the API server said.
pub async fn read(
    client: &Client,
    (namespace, name): &SecretName,
) -> Result<Option<BTreeMap<String, String>>, kube::Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = api.get_opt(name).await?;
    let text = |(key, value): (String, k8s_openapi::ByteString)| Some((key, String::from_utf8(value.0).ok()?));
    Ok(secret.map(|it| it.data.unwrap_or_default().into_iter().filter_map(text).collect()))
}
