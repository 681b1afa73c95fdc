//! The Secrets that a Registry refers to, and the connection that they make to a registry that runs elsewhere.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use kube::Client;
use secrecy::SecretString;

use super::managed::{self, ManagedConnection};
use crate::secrets::{
    ACCESS_KEY_ID, KeyPair, SECRET_ACCESS_KEY, SESSION_TOKEN, SecretContents, SecretError,
    SecretName, SecretReference, read_all,
};
use crate::status::{Cause, ConditionSet, ReadyState};
use wharfage_apply::{Connection, Identity};
use wharfage_crd::common::{SecretKeyRef, SecretRef};
use wharfage_crd::{Reason, Registry};

/// The key of a `caBundleSecretRef` that names none.
const DEFAULT_CA_BUNDLE_KEY: &str = "ca.crt";

/// A connection to a registry, and the values that it was made from.
pub(super) struct RegistryConnection {
    pub connection: Connection,
    /// The URL that the status reports.
    pub url: String,
    /// Another fingerprint needs another client.
    pub fingerprint: u64,
}

impl RegistryConnection {
    /// Connects to a managed registry.
    pub fn managed(registry: &Registry, managed: ManagedConnection, url: String) -> Self {
        let mut hasher = DefaultHasher::new();
        (&managed, registry.region().as_str()).hash(&mut hasher);
        let ManagedConnection { address, root_key } = managed;
        let connection = Connection {
            endpoint: Some(address.url),
            region: registry.region(),
            identity: Identity::Key {
                id: root_key.id,
                secret: root_key.secret,
                session_token: None,
            },
            role: None,
            ca_bundle: address.ca_bundle,
            host: address.host,
        };
        Self { connection, url, fingerprint: hasher.finish() }
    }
}

/// Lists the Secrets that a Registry refers to.
pub(super) fn secret_references(
    registry: &Registry,
    operator_namespace: &str,
) -> Vec<SecretReference> {
    let spec = &registry.spec;
    let mut references = match &spec.managed {
        Some(managed) => managed::secret_references(registry, managed, operator_namespace),
        None => Vec::new(),
    };
    if let Some(endpoint) = &spec.endpoint {
        references.extend(endpoint.credentials_secret_ref.as_ref().map(credentials));
        references.extend(
            endpoint
                .ca_bundle_secret_ref
                .as_ref()
                .map(|it| SecretReference::new(name_of(it), [ca_key(it)])),
        );
    }
    references.extend(
        spec.aws.as_ref().and_then(|it| it.credentials_secret_ref.as_ref()).map(credentials),
    );
    references
}

fn credentials(reference: &SecretRef) -> SecretReference {
    let SecretRef { namespace, name } = reference;
    SecretReference::new(
        SecretName::new(namespace, name),
        KeyPair::KEYS.into_iter().chain([SESSION_TOKEN]),
    )
}

fn name_of(SecretKeyRef { namespace, name, .. }: &SecretKeyRef) -> SecretName {
    SecretName::new(namespace, name)
}

fn ca_key(reference: &SecretKeyRef) -> &str {
    reference.key.as_deref().unwrap_or(DEFAULT_CA_BUNDLE_KEY)
}

/// An external registry that cannot be connected to.
pub(super) enum ConnectionError {
    Secret(SecretError),
    /// The spec says too little.
    Unspecified,
}

impl From<SecretError> for ConnectionError {
    fn from(error: SecretError) -> Self {
        Self::Secret(error)
    }
}

impl ConnectionError {
    /// Returns the conditions of the Registry.
    ///
    /// # Errors
    /// When the API server cannot be asked now.
    pub fn into_conditions(self) -> Result<ConditionSet, kube::Error> {
        match self {
            Self::Secret(error) => error.into_conditions(),
            Self::Unspecified => {
                let message = "it is neither managed, nor an endpoint, nor aws: give one of them";
                let cause = Cause::new(Reason::InvalidParameterException, message);
                Ok(ConditionSet::of(ReadyState::Stalled(cause)))
            }
        }
    }
}

/// Reads the Secrets of an external Registry, and makes the connection.
///
/// # Errors
/// When a Secret is of no use, or the spec says too little.
pub(super) async fn connect(
    client: &Client,
    registry: &Registry,
    references: &[SecretReference],
) -> Result<RegistryConnection, ConnectionError> {
    assemble(registry, &read_all(client, references).await?)
}

/// Makes a connection from the spec and the content of its Secrets. No I/O.
fn assemble(
    registry: &Registry,
    secrets: &SecretContents,
) -> Result<RegistryConnection, ConnectionError> {
    let spec = &registry.spec;
    let region = registry.region();
    let (connection, url) = match (&spec.endpoint, &spec.aws) {
        (Some(endpoint), _) => {
            let connection = Connection {
                endpoint: Some(endpoint.url.clone()),
                region,
                ca_bundle: ca_bundle(endpoint.ca_bundle_secret_ref.as_ref(), secrets)?,
                identity: identity(endpoint.credentials_secret_ref.as_ref(), secrets)?,
                role: None,
                host: None,
            };
            (connection, endpoint.url.trim_end_matches('/').to_owned())
        }
        (None, Some(aws)) => {
            let url = format!("https://api.ecr.{region}.amazonaws.com");
            let connection = Connection {
                endpoint: None,
                region,
                identity: identity(aws.credentials_secret_ref.as_ref(), secrets)?,
                role: aws.role_arn.clone(),
                ca_bundle: None,
                host: None,
            };
            (connection, url)
        }
        (None, None) => return Err(ConnectionError::Unspecified),
    };
    // Values of Secrets go into the hash and no further.
    let mut hasher = DefaultHasher::new();
    let Connection { endpoint, region, role, ca_bundle, .. } = &connection;
    let registry_id = spec.registry_id.as_ref().map(ToString::to_string);
    (endpoint, region.as_str(), role, ca_bundle, registry_id).hash(&mut hasher);
    secrets.hash(&mut hasher);
    Ok(RegistryConnection { connection, url, fingerprint: hasher.finish() })
}

