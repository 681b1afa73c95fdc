//! The finalizer: added before the first call to a registry, and removed when nothing is left to
//! release there.
//!
//! It is added by server-side apply with its own field manager, so that other finalizers stay
//! unchanged. The patch has the uid, so that it does not create an object that is gone. It is
//! removed by value, no matter who wrote it: a manifest that was exported, or that comes from a
//! backup, has it, too.

use std::fmt::Debug;

use kube::api::{Patch, PatchParams};
use kube::{Api, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::api_error::ignore_not_found;

pub const FINALIZER: &str = "wharfage.dev/finalizer";

const FIELD_MANAGER: &str = "wharfage-finalizer";

pub fn has<K: Resource>(object: &K) -> bool {
    object.finalizers().iter().any(|it| it == FINALIZER)
}

/// Adds the finalizer to the object.
///
/// # Errors
/// Of the API server, except that the object is gone.
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
    ignore_not_found(api.patch_metadata(&object.name_any(), &params, &Patch::Apply(&patch)).await)
}

/// Removes the finalizer, so that the object can be deleted.
///
/// # Errors
/// Of the API server, also when the object's finalizers have changed.
pub async fn remove<K>(api: &Api<K>, object: &K) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let Some(index) = object.finalizers().iter().position(|it| it == FINALIZER) else {
        return Ok(());
    };
    let path = format!("/metadata/finalizers/{index}");
    let patch = json!([
        { "op": "test", "path": "/metadata/uid", "value": object.uid() },
        { "op": "test", "path": path, "value": FINALIZER },
        { "op": "remove", "path": path },
    ]);
    let patch = serde_json::from_value(patch).map_err(kube::Error::SerdeError)?;
    let params =
        PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    ignore_not_found(
        api.patch_metadata(&object.name_any(), &params, &Patch::Json::<()>(patch)).await,
    )
}
