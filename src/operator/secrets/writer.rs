//! Writes and deletes the Secrets of an owner. Each change hits the Secret that was meant, or nothing.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, Error};
use secrecy::{ExposeSecret as _, SecretString};

use super::content::SecretName;
use super::owned::{OwnedSecret, SecretClass, SecretMark, SecretOwner, WatchedSecret};
use super::plan::{SecretDeletion, SecretWrite};
use crate::api_error::{ignore_not_found, unless_changed};
use crate::status::FIELD_MANAGER;

/// Writes the Secrets of one owner.
#[derive(Clone, Copy)]
pub(crate) struct SecretWriter<'a> {
    pub client: &'a Client,
    pub class: &'static SecretClass,
    pub owner: &'a SecretOwner,
}

/// The existing object, if any, under the name of a Secret that is to be created.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum SecretPlace {
    /// Nothing.
    Free,
    /// A Secret of the owner, which its watch has not reported yet, or whose label somebody removed.
    Owned(Box<WatchedSecret>),
    /// A Secret that is being deleted, or that another owner is leaving.
    Leaving,
    /// A Secret that is not ours. It is never changed.
    Foreign,
}

impl SecretWriter<'_> {
    /// Reads what exists under the name of a Secret, before it is created.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn place(&self, secret: &SecretName) -> Result<SecretPlace, Error> {
        let api: Api<WatchedSecret> = Api::namespaced(self.client.clone(), &secret.namespace);
        Ok(place(self.class, self.owner, api.get_opt(&secret.name).await?))
    }

    /// Creates a Secret, or overwrites the one with this UID. Returns false if that has changed or gone meanwhile.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn write(
        &self,
        SecretWrite { secret, uid, .. }: &SecretWrite,
        content: &[(&str, &SecretString)],
        mark: &SecretMark,
        more_annotations: BTreeMap<String, String>,
    ) -> Result<bool, Error> {
        let value = |(key, value): &(&str, &SecretString)| {
            ((*key).to_owned(), ByteString(value.expose_secret().as_bytes().to_vec()))
        };
        let mut annotations = self.class.annotations(self.owner, mark);
        annotations.extend(more_annotations);
        let body = Secret {
            metadata: ObjectMeta {
                name: Some(secret.name.clone()),
                namespace: Some(secret.namespace.clone()),
                uid: uid.clone(),
                labels: Some(self.class.labels(self.owner)),
                annotations: Some(annotations),
                ..ObjectMeta::default()
            },
            type_: Some(self.class.type_.to_owned()),
            data: Some(content.iter().map(value).collect()),
            ..Secret::default()
        };
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &secret.namespace);
        match uid {
            None => unless_changed(create(&api, &body).await),
            Some(_) => {
                let params = PatchParams::apply(FIELD_MANAGER).force();
                unless_changed(
                    api.patch_metadata(&secret.name, &params, &Patch::Apply(&body)).await,
                )
            }
        }
    }

    /// Deletes a Secret, unless it is gone. Returns false if it has become another one meanwhile.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn delete(
        &self,
        SecretDeletion { secret, uid }: &SecretDeletion,
    ) -> Result<bool, Error> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &secret.namespace);
        let preconditions = Preconditions { uid: Some(uid.clone()), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        unless_changed(ignore_not_found(api.delete(&secret.name, &params).await))
    }

    /// Lists the owner's Secrets in all namespaces. Unlike a watch, it misses none that was just written.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn list(&self) -> Result<Vec<WatchedSecret>, Error> {
        let api: Api<WatchedSecret> = Api::all(self.client.clone());
        let selector = format!("{}={}", self.class.label, self.owner.label_value());
        let mut listed = api.list(&ListParams::default().labels(&selector)).await?.items;
        listed.retain(|it| {
            self.class.read(it).is_some_and(|it| it.owner.as_ref() == Some(self.owner))
        });
        Ok(listed)
    }
}

/// Creates a Secret that must not exist. Server-side apply would merge into a Secret of that name that another party created
/// meanwhile.
///
/// # Errors
/// Those of the API server: 409 if the Secret exists.
pub(crate) async fn create(api: &Api<Secret>, secret: &Secret) -> Result<(), Error> {
    let params =
        PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
    api.create(&params, secret).await.map(drop)
}

