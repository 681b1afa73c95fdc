//! Authorization tokens, as GetAuthorizationToken returns them and docker sends them as Basic
//! `AWS:TOKEN`.
//!
//! A token is sealed with a key derived from its access key's secret and is not stored: every
//! replica with the access key can open it, and it ends with the key. It contains no permission;
//! permissions are checked at each use.

use aws_lc_rs::aead::{Aad, Nonce};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Keyring, Principal, SigningKey};
use wharfage_domain::access_key::NoRandomness;

/// The validity of a token.
pub(crate) const LIFETIME: SignedDuration = SignedDuration::from_hours(12);

/// An upper bound of the length of our tokens; longer ones are not parsed.
const MAX_LEN: usize = 4096;
const NONCE_LEN: usize = 12;

/// The outer form of a token, the same as Amazon ECR's: some tools read `expiration` from it.
#[derive(Serialize, Deserialize)]
struct Outer<'a> {
    /// The nonce and the sealed expiration.
    payload: &'a str,
    /// The access key's id in clear text: it selects the key that opens the payload.
    datakey: &'a str,
    version: &'a str,
    r#type: &'a str,
    expiration: i64,
}

/// The reason why a token is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    /// It is not one of ours, or its access key does not exist any more.
    #[error("Not Authorized")]
    Invalid,
    /// Its 12 hours have passed.
    #[error("Your authorization token has expired. Reauthenticate and try again.")]
    Expired,
}

/// Issues a token for the key's principal: the password of user `AWS`, and its expiry.
///
/// # Errors
/// When the operating system provides no randomness.
pub fn issue(key: &SigningKey, now: Timestamp) -> Result<(String, Timestamp), NoRandomness> {
    let expiration = now.as_second() + LIFETIME.as_secs();
    let expires_at = Timestamp::from_second(expiration).unwrap_or(Timestamp::MAX);
    let mut sealed = expiration.to_be_bytes().to_vec();
    let aad = Aad::from(key.access_key.id.as_bytes());
    let nonce =
        key.derived.token.seal_in_place_append_tag(aad, &mut sealed).map_err(|_| NoRandomness)?;
    let payload = BASE64.encode([nonce.as_ref().as_slice(), &sealed].concat());
    let outer = Outer {
        payload: &payload,
        datakey: &key.access_key.id,
        version: "2",
        r#type: "DATA_KEY",
        expiration,
    };
    // A struct of strings and a number always serializes; the fallback never verifies.
    Ok((BASE64.encode(serde_json::to_vec(&outer).unwrap_or_default()), expires_at))
}

/// Verifies a token (the password of user `AWS`) and returns its principal.
///
/// # Errors
/// [`TokenError`] tells an expired token from an invalid one.
pub(crate) fn verify(
    keyring: &Keyring,
    token: &str,
    now: Timestamp,
) -> Result<Principal, TokenError> {
    if token.len() > MAX_LEN {
        return Err(TokenError::Invalid);
    }
    let json = BASE64.decode(token).map_err(|_| TokenError::Invalid)?;
    let outer: Outer<'_> = serde_json::from_slice(&json).map_err(|_| TokenError::Invalid)?;
    let key = keyring.get(outer.datakey).ok_or(TokenError::Invalid)?;
    let expiration = open(key, outer.payload).ok_or(TokenError::Invalid)?;
    if expiration != outer.expiration || (outer.version, outer.r#type) != ("2", "DATA_KEY") {
        return Err(TokenError::Invalid);
    }
    if now.as_second() >= expiration { Err(TokenError::Expired) } else { Ok(key.principal()) }
}

fn open(key: &SigningKey, payload: &str) -> Option<i64> {
    let mut payload = BASE64.decode(payload).ok()?;
    let (nonce, sealed) = payload.split_at_mut_checked(NONCE_LEN)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let opened = key
        .derived
        .token
        .open_in_place(nonce, Aad::from(key.access_key.id.as_bytes()), sealed)
        .ok()?;
    Some(i64::from_be_bytes((&*opened).try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use secrecy::ExposeSecret as _;

    use wharfage_domain::access_key::AccessKey;

    fn key() -> AccessKey {
        AccessKey::new(
            "AKIAEXAMPLE",
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            "123456789012".parse().unwrap(),
        )
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_token_is_valid_for_twelve_hours() {
        let keyring = Keyring::new([key()]);
        let (token, expires_at) = issue(&key().into(), at(1_700_000_000)).unwrap();
        assert_eq!(expires_at, at(1_700_043_200));
        assert_eq!(
            verify(&keyring, &token, at(1_700_000_000)),
            Ok(SigningKey::from(key()).principal())
        );
        assert_eq!(
            verify(&keyring, &token, at(1_700_043_199)),
            Ok(SigningKey::from(key()).principal())
        );
        assert_eq!(verify(&keyring, &token, at(1_700_043_200)), Err(TokenError::Expired));
    }

    #[test]
    fn a_token_has_the_outer_form_of_amazon_ecrs() {
        let (token, _) = issue(&key().into(), at(1_700_000_000)).unwrap();
        let outer: serde_json::Value =
            serde_json::from_slice(&BASE64.decode(token).unwrap()).unwrap();
        assert_eq!(outer["version"], "2");
        assert_eq!(outer["type"], "DATA_KEY");
        assert_eq!(outer["expiration"], 1_700_043_200);
        assert!(outer["payload"].is_string() && outer["datakey"].is_string());
    }

    #[test]
    fn a_token_dies_with_its_key() {
        let (token, _) = issue(&key().into(), at(0)).unwrap();
        assert_eq!(verify(&Keyring::default(), &token, at(1)), Err(TokenError::Invalid));
        let renewed = AccessKey::new(&key().id, "another secret", key().account);
        assert_eq!(verify(&Keyring::new([renewed]), &token, at(1)), Err(TokenError::Invalid));
    }

    #[test]
    fn a_token_of_one_key_is_not_one_of_another() {
        let other = AccessKey::new(
            "AKIAOTHER",
            key().secret.expose_secret(),
            "999999999999".parse().unwrap(),
        );
        let (token, _) = issue(&key().into(), at(0)).unwrap();
        let outer = String::from_utf8(BASE64.decode(token).unwrap()).unwrap();
        let forged = BASE64.encode(outer.replace("AKIAEXAMPLE", "AKIAOTHER"));
        assert_eq!(verify(&Keyring::new([key(), other]), &forged, at(1)), Err(TokenError::Invalid));
    }

    proptest! {
        #[test]
        fn a_changed_token_is_refused(position: prop::sample::Index, flip in 1..=255_u8) {
            let (token, _) = issue(&key().into(), at(0)).unwrap();
            let mut outer = BASE64.decode(token).unwrap();
            let position = position.index(outer.len());
            outer[position] ^= flip;
            let refused = verify(&Keyring::new([key()]), &BASE64.encode(outer), at(1));
            prop_assert_eq!(refused, Err(TokenError::Invalid));
        }

        #[test]
        fn any_text_is_refused_without_a_panic(text in "\\PC{0,200}", json in "\\{\\PC{0,200}\\}") {
            let keyring = Keyring::new([key()]);
            prop_assert_eq!(verify(&keyring, &text, at(1)), Err(TokenError::Invalid));
            prop_assert_eq!(verify(&keyring, &BASE64.encode(json), at(1)), Err(TokenError::Invalid));
        }
    }
}
