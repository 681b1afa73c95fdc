//! `wharfage env`: the shell lines that point clients at a running registry.

mod shell;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::output::say;
use crate::apply::is_loopback;
use crate::datadir::{DataDir, StartedRegistry};
pub(super) use shell::Shell;

/// Variables that take precedence over a configuration file, and so would point clients elsewhere
/// or sign as somebody else. The last two may not be set together with an endpoint: SDKs refuse
/// that.
const OVERRIDES: [&str; 20] = [
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_CREDENTIAL_EXPIRATION",
    "AWS_ACCOUNT_ID",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_USE_FIPS_ENDPOINT",
    "AWS_USE_DUALSTACK_ENDPOINT",
];

/// Begins the variables that name an endpoint: of every service, or of one.
const ENDPOINT: &str = "AWS_ENDPOINT_URL";

/// Variables that name a proxy for a registry's API.
const PROXIES: [&str; 6] =
    ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];

/// The flags of `wharfage env`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The lines unset every variable that would win over them. They reach clients that read endpoint_url from the
configuration file: aws CLI 2.13 and 1.29, boto3 1.28, and the AWS SDKs since then; docs/clients.md lists them.

Examples:
  eval \"$(wharfage env)\"
  aws ecr create-repository --repository-name team/app
  aws ecr get-login-password | crane auth login -u AWS --password-stdin $WHARFAGE_REGISTRY
  eval \"$(wharfage env --registry us)\"       another of the folder's registries
  wharfage env --shell fish | source
  wharfage env --shell powershell | Out-String | Invoke-Expression")]
pub struct Env {
    /// The data folder of the registry
    #[arg(long, env = "WHARFAGE_DATA", default_value = ".wharfage", value_name = "DIR")]
    data: PathBuf,

    /// Name of the registry; the first one if not given
    #[arg(long, value_name = "NAME")]
    registry: Option<String>,

    /// Whose language the lines are in
    #[arg(long, value_enum, default_value = "bash")]
    shell: Shell,
}

impl Env {
    pub(super) fn run(self) -> anyhow::Result<()> {
        if !self.data.is_dir() {
            bail!(
                "there is no data folder {}: run wharfage up FOLDER first, or name its --data",
                self.data.display()
            );
        }
        let data = DataDir::open(&self.data)?;
        let started = data.started()?;
        let (default, chosen) = match &self.registry {
            None => (true, started.first()),
            Some(name) => (false, started.iter().find(|registry| registry.name.as_str() == name)),
        };
        let Some(chosen) = chosen else {
            let names: Vec<&str> = started.iter().map(|registry| registry.name.as_str()).collect();
            bail!(
                "no registry {:?} was started from {}: there {} {}",
                self.registry.unwrap_or_default(),
                data.path().display(),
                if names.len() == 1 { "is" } else { "are" },
                names.join(", ")
            );
        };
        for line in lines(self.shell, &data, chosen, default, std::env::vars_os())? {
            say(format_args!("{line}"));
        }
        Ok(())
    }
}

/// The lines for a shell that has these variables.
fn lines(
    shell: Shell,
    data: &DataDir,
    chosen: &StartedRegistry,
    default: bool,
    variables: impl Iterator<Item = (std::ffi::OsString, std::ffi::OsString)>,
) -> anyhow::Result<Vec<String>> {
    let variables: Vec<(String, String)> = variables
        .filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
        })
        .collect();
    let wins = |name: &str| OVERRIDES.contains(&name) || name.starts_with(ENDPOINT);
    let mut gone: Vec<&str> =
        variables.iter().map(|(name, _)| name.as_str()).filter(|name| wins(name)).collect();
    gone.sort_unstable();
    let mut lines: Vec<String> = gone.into_iter().map(|name| shell.unset(name)).collect();
    if !default {
        lines.push(shell.set("AWS_PROFILE", chosen.name.as_str()));
    }
    lines.push(shell.set("AWS_CONFIG_FILE", text(&data.aws_config())?));
    lines.push(shell.set("AWS_SHARED_CREDENTIALS_FILE", text(&data.aws_credentials())?));
    lines.push(shell.set("WHARFAGE_REGISTRY", &chosen.authority));
    lines.extend(without_proxy(shell, chosen, &variables));
    Ok(lines)
}

