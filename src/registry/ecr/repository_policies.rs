//! Repository policies: checked, and stored unchanged.

use serde_json::{Value, json};

use super::EcrCall;
use super::error::{EcrError, RepositoryRef};
use super::input::{self, input, invalid, required};
use super::repositories::change;
use wharfage_domain::policy::{InvalidPolicy, Kind, Policy, Principal};
use wharfage_store::repositories::RepositoryChange;

/// The longest `policyText`.
pub(crate) const MAX_LENGTH: i64 = wharfage_domain::policy::MAX_LENGTH as i64;

impl From<InvalidPolicy> for EcrError {
    fn from(error: InvalidPolicy) -> Self {
        Self::InvalidParameterText(error.to_string())
    }
}

input! {
    /// The input of SetRepositoryPolicy.
    Set { registry_id: String, repository_name: String, policy_text: String, force: bool }
}

/// SetRepositoryPolicy. Without `force`, a policy that keeps its caller from setting another one is
/// refused.
pub(crate) async fn set(call: &EcrCall, input: Set) -> Result<Value, EcrError> {
    let repository_ref =
        call.repository_ref(input.registry_id.as_deref(), input.repository_name.as_deref())?;
    let text = required("policyText", input.policy_text)?;
    input::length("policyText", &text, 0..=MAX_LENGTH)?;
    let policy = Policy::parse(Kind::Repository, &text)?;
    if !input.force.unwrap_or(false) && locks_out(call, &policy) {
        return Err(invalid(
            "PolicyText",
            "The policy would keep you from setting another one: say force if that is what you want",
        ));
    }
    let repository = call.repository(&repository_ref).await?;
    change(call, &repository_ref, repository.id, RepositoryChange::Policy(Some(text.clone())))
        .await?;
    if policy.denies() {
        let RepositoryRef { account, name } = &repository_ref;
        tracing::warn!(%account, repository = %name, "a repository policy has a Deny; it is stored and not enforced yet");
    }
    Ok(output(&repository_ref, &text))
}

fn locks_out(call: &EcrCall, policy: &Policy) -> bool {
    Principal::parse_aws(&call.principal.arn()).is_ok_and(|caller| policy.locks_out(&caller))
}

input! {
    /// The input of GetRepositoryPolicy and DeleteRepositoryPolicy.
    Which { registry_id: String, repository_name: String }
}

/// GetRepositoryPolicy.
pub(crate) async fn get(call: &EcrCall, input: Which) -> Result<Value, EcrError> {
    let repository_ref =
        call.repository_ref(input.registry_id.as_deref(), input.repository_name.as_deref())?;
    match call.repository(&repository_ref).await?.policy {
        Some(text) => Ok(output(&repository_ref, &text)),
        None => Err(EcrError::RepositoryPolicyNotFound(repository_ref)),
    }
}

/// DeleteRepositoryPolicy.
pub(crate) async fn delete(call: &EcrCall, input: Which) -> Result<Value, EcrError> {
    let repository_ref =
        call.repository_ref(input.registry_id.as_deref(), input.repository_name.as_deref())?;
    let repository = call.repository(&repository_ref).await?;
    let Some(text) = repository.policy else {
        return Err(EcrError::RepositoryPolicyNotFound(repository_ref));
    };
    change(call, &repository_ref, repository.id, RepositoryChange::Policy(None)).await?;
    Ok(output(&repository_ref, &text))
}

fn output(repository_ref: &RepositoryRef, text: &str) -> Value {
    json!({ "registryId": repository_ref.account, "repositoryName": repository_ref.name, "policyText": text })
}
