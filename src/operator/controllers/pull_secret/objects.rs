//! The Secrets and service accounts in the cluster: each change made so that it hits what was meant, or nothing.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, Error, ResourceExt as _};
use secrecy::ExposeSecret as _;
use serde_json::json;

use crate::pull_secrets::accounts::WatchedServiceAccount;
use crate::pull_secrets::annotations::{HeldSecret, LABEL, Owner, WatchedSecret, annotations, labels};
use crate::pull_secrets::decide::{Entry, SecretDeletion};
use crate::pull_secrets::docker_config::{SECRET_KEY, SECRET_TYPE};
use crate::pull_secrets::tokens::Issued;
use crate::status::FIELD_MANAGER;

/// What has a Secret's name before it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SecretPlace {
    /// Nothing.
    Free,
    /// One of the PullSecret's own: a watch has yet to tell of it, or somebody took its label off.
    Own(Box<HeldSecret>),
    /// One that goes, or that another PullSecret has left.
    Passing,
    /// Somebody else's.
    Taken,
}

/// Looks at a name before a Secret is made there.
pub(super) async fn place(client: &Client, namespace: &str, name: &str, owner: &Owner) -> Result<SecretPlace, Error> {
    let api: Api<WatchedSecret> = Api::namespaced(client.clone(), namespace);
    let Some(secret) = api.get_opt(name).await? else { return Ok(SecretPlace::Free) };
    if secret.metadata.deletion_timestamp.is_some() {
        return Ok(SecretPlace::Passing);
    }
    Ok(match HeldSecret::read(&secret) {
        Some(held) if held.owner.as_ref() == Some(owner) => SecretPlace::Own(Box::new(held)),
        Some(_) => SecretPlace::Passing,
        None => SecretPlace::Taken,
    })
}

/// Makes a Secret, or writes over the one with this UID. False if it became another one meanwhile: the next look decides.
pub(super) async fn write(
    client: &Client,
    namespace: &str,
    name: &str,
    uid: Option<&str>,
    issued: &Issued,
    (owner, service_accounts): (&Owner, &std::collections::BTreeSet<String>),
) -> Result<bool, Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            uid: uid.map(str::to_owned),
            labels: Some(labels(owner)),
            annotations: Some(annotations(owner, &issued.mark, service_accounts)),
            ..ObjectMeta::default()
        },
        type_: Some(SECRET_TYPE.to_owned()),
        data: Some([(SECRET_KEY.to_owned(), ByteString(issued.content.expose_secret().as_bytes().to_vec()))].into()),
        ..Secret::default()
    };
    let written = match uid {
        // Server-side apply would merge into a Secret of that name that came meanwhile, whoever made it.
        None => {
            let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
            api.create(&params, &secret).await.map(drop)
        }
        Some(_) => {
            let params = PatchParams::apply(FIELD_MANAGER).force();
            api.patch_metadata(name, &params, &Patch::Apply(&secret)).await.map(drop)
        }
    };
    unless_it_changed(written)
}

/// Deletes a Secret of ours, if it is there. False if it became another one meanwhile.
pub(super) async fn delete(client: &Client, doomed: &SecretDeletion) -> Result<bool, Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), &doomed.namespace);
    let preconditions = Preconditions { uid: Some(doomed.uid.clone()), resource_version: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    unless_it_changed(unless_it_is_gone(api.delete(&doomed.name, &params).await.map(drop)))
}

/// Puts the Secret's name into a service account's imagePullSecrets, or takes it out. False if the account changed at the
/// same moment: the list is one value, so it is read, changed and written back as it was read, or not at all.
pub(super) async fn name_in_account(client: &Client, entry: &Entry, named: bool) -> Result<bool, Error> {
    let api: Api<WatchedServiceAccount> = Api::namespaced(client.clone(), &entry.namespace);
    let Some(account) = api.get_opt(&entry.account).await? else { return Ok(true) };
    let Some(entries) = account.with(&entry.secret, named) else { return Ok(true) };
    let patch = json!({
        "metadata": { "resourceVersion": account.resource_version() },
        "imagePullSecrets": (!entries.is_empty()).then_some(entries),
    });
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    unless_it_changed(unless_it_is_gone(
        api.patch_metadata(&entry.account, &params, &Patch::Merge(&patch)).await.map(drop),
    ))
}

/// Every Secret of a PullSecret, asked for now.
pub(super) async fn all_of(client: &Client, owner: &Owner) -> Result<Vec<HeldSecret>, Error> {
    let api: Api<WatchedSecret> = Api::all(client.clone());
    let listed = api.list(&ListParams::default().labels(&format!("{LABEL}={}", owner.label()))).await?;
    Ok(listed.items.iter().filter_map(HeldSecret::read).filter(|held| held.owner.as_ref() == Some(owner)).collect())
}

fn unless_it_is_gone(outcome: Result<(), Error>) -> Result<(), Error> {
    match outcome {
        Err(Error::Api(status)) if status.code == 404 => Ok(()),
        outcome => outcome,
    }
}

/// What is gone, or has become something else, is not an error: a look at what is there now decides again.
fn unless_it_changed(outcome: Result<(), Error>) -> Result<bool, Error> {
    match outcome {
        Ok(()) => Ok(true),
        Err(Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}
