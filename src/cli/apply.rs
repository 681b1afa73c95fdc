//! `wharfage apply`: makes what the manifests say so.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use super::reconcile::{Input, JsonOutput, Output, RegistryOutput, carry_out, say, show_unresolved};
use crate::plan::{Action, Plan};

/// The flags of `wharfage apply`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes:
  0  the manifests hold
  1  an error: a manifest or a resource is refused, a step failed, or a registry cannot be reached; all else was done

Examples:
  wharfage apply -f deploy/quickstart
  wharfage apply -f deploy/quickstart --yes --output json
  AWS_PROFILE=prod wharfage apply -f registries/amazon")]
pub struct Apply {
    #[command(flatten)]
    input: Input,

    /// Delete without asking; only on a terminal is asked at all
    #[arg(long, short)]
    yes: bool,
}

impl Apply {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let input = &self.input;
        let (manifests, targets) = input.read().await?;
        let unresolved = input.unresolved(&manifests);
        let mut fine = unresolved.is_empty();
        let mut registries = Vec::new();
        for target in &targets {
            let (registry, place) = (target.name.clone(), target.place.clone());
            let plan = match input.plan(&manifests, target).await {
                Ok(plan) => plan,
                Err(error) => {
                    fine = false;
                    let error = format!("{error:#}");
                    if input.output == Output::Text {
                        eprintln!("error: {error}");
                    }
                    registries.push(RegistryOutput { registry, place, plan: None, report: None, error: Some(error) });
                    continue;
                }
            };
            if input.output == Output::Text {
                say(format_args!("{}\n{plan}\n", target.heading()));
            }
            fine &= plan.refused.is_empty();
            let report = if self.yes || confirmed(&plan).await? {
                let report = carry_out(target, &plan, Some(input.output)).await;
                fine &= report.succeeded();
                Some(report)
            } else {
                fine = false;
                eprintln!("Registry {registry}: nothing was changed");
                None
            };
            registries.push(RegistryOutput { registry, place, plan: Some(plan), report, error: None });
        }
        match input.output {
            Output::Text => show_unresolved(&unresolved),
            Output::Json => JsonOutput { registries, refused: unresolved }.print()?,
        }
        Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Whether the plan may be carried out: it deletes nothing, nobody sits there, or whoever does agrees.
async fn confirmed(plan: &Plan) -> anyhow::Result<bool> {
    let deletions: Vec<String> = {
        let steps = plan.steps.iter().filter(|step| step.action == Action::Delete);
        steps.map(|step| format!("{}", step.object)).collect()
    };
    if deletions.is_empty() || !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Ok(true);
    }
    let answer = tokio::task::spawn_blocking(move || {
        eprint!("This deletes {}. Go on? [y/N] ", deletions.join(", "));
        std::io::stderr().flush()?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).map(|_| answer)
    });
    Ok(matches!(answer.await??.trim().to_lowercase().as_str(), "y" | "yes"))
}
