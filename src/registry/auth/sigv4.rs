//! Verifies AWS Signature Version 4 in the Authorization header.
//!
//! Pure: from the request, the keys and the time to a principal, or to the error that Amazon ECR
//! returns. Permissions are decided elsewhere.

use secrecy::ExposeSecret as _;
use std::fmt::Write as _;

use aws_lc_rs::hmac;
use http::header::{AUTHORIZATION, HOST};
use http::{HeaderMap, HeaderName, Method, Uri};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};

use super::{Keyring, Principal, SigningKey};
use wharfage_domain::names::Region;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const TERMINATOR: &str = "aws4_request";
/// The largest accepted difference of a client's clock.
const SKEW: SignedDuration = SignedDuration::from_mins(5);
const DATE_FORMAT: &str = "%Y%m%dT%H%M%SZ";

const X_AMZ_DATE: HeaderName = HeaderName::from_static("x-amz-date");
const X_AMZ_CONTENT_SHA256: HeaderName = HeaderName::from_static("x-amz-content-sha256");
const X_AMZ_SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");
const X_AMZ_TARGET: HeaderName = HeaderName::from_static("x-amz-target");
/// The headers that the server evaluates: they must be signed, so that nobody can add one.
const SIGNED_IF_PRESENT: [HeaderName; 4] =
    [X_AMZ_DATE, X_AMZ_TARGET, X_AMZ_SECURITY_TOKEN, X_AMZ_CONTENT_SHA256];

/// The reason why a signature is not accepted, in Amazon ECR's texts, none of which contains a
/// secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthError {
    #[error("Missing Authentication Token")]
    MissingAuthenticationToken,
    #[error("{0}")]
    IncompleteSignature(String),
    /// The access key or the session token is unknown.
    #[error("The security token included in the request is invalid.")]
    UnrecognizedClient,
    /// The signature does not match the request, or it is for another time, region or service.
    #[error("{0}")]
    InvalidSignature(String),
}

/// The signed parts of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SignedRequest<'a> {
    /// Its method.
    pub(crate) method: &'a Method,
    /// The path and the query.
    pub(crate) uri: &'a Uri,
    /// All headers.
    pub(crate) headers: &'a HeaderMap,
    /// The SHA-256 of the body.
    pub(crate) body_hash: [u8; 32],
}

/// The required scope of a signature.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CredentialScope<'a> {
    /// The region of the registry.
    pub(crate) region: &'a Region,
    /// The service that the request calls.
    pub(crate) service: &'static str,
}

/// Checks the claims of a request's signature that need no body. Returns the claimed principal.
///
/// # Errors
/// [`AuthError`] as Amazon ECR would put it.
pub(crate) fn check_claims(
    uri: &Uri,
    headers: &HeaderMap,
    scope: CredentialScope<'_>,
    keyring: &Keyring,
    now: Timestamp,
) -> Result<Principal, AuthError> {
    claims(uri, headers, scope, keyring, now).map(|(_, _, key)| key.principal())
}

/// Verifies the signature. Returns the principal who signed the request.
///
/// # Errors
/// [`AuthError`] as Amazon ECR would put it.
pub(crate) fn verify(
    request: SignedRequest<'_>,
    scope: CredentialScope<'_>,
    keyring: &Keyring,
    now: Timestamp,
) -> Result<Principal, AuthError> {
    let (authorization, date, key) = claims(request.uri, request.headers, scope, keyring, now)?;
    check_content_hash(&request)?;
    let expected =
        authorization.signature(&request, date, key.access_key.secret.expose_secret())?;
    let given = hex::decode(authorization.signature).unwrap_or_default();
    if aws_lc_rs::constant_time::verify_slices_are_equal(expected.as_ref(), &given).is_err() {
        return Err(invalid(
            "The request signature we calculated does not match the signature you provided. Check your AWS Secret \
             Access Key and signing method. Consult the service documentation for details.",
        ));
    }
    Ok(key.principal())
}

/// Returns the Authorization header, the text of X-Amz-Date, and the claimed key.
fn claims<'a>(
    uri: &Uri,
    headers: &'a HeaderMap,
    scope: CredentialScope<'_>,
    keyring: &'a Keyring,
    now: Timestamp,
) -> Result<(Authorization<'a>, &'a str, &'a SigningKey), AuthError> {
    let authorization = Authorization::of(uri, headers)?;
    let (date_text, date) = signing_date(headers)?;
    authorization.check_scope(scope, date_text)?;
    authorization.check_signed_headers(headers)?;
    let key = keyring.get(authorization.access_key_id).ok_or(AuthError::UnrecognizedClient)?;
    if headers.contains_key(X_AMZ_SECURITY_TOKEN) {
        // Only temporary credentials come with a session token, and there are none yet.
        return Err(AuthError::UnrecognizedClient);
    }
    check_skew(date, now)?;
    Ok((authorization, date_text, key))
}

