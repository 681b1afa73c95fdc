//! The tokens at hand: nothing of them outlives the process, as what the Secrets say of themselves is enough to go on.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};

use super::annotations::{Owner, TokenMark, digest};
use super::docker_config::render;
use super::renewal::renews_at;
use crate::status::Cause;
use wharfage_apply::AuthorizationToken;
use wharfage_crd::Reason;

/// A token as it is put into Secrets.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The content of the Secrets.
    pub content: SecretString,
    /// What they say of it.
    pub mark: TokenMark,
    /// Of what the client was made that got it: new credentials make it useless, and another client.
    pub registry_client: u64,
    /// The request of a person that it answers.
    pub asked: Option<String>,
}

impl Issued {
    /// What `token`, got now for `owner`, is as content and marks.
    pub fn new(
        token: &AuthorizationToken,
        owner: &Owner,
        source: String,
        registry_client: u64,
        asked: Option<String>,
        now: Timestamp,
    ) -> Self {
        let content = render(token);
        let mark = TokenMark {
            source,
            digest: digest(content.expose_secret().as_bytes()),
            expires_at: token.expires_at,
            renews_at: renews_at(now, token.expires_at, &owner.to_string()),
        };
        Self { content, mark, registry_client, asked }
    }

    /// Whether it may be put into Secrets still. Only while it is known whom tokens are asked of, and that this one is of there:
    /// which namespaces may have it is for that Registry to say, and for no other of its name.
    pub fn serves(&self, source: Option<&str>, now: Timestamp) -> bool {
        source == Some(self.mark.source.as_str()) && self.mark.renews_at > now
    }
}

/// Why a token is none to hand out yet: the registry doesn't say that it is for `host`, which is where the Registry has it.
pub fn not_yet(token: &AuthorizationToken, host: Option<&str>, registry: &str) -> Option<Cause> {
    let host = host.filter(|host| !token.hosts.contains(*host))?;
    let message = format!(
        "Registry {registry} doesn't say yet that it is at {host}: its Pods are being replaced, and are asked again until then"
    );
    Some(Cause::new(Reason::RegistryNotReady, message))
}

/// One token for each PullSecret.
#[derive(Debug, Default)]
pub struct Tokens(Mutex<HashMap<Owner, Issued>>);

impl Tokens {
    /// The PullSecret's token, if it has one.
    pub fn get(&self, owner: &Owner) -> Option<Issued> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(owner).cloned()
    }

    /// Keeps a token.
    pub fn put(&self, owner: Owner, issued: Issued) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(owner, issued);
    }

    /// Forgets the token of a PullSecret that is gone.
    pub fn remove(&self, owner: &Owner) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_that_answers_for_its_old_host_is_asked_again() {
        let token = AuthorizationToken {
            user: "AWS".to_owned(),
            password: SecretString::from("s3cret"),
            expires_at: Timestamp::UNIX_EPOCH,
            hosts: ["old.example.com".to_owned()].into(),
        };
        let why = not_yet(&token, Some("new.example.com:8443"), "home").unwrap();
        assert_eq!(why.reason, Reason::RegistryNotReady);
        assert!(
            why.message.starts_with("Registry home doesn't say yet that it is at new.example.com:8443:"),
            "{why:?}"
        );
        assert_eq!(not_yet(&token, Some("old.example.com"), "home"), None);
        assert_eq!(not_yet(&token, None, "home"), None, "where the Registry doesn't say, the registry is right");
    }

    #[test]
    fn a_token_is_handed_out_only_for_the_registry_that_it_is_of() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mark =
            TokenMark { source: "home".to_owned(), digest: "d".to_owned(), expires_at: at(2000), renews_at: at(1000) };
        let issued = Issued { content: SecretString::from("c"), mark, registry_client: 1, asked: None };
        assert!(issued.serves(Some("home"), at(999)));
        assert!(!issued.serves(Some("home"), at(1000)), "it is to be renewed");
        assert!(!issued.serves(Some("other"), at(999)));
        assert!(!issued.serves(None, at(999)), "the Registry is gone, or isn't ready");
    }
}
