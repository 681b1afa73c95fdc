//! The ECR API: `POST /` with an `X-Amz-Target`, AWS JSON 1.1, signed.
//!
//! A request is read within its operation's limit, authenticated, looked up in the table and passed
//! to its handler, which checks the input, authorizes, calls the store and renders. Nothing here
//! knows SQL or bytes on disk.

mod error;
mod images;
mod input;
mod layers;
mod lifecycle;
mod listings;
mod operations;
mod page;
mod registry;
mod registry_policies;
mod repositories;
mod repository_policies;
mod resource_tags;
mod scanning;
mod shapes;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;

use self::error::{EcrError, RepositoryRef};
use self::operations::Operation;
use crate::auth::{self, Principal, Resource, sigv4};
use crate::message::body::{Body, RequestBody};
use crate::message::memory::{self, Caller};
use crate::message::{AMZ_TARGET, OperationName, Request, Response};
use crate::service::Registry;
use wharfage_domain::names::{AccountId, RepositoryName};
use wharfage_process::budget::Account;
use wharfage_store::repositories::Repository;

const CONTENT_TYPE: &str = "application/x-amz-json-1.1";
/// The body limit of an unknown operation, in bytes.
const SMALL_BODY: usize = 256 * 1024;
/// Bodies up to this size are hashed and read in place; larger ones would block other requests.
const QUICK_BODY: usize = 128 * 1024;

/// The context of a call beside its input.
#[derive(Debug)]
pub(crate) struct EcrCall {
    registry: Arc<Registry>,
    principal: Principal,
    operation: &'static Operation,
    now: Timestamp,
    /// The memory of the parsed body and of the response.
    account: Mutex<Account>,
}

/// Answers one request.
pub(crate) async fn handle(registry: Arc<Registry>, request: Request) -> Response {
    let target = request.headers().get(AMZ_TARGET).map(HeaderValue::as_bytes).unwrap_or_default();
    let operation = operations::find(target);
    let name = operation.map_or("unknown operation", |operation| operation.name);
    let mut response = match answer(registry, operation, request).await {
        Ok(output) => json_response(StatusCode::OK, Body::from(output)),
        Err(error) => {
            if let Some(cause) = error.cause() {
                tracing::error!(operation = name, error = %cause, "the ECR API failed");
            }
            error.into_response()
        }
    };
    response.extensions_mut().insert(OperationName(name));
    response
}

async fn answer(
    registry: Arc<Registry>,
    operation: Option<&'static Operation>,
    request: Request,
) -> Result<Bytes, EcrError> {
    let (head, mut body) = request.into_parts();
    let output = run(registry, operation, &head, &mut body).await;
    if output.is_err() {
        body.drain().await;
    }
    output
}

async fn run(
    registry: Arc<Registry>,
    operation: Option<&'static Operation>,
    head: &http::request::Parts,
    body: &mut RequestBody,
) -> Result<Bytes, EcrError> {
    let now = Timestamp::now();
    let target = head.headers.get(AMZ_TARGET).map(HeaderValue::as_bytes).unwrap_or_default();
    let scope = sigv4::CredentialScope {
        region: &registry.config.region,
        service: operations::service(target),
    };
    // Checks that need no body come before it is read.
    let claimed = sigv4::check_claims(&head.uri, &head.headers, scope, &registry.keys, now)?;
    let limit = operation.map_or(SMALL_BODY, |operation| operation.body_limit);
    // The signature covers the body's hash, so it can only be checked after the whole body has
    // arrived.
    let (memory, peer) = (memory::process(), body.peer());
    let claimed = memory.claimed(peer, &claimed.access_key_id);
    let (body, mut account) = body.read_up_to(limit, &claimed).await?;
    let (body, body_hash) = hashed(body).await?;
    let signed = sigv4::SignedRequest {
        method: &head.method,
        uri: &head.uri,
        headers: &head.headers,
        body_hash,
    };
    let principal = sigv4::verify(signed, scope, &registry.keys, now)?;
    let caller = Caller::Verified(peer, Arc::clone(&principal.access_key_id));
    memory.remember(&caller);
    let operation = operation.ok_or_else(|| unknown_operation(head))?;
    // The parsed body takes about as much again, and so may the response.
    let held = 2 * body.len();
    if caller == claimed {
        account.hold(held, memory::TIMEOUT).await?;
    } else {
        let mut verified = memory.open(&caller, held);
        verified.hold(held, memory::TIMEOUT).await?;
        account = verified;
    }
    let call = EcrCall { registry, principal, operation, now, account: Mutex::new(account) };
    let output = Bytes::from((operation.run)(&call, body).await?);
    let mut account = call.account.into_inner();
    account.hold(output.len(), memory::TIMEOUT).await?;
    Ok(memory::held(output, account))
}

