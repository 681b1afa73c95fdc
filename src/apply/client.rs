//! A client of a registry's ECR API: its endpoint, credentials and timeouts.

use std::time::Duration;

use anyhow::Context as _;
use aws_config::BehaviorVersion;
use aws_config::retry::RetryConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_ecr::Client;
use aws_sdk_ecr::config::{
    Credentials, SharedAsyncSleep, SharedCredentialsProvider, SharedHttpClient,
};
use aws_sdk_ecr::error::{ProvideErrorMetadata, SdkError};

use aws_smithy_async::rt::sleep::TokioSleep;
use aws_smithy_async::time::SystemTimeSource;
use aws_smithy_http_client::tls::{self, TlsContext, TrustStore, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::client::dns::{DnsFuture, ResolveDns, ResolveDnsError};
use hyper_util::client::proxy::matcher::Matcher;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};

use super::credentials::{CredentialsWithTimeout, credentials_error};
use super::retry::isolated_rate_limiter;
use wharfage_domain::names::{AccountId, Region};
use wharfage_plan::model::ApiError;

/// The connection to a registry's API.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The URL; Amazon ECR's if `None`.
    pub endpoint: Option<String>,
    /// The region in signatures.
    pub region: Region,
    /// The credentials of signatures.
    pub identity: Identity,
    /// A role to assume with them.
    pub role: Option<String>,
    /// Certificates to trust instead of the system's, in PEM.
    pub ca_bundle: Option<String>,
    /// The host to connect to, if it is not the URL's, which has the certificate's name.
    pub host: Option<String>,
}

impl Connection {
    /// Connects with an access key of the registry.
    pub fn with_key(endpoint: String, region: Region, id: String, secret: SecretString) -> Self {
        let identity = Identity::Key { id, secret, session_token: None };
        Self { endpoint: Some(endpoint), region, identity, role: None, ca_bundle: None, host: None }
    }
}

/// The credentials that requests are signed with.
#[derive(Debug, Clone)]
pub enum Identity {
    /// An access key.
    Key {
        /// The access key's id.
        id: String,
        /// The access key's secret.
        secret: SecretString,
        /// The session token of temporary credentials.
        session_token: Option<SecretString>,
    },
    /// The credentials of the environment: variables, profiles, web identity, instance metadata.
    Ambient,
}

/// The ECR API of one registry.
#[derive(Debug, Clone)]
pub struct Ecr {
    pub(super) client: Client,
    /// The account of the registry, if it is not the credentials' account.
    pub(super) registry_id: Option<String>,
    identity: String,
    proxy: Option<String>,
}

impl Ecr {
    /// Creates a client without calling the registry. All clones share one rate limit that adapts to throttling.
    ///
    /// # Errors
    /// When `ca_bundle` holds no certificates.
    pub async fn new(
        connection: Connection,
        registry_id: Option<&AccountId>,
    ) -> anyhow::Result<Self> {
        let retries = RetryConfig::adaptive()
            .with_max_attempts(5)
            .with_initial_backoff(Duration::from_millis(200))
            .with_max_backoff(Duration::from_secs(5));
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(Duration::from_secs(5))
            .operation_attempt_timeout(Duration::from_secs(20))
            // The timeout of all attempts together, so that callers learn of a registry that does not answer.
            .operation_timeout(Duration::from_secs(45))
            .build();
        let Connection { endpoint, region, identity, role, ca_bundle, host } = connection;
        let registry_id = registry_id.map(ToString::to_string);
        let key = match &identity {
            Identity::Key { id, .. } => Some(id),
            Identity::Ambient => None,
        };
        let known = format!("{:?}", (&endpoint, region.as_str(), key, &role, &registry_id));
        let known = hex::encode(&Sha256::digest(known)[..16]);
        let region = aws_sdk_ecr::config::Region::new(region.to_string());
        let credentials = match identity {
            Identity::Key { id, secret, session_token } => {
                let token = session_token.map(|token| token.expose_secret().to_owned());
                Some(SharedCredentialsProvider::new(Credentials::new(
                    id,
                    secret.expose_secret(),
                    token,
                    None,
                    "wharfage",
                )))
            }
            Identity::Ambient => None,
        };
        let base = match (credentials, &endpoint) {
            // The environment may be for another registry, so nothing is taken from there if the URL and the key are given.
            (Some(credentials), Some(_)) => aws_config::SdkConfig::builder()
                .behavior_version(BehaviorVersion::latest())
                .region(region.clone())
                .credentials_provider(credentials)
                .sleep_impl(SharedAsyncSleep::new(TokioSleep::new()))
                .time_source(SystemTimeSource::new())
                .build(),
            (credentials, _) => {
                let mut base =
                    aws_config::defaults(BehaviorVersion::latest()).region(region.clone());
                if let Some(credentials) = credentials {
                    base = base.credentials_provider(credentials);
                }
                base.load().await
            }
        };
        let mut config = aws_sdk_ecr::config::Builder::from(&base);
        let mut proxy = None;
        if let Some(pem) = ca_bundle {
            config = config.http_client(trusting(&pem, host)?);
        } else if endpoint.as_deref().is_some_and(is_loopback) {
            config = config.http_client(direct());
        } else {
            proxy = proxy_to(
                endpoint.as_deref().unwrap_or(&format!("https://api.ecr.{region}.amazonaws.com")),
            );
        }
        if let Some(endpoint) = endpoint {
            config = config.endpoint_url(endpoint);
        }
        if let Some(role) = role {
            let assumed = AssumeRoleProvider::builder(role)
                .session_name("wharfage")
                .region(region)
                .configure(&base);
            config = config.credentials_provider(CredentialsWithTimeout::new(
                SharedCredentialsProvider::new(assumed.build().await),
            ));
        } else if let Some(ambient) = base.credentials_provider() {
            config = config.credentials_provider(CredentialsWithTimeout::new(ambient));
        }
        let config =
            isolated_rate_limiter(config).retry_config(retries).timeout_config(timeouts).build();
        Ok(Self { client: Client::from_conf(config), registry_id, identity: known, proxy })
    }

