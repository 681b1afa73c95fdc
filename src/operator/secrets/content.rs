//! The content of Secrets that were read, and the errors of Secrets that are of no use.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};

use secrecy::{ExposeSecret as _, SecretSlice};

use crate::status::{Cause, ConditionSet, ReadyState};
use wharfage_crd::Reason;

/// The namespace and the name of a Secret.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SecretName {
    pub namespace: String,
    pub name: String,
}

impl SecretName {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The values of a Secret under the keys that were asked for.
#[derive(Debug)]
pub(crate) struct SecretContent {
    secret: SecretName,
    values: BTreeMap<String, SecretSlice<u8>>,
}

impl SecretContent {
    pub fn new(secret: SecretName, values: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        let values = values.into_iter().map(|(key, value)| (key, SecretSlice::from(value)));
        Self { secret, values: values.collect() }
    }

    /// Returns the text under `key` as it is; nothing if there is none, or it is not UTF-8.
    pub fn raw(&self, key: &str) -> Option<&str> {
        std::str::from_utf8(self.values.get(key)?.expose_secret()).ok()
    }

    /// Returns the text under `key` without the white space around it, which editors leave; nothing if that is empty.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.raw(key).map(str::trim).filter(|text| !text.is_empty())
    }

    /// Returns the text under `key` of a Secret that is of no use without it.
    ///
    /// # Errors
    /// [`SecretError::NoText`]
    pub fn require(&self, key: &str) -> Result<&str, SecretError> {
        self.text(key)
            .ok_or_else(|| SecretError::NoText { secret: self.secret.clone(), key: key.to_owned() })
    }

    /// Returns the error of a Secret that needs another key.
    pub fn no_key(&self, key: &str) -> SecretError {
        SecretError::NoKey { secret: self.secret.clone(), key: key.to_owned() }
    }
}

// A client that was made from values is made again when their hash changes. The hash stays in memory.
impl Hash for SecretContent {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.secret.hash(state);
        for (key, value) in &self.values {
            (key, value.expose_secret()).hash(state);
        }
    }
}

/// The content of several Secrets.
#[derive(Debug, Default, Hash)]
pub(crate) struct SecretContents(BTreeMap<SecretName, SecretContent>);

impl SecretContents {
    /// Returns the content of one of them.
    ///
    /// # Errors
    /// [`SecretError::NotFound`] if it is none of them.
    pub fn get(&self, secret: &SecretName) -> Result<&SecretContent, SecretError> {
        self.0.get(secret).ok_or_else(|| SecretError::NotFound(secret.clone()))
    }
}

impl FromIterator<SecretContent> for SecretContents {
    fn from_iter<T: IntoIterator<Item = SecretContent>>(contents: T) -> Self {
        Self(contents.into_iter().map(|content| (content.secret.clone(), content)).collect())
    }
}

/// A Secret that cannot be used. No message contains a value.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    #[error("Secret {0} does not exist: make it, or correct the reference")]
    NotFound(SecretName),
    #[error("Secret {secret} has no key {key}: add it")]
    NoKey { secret: SecretName, key: String },
    #[error("Secret {secret} must have a key {key} with text in it")]
    NoText { secret: SecretName, key: String },
    #[error(
        "the operator may not read Secrets in namespace {namespace}: add it to rbac.secretNamespaces of the operator's \
         chart, or use one that is in that list: {message}"
    )]
    Forbidden { namespace: String, message: String },
    /// The API server cannot be asked now.
    #[error(transparent)]
    Api(kube::Error),
}

impl SecretError {
    /// Interprets an error of a request for Secrets of a namespace.
    pub fn of_request(error: kube::Error, namespace: &str) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 403 => {
                Self::Forbidden { namespace: namespace.to_owned(), message: status.message }
            }
            error => Self::Api(error),
        }
    }

    /// Returns the conditions of the object that refers to the Secret.
    ///
    /// # Errors
    /// [`SecretError::Api`], which says nothing about the object.
    pub fn into_conditions(self) -> Result<ConditionSet, kube::Error> {
        let message = self.to_string();
        match self {
            Self::NotFound(_) | Self::NoKey { .. } | Self::NoText { .. } => {
                Ok(reference_not_found(message))
            }
            Self::Forbidden { .. } => {
                Ok(ConditionSet::of(ReadyState::Stalled(Cause::new(Reason::Forbidden, message))))
            }
            Self::Api(error) => Err(error),
        }
    }
}

/// Returns the conditions of an object that refers to something that does not exist, or lacks what is read from it.
pub(crate) fn reference_not_found(message: String) -> ConditionSet {
    let cause = Cause::new(Reason::ReferenceNotFound, message);
    ConditionSet {
        references: Some(Err(cause.clone())),
        ..ConditionSet::of(ReadyState::Reconciling(cause))
    }
}

#[cfg(test)]
mod tests {
    use std::hash::DefaultHasher;

    use super::*;

    fn content(values: &[(&str, &[u8])]) -> SecretContent {
        let values = values.iter().map(|(key, value)| ((*key).to_owned(), value.to_vec()));
        SecretContent::new(SecretName::new("n", "s"), values)
    }

    #[test]
    fn text_has_no_white_space_around_it() {
        let secret = content(&[("key", b" value\n"), ("blank", b" "), ("binary", b"\xff")]);
        assert_eq!((secret.text("key"), secret.raw("key")), (Some("value"), Some(" value\n")));
        assert_eq!(secret.require("key").unwrap(), "value");
        for key in ["blank", "binary", "absent"] {
            assert_eq!(secret.text(key), None);
            let message = secret.require(key).unwrap_err().to_string();
            assert_eq!(message, format!("Secret n/s must have a key {key} with text in it"));
        }
    }

    #[test]
    fn values_are_in_no_debug_output_and_no_message() {
        let secret = content(&[("password", b"hunter2")]);
        let missing = secret.no_key("user").to_string();
        assert_eq!(missing, "Secret n/s has no key user: add it");
        let contents: SecretContents = [secret].into_iter().collect();
        let shown = format!("{contents:?} {missing}");
        assert!(!shown.contains("hunter2") && !shown.contains("104, 117"), "{shown}");
    }

    #[test]
    fn another_value_is_another_hash() {
        let hash = |value: &[u8]| {
            let mut hasher = DefaultHasher::new();
            content(&[("key", value)]).hash(&mut hasher);
            hasher.finish()
        };
        assert_eq!(hash(b"a"), hash(b"a"));
        assert_ne!(hash(b"a"), hash(b"b"));
    }

    #[test]
    fn an_unusable_secret_is_a_condition_and_an_unreachable_server_is_not() {
        let missing = SecretError::NotFound(SecretName::new("n", "s")).into_conditions().unwrap();
        assert!(
            matches!(&missing.state, ReadyState::Reconciling(it) if it.reason == Reason::ReferenceNotFound)
        );
        assert!(matches!(missing.references, Some(Err(_))));
        let refused = |code| {
            let status = kube::core::Status { code, ..kube::core::Status::failure("no", "Reason") };
            SecretError::of_request(kube::Error::Api(Box::new(status)), "n").into_conditions()
        };
        assert!(
            matches!(refused(403).unwrap().state, ReadyState::Stalled(it) if it.reason == Reason::Forbidden)
        );
        assert!(refused(500).is_err());
    }
}
