//! The Secrets that a workload reads: what it names, its root key, and its certificate.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, ResourceExt as _};
use secrecy::ExposeSecret as _;

use super::WorkloadReconcile;
use super::error::{ReconcileError, refused, unreadable, unusable};
use crate::secrets::SecretName;
use crate::status::FIELD_MANAGER;
use crate::workload::{self, Backends, KeyPair, Names, certificate_kind, connection};
use wharfage_crd::registry::ManagedRegistry;
use wharfage_crd::{Reason, Registry};
use wharfage_domain::access_key::AccessKey;

/// How the operator reaches a managed registry.
#[derive(Hash)]
pub(in crate::controllers) struct ManagedConnection {
    /// Its URL, with the name that its certificate is for.
    pub url: String,
    /// Where to connect to, if the URL's host isn't that.
    pub host: Option<String>,
    /// Certificates to trust, in PEM.
    pub ca_bundle: Option<String>,
    /// The root key's id.
    pub id: String,
    /// The root key's secret.
    pub secret: String,
}

/// The Secrets that a managed Registry names, and those that it has.
pub(in crate::controllers) fn secrets(
    registry: &Registry,
    managed: &ManagedRegistry,
    operator: &str,
) -> BTreeSet<SecretName> {
    let names = Names::of(&registry.name_any());
    let own = workload::namespace(managed, operator);
    let tls = workload::tls_secret(managed, &names);
    let inside = [Some(names.root_key()), Some(names.backends()), tls].into_iter().flatten();
    let s3 = managed.storage.as_ref().and_then(|it| it.s3.as_ref()?.credentials_secret_ref.as_ref());
    let postgres = managed.database.as_ref().and_then(|it| it.postgres.as_ref());
    let postgres = postgres.map(|it| &it.connection_secret_ref);
    inside
        .map(|name| (own.to_owned(), name))
        .chain(s3.map(|it| (it.namespace.clone(), it.name.clone())))
        .chain(postgres.map(|it| (it.namespace.clone(), it.name.clone())))
        .collect()
}

impl WorkloadReconcile<'_> {
    /// What opens database and bucket, from where the Registry says.
    pub(super) async fn backends(&self) -> Result<Backends, ReconcileError> {
        let postgres = self.managed.database.as_ref().and_then(|it| it.postgres.as_ref());
        let s3 = self.managed.storage.as_ref().and_then(|it| it.s3.as_ref()?.credentials_secret_ref.as_ref());
        let mut backends = Backends::default();
        if let Some(reference) = postgres.map(|it| &it.connection_secret_ref) {
            let secret = self.named_secret(&reference.namespace, &reference.name).await?;
            backends.database = Some(workload::connection(&secret, reference).map_err(unusable)?);
        }
        if let Some(reference) = s3 {
            let secret = self.named_secret(&reference.namespace, &reference.name).await?;
            backends.bucket = Some(workload::key_pair(&secret).map_err(unusable)?);
        }
        Ok(backends)
    }

    pub(super) async fn named_secret(&self, namespace: &str, name: &str) -> Result<Secret, ReconcileError> {
        self.secret(namespace, name).await?.ok_or_else(|| {
            ReconcileError::not_found(format!(
                "Secret {namespace}/{name} does not exist: make it, or correct the reference"
            ))
        })
    }

    pub(super) async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, ReconcileError> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        secrets.get_opt(name).await.map_err(|error| unreadable(error, namespace))
    }

    /// The root key: the one that is there, or a new one. It is never written over.
    pub(super) async fn root_key(&self) -> Result<KeyPair, ReconcileError> {
        let name = self.names.root_key();
        let secret = match self.secret(&self.namespace, &name).await? {
            Some(secret) => secret,
            None => {
                let account = self.registry.registry_id().ok_or_else(|| {
                    ReconcileError::stalled(Reason::InvalidParameterException, "a managed registry needs a registryId")
                })?;
                let key = AccessKey::generate(account)
                    .map_err(|error| ReconcileError::waiting(Reason::Progressing, format!("no root key: {error}")))?;
                let made = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
                let new = workload::root_key_secret(&self.names, &self.namespace, &key);
                let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
                match secrets.create(&made, &new).await {
                    Ok(secret) => secret,
                    Err(error) => return Err(refused(error, "Secret", &self.namespace, &name)),
                }
            }
        };
        workload::key_pair(&secret).map_err(unusable)
    }

    /// The Secret with the certificate that the registry serves with, if it serves with one; or why it isn't there.
    pub(super) async fn certificate(&self) -> Result<Option<Secret>, ReconcileError> {
        let Some(name) = workload::tls_secret(self.managed, &self.names) else { return Ok(None) };
        if let Some(secret) = self.secret(&self.namespace, &name).await? {
            return Ok(Some(secret));
        }
        let issued = self.managed.tls.as_ref().is_some_and(|tls| tls.cert_manager.is_some());
        if !issued {
            return Err(ReconcileError::not_found(format!(
                "Secret {}/{name} does not exist: put a certificate of type kubernetes.io/tls there, or correct \
                 tls.secretName",
                self.namespace
            )));
        }
        let certificate = self.objects_of(&certificate_kind()).get_opt(&self.names.workload()).await?;
        let why = certificate.and_then(|it| workload::certificate_trouble(&it.data));
        let why = why.unwrap_or_else(|| "cert-manager has said nothing yet".to_owned());
        let named = format!("Certificate {}/{}", self.namespace, self.names.workload());
        Err(ReconcileError::not_found(format!("{named} is not issued: {why}")))
    }

    /// How the registry is reached from here, or why it isn't: one of its Secrets is missing.
    pub(super) async fn connection(&self) -> Result<ManagedConnection, ReconcileError> {
        let root_key = self.named_secret(&self.namespace, &self.names.root_key()).await?;
        let key = workload::key_pair(&root_key).map_err(unusable)?;
        let certificate = self.certificate().await?;
        let connection::Address { url, host, ca_bundle } =
            connection::address(self.managed, &self.names, &self.namespace, certificate.as_ref());
        Ok(ManagedConnection { url, host, ca_bundle, id: key.id, secret: key.secret.expose_secret().to_owned() })
    }
}
