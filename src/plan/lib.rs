//! Computes a plan: `plan(desired, observed)` returns the changes to one registry as data that can be printed, compared and
//! executed.
//!
//! Pure: no I/O and no clock. File mode and the operator run the same function. The kinds of objects that a plan manages are
//! listed in `kinds`.

mod context;
mod desired;
mod diff;
pub mod document;
mod field_change;
pub mod identity;
mod key;
mod kinds;
mod lifecycle_policy;
pub mod model;
pub mod ownership;
#[cfg(test)]
mod properties;
mod repository;
mod resources;
mod settings;
mod step;
#[cfg(test)]
mod tests;
mod unenforced;

pub use desired::{desired, desired_in_cluster, unresolved};
pub use field_change::FieldChange;
pub use key::{ObjectKey, RegistryDocument};
pub use kinds::{Call, Desired, Observed, plan};
pub use lifecycle_policy::equivalent as equivalent_policies;
pub use repository::{RepositoryCall, differences, on_removal};
pub use resources::Resources;
pub use settings::{DesiredSettings, ObservedSettings, SettingsCall, contested, desired_settings};
pub use step::{Action, Object, Plan, Step};
pub use unenforced::{unenforced, unenforced_settings};
