//! Observes a registry and executes a plan, both through the ECR API: all I/O of reconciling, and none of its decisions.

mod client;
mod credentials;
pub mod error;
mod images;
mod interceptor;
mod kinds;
mod previews;
mod registry;
mod report;
mod repository;
mod response;
mod retry;
mod settings;
mod token;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

pub use client::{Connection, Ecr, Identity, is_loopback};
pub use images::{
    Children, MAX_IMAGE_IDS, StoredImage, Undeleted, archive, children, delete, images,
    reread_images,
};
pub use interceptor::CallObserver;
pub use kinds::{execute, observe};
pub use previews::{PreviewedPolicy, preview};
pub use registry::{ping, registry_id};
pub use report::{Previewed, PreviewedImage, Report, StepOutcome, Verdict};
pub use repository::{
    ImageUsage, Listed, Listing, RepositoryNeeds, find, list, observe_repository, usage,
};
pub use settings::observe_settings;
pub use token::{AuthorizationToken, authorization_token, host};

use wharfage_domain::names::RepositoryName;
use wharfage_plan::{Call, Plan, RepositoryCall, Step};

/// The time after which the report is completed without the remaining previews.
const PREVIEW_TIMEOUT: Duration = Duration::from_secs(30);

/// The progress of an apply.
#[derive(Debug)]
pub enum Progress<'a> {
    /// A step starts.
    Begun {
        /// Its number, from 1.
        number: usize,
        /// The number of all steps.
        of: usize,
        /// The step.
        step: &'a Step,
    },
    /// All steps are done except the previews of this many repositories, which the registry still evaluates.
    Previewing(usize),
    /// A step has ended.
    Ended(&'a StepOutcome),
}

/// Executes the steps in order and reports the outcome of each. A failed step stops only those that need the repository that it
/// was to create.
pub async fn apply(ecr: &Ecr, plan: &Plan, mut progress: impl FnMut(Progress<'_>)) -> Report {
    let mut outcomes = Vec::with_capacity(plan.steps.len());
    let mut arns: HashMap<&RepositoryName, String> = HashMap::new();
    let mut missing: HashSet<&RepositoryName> = HashSet::new();
    let mut previews = Vec::new();
    for (index, step) in plan.steps.iter().enumerate() {
        progress(Progress::Begun { number: index + 1, of: plan.steps.len(), step });
        let verdict = match step.repository() {
            Some(name) if missing.contains(name) => {
                Verdict::Skipped { message: format!("the repository {name} could not be created") }
            }
            name => {
                let arn = name.and_then(|name| arns.get(name).cloned());
                let remember = |_: &Call, created: Option<Listed>| {
                    if let (Some(name), Some(created)) = (name, created) {
                        arns.insert(name, created.arn);
                    }
                };
                match execute(ecr, step, arn.as_deref(), remember).await {
                    Ok(()) => Verdict::Done,
                    Err(error) => Verdict::Failed(error),
                }
            }
        };
        let creates = matches!(
            step.calls.first(),
            Some(Call::Repository(RepositoryCall::CreateRepository { .. }))
        );
        if let (Some(name), true) =
            (step.repository(), creates && !matches!(verdict, Verdict::Done))
        {
            // A repository that was created exists, even if a later call of the step failed.
            if !arns.contains_key(name) {
                missing.insert(name);
            }
        }
        let started = step.calls.iter().any(|call| {
            matches!(call, Call::Repository(RepositoryCall::StartLifecyclePolicyPreview(_)))
        });
        let outcome = StepOutcome::of(step, verdict);
        if started && matches!(outcome.verdict, Verdict::Done) {
            previews.push(outcomes.len());
        } else {
            progress(Progress::Ended(&outcome));
        }
        outcomes.push(outcome);
    }
    if !previews.is_empty() {
        progress(Progress::Previewing(previews.len()));
        let names = previews
            .iter()
            .filter_map(|index| outcomes[*index].key.repository().cloned())
            .collect();
        let mut results = previews::results(ecr, names, PREVIEW_TIMEOUT).await;
        for index in previews {
            let outcome: &mut StepOutcome = &mut outcomes[index];
            match outcome.key.repository().and_then(|name| results.remove(name)) {
                Some(Ok(previewed)) => outcome.preview = Some(previewed),
                Some(Err(error)) => outcome.verdict = Verdict::Failed(error),
                None => {}
            }
            progress(Progress::Ended(outcome));
        }
    }
    Report { outcomes }
}
