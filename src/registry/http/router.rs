//! Selects the protocol of a request by its method and path.

use std::sync::Arc;

use http::{Method, StatusCode};

use crate::message::{Request, Response, plain};
use crate::service::Registry;
use crate::{ecr, oci, query};

/// Answers one request: `/v2/*` is the OCI API, `POST /` the ECR API or, for a form, the AWS Query
/// protocol.
pub(crate) async fn route(registry: Arc<Registry>, request: Request) -> Response {
    let path = request.uri().path();
    if path == "/" {
        return match *request.method() {
            _ if query::is_query(&request) => query::handle(registry, request).await,
            Method::POST => ecr::handle(registry, request).await,
            Method::GET | Method::HEAD => front_page(&registry),
            _ => plain(
                StatusCode::METHOD_NOT_ALLOWED,
                "This path takes GET, and POST for the ECR API.\n",
            ),
        };
    }
    if path == "/v2" || path.starts_with("/v2/") {
        return oci::handle(registry, request).await;
    }
    plain(
        StatusCode::NOT_FOUND,
        "There is nothing here: the registry is at /v2/, the ECR API at POST /.\n",
    )
}

/// Creates the page that a browser shows at `/`.
fn front_page(registry: &Registry) -> Response {
    let config = &registry.config;
    let text = format!(
        "This is a Wharfage registry, at {} in region {}.\n\nImages: /v2/ (docker, crane, skopeo, oras). ECR API: POST / (aws ecr --endpoint-url {}).\n",
        config.public_url.authority, config.region, config.public_url
    );
    plain(StatusCode::OK, text)
}