fn place(class: &SecretClass, owner: &SecretOwner, found: Option<WatchedSecret>) -> SecretPlace {
    let Some(found) = found else { return SecretPlace::Free };
    match class.read(&found) {
        Some(OwnedSecret { owner: Some(of), .. }) if of == *owner => {
            SecretPlace::Owned(Box::new(found))
        }
        Some(_) => SecretPlace::Leaving,
        None if found.metadata.deletion_timestamp.is_some() => SecretPlace::Leaving,
        None => SecretPlace::Foreign,
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::super::owned::tests::{CLASS, owner, secret, watched};
    use super::super::plan::WriteReason;
    use super::*;
    use crate::fake_kubernetes::FakeKubernetes;

    #[tokio::test]
    async fn a_write_hits_the_secret_that_was_meant_or_nothing() {
        let cluster = FakeKubernetes::default();
        let (client, owner) = (cluster.client(), owner("home"));
        let writer = SecretWriter { client: &client, class: &CLASS, owner: &owner };
        let name = SecretName::new("shop", "pull");
        let write = async |uid: Option<&str>, value: &str| {
            let mark = SecretMark {
                source: "s".to_owned(),
                digest: CLASS.digest([("value", value.as_bytes())]),
                expires_at: Timestamp::MAX,
                renews_at: Timestamp::MAX,
            };
            let (uid, reason) = (uid.map(str::to_owned), WriteReason::Missing);
            let write = SecretWrite { secret: name.clone(), uid, reason };
            writer
                .write(&write, &[("value", &SecretString::from(value))], &mark, BTreeMap::new())
                .await
                .unwrap()
        };
        assert!(write(None, "one").await);
        assert!(!write(None, "two").await, "it exists");
        assert!(!write(Some("another"), "two").await, "it is not the one that was read");
        let owned = CLASS.read(&writer.list().await.unwrap()[0]).unwrap();
        assert_eq!(
            owned.mark.as_ref().map(|it| it.digest.clone()),
            Some(CLASS.digest([("value", b"one".as_slice())]))
        );
        assert!(write(Some(&owned.uid), "two").await);
        assert!(matches!(writer.place(&name).await.unwrap(), SecretPlace::Owned(_)));

        let deletion = SecretDeletion::from(&owned);
        let another = SecretDeletion { uid: "another".to_owned(), ..deletion.clone() };
        assert!(!writer.delete(&another).await.unwrap());
        assert!(writer.delete(&deletion).await.unwrap());
        assert!(writer.delete(&deletion).await.unwrap(), "it is gone");
        assert_eq!(writer.place(&name).await.unwrap(), SecretPlace::Free);
    }

    #[tokio::test]
    async fn only_the_owners_secrets_are_listed() {
        let cluster = FakeKubernetes::default();
        let (client, other) = (cluster.client(), owner("other"));
        cluster.create("secrets", serde_json::to_value(secret(b"content")).unwrap());
        let list = async |owner: &SecretOwner| {
            SecretWriter { client: &client, class: &CLASS, owner }.list().await.unwrap().len()
        };
        assert_eq!((list(&owner("home")).await, list(&other).await), (1, 0));
    }

    fn found(edit: impl FnOnce(&mut ObjectMeta)) -> SecretPlace {
        let mut secret = secret(b"content");
        edit(&mut secret.metadata);
        place(&CLASS, &owner("home"), Some(watched(&secret)))
    }

    #[test]
    fn a_secret_of_another_party_is_foreign() {
        let foreign =
            |metadata: &mut ObjectMeta| (metadata.labels, metadata.annotations) = (None, None);
        assert_eq!(found(foreign), SecretPlace::Foreign);
        let deleted = |metadata: &mut ObjectMeta| {
            foreign(metadata);
            metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        };
        assert_eq!(found(deleted), SecretPlace::Leaving);
    }

    #[test]
    fn the_owner_finds_its_secret_again_and_another_owner_waits() {
        assert_eq!(place(&CLASS, &owner("home"), None), SecretPlace::Free);
        assert!(matches!(found(|_| ()), SecretPlace::Owned(_)));
        assert!(
            matches!(found(|metadata| metadata.labels = None), SecretPlace::Owned(_)),
            "somebody removed the label"
        );
        assert_eq!(
            place(&CLASS, &owner("other"), Some(watched(&secret(b"content")))),
            SecretPlace::Leaving
        );
        let contradicting = |metadata: &mut ObjectMeta| {
            metadata.labels = Some(CLASS.labels(&owner("other")));
        };
        assert_eq!(found(contradicting), SecretPlace::Leaving);
    }
}
