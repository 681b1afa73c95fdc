//! `wharfage check`: reports whether the operator of a cluster can work. `helm test` runs it with
//! the operator's own identity.

use std::time::Duration;

use anyhow::bail;
use kube::Client;

use super::output::say;
use crate::operator::check::{Expected, Finding, check_kinds, check_leader, check_permissions};
use crate::operator::cluster;
use crate::operator::policy_rule::Feature;

/// The flags of `wharfage check`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
It says what is missing, and exits 1 if anything is.

Example:
  helm test wharfage --namespace wharfage --logs")]
pub struct Check {
    /// The operator's namespace
    #[arg(long, env = "POD_NAMESPACE", default_value = "wharfage", value_name = "NAMESPACE")]
    namespace: String,

    /// The Lease that a running operator must hold; not checked by default
    #[arg(long, value_name = "NAME")]
    lease_name: Option<String>,

    /// Time to wait for an operator that leads, in seconds
    #[arg(long, default_value = "60", value_name = "SECONDS")]
    timeout: u64,

    /// A feature that is disabled in this operator; may be repeated
    #[arg(long, value_enum, value_name = "FEATURE")]
    without: Vec<Feature>,

    /// The only namespace whose Secrets it reaches; may be given several times
    #[arg(long, value_name = "NAMESPACE")]
    secret_namespace: Vec<String>,

    /// A namespace in which managed registries may run, besides its own; may be given several times
    #[arg(long, value_name = "NAMESPACE")]
    managed_namespace: Vec<String>,
}

impl Check {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let client = Client::try_from(cluster().await?)?;
        let mut findings = check_kinds(&client).await?;
        let expected = Expected {
            namespace: self.namespace,
            without: self.without,
            secret_namespaces: self.secret_namespace,
            managed_namespaces: self.managed_namespace,
        };
        findings.extend(check_permissions(&client, &expected).await?);
        if let Some(lease) = &self.lease_name {
            findings.push(
                check_leader(
                    &client,
                    &expected.namespace,
                    lease,
                    Duration::from_secs(self.timeout),
                )
                .await?,
            );
        }
        let mut missing = 0;
        for finding in findings {
            match finding {
                Finding::Fine(sentence) => say(format_args!("ok    {sentence}")),
                Finding::Missing(sentence) => {
                    missing += 1;
                    say(format_args!("FAIL  {sentence}"));
                }
            }
        }
        if missing > 0 {
            bail!("{missing} of what the operator needs is missing");
        }
        Ok(())
    }
}
