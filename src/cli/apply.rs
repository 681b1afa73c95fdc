//! `wharfage apply`: makes what the manifests say so.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use super::output::{print_error, say, say_error};
use super::reconcile::{
    Input, JsonOutput, Output, RegistryOutput, Target, execute, show_notes, show_unresolved,
};
use crate::plan::{Action, Plan};

/// The flags of `wharfage apply`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
What no manifest declares any more is released or deleted, as its deletionPolicy had said, if this owner and
this set of manifests made it. Deleting needs a yes: at the prompt, or by --yes. Without it nothing is changed,
in no registry.

Exit codes:
  0  everything is applied
  1  an error: a manifest or a resource is refused, a step failed, or a registry cannot be reached; all else was
     done. Or something was to be deleted, and nobody said yes: then nothing was done

Examples:
  wharfage apply -f deploy/quickstart
  kustomize build overlays/prod | wharfage apply -f registry.yaml -f -
  wharfage apply -f deploy/quickstart --yes --output json
  AWS_PROFILE=prod wharfage apply -f registries/amazon --cluster prod")]
pub struct Apply {
    #[command(flatten)]
    input: Input,

    /// Delete without a prompt
    #[arg(long, short)]
    yes: bool,
}

impl Apply {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let input = &self.input;
        let (manifests, targets, planner) = input.read().await?;
        let unresolved = input.unresolved(&manifests);
        let mut fine = unresolved.is_empty();
        // Everything is planned before anything changes, so that a refusal changes nothing at all.
        let mut planned = Vec::new();
        for target in &targets {
            let plan = target.plan(&manifests, &planner).await.map(|(_, plan)| plan);
            if input.output == Output::Text {
                match &plan {
                    Ok(plan) => say(format_args!("{}\n{plan}\n", target.heading())),
                    Err(error) => say_error(format_args!("error: {error:#}")),
                }
            }
            fine &= plan.as_ref().is_ok_and(|plan| plan.refused.is_empty());
            planned.push((target, plan));
        }
        let refusal = if self.yes { None } else { refusal(deletions(&planned)).await? };
        if let Some(refusal) = &refusal {
            fine = false;
            say_error(format_args!("error: {refusal}"));
        }
        let mut registries = Vec::new();
        for (target, plan) in planned {
            let (plan, error) = match plan {
                Ok(plan) => (Some(plan), None),
                Err(error) => (None, Some(format!("{error:#}"))),
            };
            let report = match &plan {
                Some(plan) if refusal.is_none() => {
                    Some(execute(target, plan, Some(input.output)).await)
                }
                _ => None,
            };
            fine &= report.as_ref().is_none_or(|report| report.succeeded());
            let error = error.or_else(|| refusal.clone());
            let (registry, place) = (target.name.clone(), target.place.clone());
            registries.push(RegistryOutput { registry, place, plan, report, error });
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
        Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Returns why the plans may not be executed: they delete, and nobody confirmed it.
async fn refusal(deletions: Vec<String>) -> anyhow::Result<Option<String>> {
    if deletions.is_empty() {
        return Ok(None);
    }
    let deletions = deletions.join(", ");
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Ok(Some(format!(
            "this deletes {deletions}: pass --yes to delete without a prompt. Nothing was changed"
        )));
    }
    let answer = tokio::task::spawn_blocking(move || {
        print_error(&format!("This deletes {deletions}. Go on? [y/N] "));
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).map(|_| answer)
    });
    let agreed = matches!(answer.await??.trim().to_lowercase().as_str(), "y" | "yes");
    Ok((!agreed).then(|| "nobody agreed to the deletions. Nothing was changed".to_owned()))
}

/// Returns what the plans delete, each with its registry where there are several.
fn deletions(planned: &[(&Target, anyhow::Result<Plan>)]) -> Vec<String> {
    let plans = planned.iter().filter_map(|(target, plan)| Some((target, plan.as_ref().ok()?)));
    let deleting = plans.flat_map(|(target, plan)| {
        let steps = plan.steps.iter().filter(|step| step.action == Action::Delete);
        steps.map(move |step| match planned.len() {
            1 => step.object.to_string(),
            _ => format!("{} in Registry {}", step.object, target.name),
        })
    });
    deleting.collect()
}
