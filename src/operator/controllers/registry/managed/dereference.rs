//! The Secrets of a workload: those that the Registry refers to, its root key, and its certificate.

use k8s_openapi::api::core::v1::Secret;
use kube::core::ApiResource;
use kube::{Api, ResourceExt as _};
use secrecy::SecretString;

use super::WorkloadReconcile;
use super::error::{ReconcileError, rejected};
use crate::apply_set::ObjectId;
use crate::secrets::{KeyPair, SecretContent, SecretName, SecretReference, create};
use crate::workload::connection::{Address, CERTIFICATE_KEYS, address};
use crate::workload::{self, Backends, Names, certificate_kind};
use wharfage_crd::common::SecretKeyRef;
use wharfage_crd::registry::{DEFAULT_CONNECTION_KEY, ManagedRegistry};
use wharfage_crd::{Reason, Registry};
use wharfage_domain::access_key::AccessKey;

/// The connection of the operator to a managed registry.
#[derive(Hash)]
pub(in crate::controllers) struct ManagedConnection {
    pub address: Address,
    pub root_key: KeyPair,
}

/// Lists the Secrets that a managed Registry refers to, and its own.
pub(in crate::controllers) fn secret_references(
    registry: &Registry,
    managed: &ManagedRegistry,
    operator_namespace: &str,
) -> Vec<SecretReference> {
    let names = Names::of(&registry.name_any());
    let namespace = workload::namespace(managed, operator_namespace);
    // Never read: its watch repairs what others change.
    let backends = SecretReference::new(SecretName::new(namespace, names.backends()), [""; 0]);
    let own = [root_key(&names, namespace), backends];
    let referenced = [
        certificate(managed, &names, namespace),
        bucket(managed),
        database(managed).map(|(it, _)| it),
    ];
    own.into_iter().chain(referenced.into_iter().flatten()).collect()
}

fn root_key(names: &Names, namespace: &str) -> SecretReference {
    SecretReference::new(SecretName::new(namespace, names.root_key()), KeyPair::KEYS)
}

fn certificate(
    managed: &ManagedRegistry,
    names: &Names,
    namespace: &str,
) -> Option<SecretReference> {
    let name = workload::tls_secret(managed, names)?;
    Some(SecretReference::new(SecretName::new(namespace, name), CERTIFICATE_KEYS))
}

fn bucket(managed: &ManagedRegistry) -> Option<SecretReference> {
    let s3 = managed.storage.as_ref()?.s3.as_ref()?;
    let reference = s3.credentials_secret_ref.as_ref()?;
    Some(SecretReference::new(
        SecretName::new(&reference.namespace, &reference.name),
        KeyPair::KEYS,
    ))
}

/// Returns the Secret with the URI of the database, and the URI's key.
fn database(managed: &ManagedRegistry) -> Option<(SecretReference, &str)> {
    let postgres = managed.database.as_ref()?.postgres.as_ref()?;
    let SecretKeyRef { namespace, name, key } = &postgres.connection_secret_ref;
    let key = key.as_deref().unwrap_or(DEFAULT_CONNECTION_KEY);
    Some((SecretReference::new(SecretName::new(namespace, name), [key]), key))
}

impl WorkloadReconcile<'_> {
    /// Reads the credentials of database and bucket.
    pub(super) async fn backends(&self) -> Result<Backends, ReconcileError> {
        let mut backends = Backends::default();
        if let Some((reference, key)) = database(self.managed) {
            let content = reference.read(self.client).await?;
            backends.database = Some(SecretString::from(content.require(key)?));
        }
        if let Some(reference) = bucket(self.managed) {
            backends.bucket = Some(KeyPair::read(&reference.read(self.client).await?)?);
        }
        Ok(backends)
    }

    /// Reads the root key, or creates it. An existing one is never overwritten.
    pub(super) async fn root_key(&self) -> Result<KeyPair, ReconcileError> {
        if let Some(content) = root_key(&self.names, &self.namespace).find(self.client).await? {
            return Ok(KeyPair::read(&content)?);
        }
        let account = self.registry.registry_id().ok_or_else(|| {
            ReconcileError::stalled(
                Reason::InvalidParameterException,
                "a managed registry needs a registryId",
            )
        })?;
        let key = AccessKey::generate(account).map_err(|error| {
            ReconcileError::waiting(Reason::Progressing, format!("no root key: {error}"))
        })?;
        let key = KeyPair::from(key);
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        match create(&api, &workload::root_key_secret(&self.names, &self.namespace, &key)).await {
            Ok(()) => Ok(key),
            Err(error) => {
                let kind = ApiResource::erase::<Secret>(&());
                Err(rejected(error, &ObjectId::new(&kind, &self.namespace, &self.names.root_key())))
            }
        }
    }

    /// Reads the certificate that the registry serves with, if it has one. Reports why its Secret does not exist.
    pub(super) async fn certificate(&self) -> Result<Option<SecretContent>, ReconcileError> {
        let Some(reference) = certificate(self.managed, &self.names, &self.namespace) else {
            return Ok(None);
        };
        if let Some(content) = reference.find(self.client).await? {
            return Ok(Some(content));
        }
        let is_issued = self.managed.tls.as_ref().is_some_and(|tls| tls.cert_manager.is_some());
        if !is_issued {
            return Err(ReconcileError::not_found(format!(
                "Secret {} does not exist: put a certificate of type kubernetes.io/tls there, or correct tls.secretName",
                reference.secret
            )));
        }
        let (kind, name) = (certificate_kind(), self.names.workload());
        let certificate = self.set.api(&kind).get_opt(&name).await?;
        let why = certificate.and_then(|it| workload::certificate_trouble(&it.data));
        let why = why.unwrap_or_else(|| "cert-manager has said nothing yet".to_owned());
        let object = ObjectId::new(&kind, &self.namespace, &name);
        Err(ReconcileError::not_found(format!("{object} is not issued: {why}")))
    }

    /// Reads the connection to the registry, or reports which Secret is missing.
    pub(super) async fn connection(&self) -> Result<ManagedConnection, ReconcileError> {
        let root_key =
            KeyPair::read(&root_key(&self.names, &self.namespace).read(self.client).await?)?;
        let certificate = self.certificate().await?;
        let address = address(self.managed, &self.names, &self.namespace, certificate.as_ref());
        Ok(ManagedConnection { address, root_key })
    }
}
