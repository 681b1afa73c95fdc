//! Secrets for any kind: those that an object refers to, and those that an object owns.
//!
//! - A kind that refers to Secrets lists them as [`SecretReference`]s. [`SecretWatches`] watches exactly those, by name, and
//!   requeues the object when one changes. Each reconcile reads them with [`SecretReference::read`] or [`read_all`].
//! - A kind that writes Secrets has a [`SecretClass`]. [`plan_secrets`] decides without I/O which Secrets to write and to
//!   delete, and [`SecretWriter`] does it.
//!
//! Values are secret: no `Debug`, log line or message contains them. No Secret is read that nothing refers to.

mod access_key;
mod content;
mod owned;
mod plan;
mod reference;
mod watches;
mod writer;

pub(crate) use access_key::{ACCESS_KEY_ID, KeyPair, SECRET_ACCESS_KEY, SESSION_TOKEN};
pub(crate) use content::{
    SecretContent, SecretContents, SecretError, SecretName, reference_not_found,
};
pub(crate) use owned::{OwnedSecret, SecretClass, SecretMark, SecretOwner, WatchedSecret};
pub(crate) use plan::{
    DesiredContent, SecretDeletion, SecretPlan, SecretWrite, WriteReason, plan_secrets,
    write_reason,
};
pub(crate) use reference::{SecretReference, read_all};
pub(crate) use watches::SecretWatches;
pub(crate) use writer::{SecretPlace, SecretWriter, create};

use super::policy_rule::{Feature, PolicyRule, RuleScope};

/// Permissions to watch and read Secrets by name.
pub(super) const RULES: &[PolicyRule] = &[PolicyRule {
    group: "",
    resources: &["secrets"],
    verbs: &["get", "list", "watch"],
    scope: RuleScope::Cluster,
    feature: Feature::Core,
    reason: "credentials and certificates that Registries name; only those are read",
}];
