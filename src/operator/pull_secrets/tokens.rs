//! The tokens in memory. None outlives the process, because the marks on the Secrets are enough to continue.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};

use super::annotations::CLASS;
use super::docker_config::{SECRET_KEY, render};
use super::renewal::renews_at;
use crate::secrets::{SecretMark, SecretOwner};
use crate::status::Cause;
use wharfage_apply::AuthorizationToken;
use wharfage_crd::Reason;

/// A token as it is put into Secrets.
#[derive(Debug, Clone)]
pub(crate) struct Issued {
    /// The content of the Secrets.
    pub content: SecretString,
    pub mark: SecretMark,
    /// The fingerprint of the client that requested it: new credentials make the token useless, and another client.
    pub registry_client: u64,
    /// The annotation's request that it answers.
    pub asked: Option<String>,
}

impl Issued {
    /// Prepares a `token` that was issued now for `owner`.
    pub fn new(
        token: &AuthorizationToken,
        owner: &SecretOwner,
        source: String,
        registry_client: u64,
        asked: Option<String>,
        now: Timestamp,
    ) -> Self {
        let content = render(token);
        let mark = SecretMark {
            source,
            digest: CLASS.digest([(SECRET_KEY, content.expose_secret().as_bytes())]),
            expires_at: token.expires_at,
            renews_at: renews_at(now, token.expires_at, &owner.to_string()),
        };
        Self { content, mark, registry_client, asked }
    }

    /// Returns whether it may still be written to Secrets: only while its source is the current one. The Registry of the
    /// source decides which namespaces may have it, and no other Registry of that name does.
    pub fn serves(&self, source: Option<&str>, now: Timestamp) -> bool {
        source == Some(self.mark.source.as_str()) && self.mark.renews_at > now
    }
}

/// Returns why a token cannot be used yet: the registry does not report `host`, the host that its Registry wants.
pub(crate) fn not_yet(
    token: &AuthorizationToken,
    host: Option<&str>,
    registry: &str,
) -> Option<Cause> {
    let host = host.filter(|host| !token.hosts.contains(*host))?;
    let message = format!(
        "Registry {registry} doesn't say yet that it is at {host}: its Pods are being replaced, and are asked again until then"
    );
    Some(Cause::new(Reason::RegistryNotReady, message))
}

/// One token for each PullSecret.
#[derive(Debug, Default)]
pub(crate) struct Tokens(Mutex<HashMap<SecretOwner, Issued>>);

impl Tokens {
    pub fn get(&self, owner: &SecretOwner) -> Option<Issued> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(owner).cloned()
    }

    pub fn put(&self, owner: SecretOwner, issued: Issued) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(owner, issued);
    }

    pub fn remove(&self, owner: &SecretOwner) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_for_the_old_host_is_not_used() {
        let token = AuthorizationToken {
            user: "AWS".to_owned(),
            password: SecretString::from("s3cret"),
            expires_at: Timestamp::UNIX_EPOCH,
            hosts: ["old.example.com".to_owned()].into(),
        };
        let why = not_yet(&token, Some("new.example.com:8443"), "home").unwrap();
        assert_eq!(why.reason, Reason::RegistryNotReady);
        assert!(
            why.message
                .starts_with("Registry home doesn't say yet that it is at new.example.com:8443:"),
            "{why:?}"
        );
        assert_eq!(not_yet(&token, Some("old.example.com"), "home"), None);
        assert_eq!(
            not_yet(&token, None, "home"),
            None,
            "where the Registry doesn't say, the registry is right"
        );
    }

    #[test]
    fn a_token_is_used_only_for_the_registry_that_issued_it() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mark = SecretMark {
            source: "home".to_owned(),
            digest: "d".to_owned(),
            expires_at: at(2000),
            renews_at: at(1000),
        };
        let issued =
            Issued { content: SecretString::from("c"), mark, registry_client: 1, asked: None };
        assert!(issued.serves(Some("home"), at(999)));
        assert!(!issued.serves(Some("home"), at(1000)), "it is to be renewed");
        assert!(!issued.serves(Some("other"), at(999)));
        assert!(!issued.serves(None, at(999)), "the Registry is gone, or isn't ready");
    }
}
