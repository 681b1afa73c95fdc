//! HTTP messages as the protocols see them: requests, responses, and bodies within a memory budget.

pub(crate) mod body;
pub mod memory;

use http::{HeaderName, HeaderValue, StatusCode, header};

use body::{Body, RequestBody};

/// A request from the wire, with its [`RequestId`] among its extensions.
pub(crate) type Request = http::Request<RequestBody>;
/// A response of any protocol. A handler adds its [`OperationName`] to the extensions, for metrics
/// and the log.
pub(crate) type Response = http::Response<Body>;

/// The header in which an AWS JSON request names its operation.
pub(crate) const AMZ_TARGET: HeaderName = HeaderName::from_static("x-amz-target");

/// The seconds after which a client may retry when there was no connection or memory for its
/// request.
pub(crate) const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// The id of a request in the log and in its response (`x-amzn-RequestId`, `X-Request-Id`).
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestId(pub(crate) uuid::Uuid);

/// The operation of a request as metrics and the log name it: an ECR operation or `GET manifest`
/// and the like. It comes from a closed set, never from a client's input.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OperationName(pub(crate) &'static str);

/// Creates a plain text response.
pub(crate) fn plain(status: StatusCode, text: impl Into<String>) -> Response {
    let mut response = Response::new(Body::from(text.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
