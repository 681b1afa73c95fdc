//! Executes a step: each of its calls becomes a call of aws-sdk-ecr. The calls of each kind of object are in a module of
//! their own.

use super::client::Ecr;
use super::observe::Listed;
use super::{repository, settings};
use wharfage_plan::model::ApiError;
use wharfage_plan::{Call, Step};

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
            Call::Repository(it) => created = repository::execute(ecr, &step.key, arn.as_deref(), it).await?,
        }
        if let Some(created) = &created {
            arn = Some(created.arn.clone());
        }
        done(call, created);
    }
    Ok(())
}
