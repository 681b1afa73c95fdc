//! `wharfage rbac`: prints or writes what the operator may do in a cluster.

use std::path::PathBuf;

use anyhow::Context as _;

use super::output::print;
use crate::operator::rbac;

/// The flags of `wharfage rbac`.
#[derive(Debug, clap::Args)]
#[command(after_help = "The chart makes roles of it: charts/wharfage/templates/rbac.yaml.

Example:
  wharfage rbac | grep -A 5 secrets")]
pub struct Rbac {
    /// Write it to this file, instead of printing it
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Rbac {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let text = rbac::render()?;
        match self.output {
            Some(path) => std::fs::write(&path, text)
                .with_context(|| format!("cannot write {}", path.display())),
            None => {
                print(&text);
                Ok(())
            }
        }
    }
}
