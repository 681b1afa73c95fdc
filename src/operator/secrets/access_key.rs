//! Access keys in Secrets, under the names that every AWS tool reads from its environment.

use std::hash::{Hash, Hasher};

use k8s_openapi::ByteString;
use secrecy::{ExposeSecret as _, SecretString};

use super::content::{SecretContent, SecretError};
use wharfage_domain::access_key::AccessKey;

/// The key of an access key's id.
pub(crate) const ACCESS_KEY_ID: &str = "AWS_ACCESS_KEY_ID";
/// The key of an access key's secret.
pub(crate) const SECRET_ACCESS_KEY: &str = "AWS_SECRET_ACCESS_KEY";
/// The key of the token of temporary credentials.
pub(crate) const SESSION_TOKEN: &str = "AWS_SESSION_TOKEN";

/// An access key, as a Secret holds it.
#[derive(Debug, Clone)]
pub(crate) struct KeyPair {
    /// The id, which is no secret.
    pub id: String,
    pub secret: SecretString,
}

impl KeyPair {
    /// The keys of a Secret that are read.
    pub const KEYS: [&str; 2] = [ACCESS_KEY_ID, SECRET_ACCESS_KEY];

    /// Reads the access key that a Secret holds.
    ///
    /// # Errors
    /// [`SecretError::NoText`]
    pub fn read(content: &SecretContent) -> Result<Self, SecretError> {
        let (id, secret) = (content.require(ACCESS_KEY_ID)?, content.require(SECRET_ACCESS_KEY)?);
        Ok(Self { id: id.to_owned(), secret: SecretString::from(secret) })
    }

    /// Returns the data of a Secret that holds it.
    pub fn data(&self) -> [(String, ByteString); 2] {
        [(ACCESS_KEY_ID, self.id.as_str()), (SECRET_ACCESS_KEY, self.secret.expose_secret())]
            .map(|(key, value)| (key.to_owned(), ByteString(value.as_bytes().to_vec())))
    }
}

impl From<AccessKey> for KeyPair {
    fn from(AccessKey { id, secret, .. }: AccessKey) -> Self {
        Self { id: (*id).to_owned(), secret }
    }
}

impl Hash for KeyPair {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.id, self.secret.expose_secret()).hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrets::SecretName;

    fn content(values: impl IntoIterator<Item = (String, ByteString)>) -> SecretContent {
        SecretContent::new(
            SecretName::new("n", "s"),
            values.into_iter().map(|(key, value)| (key, value.0)),
        )
    }

    #[test]
    fn an_access_key_is_read_as_it_is_written() {
        let key = AccessKey::generate("123456789012".parse().unwrap()).unwrap();
        let (id, secret) = (key.id.to_string(), key.secret.expose_secret().to_owned());
        let read = KeyPair::read(&content(KeyPair::from(key).data())).unwrap();
        assert_eq!((read.id.as_str(), read.secret.expose_secret()), (id.as_str(), secret.as_str()));
        assert!(!format!("{read:?}").contains(&secret));
    }

    #[test]
    fn half_an_access_key_is_an_error_that_names_the_other_half() {
        let half = KeyPair { id: "AKIA".to_owned(), secret: SecretString::from(" ") };
        let error = KeyPair::read(&content(half.data())).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Secret n/s must have a key AWS_SECRET_ACCESS_KEY with text in it"
        );
    }
}
