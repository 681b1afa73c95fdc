//! The registry as a whole: its description, its account settings and authorization tokens.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::error::EcrError;
use super::input::{self, input, required};
use super::{EcrCall, shapes};
use crate::auth::sigv4::AuthError;
use crate::auth::token;

input! {
    /// The input of operations without members.
    Nothing {}
}

/// DescribeRegistry.
pub(crate) async fn describe(call: &EcrCall, _: Nothing) -> Result<Value, EcrError> {
    call.authorize_registry(&call.principal.account)?;
    Ok(json!({ "registryId": call.principal.account, "replicationConfiguration": { "rules": [] } }))
}

input! {
    /// The input of GetAuthorizationToken.
    GetAuthorizationToken { registry_ids: Vec<String> }
}

/// GetAuthorizationToken. The token belongs to the caller's identity, whatever registries the input
/// names.
pub(crate) async fn get_authorization_token(
    call: &EcrCall,
    input: GetAuthorizationToken,
) -> Result<Value, EcrError> {
    const IDS: &str = "registryIds";
    let accounts = match input.registry_ids {
        None => vec![call.principal.account.clone()],
        Some(ids) => {
            input::count(IDS, &ids, 1..=10)?;
            ids.iter().map(|id| input::matching(IDS, id, "[0-9]{12}")).collect::<Result<_, _>>()?
        }
    };
    call.authorize_registry(&call.principal.account)?;
    let key = call
        .registry
        .keys
        .get(&call.principal.access_key_id)
        .ok_or(AuthError::UnrecognizedClient)?;
    let (token, expires_at) = token::issue(key, call.now)?;
    let token = BASE64.encode(format!("AWS:{token}"));
    let data = accounts.iter().map(|account| {
        let endpoint = call.registry.config.url_of(account).ok_or_else(|| {
            input::invalid(
                IDS,
                "This registry is reached by an IP address, so other accounts have no host",
            )
        })?;
        Ok(json!({
            "authorizationToken": token,
            "expiresAt": shapes::time(expires_at),
            "proxyEndpoint": endpoint.to_string(),
        }))
    });
    Ok(json!({ "authorizationData": data.collect::<Result<Vec<Value>, EcrError>>()? }))
}

/// The account settings: name and allowed values, the default first.
pub(crate) const ACCOUNT_SETTINGS: [(&str, &[&str]); 3] = [
    ("BASIC_SCAN_TYPE_VERSION", &["AWS_NATIVE", "CLAIR"]),
    ("BLOB_MOUNTING", &["DISABLED", "ENABLED"]),
    ("REGISTRY_POLICY_SCOPE", &["V2", "V1"]),
];

/// Returns the allowed values of a setting.
fn values_of(name: Option<String>) -> Result<(String, &'static [&'static str]), EcrError> {
    let name = required("name", name)?;
    input::length("name", &name, 1..=64)?;
    let values = input::one_of("name", &name, &ACCOUNT_SETTINGS)?;
    Ok((name, values))
}

input! {
    /// The input of GetAccountSetting.
    GetAccountSetting { name: String }
}

/// GetAccountSetting.
pub(crate) async fn get_account_setting(
    call: &EcrCall,
    input: GetAccountSetting,
) -> Result<Value, EcrError> {
    let (name, values) = values_of(input.name)?;
    call.authorize_registry(&call.principal.account)?;
    let settings = call.registry.metadata.list_account_settings(&call.principal.account).await?;
    let value = settings.get(&name).map(String::as_str).or(values.first().copied());
    Ok(json!({ "name": name, "value": value }))
}

input! {
    /// The input of PutAccountSetting.
    PutAccountSetting { name: String, value: String }
}

/// PutAccountSetting.
pub(crate) async fn put_account_setting(
    call: &EcrCall,
    input: PutAccountSetting,
) -> Result<Value, EcrError> {
    let (name, values) = values_of(input.name)?;
    let value = required("value", input.value)?;
    let variants: Vec<(&'static str, ())> = values.iter().map(|value| (*value, ())).collect();
    input::one_of("value", &value, &variants)?;
    call.authorize_registry(&call.principal.account)?;
    call.registry.metadata.put_account_setting(&call.principal.account, &name, &value).await?;
    Ok(json!({ "name": name, "value": value }))
}