fn identity(
    reference: Option<&SecretRef>,
    secrets: &SecretContents,
) -> Result<Identity, SecretError> {
    let Some(SecretRef { namespace, name }) = reference else { return Ok(Identity::Ambient) };
    let content = secrets.get(&SecretName::new(namespace, name))?;
    let needed = |key| content.text(key).ok_or_else(|| content.no_key(key));
    Ok(Identity::Key {
        id: needed(ACCESS_KEY_ID)?.to_owned(),
        secret: SecretString::from(needed(SECRET_ACCESS_KEY)?),
        session_token: content.text(SESSION_TOKEN).map(SecretString::from),
    })
}

fn ca_bundle(
    reference: Option<&SecretKeyRef>,
    secrets: &SecretContents,
) -> Result<Option<String>, SecretError> {
    let Some(reference) = reference else { return Ok(None) };
    let (content, key) = (secrets.get(&name_of(reference))?, ca_key(reference));
    content.raw(key).map(|bundle| Some(bundle.to_owned())).ok_or_else(|| content.no_key(key))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;
    use serde_json::{Value, json};

    use super::*;
    use crate::secrets::SecretContent;

    fn registry(spec: Value) -> Registry {
        serde_json::from_value(json!({ "metadata": { "name": "home" }, "spec": spec })).unwrap()
    }

    fn contents(secrets: &[(&str, &[(&str, &str)])]) -> SecretContents {
        let values = |values: &[(&str, &str)]| {
            values
                .iter()
                .map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()))
                .collect::<Vec<_>>()
        };
        secrets
            .iter()
            .map(|(name, it)| SecretContent::new(SecretName::new("n", *name), values(it)))
            .collect()
    }

    fn endpoint() -> Registry {
        let (key, ca) =
            (json!({ "namespace": "n", "name": "key" }), json!({ "namespace": "n", "name": "ca" }));
        let endpoint = json!({ "url": "https://r.example.com/", "credentialsSecretRef": key, "caBundleSecretRef": ca });
        registry(json!({ "region": "eu-1", "endpoint": endpoint }))
    }

    const KEY: &[(&str, &str)] =
        &[("AWS_ACCESS_KEY_ID", "AKIA\n"), ("AWS_SECRET_ACCESS_KEY", "wonderland")];
    const CA: &[(&str, &str)] = &[("ca.crt", "PEM\n")];

    fn message(registry: &Registry, secrets: &SecretContents) -> String {
        let error = assemble(registry, secrets).err().unwrap();
        error.into_conditions().unwrap().state.cause().message.clone()
    }

    #[test]
    fn an_endpoint_is_reached_with_its_key_and_its_certificates() {
        let RegistryConnection { connection, url, .. } =
            assemble(&endpoint(), &contents(&[("key", KEY), ("ca", CA)])).ok().unwrap();
        assert_eq!(
            (url.as_str(), connection.ca_bundle.as_deref()),
            ("https://r.example.com", Some("PEM\n"))
        );
        let Identity::Key { id, secret, session_token } = connection.identity else {
            panic!("no key")
        };
        assert_eq!(
            (id.as_str(), secret.expose_secret(), session_token.is_none()),
            ("AKIA", "wonderland", true)
        );
    }

    #[test]
    fn what_a_secret_lacks_is_named() {
        let half = &KEY[..1];
        for (secrets, expected) in [
            (
                contents(&[("key", half), ("ca", CA)]),
                "Secret n/key has no key AWS_SECRET_ACCESS_KEY: add it",
            ),
            (contents(&[("key", KEY), ("ca", &[])]), "Secret n/ca has no key ca.crt: add it"),
            (
                contents(&[("ca", CA)]),
                "Secret n/key does not exist: make it, or correct the reference",
            ),
        ] {
            assert_eq!(message(&endpoint(), &secrets), expected);
        }
        let nothing = message(&registry(json!({ "region": "eu-1" })), &SecretContents::default());
        assert!(nothing.starts_with("it is neither managed"), "{nothing}");
    }

    #[test]
    fn another_value_needs_another_client() {
        let fingerprint = |key: &str| {
            let key = [("AWS_ACCESS_KEY_ID", "AKIA"), ("AWS_SECRET_ACCESS_KEY", key)];
            assemble(&endpoint(), &contents(&[("key", &key), ("ca", CA)])).ok().unwrap().fingerprint
        };
        assert_eq!(fingerprint("a"), fingerprint("a"));
        assert_ne!(fingerprint("a"), fingerprint("b"));
    }

    #[test]
    fn a_registry_lists_the_secrets_that_it_refers_to() {
        let names = |registry: &Registry| {
            let mut names: Vec<_> = secret_references(registry, "wharfage")
                .iter()
                .map(|it| it.secret.to_string())
                .collect();
            names.sort_unstable();
            names
        };
        assert_eq!(names(&endpoint()), ["n/ca", "n/key"]);
        assert!(names(&registry(json!({ "region": "eu-1", "aws": {} }))).is_empty());
        let postgres =
            json!({ "postgres": { "connectionSecretRef": { "namespace": "n", "name": "pg" } } });
        let managed =
            json!({ "namespace": "one", "database": postgres, "tls": { "secretName": "cert" } });
        let managed = registry(json!({ "managed": managed }));
        assert_eq!(names(&managed), ["n/pg", "one/cert", "one/home-backends", "one/home-root-key"]);
    }
}
