//! The settings of a registry as a whole.
//!
//! A registry does not record who set them. A setting that the manifest leaves out is left unchanged, even if it was set
//! before.

mod call;
mod decide;
mod desired;

pub use call::SettingsCall;
pub use decide::contested;
pub use desired::desired_settings;

use std::collections::BTreeMap;

use serde_json::Value;

use super::context::PlanContext;
use super::kinds::ObjectKind;
use super::model::ApiError;
use super::resources::ManifestInput;
use super::{Desired, Plan, RegistryDocument};
use wharfage_domain::scanning::ScanningConfiguration;

/// The kind of the resource that owns the settings.
const KIND: &str = "Registry";

/// The desired settings of a registry as a whole.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DesiredSettings {
    /// ECR account settings, by name.
    pub account_settings: BTreeMap<String, String>,
    /// The registry policy. `Some(None)` deletes it; `None` leaves it unchanged.
    pub policy: Option<Option<Value>>,
    /// The scanning configuration; `None` leaves it unchanged.
    pub scanning_configuration: Option<ScanningConfiguration>,
}

impl DesiredSettings {
    /// Returns the documents that the settings are in, in the order of locking.
    pub fn documents(&self) -> Vec<RegistryDocument> {
        let Self { account_settings, policy, scanning_configuration } = self;
        let documents = [
            (!account_settings.is_empty()).then_some(RegistryDocument::AccountSettings),
            scanning_configuration.as_ref().map(|_| RegistryDocument::ScanningConfiguration),
            policy.as_ref().map(|_| RegistryDocument::Policy),
        ];
        documents.into_iter().flatten().collect()
    }
}

/// The observed settings, as far as the desired state needs them, or why they cannot be read.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedSettings {
    /// The account settings, by name.
    pub account_settings: Result<BTreeMap<String, String>, ApiError>,
    /// The registry policy, if there is one.
    pub policy: Result<Option<Value>, ApiError>,
    /// The scanning configuration.
    pub scanning_configuration: Result<ScanningConfiguration, ApiError>,
}

impl Default for ObservedSettings {
    fn default() -> Self {
        Self {
            account_settings: Ok(BTreeMap::new()),
            policy: Ok(None),
            scanning_configuration: Ok(ScanningConfiguration::default()),
        }
    }
}

impl ObservedSettings {
    /// Returns why settings could not be read.
    pub fn errors(&self) -> impl Iterator<Item = &ApiError> {
        let Self { account_settings, policy, scanning_configuration } = self;
        let errors = [
            account_settings.as_ref().err(),
            policy.as_ref().err(),
            scanning_configuration.as_ref().err(),
        ];
        errors.into_iter().flatten()
    }
}

pub(crate) struct SettingsKind;

impl ObjectKind for SettingsKind {
    /// Does nothing: [`desired_settings`] reads them, also alone.
    fn read(_input: &ManifestInput<'_>, _desired: &mut Desired) {}

    fn plan<'a>(context: &mut PlanContext<'a>, plan: &mut Plan) {
        for decision in decide::decide(context.desired, context.observed) {
            plan.add(decision);
        }
    }
}