/// The parts of an Authorization header.
struct Authorization<'a> {
    access_key_id: &'a str,
    date: &'a str,
    region: &'a str,
    service: &'a str,
    terminator: &'a str,
    signed_headers: &'a str,
    signature: &'a str,
}

impl<'a> Authorization<'a> {
    fn of(uri: &Uri, headers: &'a HeaderMap) -> Result<Self, AuthError> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let Some(value) = values.next() else {
            let presigned = uri.query().is_some_and(|query| query.contains("X-Amz-Signature="));
            return Err(if presigned {
                incomplete(
                    "A signature in the query is not accepted: sign the Authorization header.",
                )
            } else {
                AuthError::MissingAuthenticationToken
            });
        };
        if values.next().is_some() {
            return Err(incomplete("There is more than one Authorization header."));
        }
        let value = value
            .to_str()
            .map_err(|_| incomplete("The Authorization header is not plain ASCII."))?;
        let parameters =
            value.trim().strip_prefix(ALGORITHM).filter(|rest| rest.starts_with(' ')).ok_or_else(
                || incomplete("Authorization header requires the algorithm 'AWS4-HMAC-SHA256'."),
            )?;

        let (mut credential, mut signed_headers, mut signature) = (None, None, None);
        for parameter in parameters.split(',') {
            let (name, value) = parameter.trim().split_once('=').unwrap_or((parameter.trim(), ""));
            let slot = match name {
                "Credential" => &mut credential,
                "SignedHeaders" => &mut signed_headers,
                "Signature" => &mut signature,
                _ => {
                    return Err(incomplete(
                        "Authorization header has a parameter that Signature Version 4 lacks.",
                    ));
                }
            };
            if slot.replace(value).is_some() {
                return Err(incomplete(format!(
                    "Authorization header has the parameter '{name}' twice."
                )));
            }
        }
        let required = |parameter: Option<&'a str>, name| {
            parameter.filter(|value| !value.is_empty()).ok_or_else(|| {
                incomplete(format!("Authorization header requires '{name}' parameter."))
            })
        };
        let credential = required(credential, "Credential")?;
        let signed_headers = required(signed_headers, "SignedHeaders")?;
        let signature = required(signature, "Signature")?;

        let parts: Vec<&str> = credential.splitn(6, '/').collect();
        let [access_key_id, date, region, service, terminator] = parts[..] else {
            return Err(incomplete(
                "Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term.",
            ));
        };
        Ok(Self { access_key_id, date, region, service, terminator, signed_headers, signature })
    }

    fn check_scope(&self, scope: CredentialScope<'_>, date: &str) -> Result<(), AuthError> {
        if self.terminator != TERMINATOR {
            return Err(invalid(
                "Credential should be scoped with a valid terminator: 'aws4_request'.",
            ));
        }
        if self.region != scope.region.as_str() {
            return Err(invalid(format!(
                "Credential should be scoped to a valid region. This registry serves '{}'.",
                scope.region
            )));
        }
        if self.service != scope.service {
            return Err(invalid(format!(
                "Credential should be scoped to correct service: '{}'.",
                scope.service
            )));
        }
        if Some(self.date) != date.get(..8) {
            return Err(invalid(format!(
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '{}'.",
                date.get(..8).unwrap_or_default()
            )));
        }
        Ok(())
    }

    fn check_signed_headers(&self, headers: &HeaderMap) -> Result<(), AuthError> {
        let is_signed = |name: &str| self.signed_headers.split(';').any(|signed| signed == name);
        if !is_signed(HOST.as_str()) {
            return Err(invalid(
                "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.",
            ));
        }
        for name in SIGNED_IF_PRESENT {
            if headers.contains_key(&name) && !is_signed(name.as_str()) {
                return Err(invalid(format!(
                    "'{name}' must be a 'SignedHeader' in the AWS Authorization."
                )));
            }
        }
        Ok(())
    }

    /// Computes the signature that the holder of `secret` would make.
    fn signature(
        &self,
        request: &SignedRequest<'_>,
        date: &str,
        secret: &str,
    ) -> Result<hmac::Tag, AuthError> {
        let canonical = hex::encode(Sha256::digest(self.canonical_request(request)?));
        let scope = format!("{}/{}/{}/{TERMINATOR}", self.date, self.region, self.service);
        let string_to_sign = format!("{ALGORITHM}\n{date}\n{scope}\n{canonical}");

        let chain = [self.date, self.region, self.service, TERMINATOR, &string_to_sign];
        let first = hmac::Key::new(hmac::HMAC_SHA256, format!("AWS4{secret}").as_bytes());
        let (last, links) = (chain[4], &chain[..4]);
        let key = links.iter().fold(first, |key, link| {
            hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, link.as_bytes()).as_ref())
        });
        Ok(hmac::sign(&key, last.as_bytes()))
    }

    fn canonical_request(&self, request: &SignedRequest<'_>) -> Result<Vec<u8>, AuthError> {
        let mut text = String::new();
        let (method, path) = (request.method, encode(request.uri.path().as_bytes(), true));
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{method}\n{path}\n{}",
            canonical_query(request.uri.query().unwrap_or_default())
        );
        let mut canonical = text.into_bytes();
        for name in self.signed_headers.split(';') {
            let mut values = request.headers.get_all(name).iter().peekable();
            if values.peek().is_none() {
                let name: String = name.chars().take(100).collect();
                return Err(invalid(format!(
                    "The signed header '{name}' is missing from the request."
                )));
            }
            canonical.extend_from_slice(name.as_bytes());
            for (index, value) in values.enumerate() {
                canonical.push(if index == 0 { b':' } else { b',' });
                push_collapsed(&mut canonical, value.as_bytes());
            }
            canonical.push(b'\n');
        }
        canonical.push(b'\n');
        canonical.extend_from_slice(self.signed_headers.as_bytes());
        canonical.push(b'\n');
        canonical.extend_from_slice(hex::encode(request.body_hash).as_bytes());
        Ok(canonical)
    }
}

