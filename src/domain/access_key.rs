//! An access key: who signs requests to a registry, and with what.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use secrecy::SecretString;

use crate::names::AccountId;

/// An access key, as AWS has them: an id, and a secret that signs requests.
#[derive(Clone)]
pub struct AccessKey {
    /// Its id (`AKIA…`), which is no secret.
    pub id: Arc<str>,
    /// The secret, which never shows in a log.
    pub secret: SecretString,
    /// The account whose root identity it is.
    pub account: AccountId,
}

/// The operating system gave no randomness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gave no randomness")]
pub struct NoRandomness;

impl AccessKey {
    /// The access key of this id and secret.
    pub fn new(id: &str, secret: &str, account: AccountId) -> Self {
        Self { id: id.into(), secret: secret.into(), account }
    }

    /// A new access key of the shape that AWS gives its own: `AKIA` with 16 characters, and a secret of 40.
    ///
    /// # Errors
    /// When the operating system gives no randomness.
    pub fn generate(account: AccountId) -> Result<Self, NoRandomness> {
        const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let mut random = [0; 16 + 30];
        rand::fill(&mut random).map_err(|_| NoRandomness)?;
        let (id, secret) = random.split_at(16);
        let id: String =
            id.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect();
        // 30 bytes are 40 characters of base64 without padding.
        Ok(Self::new(&format!("AKIA{id}"), &BASE64.encode(secret), account))
    }
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessKey")
            .field("id", &self.id)
            .field("account", &self.account)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    fn account() -> AccountId {
        "123456789012".parse().unwrap()
    }

    #[test]
    fn a_generated_key_has_the_shape_that_the_aws_tools_expect() {
        let key = AccessKey::generate(account()).unwrap();
        let tail = key.id.strip_prefix("AKIA").unwrap();
        assert_eq!(tail.len(), 16);
        assert!(
            tail.bytes().all(|b| b.is_ascii_uppercase() || (b'2'..=b'7').contains(&b)),
            "{tail}"
        );
        assert_eq!(key.secret.expose_secret().len(), 40);
        assert!(!key.secret.expose_secret().contains('='));
        assert_ne!(AccessKey::generate(account()).unwrap().id, key.id);
    }

    #[test]
    fn a_key_does_not_show_its_secret() {
        let key = AccessKey::new("AKIA", "hidden", account());
        assert!(!format!("{key:?} {:?}", key.secret).contains("hidden"));
    }
}