/// Returns the body with its SHA-256.
async fn hashed(body: Bytes) -> Result<(Bytes, [u8; 32]), EcrError> {
    let hash = |body: Bytes| {
        let hash = Sha256::digest(&body).into();
        (body, hash)
    };
    if body.len() <= QUICK_BODY {
        return Ok(hash(body));
    }
    tokio::task::spawn_blocking(move || hash(body))
        .await
        .map_err(|error| EcrError::Server(error.into()))
}

fn unknown_operation(head: &http::request::Parts) -> EcrError {
    EcrError::UnknownOperation(
        match head.headers.get(AMZ_TARGET).and_then(|target| target.to_str().ok()) {
            Some(target) => format!(
                "The operation '{}' is not available",
                target.chars().take(200).collect::<String>()
            ),
            None => "The request names no operation in its X-Amz-Target header".to_owned(),
        },
    )
}

/// Creates a response of the API.
fn json_response(status: StatusCode, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    response
}

impl EcrCall {
    /// Parses `registryId`: the caller's own account by default.
    fn account(&self, registry_id: Option<&str>) -> Result<AccountId, EcrError> {
        match registry_id {
            None => Ok(self.principal.account.clone()),
            Some(text) => input::matching("registryId", text, "[0-9]{12}"),
        }
    }

    /// Returns the repository that `registryId` and `repositoryName` name.
    fn repository_ref(
        &self,
        registry_id: Option<&str>,
        name: Option<&str>,
    ) -> Result<RepositoryRef, EcrError> {
        let name =
            input::repository_name("repositoryName", input::required("repositoryName", name)?)?;
        Ok(RepositoryRef { account: self.account(registry_id)?, name })
    }

    /// Checks the permission to call this operation on a registry.
    fn authorize_registry(&self, account: &AccountId) -> Result<(), EcrError> {
        Ok(auth::authorize(&self.principal, self.operation.action, Resource::Registry(account))?)
    }

    /// Checks the permission for an action on a repository, which need not exist.
    fn authorize_action(
        &self,
        action: &'static str,
        repository_ref: &RepositoryRef,
    ) -> Result<(), EcrError> {
        let resource = Resource::Repository(
            &self.registry.config.region,
            &repository_ref.account,
            &repository_ref.name,
        );
        Ok(auth::authorize(&self.principal, action, resource)?)
    }

    /// Checks the permission to call this operation on a repository.
    fn authorize(&self, repository_ref: &RepositoryRef) -> Result<(), EcrError> {
        self.authorize_action(self.operation.action, repository_ref)
    }

    /// Returns the repository after checking the permission. All other members of the input must
    /// have been checked before.
    async fn repository(&self, repository_ref: &RepositoryRef) -> Result<Repository, EcrError> {
        self.authorize(repository_ref)?;
        let found = self
            .registry
            .metadata
            .find_repository(&repository_ref.account, &repository_ref.name)
            .await?;
        found.ok_or_else(|| EcrError::RepositoryNotFound(repository_ref.clone()))
    }
}

impl RepositoryRef {
    fn new(account: &AccountId, name: &RepositoryName) -> Self {
        Self { account: account.clone(), name: name.clone() }
    }
}

#[cfg(test)]
mod tests;