/// Returns the text of X-Amz-Date and its time.
fn signing_date(headers: &HeaderMap) -> Result<(&str, Timestamp), AuthError> {
    let mut values = headers.get_all(X_AMZ_DATE).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(incomplete("Authorization header requires exactly one 'X-Amz-Date' header."));
    };
    let parsed = value.to_str().ok().and_then(|text| {
        let date = jiff::civil::DateTime::strptime(DATE_FORMAT, text).ok()?;
        // Only the one spelling: the parsed text is also the signed text.
        let timestamp = date.to_zoned(TimeZone::UTC).ok()?.timestamp();
        (basic(timestamp) == text).then_some((text, timestamp))
    });
    parsed.ok_or_else(|| {
        incomplete("Date must be in ISO-8601 'basic format', such as 20150830T123600Z.")
    })
}

fn check_skew(date: Timestamp, now: Timestamp) -> Result<(), AuthError> {
    let off = date.duration_since(now);
    let bound = |shift: SignedDuration| now.checked_add(shift).map(basic).unwrap_or_default();
    let (date, now) = (basic(date), basic(now));
    if off < -SKEW {
        let earliest = bound(-SKEW);
        return Err(invalid(format!(
            "Signature expired: {date} is now earlier than {earliest} ({now} - 5 min.)"
        )));
    }
    if off > SKEW {
        let latest = bound(SKEW);
        return Err(invalid(format!(
            "Signature not yet current: {date} is still later than {latest} ({now} + 5 min.)"
        )));
    }
    Ok(())
}

/// X-Amz-Content-Sha256 is optional for ECR, but may not lie; `UNSIGNED-PAYLOAD` is none of ECR's.
fn check_content_hash(request: &SignedRequest<'_>) -> Result<(), AuthError> {
    let expected = hex::encode(request.body_hash);
    if request
        .headers
        .get_all(X_AMZ_CONTENT_SHA256)
        .iter()
        .all(|value| value.as_bytes() == expected.as_bytes())
    {
        Ok(())
    } else {
        Err(invalid("The value of 'X-Amz-Content-Sha256' is not the SHA-256 of the body."))
    }
}

fn basic(timestamp: Timestamp) -> String {
    timestamp.strftime(DATE_FORMAT).to_string()
}

/// Returns the value of a header without surrounding spaces and with single spaces inside.
fn push_collapsed(canonical: &mut Vec<u8>, value: &[u8]) {
    let mut after_space = false;
    for &byte in value.trim_ascii() {
        let space = byte == b' ';
        if !(space && after_space) {
            canonical.push(byte);
        }
        after_space = space;
    }
}

/// Returns the parameters in their canonical encoding, in the order of (name, value).
fn canonical_query(query: &str) -> String {
    let mut pairs: Vec<(String, String)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (encode(&decode(name), false), encode(&decode(value), false))
        })
        .collect();
    pairs.sort();
    let pairs: Vec<String> =
        pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join("&")
}

/// Percent-encodes everything except RFC 3986's unreserved characters and, in a path, the slash.
fn encode(bytes: &[u8], path: bool) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len()), |mut text, &byte| {
        if byte.is_ascii_alphanumeric()
            || matches!(byte, b'-' | b'.' | b'_' | b'~')
            || (path && byte == b'/')
        {
            text.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
        text
    })
}

/// Decodes percent-encoding; invalid sequences stay unchanged.
fn decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%').then(|| bytes.get(at + 1..at + 3)).flatten();
        let byte = escaped.and_then(|digits| hex::decode(digits).ok()).map(|byte| byte[0]);
        at += if byte.is_some() { 3 } else { 1 };
        decoded.push(byte.unwrap_or_else(|| bytes[at - 1]));
    }
    decoded
}

fn incomplete(text: impl Into<String>) -> AuthError {
    AuthError::IncompleteSignature(text.into())
}

fn invalid(text: impl Into<String>) -> AuthError {
    AuthError::InvalidSignature(text.into())
}

#[cfg(test)]
mod tests;
