//! The configuration of a registry: its region, account, public URL and limits.

use std::net::IpAddr;

use wharfage_domain::names::{AccountId, Region};

/// The URL of this registry for clients, as in `repositoryUri` and `proxyEndpoint`; never taken
/// from a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicUrl {
    /// `http` or `https`.
    pub scheme: String,
    /// The host, with a port unless it is the scheme's default.
    pub authority: String,
}

impl std::str::FromStr for PublicUrl {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> anyhow::Result<Self> {
        let uri: http::Uri =
            text.parse().map_err(|error| anyhow::anyhow!("{text:?} is no URL: {error}"))?;
        match (uri.scheme_str(), uri.authority(), uri.path()) {
            (Some(scheme @ ("http" | "https")), Some(authority), "" | "/")
                if !authority.as_str().contains('@') =>
            {
                Ok(Self { scheme: scheme.to_owned(), authority: authority.to_string() })
            }
            _ => {
                anyhow::bail!(
                    "{text:?} must be http:// or https:// and a host, with a port if it is not the usual one"
                )
            }
        }
    }
}

impl std::fmt::Display for PublicUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", self.scheme, self.authority)
    }
}

/// The configuration of a registry, fixed at its start.
#[derive(Debug, Clone)]
pub struct Config {
    /// The region of every ARN and of every signature's scope.
    pub region: Region,
    /// The account that the bare host addresses.
    pub account: AccountId,
    /// The URL of the registry for clients.
    pub public_url: PublicUrl,
    /// Redirects reads of blobs to the store when it can sign URLs.
    pub redirect_blobs: bool,
    /// The structural limits.
    pub limits: Limits,
}

impl Config {
    /// Returns the URL of an account's registry: `ACCOUNT.dkr.ecr.REGION.HOST` below the public
    /// host, which is our own account's. A loopback address counts as `localhost`; below any other
    /// address there are no names.
    pub(crate) fn url_of(&self, account: &AccountId) -> Option<PublicUrl> {
        if *account == self.account {
            return Some(self.public_url.clone());
        }
        let PublicUrl { scheme, authority } = &self.public_url;
        let (host, port) = split_port(authority);
        let host = match host.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(address) if address.is_loopback() => "localhost",
            Ok(_) => return None,
            Err(_) => host,
        };
        let port = port.map(|port| format!(":{port}")).unwrap_or_default();
        let authority = format!("{account}.dkr.ecr.{}.{host}{port}", self.region);
        Some(PublicUrl { scheme: scheme.clone(), authority })
    }

    /// Returns the account that a `Host` header addresses: the account at the beginning of the
    /// name, otherwise our own.
    pub fn account_of(&self, host: Option<&str>) -> AccountId {
        let host = split_port(host.unwrap_or_default()).0;
        let named = || {
            let mut labels = host.splitn(4, '.');
            let account = labels.next()?.parse().ok()?;
            (labels.next()? == "dkr" && labels.next()? == "ecr").then_some(account)
        };
        let own = host.eq_ignore_ascii_case(split_port(&self.public_url.authority).0);
        if own { None } else { named() }.unwrap_or_else(|| self.account.clone())
    }
}

/// Splits a host and its optional port.
fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    }
}

/// Structural limits; the defaults are Amazon ECR's quotas.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Repositories in a registry.
    pub repositories: u64,
    /// Images in a repository.
    pub images: u64,
    /// Tags on an image.
    pub tags_per_image: u64,
    /// Bytes of one blob.
    pub blob_bytes: u64,
    /// Bytes of a manifest.
    pub manifest_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            repositories: 100_000,
            images: 100_000,
            tags_per_image: 1_000,
            blob_bytes: 52_000 * 1024 * 1024,
            manifest_bytes: 4_194_304,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> Config {
        Config {
            region: "local-1".parse().unwrap(),
            account: "123456789012".parse().unwrap(),
            public_url: url.parse().unwrap(),
            redirect_blobs: false,
            limits: Limits::default(),
        }
    }

    #[test]
    fn another_account_has_a_host_below_the_public_one() {
        let url = |public: &str, account: &str| {
            config(public).url_of(&account.parse().unwrap()).map(|url| url.to_string())
        };
        for public in ["https://registry.example.com", "http://127.0.0.1:5000", "http://10.0.0.1"] {
            assert_eq!(url(public, "123456789012").as_deref(), Some(public));
        }
        for (public, expected) in [
            (
                "https://registry.example.com",
                Some("https://999999999999.dkr.ecr.local-1.registry.example.com"),
            ),
            (
                "http://registry.test:8080",
                Some("http://999999999999.dkr.ecr.local-1.registry.test:8080"),
            ),
            ("http://127.0.0.1:5000", Some("http://999999999999.dkr.ecr.local-1.localhost:5000")),
            ("http://[::1]:5000", Some("http://999999999999.dkr.ecr.local-1.localhost:5000")),
            ("http://10.0.0.1:5000", None),
            ("https://[2001:db8::1]", None),
        ] {
            assert_eq!(url(public, "999999999999").as_deref(), expected, "{public}");
        }
    }

    #[test]
    fn a_host_that_begins_with_an_account_addresses_it() {
        let account =
            |public: &str, host: Option<&str>| config(public).account_of(host).to_string();
        let public = "http://127.0.0.1:5000";
        for host in [
            None,
            Some(""),
            Some("127.0.0.1:5000"),
            Some("[::1]:5000"),
            Some("999999999999.example.com"),
        ] {
            assert_eq!(account(public, host), "123456789012", "{host:?}");
        }
        for host in [
            "999999999999.dkr.ecr.local-1.localhost:5000",
            "999999999999.dkr.ecr.local-1.registry.test",
        ] {
            assert_eq!(account(public, Some(host)), "999999999999", "{host}");
        }
        let named = "https://999999999999.dkr.ecr.local-1.example.com";
        assert_eq!(
            account(named, Some("999999999999.dkr.ecr.local-1.EXAMPLE.com:443")),
            "123456789012"
        );
    }

    #[test]
    fn the_host_of_an_account_addresses_it() {
        for public in ["https://registry.example.com", "http://127.0.0.1:5000"] {
            let (config, account) = (config(public), "999999999999".parse().unwrap());
            assert_eq!(
                config.account_of(config.url_of(&account).map(|url| url.authority).as_deref()),
                account
            );
        }
    }
}
