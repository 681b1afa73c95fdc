//! `wharfage env`: the shell lines that point clients at a running registry.

use std::path::PathBuf;

use anyhow::bail;

use crate::datadir::DataDir;

/// Variables that win over a configuration file, and so would point clients elsewhere.
const OVERRIDES: [&str; 8] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_ECR",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
];

/// The flags of `wharfage env`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  eval \"$(wharfage env)\"
  aws ecr create-repository --repository-name team/app
  aws ecr get-login-password | crane auth login -u AWS --password-stdin $WHARFAGE_REGISTRY
  eval \"$(wharfage env --registry us)\"       another of the folder's registries")]
pub struct Env {
    /// The data folder of the registry
    #[arg(long, env = "WHARFAGE_DATA", default_value = ".wharfage", value_name = "DIR")]
    data: PathBuf,

    /// Which registry, by its name; the first one if not given
    #[arg(long, value_name = "NAME")]
    registry: Option<String>,
}

impl Env {
    pub(super) fn run(self) -> anyhow::Result<()> {
        if !self.data.is_dir() {
            bail!("there is no data folder {}: run wharfage up FOLDER first, or name its --data", self.data.display());
        }
        let data = DataDir::open(&self.data)?;
        let started = data.started()?;
        let (default, chosen) = match &self.registry {
            None => (true, started.first()),
            Some(name) => (false, started.iter().find(|registry| registry.name == *name)),
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
        let overrides: Vec<&str> = OVERRIDES.into_iter().filter(|name| std::env::var_os(name).is_some()).collect();
        if !overrides.is_empty() {
            println!("unset {}", overrides.join(" "));
        }
        if !default {
            println!("export AWS_PROFILE={}", quoted(&chosen.name));
        } else if std::env::var_os("AWS_PROFILE").is_some() {
            println!("unset AWS_PROFILE");
        }
        println!("export AWS_CONFIG_FILE={}", quoted(&data.aws_config().to_string_lossy()));
        println!("export AWS_SHARED_CREDENTIALS_FILE={}", quoted(&data.aws_credentials().to_string_lossy()));
        println!("export WHARFAGE_REGISTRY={}", quoted(&chosen.authority));
        Ok(())
    }
}

/// The text as one word of a POSIX shell.
pub(super) fn quoted(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-:@%+=,".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn words_are_quoted_only_where_a_shell_needs_it() {
        assert_eq!(quoted("/srv/data-1/aws"), "/srv/data-1/aws");
        assert_eq!(quoted("/home/a b/x"), "'/home/a b/x'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted("$(rm)"), "'$(rm)'");
    }
}
