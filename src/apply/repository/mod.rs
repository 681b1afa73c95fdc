//! Repositories, with their lifecycle policies.

mod execute;
mod observe;

pub(crate) use execute::execute;
pub(crate) use observe::observe;
pub use observe::{
    ImageUsage, Listed, Listing, RepositoryNeeds, find, list, observe_repository, usage,
};
