//! The finalizer: put before the first call to a registry, taken away when nothing is left to do there.
//!
//! By server-side apply with a field manager of its own, so that nobody else's finalizers are touched. The uid goes with it:
//! an object that is gone meanwhile is not made again.

use std::fmt::Debug;

use kube::api::{Patch, PatchParams};
use kube::{Api, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::controllers::FINALIZER;

const FIELD_MANAGER: &str = "wharfage-finalizer";

/// Whether the object has it.
pub fn has<K: Resource>(object: &K) -> bool {
    object.finalizers().iter().any(|it| it == FINALIZER)
}

/// Puts it on the object.
///
/// # Errors
/// What the API server said.
pub async fn add<K>(api: &Api<K>, object: &K) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    if has(object) { Ok(()) } else { apply(api, object, &[FINALIZER]).await }
}

/// Takes it away: the object may go.
///
/// # Errors
/// What the API server said.
pub async fn remove<K>(api: &Api<K>, object: &K) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    if has(object) { apply(api, object, &[]).await } else { Ok(()) }
}

async fn apply<K>(api: &Api<K>, object: &K, finalizers: &[&str]) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let patch = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": { "name": object.name_any(), "uid": object.uid(), "finalizers": finalizers },
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    match api.patch_metadata(&object.name_any(), &params, &Patch::Apply(&patch)).await {
        Ok(_) => Ok(()),
        // It is gone, or a namesake has come: there is nothing to hold.
        Err(kube::Error::Api(status)) if status.code == 404 || (status.code == 409 && finalizers.is_empty()) => Ok(()),
        Err(error) => Err(error),
    }
}
