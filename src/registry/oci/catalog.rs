//! The catalog of repositories, which the distribution spec has dropped and clients still use.

use http::StatusCode;
use serde::Serialize;

use super::action::{MAX_PAGE, PageRequest};
use super::error::OciError;
use super::{OciCall, encoded, json, next_page};
use crate::message::Response;
use wharfage_store::StoreError;

#[derive(Serialize)]
struct Catalog<'a> {
    repositories: Vec<&'a str>,
}

/// `GET /v2/_catalog`, in byte order, at most a thousand entries.
pub(super) async fn list(call: &OciCall, page: PageRequest) -> Result<Response, OciError> {
    let n = page.n.unwrap_or(MAX_PAGE);
    let account = &call.registry.config.account;
    let mut found = match n {
        0 => Vec::new(),
        n => call.registry.metadata.list_repositories(account, page.last.as_deref(), n + 1).await?,
    };
    let more = found.len() > n;
    found.truncate(n);
    let repositories: Vec<&str> = found.iter().map(|repository| repository.name.as_str()).collect();
    let last = repositories.last().copied().filter(|_| more);
    let next = last.map(|last| format!("/v2/_catalog?n={n}&last={}", encoded(last)));
    let body = serde_json::to_vec(&Catalog { repositories })
        .map_err(|error| StoreError::Inconsistent(format!("names do not serialize: {error}")))?;
    let mut response = json(StatusCode::OK, body);
    if let Some(next) = next {
        next_page(&mut response, &next)?;
    }
    Ok(response)
}
