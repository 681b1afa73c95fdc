//! Reads an authorization token (GetAuthorizationToken) and the hosts that it is for.

use std::collections::BTreeSet;

use aws_sdk_ecr::types::AuthorizationData;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use secrecy::SecretString;

use super::client::{Ecr, api_error};
use super::error::unexpected_response;
use wharfage_plan::model::ApiError;

/// The credentials with which a container runtime logs in.
#[derive(Debug, Clone)]
pub struct AuthorizationToken {
    /// The user's name, `AWS`.
    pub user: String,
    /// The password.
    pub password: SecretString,
    /// The expiry time.
    pub expires_at: Timestamp,
    /// Its hosts with their ports: those of the proxyEndpoint and of the repositories' URIs.
    pub hosts: BTreeSet<String>,
}

/// Requests a token from a registry.
///
/// # Errors
/// The registry's error, or `UnexpectedResponse` for a response without usable credentials.
pub async fn authorization_token(ecr: &Ecr) -> Result<AuthorizationToken, ApiError> {
    let ids = ecr.registry_id.clone().map(|id| vec![id]);
    #[allow(
        deprecated,
        reason = "it is what makes Amazon ECR say the proxyEndpoint of another account"
    )]
    let request = ecr.client.get_authorization_token().set_registry_ids(ids);
    let answer = request.send().await;
    let answer = answer.map_err(|error| api_error(&error))?;
    let data =
        answer.authorization_data().first().ok_or_else(|| unexpected("no authorizationData"))?;
    let mut token = read(data)?;
    token.hosts.extend(host_of_repositories(ecr).await);
    Ok(token)
}

/// Returns the host of a repository's URI, if the credentials may list a repository.
async fn host_of_repositories(ecr: &Ecr) -> Option<String> {
    let request = ecr.client.describe_repositories().set_registry_id(ecr.registry_id.clone());
    let answer = request.max_results(1).send().await.ok()?;
    host(answer.repositories().first()?.repository_uri()?)
}

fn read(data: &AuthorizationData) -> Result<AuthorizationToken, ApiError> {
    let decoded = data.authorization_token().and_then(|token| BASE64.decode(token).ok());
    let decoded = decoded.and_then(|token| String::from_utf8(token).ok());
    let (user, password) = decoded
        .as_deref()
        .and_then(|token| token.split_once(':'))
        .filter(|(user, password)| !user.is_empty() && !password.is_empty())
        .ok_or_else(|| {
            unexpected("an authorizationToken that is not base64 of a name and a password")
        })?;
    let expires_at = data.expires_at().ok_or_else(|| unexpected("no expiresAt"))?;
    let expires_at = Timestamp::from_second(expires_at.secs())
        .map_err(|_| unexpected("an expiresAt out of range"))?;
    let endpoint = data.proxy_endpoint().unwrap_or_default();
    let host = host(endpoint).ok_or_else(|| unexpected("a proxyEndpoint without a host"))?;
    Ok(AuthorizationToken {
        user: user.to_owned(),
        password: SecretString::from(password),
        expires_at,
        hosts: BTreeSet::from([host]),
    })
}

/// Returns the host of a URL or a repository's URI, with its port, if it is one to log in to.
pub fn host(place: &str) -> Option<String> {
    /// A host name of 253 characters, and a port.
    const LONGEST: usize = 253 + 6;
    let rest =
        place.strip_prefix("https://").or_else(|| place.strip_prefix("http://")).unwrap_or(place);
    let host = rest.split('/').next().unwrap_or_default();
    let known = |byte: u8| {
        byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':' | b'[' | b']' | b'_')
    };
    (!host.is_empty() && host.len() <= LONGEST && host.bytes().all(known))
        .then(|| host.to_ascii_lowercase())
}

fn unexpected(what: &str) -> ApiError {
    unexpected_response(format!("GetAuthorizationToken gave {what}"))
}

#[cfg(test)]
mod tests {
    use aws_sdk_ecr::primitives::DateTime;

    use secrecy::ExposeSecret as _;

    use super::*;

    fn data(token: &str, endpoint: &str) -> AuthorizationData {
        AuthorizationData::builder()
            .authorization_token(BASE64.encode(token))
            .expires_at(DateTime::from_secs(1_800_000_000))
            .proxy_endpoint(endpoint)
            .build()
    }

    #[test]
    fn a_token_is_a_name_a_password_and_a_host() {
        let token =
            read(&data("AWS:a:b==", "https://123456789012.dkr.ecr.eu-1.amazonaws.com")).unwrap();
        assert_eq!((token.user.as_str(), token.password.expose_secret()), ("AWS", "a:b=="));
        assert_eq!(token.expires_at.as_second(), 1_800_000_000);
        assert_eq!(
            token.hosts,
            BTreeSet::from(["123456789012.dkr.ecr.eu-1.amazonaws.com".to_owned()])
        );
        assert!(!format!("{token:?}").contains("a:b=="));
    }

    #[test]
    fn unusable_credentials_are_rejected_and_not_shown() {
        for (token, endpoint) in [
            ("AWS", "https://r"),
            ("AWS:", "https://r"),
            (":x", "https://r"),
            ("AWS:secret", ""),
            ("AWS:secret", "https://a b"),
        ] {
            let error = read(&data(token, endpoint)).unwrap_err();
            assert_eq!(error.name, "UnexpectedResponse");
            assert!(!error.message.contains("secret"), "{}", error.message);
        }
        let error = read(&AuthorizationData::builder().authorization_token("no base64!").build())
            .unwrap_err();
        assert!(error.message.contains("not base64"), "{}", error.message);
    }

    #[test]
    fn hosts_have_no_scheme_and_no_path() {
        for (place, expected) in [
            ("http://localhost:5000", Some("localhost:5000")),
            ("https://Registry.Example.com/", Some("registry.example.com")),
            ("registry.example.com/team/api", Some("registry.example.com")),
            ("http://[::1]:5000/x", Some("[::1]:5000")),
            ("https://", None),
            ("https://user@host", None),
        ] {
            assert_eq!(host(place).as_deref(), expected, "{place}");
        }
    }
}
