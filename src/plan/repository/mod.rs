//! Repositories.

mod call;
mod decide;
mod desired;
mod release;
mod simulate;

pub use call::RepositoryCall;
pub use decide::differences;
pub use desired::on_removal;
pub(crate) use release::release;

use super::context::PlanContext;
use super::kinds::ObjectKind;
use super::resources::ManifestInput;
use super::unenforced::unenforced;
use super::{Desired, Plan, Step};
use wharfage_crd::Managed as _;

/// The kind of the resources that own repositories.
pub(crate) const KIND: &str = "Repository";

pub(crate) struct RepositoryKind;

impl ObjectKind for RepositoryKind {
    fn read(input: &ManifestInput<'_>, desired: &mut Desired) {
        for resource in &input.resources.repositories {
            let Some(registry) = input.registry_of(&resource.registry_ref().name) else { continue };
            match desired::read(input.resources, registry, resource) {
                Ok(wanted) => {
                    let notes = unenforced(registry, &wanted);
                    desired
                        .notes
                        .extend(notes.iter().map(|note| format!("{}: {note}", wanted.object)));
                    desired.repositories.push(wanted);
                }
                Err(refused) => desired.refused.push(refused),
            }
        }
    }

    fn plan<'a>(context: &mut PlanContext<'a>, plan: &mut Plan) {
        let mut usable = Vec::new();
        for wanted in &context.desired.repositories {
            let decision = decide::decide(context, wanted);
            if decision.is_usable {
                usable.push((&wanted.name, wanted.object.namespace.as_str()));
            }
            plan.add(decision.step);
        }
        context.usable.extend(usable);
    }

    fn release(context: &PlanContext<'_>) -> Vec<Step> {
        let found = &context.observed.repositories.found;
        found.iter().filter_map(|(name, found)| release(context, name, found)).collect()
    }
}
