//! Signed URLs of blobs, as GetDownloadUrlForLayer returns them. The bearer of a URL may GET its
//! blob until it expires.

use aws_lc_rs::hmac;
use jiff::Timestamp;

use super::{Keyring, Principal, SigningKey};
use wharfage_domain::names::{Digest, RepositoryName};

const EXPIRES: &str = "X-Wharfage-Expires";
const KEY: &str = "X-Wharfage-Key";
const SIGNATURE: &str = "X-Wharfage-Signature";

/// The reason why a signed URL is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DownloadError {
    #[error("the URL's signature is not valid")]
    Invalid,
    /// The URL has expired.
    #[error("the URL has expired")]
    Expired,
}

/// Returns whether a query looks like one of [`sign`]'s.
pub(crate) fn is_signed(query: &str) -> bool {
    parameter(query, SIGNATURE).is_some()
}

/// Returns the query that lets its bearer GET this blob until `expires`.
pub(crate) fn sign(
    key: &SigningKey,
    name: &RepositoryName,
    digest: &Digest,
    expires: Timestamp,
) -> String {
    let expires = expires.as_second();
    let signature = hex::encode(hmac::sign(
        &key.derived.download,
        &message(&key.access_key.id, name, digest, expires),
    ));
    format!("{EXPIRES}={expires}&{KEY}={}&{SIGNATURE}={signature}", key.access_key.id)
}

/// Returns the principal who signed this query for this blob.
///
/// # Errors
/// [`DownloadError`] when the signature is wrong or has expired.
pub(crate) fn verify(
    keyring: &Keyring,
    name: &RepositoryName,
    digest: &Digest,
    query: &str,
    now: Timestamp,
) -> Result<Principal, DownloadError> {
    let signed = || {
        let expires: i64 = parameter(query, EXPIRES)?.parse().ok()?;
        let key = keyring.get(parameter(query, KEY)?)?;
        let signature = hex::decode(parameter(query, SIGNATURE)?).ok()?;
        hmac::verify(
            &key.derived.download,
            &message(&key.access_key.id, name, digest, expires),
            &signature,
        )
        .ok()?;
        Some((key, expires))
    };
    let (key, expires) = signed().ok_or(DownloadError::Invalid)?;
    if now.as_second() >= expires { Err(DownloadError::Expired) } else { Ok(key.principal()) }
}

/// Builds the signed text. No field can contain a line break, so no two blobs share a text.
fn message(id: &str, name: &RepositoryName, digest: &Digest, expires: i64) -> Vec<u8> {
    format!("GET\n{name}\n{digest}\n{id}\n{expires}").into_bytes()
}

/// Returns the value of a parameter. Our values need no percent-encoding.
fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    use wharfage_domain::access_key::AccessKey;

    fn key() -> AccessKey {
        AccessKey::new("AKIAEXAMPLE", "secret", "123456789012".parse().unwrap())
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn name() -> RepositoryName {
        "team/app".parse().unwrap()
    }

    #[test]
    fn a_signed_query_opens_only_its_blob_until_it_expires() {
        let (keyring, digest) = (Keyring::new([key()]), Digest::sha256(b"layer"));
        let query = sign(&key().into(), &name(), &digest, at(100));
        assert!(is_signed(&query));
        assert_eq!(
            verify(&keyring, &name(), &digest, &query, at(99)),
            Ok(SigningKey::from(key()).principal())
        );
        assert_eq!(
            verify(&keyring, &name(), &digest, &query, at(100)),
            Err(DownloadError::Expired)
        );
        let other: RepositoryName = "team/other".parse().unwrap();
        assert_eq!(verify(&keyring, &other, &digest, &query, at(99)), Err(DownloadError::Invalid));
        let other = Digest::sha256(b"another layer");
        assert_eq!(verify(&keyring, &name(), &other, &query, at(99)), Err(DownloadError::Invalid));
        assert_eq!(
            verify(&Keyring::default(), &name(), &digest, &query, at(99)),
            Err(DownloadError::Invalid)
        );
    }

    #[test]
    fn a_later_expiry_needs_another_signature() {
        let digest = Digest::sha256(b"layer");
        let query =
            sign(&key().into(), &name(), &digest, at(100)).replace("Expires=100", "Expires=999");
        assert_eq!(
            verify(&Keyring::new([key()]), &name(), &digest, &query, at(99)),
            Err(DownloadError::Invalid)
        );
    }

    proptest! {
        #[test]
        fn any_query_is_refused_without_a_panic(query in "\\PC{0,120}", value in "[0-9a-zA-Z%&=-]{0,80}") {
            let (keyring, digest) = (Keyring::new([key()]), Digest::sha256(b"layer"));
            prop_assert!(verify(&keyring, &name(), &digest, &query, at(1)).is_err());
            let query = format!("{EXPIRES}=9&{KEY}=AKIAEXAMPLE&{SIGNATURE}={value}");
            prop_assert!(verify(&keyring, &name(), &digest, &query, at(1)).is_err());
        }
    }
}
