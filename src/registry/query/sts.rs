//! The operations of the Security Token Service.

use super::element;
use crate::auth::Principal;

/// The service name in signatures.
pub(crate) const SERVICE: &str = "sts";
/// The API's version.
pub(crate) const VERSION: &str = "2011-06-15";
/// The XML namespace of responses.
pub(crate) const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";

/// GetCallerIdentity, which needs no permission. A root's UserId is its account's id.
pub(crate) fn get_caller_identity(principal: &Principal) -> String {
    let account = principal.account.as_str();
    [("Arn", &*principal.arn()), ("UserId", account), ("Account", account)]
        .map(|(name, text)| element(name, text))
        .concat()
}