    /// Returns the registry and the identity as one word without any secret. It is the same after a restart.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Returns the environment's proxy for the registry, without the proxy's credentials.
    pub fn proxy(&self) -> Option<&str> {
        self.proxy.as_deref()
    }
}

/// Creates an HTTP client without a proxy. The SDK's default uses the environment's, which are for other hosts.
fn direct() -> SharedHttpClient {
    aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(CryptoMode::AwsLc))
        .build_https()
}

/// Returns whether a URL's host is a loopback address.
pub fn is_loopback(url: &str) -> bool {
    let Ok(url) = url.parse::<http::Uri>() else { return false };
    let host = url.host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost"
        || host.ends_with(".localhost")
        || address.is_ok_and(|address| address.is_loopback())
}

/// Returns the proxy that the SDK uses for this URL.
fn proxy_to(url: &str) -> Option<String> {
    let proxy = Matcher::from_env().intercept(&url.parse().ok()?)?;
    Some(proxy.uri().to_string())
}

/// Creates an HTTP client that trusts only these certificates, and connects to `host` if given.
fn trusting(pem: &str, host: Option<String>) -> anyhow::Result<SharedHttpClient> {
    // The builder below panics on an invalid certificate, so they are checked first.
    let certificates =
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.context("the certificates to trust are not in PEM")?;
    anyhow::ensure!(!certificates.is_empty(), "there is no certificate in what is to be trusted");
    let trust = TrustStore::empty().with_native_roots(false).with_pem_certificate(pem);
    let context = TlsContext::builder().with_trust_store(trust).build()?;
    let provider = tls::Provider::Rustls(CryptoMode::AwsLc);
    let builder =
        aws_smithy_http_client::Builder::new().tls_provider(provider).tls_context(context);
    Ok(match host {
        Some(host) => builder.build_with_resolver(Elsewhere(host)),
        None => builder.build_https(),
    })
}

/// Resolves every name to this host.
#[derive(Debug, Clone)]
struct Elsewhere(String);

impl ResolveDns for Elsewhere {
    fn resolve_dns<'a>(&'a self, _: &'a str) -> DnsFuture<'a> {
        DnsFuture::new(async {
            let found = tokio::net::lookup_host((self.0.as_str(), 0)).await;
            let addresses =
                found.map_err(|error| ResolveDnsError::new(format!("{}: {error}", self.0)))?;
            Ok(addresses.map(|address| address.ip()).collect())
        })
    }
}

/// Converts an error of the SDK. Errors of requests that never reached the registry have names of ours.
pub(super) fn api_error<E>(error: &SdkError<E>) -> ApiError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    if let Some(error) = credentials_error(error) {
        return error;
    }
    match error {
        SdkError::ServiceError(refused) => match refused.err().code() {
            Some(name) => {
                let message = refused
                    .err()
                    .message()
                    .map_or_else(|| refused.err().to_string(), str::to_owned);
                super::error::named(name, message)
            }
            None => {
                let status = refused.raw().status();
                let message =
                    format!("HTTP status {status} without an error's name: is this an ECR API?");
                super::error::unexpected_response(message)
            }
        },
        SdkError::TimeoutError(_) => super::error::unavailable("it did not answer in time"),
        SdkError::DispatchFailure(failure)
            if failure.is_io() || failure.is_timeout() || is_of_http(error) =>
        {
            super::error::unavailable(format!(
                "it does not answer, so is it running? ({})",
                cause(error)
            ))
        }
        SdkError::ResponseError(_) => super::error::unexpected_response(causes(error)),
        _ => super::error::client_error(causes(error)),
    }
}

/// Returns whether the error is one of HTTP: a broken connection, or an invalid response.
fn is_of_http(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .any(|cause| cause.is::<hyper::Error>())
}

/// Returns an error's causes, the outermost first.
fn causes(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Returns the innermost cause of an error.
fn cause(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.last().map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::is_loopback;

    #[test]
    fn loopback_differs_from_other_hosts() {
        for own in [
            "http://127.0.0.1:5000",
            "http://127.8.0.1/",
            "http://[::1]:5000",
            "http://localhost:1",
            "https://a.localhost",
        ] {
            assert!(is_loopback(own), "{own}");
        }
        for other in [
            "http://10.0.0.1",
            "https://registry.example.com",
            "http://localhost.example.com",
            "http://[fd00::1]",
            "127",
        ] {
            assert!(!is_loopback(other), "{other}");
        }
    }
}
