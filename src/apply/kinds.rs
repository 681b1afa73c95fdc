//! Dispatches to the kinds of objects, each of which has a module that observes it and executes its calls.

use super::client::Ecr;
use super::repository::Listed;
use super::{repository, settings};
use wharfage_plan::model::ApiError;
use wharfage_plan::{Call, Desired, Observed, Step};

/// Observes what `desired` needs.
///
/// # Errors
/// When a kind cannot be listed. A single object that cannot be read is an error in the result.
pub async fn observe(ecr: &Ecr, desired: &Desired) -> Result<Observed, ApiError> {
    Ok(Observed {
        settings: settings::observe_settings(ecr, &desired.settings).await,
        repositories: repository::observe(ecr, desired).await?,
    })
}

/// Executes a step's calls in order, up to the first that fails. `arn` is the ARN of the step's repository, if the step does not
/// have it. `done` is called after each call that succeeded, with the repository that it created.
///
/// # Errors
/// The registry's error to the first call that failed.
pub async fn execute(
    ecr: &Ecr,
    step: &Step,
    arn: Option<&str>,
    mut done: impl FnMut(&Call, Option<Listed>),
) -> Result<(), ApiError> {
    let mut arn = step.arn.clone().or_else(|| arn.map(str::to_owned));
    for call in &step.calls {
        let mut created = None;
        match call {
            Call::Settings(it) => settings::execute(ecr, it).await?,
            Call::Repository(it) => {
                created = repository::execute(ecr, &step.key, arn.as_deref(), it).await?
            }
        }
        if let Some(created) = &created {
            arn = Some(created.arn.clone());
        }
        done(call, created);
    }
    Ok(())
}
