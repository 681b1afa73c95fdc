//! The content of a Secret of type kubernetes.io/dockerconfigjson.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;

use wharfage_apply::AuthorizationToken;

/// The type of such a Secret.
pub(crate) const SECRET_TYPE: &str = "kubernetes.io/dockerconfigjson";
/// The key of its content.
pub(crate) const SECRET_KEY: &str = ".dockerconfigjson";

#[derive(Serialize)]
struct DockerConfig<'a> {
    auths: BTreeMap<&'a str, Auth<'a>>,
}

/// An entry as `kubectl create secret docker-registry` writes it: some tools read `auth`, others the two fields before it.
#[derive(Clone, Serialize)]
struct Auth<'a> {
    username: &'a str,
    password: &'a str,
    auth: &'a str,
}

/// Renders the content for a token, with an entry for each of its hosts.
pub(crate) fn render(token: &AuthorizationToken) -> SecretString {
    let AuthorizationToken { user, password, expires_at: _, hosts } = token;
    let password = password.expose_secret();
    let encoded = BASE64.encode(format!("{user}:{password}"));
    let auth = Auth { username: user, password, auth: &encoded };
    let config =
        DockerConfig { auths: hosts.iter().map(|host| (host.as_str(), auth.clone())).collect() };
    // Maps and strings always serialize.
    SecretString::from(serde_json::to_string(&config).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn every_host_has_the_same_login() {
        let token = AuthorizationToken {
            user: "AWS".to_owned(),
            password: SecretString::from("s3cret"),
            expires_at: Timestamp::UNIX_EPOCH,
            hosts: ["localhost:5000", "123456789012.dkr.ecr.eu-1.example.com"]
                .map(str::to_owned)
                .into(),
        };
        let content = render(&token);
        insta::assert_snapshot!(content.expose_secret(), @r#"{"auths":{"123456789012.dkr.ecr.eu-1.example.com":{"username":"AWS","password":"s3cret","auth":"QVdTOnMzY3JldA=="},"localhost:5000":{"username":"AWS","password":"s3cret","auth":"QVdTOnMzY3JldA=="}}}"#);
        assert!(!format!("{content:?}").contains("s3cret"));
    }
}
