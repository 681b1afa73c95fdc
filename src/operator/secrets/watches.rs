//! Watches of the Secrets that objects refer to: one for each Secret, by its name, of its metadata only.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::Secret;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::{Lookup, ObjectRef, store};
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::task::AbortHandle;

use super::content::SecretName;
use crate::watch::{any_change, watch_kind};

/// The watches of all Secrets that objects of any kind refer to.
#[derive(Default)]
pub(crate) struct SecretWatches(Arc<Mutex<Watched>>);

/// An object that refers to Secrets: its kind, its namespace and its name.
type Referrer = (String, Option<String>, String);

/// The watched Secrets, and what a change of each requeues.
#[derive(Default)]
struct Watched(HashMap<SecretName, SecretWatch>);

#[derive(Default)]
struct SecretWatch {
    referrers: HashMap<Referrer, Arc<dyn Fn() + Send + Sync>>,
    /// Aborts the watch.
    task: Option<AbortHandle>,
}

impl SecretWatches {
    /// Watches exactly these Secrets for an object from now on: `requeue` is called when one of them changes. Call it before
    /// reading the Secrets, so that no change is missed.
    pub fn watch<K>(
        &self,
        client: &Client,
        object: &ObjectRef<K>,
        secrets: &BTreeSet<SecretName>,
        requeue: impl Fn() + Send + Sync + 'static,
    ) where
        K: Lookup<DynamicType = ()>,
    {
        let referrer = (K::kind(&()).into_owned(), object.namespace.clone(), object.name.clone());
        let mut watched = lock(&self.0);
        for secret in watched.refer(&referrer, secrets, &(Arc::new(requeue) as _)) {
            let task = tokio::spawn(watch(client.clone(), secret.clone(), Arc::clone(&self.0)))
                .abort_handle();
            if let Some(watch) = watched.0.get_mut(&secret) {
                watch.task = Some(task);
            }
        }
    }
}

impl Drop for SecretWatches {
    fn drop(&mut self) {
        lock(&self.0).0.clear();
    }
}

impl Drop for SecretWatch {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Watched {
    /// Replaces the Secrets that an object refers to. Returns those that nothing referred to before; a Secret that nothing
    /// refers to any more is no longer watched.
    fn refer(
        &mut self,
        referrer: &Referrer,
        secrets: &BTreeSet<SecretName>,
        requeue: &Arc<dyn Fn() + Send + Sync>,
    ) -> Vec<SecretName> {
        self.0.retain(|secret, watch| {
            if !secrets.contains(secret) {
                watch.referrers.remove(referrer);
            }
            !watch.referrers.is_empty()
        });
        let mut new = Vec::new();
        for secret in secrets {
            let watch = self.0.entry(secret.clone()).or_insert_with(|| {
                new.push(secret.clone());
                SecretWatch::default()
            });
            watch.referrers.entry(referrer.clone()).or_insert_with(|| Arc::clone(requeue));
        }
        new
    }

    /// Requeues what refers to a Secret.
    fn changed(&self, secret: &SecretName) {
        for requeue in self.0.get(secret).into_iter().flat_map(|watch| watch.referrers.values()) {
            requeue();
        }
    }
}

async fn watch(client: Client, secret: SecretName, watched: Arc<Mutex<Watched>>) {
    let api: Api<PartialObjectMeta<Secret>> = Api::namespaced(client, &secret.namespace);
    let selection = watcher::Config::default().fields(&format!("metadata.name={}", secret.name));
    let (_reader, writer) = store();
    watch_kind(api, selection, writer, any_change, |_| lock(&watched).changed(&secret)).await;
}

fn lock(watched: &Mutex<Watched>) -> MutexGuard<'_, Watched> {
    watched.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn referrer(name: &str) -> Referrer {
        ("Registry".to_owned(), None, name.to_owned())
    }

    fn secrets(names: &[&str]) -> BTreeSet<SecretName> {
        names.iter().map(|name| SecretName::new("n", *name)).collect()
    }

    #[test]
    fn a_change_requeues_everything_that_refers_to_the_secret() {
        let requeued = Arc::new(Mutex::new(Vec::new()));
        let mut watched = Watched::default();
        let refer = |watched: &mut Watched, name: &'static str, names: &[&str]| {
            let requeued = Arc::clone(&requeued);
            let requeue: Arc<dyn Fn() + Send + Sync> =
                Arc::new(move || requeued.lock().unwrap().push(name));
            watched.refer(&referrer(name), &secrets(names), &requeue)
        };
        assert_eq!(refer(&mut watched, "one", &["a", "b"]).len(), 2);
        assert_eq!(refer(&mut watched, "other", &["b"]).len(), 0, "it is watched already");
        let changed = |watched: &Watched, name: &str| {
            watched.changed(&SecretName::new("n", name));
            let mut requeued = std::mem::take(&mut *requeued.lock().unwrap());
            requeued.sort_unstable();
            requeued
        };
        assert_eq!(changed(&watched, "a"), ["one"]);
        assert_eq!(changed(&watched, "b"), ["one", "other"]);
        assert_eq!(changed(&watched, "c"), Vec::<&str>::new());
        assert_eq!(refer(&mut watched, "one", &["c"]), [SecretName::new("n", "c")]);
        assert_eq!(changed(&watched, "b"), ["other"]);
        refer(&mut watched, "other", &[]);
        assert_eq!(watched.0.into_keys().collect::<Vec<_>>(), [SecretName::new("n", "c")]);
    }
}
