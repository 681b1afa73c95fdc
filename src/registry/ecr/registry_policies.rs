//! The registry policy: checked, and stored unchanged.

use serde_json::{Value, json};

use super::EcrCall;
use super::error::EcrError;
use super::input::{self, input, required};
use super::registry::Nothing;
use super::repository_policies::MAX_LENGTH;
use wharfage_domain::names::AccountId;
use wharfage_domain::policy::{Kind, Policy};
use wharfage_store::registries::RegistryChange;

input! {
    /// The input of PutRegistryPolicy.
    Put { policy_text: String }
}

/// PutRegistryPolicy.
pub(crate) async fn put(call: &EcrCall, input: Put) -> Result<Value, EcrError> {
    let text = required("policyText", input.policy_text)?;
    input::length("policyText", &text, 0..=MAX_LENGTH)?;
    let policy = Policy::parse(Kind::Registry, &text)?;
    let account = &call.principal.account;
    call.authorize_registry(account)?;
    call.registry
        .metadata
        .change_registry(account, RegistryChange::Policy(Some(text.clone())))
        .await?;
    if policy.denies() {
        tracing::warn!(%account, "the registry's policy has a Deny; it is stored and not enforced yet");
    }
    Ok(output(account, &text))
}

/// GetRegistryPolicy.
pub(crate) async fn get(call: &EcrCall, _: Nothing) -> Result<Value, EcrError> {
    let account = &call.principal.account;
    call.authorize_registry(account)?;
    render(account, call.registry.metadata.registry_settings(account).await?.policy)
}

/// DeleteRegistryPolicy.
pub(crate) async fn delete(call: &EcrCall, _: Nothing) -> Result<Value, EcrError> {
    let account = &call.principal.account;
    call.authorize_registry(account)?;
    render(
        account,
        call.registry.metadata.change_registry(account, RegistryChange::Policy(None)).await?.policy,
    )
}

fn render(account: &AccountId, policy: Option<String>) -> Result<Value, EcrError> {
    let text = policy.ok_or_else(|| EcrError::RegistryPolicyNotFound(account.clone()))?;
    Ok(output(account, &text))
}

fn output(account: &AccountId, text: &str) -> Value {
    json!({ "registryId": account, "policyText": text })
}
