//! Authentication and authorization: access keys, their principals, the credentials that prove a
//! key (a SigV4 signature, a token, a signed URL), and the permissions of a principal.

pub(crate) mod download;
pub(crate) mod sigv4;
pub mod token;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, RandomizedNonceKey};
use aws_lc_rs::{hkdf, hmac};
use secrecy::{ExposeSecret as _, SecretString};

use wharfage_domain::access_key::AccessKey;
use wharfage_domain::names::{AccountId, Region, RepositoryName};

/// An access key with the keys derived from its secret, which seal tokens and sign download URLs.
///
/// They are derived once, because every request needs one of them.
#[derive(Clone)]
pub struct SigningKey {
    /// The access key.
    pub(crate) access_key: AccessKey,
    derived: Arc<Derived>,
}

struct Derived {
    token: RandomizedNonceKey,
    download: hmac::Key,
}

impl From<AccessKey> for SigningKey {
    fn from(access_key: AccessKey) -> Self {
        let derived = Arc::new(Derived::from(&access_key.secret));
        Self { access_key, derived }
    }
}

impl SigningKey {
    /// Returns the principal of the key.
    pub(crate) fn principal(&self) -> Principal {
        let AccessKey { id, account, .. } = &self.access_key;
        Principal { account: account.clone(), access_key_id: id.clone() }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SigningKey").field(&self.access_key).finish()
    }
}

impl Derived {
    fn from(secret: &SecretString) -> Self {
        let prk =
            hkdf::Salt::new(hkdf::HKDF_SHA256, b"").extract(secret.expose_secret().as_bytes());
        let expand = |info: &[u8]| {
            let mut key = [0; 32];
            // HKDF-SHA256 gives up to 255 times 32 bytes, so asking for 32 cannot fail.
            #[allow(clippy::expect_used)]
            prk.expand(&[info], hkdf::HKDF_SHA256)
                .and_then(|okm| okm.fill(&mut key))
                .expect("32 bytes are in reach");
            key
        };
        // A key of AES-256 has 32 bytes, which is what `expand` makes.
        #[allow(clippy::expect_used)]
        let token =
            RandomizedNonceKey::new(&AES_256_GCM, &expand(b"wharfage authorization token v1"))
                .expect("the key has the cipher's length");
        let download = hmac::Key::new(hmac::HMAC_SHA256, &expand(b"wharfage download v1"));
        Self { token, download }
    }
}

/// The caller of a request. Each key is the root of its account, with every permission in that
/// account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Principal {
    /// The account of the key.
    pub(crate) account: AccountId,
    /// The key that signed the request, directly or by a token.
    pub(crate) access_key_id: Arc<str>,
}

impl Principal {
    /// Returns the ARN of the principal.
    pub(crate) fn arn(&self) -> String {
        format!("arn:aws:iam::{}:root", self.account)
    }
}

/// The access keys of a registry.
#[derive(Debug, Default)]
pub struct Keyring {
    keys: HashMap<Arc<str>, SigningKey>,
}

impl Keyring {
    /// Creates a keyring of these keys.
    pub fn new(keys: impl IntoIterator<Item = AccessKey>) -> Self {
        Self { keys: keys.into_iter().map(|key| (key.id.clone(), key.into())).collect() }
    }

    /// Returns the key with this id.
    pub(crate) fn get(&self, id: &str) -> Option<&SigningKey> {
        self.keys.get(id)
    }
}

/// The resource of an action.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Resource<'a> {
    /// The registry as a whole, which has no ARN: `*`.
    Registry(&'a AccountId),
    /// A repository, which need not exist: without permission, a caller does not learn whether it
    /// does.
    Repository(&'a Region, &'a AccountId, &'a RepositoryName),
}

impl fmt::Display for Resource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(_) => f.write_str("*"),
            Self::Repository(region, account, name) => {
                write!(f, "arn:aws:ecr:{region}:{account}:repository/{name}")
            }
        }
    }
}

/// The policies do not allow it; the text is Amazon ECR's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "User: {user} is not authorized to perform: ecr:{action} on resource: {resource} because no identity-based policy allows the ecr:{action} action"
)]
pub(crate) struct Denied {
    user: String,
    action: &'static str,
    resource: String,
}

/// Decides whether `principal` may execute `action` (ECR's name, without `ecr:`) on `resource`.
///
/// Every principal is its account's root for now: it may do everything in its account, and nothing
/// in another one.
///
/// # Errors
/// [`Denied`] when it may not.
pub(crate) fn authorize(
    principal: &Principal,
    action: &'static str,
    resource: Resource<'_>,
) -> Result<(), Denied> {
    let (Resource::Registry(owner) | Resource::Repository(_, owner, _)) = resource;
    if *owner == principal.account {
        return Ok(());
    }
    Err(Denied { user: principal.arn(), action, resource: resource.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> AccountId {
        "123456789012".parse().unwrap()
    }

    #[test]
    fn a_root_may_do_everything_in_its_account_and_nothing_elsewhere() {
        let principal = SigningKey::from(AccessKey::new("AKIA", "secret", account())).principal();
        let (region, name) = ("local-1".parse().unwrap(), "team/app".parse().unwrap());
        let (here, there) = (account(), "999999999999".parse().unwrap());
        assert_eq!(
            authorize(&principal, "PutImage", Resource::Repository(&region, &here, &name)),
            Ok(())
        );
        assert_eq!(authorize(&principal, "DescribeRegistry", Resource::Registry(&here)), Ok(()));
        let denied =
            authorize(&principal, "PutImage", Resource::Repository(&region, &there, &name))
                .unwrap_err();
        assert_eq!(
            denied.to_string(),
            "User: arn:aws:iam::123456789012:root is not authorized to perform: ecr:PutImage on resource: \
             arn:aws:ecr:local-1:999999999999:repository/team/app because no identity-based policy allows the \
             ecr:PutImage action"
        );
    }
}
