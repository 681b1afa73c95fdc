//! References to Secrets, and reading those Secrets.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};

use super::content::{SecretContent, SecretContents, SecretError, SecretName};

/// A reference to a Secret, and the keys that are read from it. No other value is kept in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SecretReference {
    pub secret: SecretName,
    /// Empty for a Secret that is only watched.
    keys: BTreeSet<String>,
}

impl SecretReference {
    pub fn new(secret: SecretName, keys: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { secret, keys: keys.into_iter().map(Into::into).collect() }
    }

    /// Reads the Secret; nothing if it does not exist.
    ///
    /// # Errors
    /// [`SecretError::Forbidden`] or [`SecretError::Api`]
    pub async fn find(&self, client: &Client) -> Result<Option<SecretContent>, SecretError> {
        find(client, &self.secret, &self.keys).await
    }

    /// Reads a Secret that must exist.
    ///
    /// # Errors
    /// See [`SecretReference::find`], or [`SecretError::NotFound`].
    pub async fn read(&self, client: &Client) -> Result<SecretContent, SecretError> {
        self.find(client).await?.ok_or_else(|| SecretError::NotFound(self.secret.clone()))
    }
}

/// Reads Secrets that must exist, each once.
///
/// # Errors
/// Of the first Secret by namespace and name that cannot be read.
pub(crate) async fn read_all(
    client: &Client,
    references: &[SecretReference],
) -> Result<SecretContents, SecretError> {
    let mut contents = Vec::new();
    for (secret, keys) in by_secret(references) {
        let content = find(client, &secret, &keys).await?;
        contents.push(content.ok_or(SecretError::NotFound(secret))?);
    }
    Ok(contents.into_iter().collect())
}

/// Joins the keys of references to the same Secret.
fn by_secret(references: &[SecretReference]) -> BTreeMap<SecretName, BTreeSet<String>> {
    let mut joined: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
    for SecretReference { secret, keys } in references {
        joined.entry(secret.clone()).or_default().extend(keys.iter().cloned());
    }
    joined
}

async fn find(
    client: &Client,
    secret: &SecretName,
    keys: &BTreeSet<String>,
) -> Result<Option<SecretContent>, SecretError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), &secret.namespace);
    let found = api
        .get_opt(&secret.name)
        .await
        .map_err(|error| SecretError::of_request(error, &secret.namespace))?;
    Ok(found.map(|found| {
        let values =
            found.data.unwrap_or_default().into_iter().filter(|(key, _)| keys.contains(key));
        SecretContent::new(secret.clone(), values.map(|(key, value)| (key, value.0)))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_with_two_references_is_read_once() {
        let reference = |name, key: &str| SecretReference::new(SecretName::new("n", name), [key]);
        let joined = by_secret(&[
            reference("b", "user"),
            reference("a", "ca.crt"),
            reference("b", "password"),
        ]);
        let keys = |name| {
            joined[&SecretName::new("n", name)].iter().map(String::as_str).collect::<Vec<_>>()
        };
        assert_eq!(
            (joined.len(), keys("a"), keys("b")),
            (2, vec!["ca.crt"], vec!["password", "user"])
        );
    }
}
