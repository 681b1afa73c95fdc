//! Listing of a repository's tags.

use http::StatusCode;
use serde::Serialize;

use super::action::{MAX_PAGE, PageRequest};
use super::error::OciError;
use super::{OciCall, json, next_page};
use crate::message::Response;
use wharfage_domain::names::{RepositoryName, Tag};
use wharfage_store::StoreError;

#[derive(Serialize)]
struct TagList<'a> {
    name: &'a RepositoryName,
    tags: &'a [Tag],
}

/// end-8, in byte order, at most a thousand entries.
pub(super) async fn list(
    call: &OciCall,
    name: &RepositoryName,
    page: PageRequest,
) -> Result<Response, OciError> {
    let repository = call.repository(name).await?;
    let n = page.n.unwrap_or(MAX_PAGE);
    // One entry more than the page shows whether there is another page.
    let mut tags = match n {
        0 => Vec::new(),
        n => call.registry.metadata.list_tags(repository.id, page.last.as_deref(), n + 1).await?,
    };
    let more = tags.len() > n;
    tags.truncate(n);
    let body = serde_json::to_vec(&TagList { name, tags: &tags })
        .map_err(|error| StoreError::Inconsistent(format!("tags do not serialize: {error}")))?;
    let mut response = json(StatusCode::OK, body);
    if let Some(last) = tags.last().filter(|_| more) {
        next_page(&mut response, &format!("/v2/{name}/tags/list?n={n}&last={last}"))?;
    }
    Ok(response)
}
