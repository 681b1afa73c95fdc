//! Who is asking: access keys, the principals they stand for, the ways to show one (a SigV4 signature, a token, a signed
//! URL), and what each may do.

pub mod download;
pub mod sigv4;
pub mod token;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, RandomizedNonceKey};
use aws_lc_rs::{hkdf, hmac, rand};

use crate::names::{AccountId, Region, RepositoryName};

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
#[derive(Clone)]
pub struct AccessKey {
    /// Its id (`AKIA…`), which is no secret.
    pub id: Arc<str>,
    /// Its secret.
    pub secret: Secret,
    /// The account whose root identity it is.
    pub account: AccountId,
    derived: Arc<Derived>,
}

/// The keys that come from an access key's secret, made once because every request needs one of them.
struct Derived {
    token: RandomizedNonceKey,
    download: hmac::Key,
}

/// The operating system gave no randomness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gave no randomness")]
pub struct NoRandomness;

impl AccessKey {
    /// The access key of this id and secret.
    pub fn new(id: &str, secret: &str, account: AccountId) -> Self {
        let secret = Secret::new(secret);
        let derived = Arc::new(Derived::from(&secret));
        Self { id: id.into(), secret, account, derived }
    }

    /// A new access key of the shape that AWS gives its own: `AKIA` with 16 characters, and a secret of 40.
    ///
    /// # Errors
    /// When the operating system gives no randomness.
    pub fn generate(account: AccountId) -> Result<Self, NoRandomness> {
        use base64::Engine as _;
        const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let mut random = [0; 16 + 30];
        rand::fill(&mut random).map_err(|_| NoRandomness)?;
        let (id, secret) = random.split_at(16);
        let id: String = id.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect();
        // 30 bytes are 40 characters of base64 without padding.
        let secret = base64::engine::general_purpose::STANDARD.encode(secret);
        Ok(Self::new(&format!("AKIA{id}"), &secret, account))
    }

    /// The principal that it stands for.
    pub fn principal(&self) -> Principal {
        Principal { account: self.account.clone(), access_key_id: self.id.clone() }
    }
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessKey").field("id", &self.id).field("account", &self.account).finish_non_exhaustive()
    }
}

impl Derived {
    fn from(secret: &Secret) -> Self {
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, b"").extract(secret.expose().as_bytes());
        let expand = |info: &[u8]| {
            let mut key = [0; 32];
            // HKDF-SHA256 gives up to 255 times 32 bytes, so asking for 32 cannot fail.
            #[allow(clippy::expect_used)]
            prk.expand(&[info], hkdf::HKDF_SHA256).and_then(|okm| okm.fill(&mut key)).expect("32 bytes are in reach");
            key
        };
        // A key of AES-256 has 32 bytes, which is what `expand` makes.
        #[allow(clippy::expect_used)]
        let token = RandomizedNonceKey::new(&AES_256_GCM, &expand(b"wharfage authorization token v1"))
            .expect("the key has the cipher's length");
        let download = hmac::Key::new(hmac::HMAC_SHA256, &expand(b"wharfage download v1"));
        Self { token, download }
    }
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

/// What an action is done to.
#[derive(Debug, Clone, Copy)]
pub enum Resource<'a> {
    /// The registry as a whole, which has no ARN: `*`.
    Registry(&'a AccountId),
    /// A repository, which need not exist: who may not, is not told whether it does.
    Repository(&'a Region, &'a AccountId, &'a RepositoryName),
}

impl fmt::Display for Resource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(_) => f.write_str("*"),
            Self::Repository(region, account, name) => write!(f, "arn:aws:ecr:{region}:{account}:repository/{name}"),
        }
    }
}

/// The policies do not allow it; the text is Amazon ECR's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "User: {user} is not authorized to perform: ecr:{action} on resource: {resource} because no identity-based policy allows the ecr:{action} action"
)]
pub struct Denied {
    user: String,
    action: &'static str,
    resource: String,
}

/// Decides whether `principal` may do `action` (ECR's name of it, without `ecr:`) to `resource`.
///
/// Every principal is its account's root for now: it may do everything in its account, and nothing in another one.
///
/// # Errors
/// [`Denied`] when it may not.
pub fn authorise(principal: &Principal, action: &'static str, resource: Resource<'_>) -> Result<(), Denied> {
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
    fn a_generated_key_has_the_shape_that_the_aws_tools_expect() {
        let key = AccessKey::generate(account()).unwrap();
        let tail = key.id.strip_prefix("AKIA").unwrap();
        assert_eq!(tail.len(), 16);
        assert!(tail.bytes().all(|b| b.is_ascii_uppercase() || (b'2'..=b'7').contains(&b)), "{tail}");
        assert_eq!(key.secret.expose().len(), 40);
        assert!(!key.secret.expose().contains('='));
        assert_ne!(AccessKey::generate(account()).unwrap().id, key.id);
    }

    #[test]
    fn a_key_does_not_show_its_secret() {
        let key = AccessKey::new("AKIA", "hidden", account());
        assert!(!format!("{key:?} {:?}", key.secret).contains("hidden"));
    }

    #[test]
    fn a_root_may_do_everything_in_its_account_and_nothing_elsewhere() {
        let principal = AccessKey::new("AKIA", "secret", account()).principal();
        let (region, name) = ("local-1".parse().unwrap(), "team/app".parse().unwrap());
        let (here, there) = (account(), "999999999999".parse().unwrap());
        assert_eq!(authorise(&principal, "PutImage", Resource::Repository(&region, &here, &name)), Ok(()));
        assert_eq!(authorise(&principal, "DescribeRegistry", Resource::Registry(&here)), Ok(()));
        let denied = authorise(&principal, "PutImage", Resource::Repository(&region, &there, &name)).unwrap_err();
        assert_eq!(
            denied.to_string(),
            "User: arn:aws:iam::123456789012:root is not authorized to perform: ecr:PutImage on resource: \
             arn:aws:ecr:local-1:999999999999:repository/team/app because no identity-based policy allows the \
             ecr:PutImage action"
        );
    }
}
