//! The finalizer: put before the first call to a registry, removed when nothing is left to do there.
//!
//! It is put by server-side apply with a field manager of its own, so that nobody else's finalizers are touched. The uid goes with
//! it: an object that is gone meanwhile is not made again. It is removed by value, whoever else wrote it, too: a manifest that
//! was exported and applied again, or comes from a backup, has it.

use std::fmt::Debug;

use kube::api::{Patch, PatchParams};
use kube::{Api, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::json;

/// The finalizer of every kind.
pub const FINALIZER: &str = "wharfage.dev/finalizer";

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
    if has(object) {
        return Ok(());
    }
    let patch = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": { "name": object.name_any(), "uid": object.uid(), "finalizers": [FINALIZER] },
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    gone_is_fine(api.patch_metadata(&object.name_any(), &params, &Patch::Apply(&patch)).await)
}

/// Takes it away: the object may go.
///
/// # Errors
/// What the API server said; also when the object's finalizers are other ones by now.
pub async fn remove<K>(api: &Api<K>, object: &K) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let Some(index) = object.finalizers().iter().position(|it| it == FINALIZER) else { return Ok(()) };
    let path = format!("/metadata/finalizers/{index}");
    let patch = json!([
        { "op": "test", "path": "/metadata/uid", "value": object.uid() },
        { "op": "test", "path": path, "value": FINALIZER },
        { "op": "remove", "path": path },
    ]);
    let patch = serde_json::from_value(patch).map_err(kube::Error::SerdeError)?;
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    gone_is_fine(api.patch_metadata(&object.name_any(), &params, &Patch::Json::<()>(patch)).await)
}

fn gone_is_fine<T>(answer: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match answer {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        answer => answer.map(drop),
    }
}
