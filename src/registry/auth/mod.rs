//! Who is asking: access keys, the principals they stand for, and the two ways to show one (a SigV4 signature, a token).

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::names::AccountId;

/// A secret that never shows in a log: its `Debug` hides it.
#[derive(Clone)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// An access key: what signs requests, and what seals the tokens that its owner asks for.
#[derive(Debug, Clone)]
pub struct AccessKey {
    /// Its id (`AKIA…`), which is no secret.
    pub id: Arc<str>,
    /// Its secret.
    pub secret: Secret,
    /// The account whose root identity it is.
    pub account: AccountId,
}

/// Who a request comes from. For now each key is its account's root, which may do everything in its own account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Its account.
    pub account: AccountId,
    /// The key that it showed, directly or by a token.
    pub access_key_id: Arc<str>,
}

impl Principal {
    /// Its ARN.
    pub fn arn(&self) -> String {
        format!("arn:aws:iam::{}:root", self.account)
    }
}

/// The access keys that this registry knows.
#[derive(Debug, Default)]
pub struct Keyring {
    keys: HashMap<Arc<str>, AccessKey>,
}

impl Keyring {
    /// A keyring of these keys.
    pub fn new(keys: impl IntoIterator<Item = AccessKey>) -> Self {
        Self { keys: keys.into_iter().map(|key| (key.id.clone(), key)).collect() }
    }

    /// The key with this id.
    pub fn get(&self, id: &str) -> Option<&AccessKey> {
        self.keys.get(id)
    }
}
