//! `wharfage crds`: prints or writes the custom resource definitions.

use std::path::PathBuf;

use anyhow::Context as _;

use super::output::{print, say_error};
use crate::crd;

/// The flags of `wharfage crds`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wharfage crds | kubectl apply --server-side -f -
  wharfage crds --output crds")]
pub struct Crds {
    /// Write one file for each kind to this folder, instead of printing them
    #[arg(long, short, value_name = "DIR")]
    output: Option<PathBuf>,
}

impl Crds {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let files = crd::render()?;
        let Some(folder) = self.output else {
            for (_, text) in &files {
                print(&format!("---\n{}\n", text.trim_start_matches("---\n").trim_end()));
            }
            return Ok(());
        };
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        for (name, text) in &files {
            let path = folder.join(name);
            std::fs::write(&path, text)
                .with_context(|| format!("cannot write {}", path.display()))?;
            say_error(format_args!("wrote {}", path.display()));
        }
        Ok(())
    }
}
