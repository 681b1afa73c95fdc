//! `wharfage plan`: prints what would change, and changes nothing.

use std::process::ExitCode;

use super::output::{say, say_error};
use super::reconcile::{Input, JsonOutput, Output, RegistryOutput, show_notes, show_unresolved};

/// The exit code if something would change and nothing is wrong.
const WOULD_CHANGE: u8 = 2;

/// The flags of `wharfage plan`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes:
  0  nothing would change
  2  something would
  1  an error: a manifest or a resource is refused, or a registry cannot be reached

Examples:
  wharfage plan -f deploy/quickstart
  kustomize build overlays/prod | wharfage plan -f registry.yaml -f -
  wharfage plan -f deploy/quickstart --registry home --output json
  AWS_PROFILE=prod wharfage plan -f registries/amazon --cluster prod")]
pub struct Plan {
    #[command(flatten)]
    input: Input,
}

impl Plan {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let input = &self.input;
        let (manifests, targets, planner) = input.read().await?;
        let unresolved = input.unresolved(&manifests);
        let (mut refused, mut changes) = (!unresolved.is_empty(), false);
        let mut registries = Vec::new();
        for target in &targets {
            let (plan, error) = match target.plan(&manifests, &planner).await {
                Ok((_, plan)) => (Some(plan), None),
                Err(error) => (None, Some(format!("{error:#}"))),
            };
            refused |=
                error.is_some() || plan.as_ref().is_some_and(|plan| !plan.refused.is_empty());
            changes |= plan.as_ref().is_some_and(|plan| !plan.is_empty());
            if input.output == Output::Text {
                match (&plan, &error) {
                    (Some(plan), _) => say(format_args!("{}\n{plan}\n", target.heading())),
                    (None, error) => {
                        say_error(format_args!("error: {}", error.as_deref().unwrap_or_default()))
                    }
                }
            }
            let (registry, place) = (target.name.clone(), target.place.clone());
            registries.push(RegistryOutput { registry, place, plan, report: None, error });
        }
        match input.output {
            Output::Text => {
                show_unresolved(&unresolved);
                show_notes(&manifests.notes, Output::Text);
            }
            Output::Json => {
                let (refused, notes) = (unresolved, manifests.notes);
                JsonOutput { registries, refused, notes, ..JsonOutput::default() }.print()?;
            }
        }
        Ok(match (refused, changes) {
            (true, _) => ExitCode::FAILURE,
            (false, true) => ExitCode::from(WOULD_CHANGE),
            (false, false) => ExitCode::SUCCESS,
        })
    }
}