/// Lines that keep clients from asking a proxy for a registry on loopback: it would look on its own machine.
fn without_proxy(
    shell: Shell,
    chosen: &StartedRegistry,
    variables: &[(String, String)],
) -> Vec<String> {
    let value = |name: &str| {
        variables.iter().find(|(it, value)| it == name && !value.is_empty()).map(|(_, value)| value)
    };
    if !is_loopback(&chosen.endpoint) || !PROXIES.iter().any(|name| value(name).is_some()) {
        return Vec::new();
    }
    let host = chosen
        .endpoint
        .parse::<http::Uri>()
        .ok()
        .and_then(|it| it.host().map(str::to_owned))
        .unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let mut lines = Vec::new();
    for name in ["no_proxy", "NO_PROXY"] {
        let others = value(name).or_else(|| value("no_proxy")).or_else(|| value("NO_PROXY"));
        let others = others.map(String::as_str).unwrap_or_default();
        if !others.split(',').any(|entry| entry.trim() == host || entry.trim() == "*")
            || value(name).is_none()
        {
            let all: Vec<&str> = others
                .split(',')
                .map(str::trim)
                .filter(|it| !it.is_empty() && *it != host)
                .chain([host])
                .collect();
            lines.push(shell.set(name, &all.join(",")));
        }
    }
    lines
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8: name another --data", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(endpoint: &str) -> StartedRegistry {
        StartedRegistry {
            name: "home".parse().unwrap(),
            endpoint: endpoint.to_owned(),
            authority: "127.0.0.1:5000".to_owned(),
            region: "local-1".parse().unwrap(),
            account: "123456789012".parse().unwrap(),
        }
    }

    fn printed(shell: Shell, endpoint: &str, variables: &[(&str, &str)]) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(folder.path()).unwrap();
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
        lines(shell, &data, &started(endpoint), true, variables).unwrap()
    }

    #[test]
    fn everything_that_would_win_is_unset_and_nothing_else() {
        let mut variables: Vec<(&str, &str)> = OVERRIDES.iter().map(|name| (*name, "x")).collect();
        variables.extend([
            ("AWS_ENDPOINT_URL", "x"),
            ("AWS_ENDPOINT_URL_ECR_PUBLIC", "x"),
            ("AWS_PAGER", ""),
            ("HOME", "/"),
        ]);
        let lines = printed(Shell::Bash, "http://127.0.0.1:5000", &variables);
        for name in OVERRIDES.iter().chain(&["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_ECR_PUBLIC"]) {
            assert!(lines.contains(&format!("unset {name}")), "{name} in {lines:?}");
        }
        assert_eq!(
            lines.iter().filter(|line| line.starts_with("unset ")).count(),
            OVERRIDES.len() + 2
        );
        assert!(
            printed(Shell::Bash, "http://127.0.0.1:5000", &[])
                .iter()
                .all(|line| line.starts_with("export "))
        );
    }

    #[test]
    fn a_proxy_is_never_asked_for_loopback() {
        let proxies = |endpoint: &str, variables: &[(&str, &str)]| {
            let lines = printed(Shell::Bash, endpoint, variables);
            lines
                .into_iter()
                .filter(|line| line.to_lowercase().contains("no_proxy"))
                .collect::<Vec<_>>()
        };
        let own = "http://127.0.0.1:5000";
        assert_eq!(
            proxies(own, &[("http_proxy", "http://p"), ("no_proxy", "a, b")]),
            ["export no_proxy=a,b,127.0.0.1", "export NO_PROXY=a,b,127.0.0.1"]
        );
        assert_eq!(
            proxies(
                own,
                &[("ALL_PROXY", "http://p"), ("no_proxy", "127.0.0.1"), ("NO_PROXY", "127.0.0.1")]
            ),
            Vec::<String>::new()
        );
        assert_eq!(proxies(own, &[("http_proxy", "")]), Vec::<String>::new());
        assert_eq!(
            proxies("https://registry.example.com", &[("https_proxy", "http://p")]),
            Vec::<String>::new()
        );
    }
}
