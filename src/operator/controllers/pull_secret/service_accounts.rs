//! Adds the Secret's name to service accounts, and removes it.

use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Error, ResourceExt as _};
use serde_json::json;

use crate::api_error::{ignore_not_found, unless_changed};
use crate::pull_secrets::accounts::WatchedServiceAccount;
use crate::pull_secrets::decide::Entry;
use crate::status::FIELD_MANAGER;

/// Adds a Secret's name to the imagePullSecrets of a service account, or removes it. Returns false if the account changed at
/// the same moment: the list is one value, which is written back only onto the version that was read.
pub(super) async fn set_named(client: &Client, entry: &Entry, named: bool) -> Result<bool, Error> {
    let api: Api<WatchedServiceAccount> = Api::namespaced(client.clone(), &entry.namespace);
    let Some(account) = api.get_opt(&entry.account).await? else { return Ok(true) };
    let Some(entries) = account.with(&entry.secret, named) else { return Ok(true) };
    let patch = json!({
        "metadata": { "resourceVersion": account.resource_version() },
        "imagePullSecrets": (!entries.is_empty()).then_some(entries),
    });
    let params =
        PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let patched = api.patch_metadata(&entry.account, &params, &Patch::Merge(&patch)).await;
    unless_changed(ignore_not_found(patched))
}
