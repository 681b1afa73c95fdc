//! The AWS Query protocol at `/`: a signed form with an `Action`, and a response in XML. STS speaks
//! it.
//!
//! Source: "Making query requests" and "Common errors" of the STS API reference. GetCallerIdentity
//! is the only operation, because every key is its account's root: most tools call it before
//! anything else.

mod error;
mod sts;

use std::borrow::Cow;
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderValue, Method, StatusCode, header};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use self::error::QueryError;
use crate::auth::Principal;
use crate::auth::sigv4::{self, SignedRequest};
use crate::message::AMZ_TARGET;
use crate::message::body::{Body, RequestBody};
use crate::message::memory::Caller;
use crate::message::{OperationName, Request, RequestId, Response};
use crate::service::Registry;

const FORM: &str = "application/x-www-form-urlencoded";
/// The limit of a form in bytes: several times the largest that STS accepts.
const BODY_LIMIT: usize = 64 * 1024;

/// An operation: its `Action`, and the function that renders its result as XML elements.
struct QueryOperation {
    action: &'static str,
    run: fn(&Principal) -> String,
}

/// The operations of STS version [`sts::VERSION`].
static OPERATIONS: [QueryOperation; 1] =
    [QueryOperation { action: "GetCallerIdentity", run: sts::get_caller_identity }];

/// Returns whether a request to `/` speaks this protocol: a form, or an `Action` in the query. A
/// request with a target is for the ECR API.
pub(crate) fn is_query(request: &Request) -> bool {
    let content_type =
        request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let is_form = content_type
        .and_then(|text| text.split(';').next())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case(FORM));
    let has_action =
        || parameter(request.uri().query().unwrap_or_default().as_bytes(), "Action").is_some();
    match *request.method() {
        Method::POST => !request.headers().contains_key(AMZ_TARGET) && (is_form || has_action()),
        Method::GET => has_action(),
        _ => false,
    }
}

/// Answers one request.
pub(crate) async fn handle(registry: Arc<Registry>, request: Request) -> Response {
    let (head, mut body) = request.into_parts();
    let id = head.extensions.get::<RequestId>().map_or(Uuid::nil(), |id| id.0);
    let (name, answered) = match read(&registry, &head, &mut body).await {
        Ok((operation, principal)) => (operation.action, Ok(success(operation, &principal, id))),
        Err(error) => {
            body.drain().await;
            ("unknown operation", Err(error))
        }
    };
    let (status, xml) = match answered {
        Ok(xml) => (StatusCode::OK, xml),
        Err(error) => (error.status(), error.to_xml(id)),
    };
    let mut response = Response::new(Body::from(xml));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/xml"));
    response.extensions_mut().insert(OperationName(name));
    response
}

/// Reads and verifies a request; returns its operation and its principal.
async fn read(
    registry: &Registry,
    head: &Parts,
    body: &mut RequestBody,
) -> Result<(&'static QueryOperation, Principal), QueryError> {
    let now = Timestamp::now();
    let scope = sigv4::CredentialScope { region: &registry.config.region, service: sts::SERVICE };
    // Checks that need no body come before it is read.
    sigv4::check_claims(&head.uri, &head.headers, scope, &registry.keys, now)?;
    let (form, _account) = body.read_up_to(BODY_LIMIT, &Caller::Unverified(body.peer())).await?;
    let body_hash = Sha256::digest(&form).into();
    let signed =
        SignedRequest { method: &head.method, uri: &head.uri, headers: &head.headers, body_hash };
    let principal = sigv4::verify(signed, scope, &registry.keys, now)?;
    let query = head.uri.query().unwrap_or_default().as_bytes();
    let value = |name| parameter(&form, name).or_else(|| parameter(query, name));
    let action = value("Action").ok_or(QueryError::MissingAction)?;
    let version = value("Version");
    let known = version.as_deref() == Some(sts::VERSION);
    let found = OPERATIONS.iter().find(|operation| known && operation.action == action);
    let operation = found.ok_or_else(|| QueryError::invalid_action(&action, version.as_deref()))?;
    Ok((operation, principal))
}

/// Returns the first value of a form's parameter, decoded.
fn parameter<'a>(form: &'a [u8], name: &str) -> Option<Cow<'a, str>> {
    form_urlencoded::parse(form).find(|(key, _)| key == name).map(|(_, value)| value)
}

fn success(operation: &QueryOperation, principal: &Principal, id: Uuid) -> String {
    let QueryOperation { action, run } = operation;
    format!(
        "<{action}Response xmlns=\"{}\"><{action}Result>{}</{action}Result><ResponseMetadata>{}\
         </ResponseMetadata></{action}Response>\n",
        sts::NAMESPACE,
        run(principal),
        element("RequestId", &id.to_string()),
    )
}

/// Creates an element with text.
fn element(name: &str, text: &str) -> String {
    format!("<{name}>{}</{name}>", quick_xml::escape::partial_escape(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_the_first_counts() {
        let form = b"Action=Get%43allerIdentity&Version=2011-06-15&Action=Other&Empty=&a+b=c+d";
        assert_eq!(parameter(form, "Action").as_deref(), Some("GetCallerIdentity"));
        assert_eq!(parameter(form, "Empty").as_deref(), Some(""));
        assert_eq!(parameter(form, "a b").as_deref(), Some("c d"));
        assert_eq!(parameter(form, "action"), None);
        assert_eq!(parameter(b"\xff%zz&&==", "Action"), None);
    }

    #[test]
    fn text_in_an_element_is_escaped() {
        assert_eq!(element("Message", "<a & 'b'>"), "<Message>&lt;a &amp; 'b'&gt;</Message>");
    }
}
