//! Resource tags: the labels of a repository, addressed by its ARN.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::EcrCall;
use super::error::{EcrError, RepositoryRef};
use super::input::{self, input, invalid, required};
use wharfage_domain::names::RepositoryArn;
use wharfage_store::repositories::{Repository, ResourceTag, TagResourceError};

/// The number of tags that a repository may have.
const MAX_TAGS: usize = 50;
/// The number of keys in an UntagResource: a repository cannot have more tags.
const MAX_KEYS: i64 = 200;

/// ECR's `Tag`: the only structure of the API with capitalized members.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Tag {
    key: Option<String>,
    value: Option<String>,
    #[serde(flatten)]
    _object: (),
}

/// Checks tags before they are written.
pub(crate) fn check(tags: Vec<Tag>) -> Result<Vec<ResourceTag>, EcrError> {
    if tags.len() > MAX_TAGS {
        return Err(EcrError::TooManyTags(MAX_TAGS));
    }
    let mut keys = HashSet::new();
    let mut checked = Vec::with_capacity(tags.len());
    for tag in tags {
        let fault = |member, reason: &str| EcrError::InvalidTagParameter {
            member,
            reason: reason.to_owned().into(),
        };
        let in_key = |reason: &str| fault("tags.Key".into(), reason);
        let in_value = |reason: &str| fault("tags.Value".into(), reason);
        let key = tag.key.ok_or_else(|| in_key("Member must not be null"))?;
        let value = tag.value.ok_or_else(|| in_value("Member must not be null"))?;
        match key.chars().count() {
            0 => return Err(in_key("Member must have length greater than or equal to 1")),
            129.. => return Err(in_key("Member must have length less than or equal to 128")),
            _ => {}
        }
        if value.chars().count() > 256 {
            return Err(in_value("Member must have length less than or equal to 256"));
        }
        if !is_plain(&key) {
            return Err(in_key("Member must have letters, numbers, spaces and _.:/=+-@ only"));
        }
        if !is_plain(&value) {
            return Err(in_value("Member must have letters, numbers, spaces and _.:/=+-@ only"));
        }
        if key.get(..4).is_some_and(|prefix| prefix.eq_ignore_ascii_case("aws:")) {
            return Err(in_key("Member must not begin with the reserved prefix aws:"));
        }
        if !keys.insert(key.clone()) {
            return Err(in_key(&format!("The key '{key}' is given more than once")));
        }
        checked.push(ResourceTag { key, value });
    }
    Ok(checked)
}

/// Returns whether AWS allows a character in tags of any service.
fn is_plain(text: &str) -> bool {
    text.chars().all(|c| c.is_alphanumeric() || c == ' ' || "_.:/=+-@".contains(c))
}

/// Returns the repository of an ARN after checking the permission.
async fn repository(call: &EcrCall, arn: Option<String>) -> Result<Repository, EcrError> {
    let arn = required("resourceArn", arn)?;
    let arn: RepositoryArn = arn.parse().map_err(|_| invalid("resourceArn", "Invalid ARN"))?;
    if arn.region != call.registry.config.region {
        return Err(invalid("resourceArn", "Invalid ARN"));
    }
    call.repository(&RepositoryRef { account: arn.account, name: arn.name }).await
}

input! {
    /// The input of TagResource.
    TagResource { resource_arn: String, tags: Vec<Tag> }
}

/// TagResource.
pub(crate) async fn tag(call: &EcrCall, input: TagResource) -> Result<Value, EcrError> {
    let tags = check(required("tags", input.tags)?)?;
    let repository = repository(call, input.resource_arn).await?;
    call.registry.metadata.tag_resource(repository.id, tags, MAX_TAGS).await.map_err(|error| {
        match error {
            TagResourceError::NotFound => EcrError::RepositoryNotFound(RepositoryRef::new(
                &repository.account,
                &repository.name,
            )),
            TagResourceError::TooMany(limit) => EcrError::TooManyTags(limit),
            TagResourceError::Store(error) => error.into(),
        }
    })?;
    Ok(json!({}))
}

input! {
    /// The input of UntagResource.
    UntagResource { resource_arn: String, tag_keys: Vec<String> }
}

/// UntagResource.
pub(crate) async fn untag(call: &EcrCall, input: UntagResource) -> Result<Value, EcrError> {
    let keys = required("tagKeys", input.tag_keys)?;
    input::count("tagKeys", &keys, 0..=MAX_KEYS)?;
    for key in &keys {
        input::length("tagKeys", key, 1..=128)?;
    }
    let repository = repository(call, input.resource_arn).await?;
    call.registry.metadata.untag_resource(repository.id, &keys).await?;
    Ok(json!({}))
}

input! {
    /// The input of ListTagsForResource.
    ListTags { resource_arn: String }
}

/// ListTagsForResource.
pub(crate) async fn list(call: &EcrCall, input: ListTags) -> Result<Value, EcrError> {
    let repository = repository(call, input.resource_arn).await?;
    let tags = call.registry.metadata.list_resource_tags(repository.id).await?;
    let tags: Vec<Value> =
        tags.into_iter().map(|tag| json!({ "Key": tag.key, "Value": tag.value })).collect();
    Ok(json!({ "tags": tags }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(key: &str, value: &str) -> Tag {
        Tag { key: Some(key.into()), value: Some(value.into()), ..Default::default() }
    }

    #[test]
    fn tags_keep_their_constraints() {
        assert!(check(vec![tag("team", ""), tag("wharfage.dev/name", "größer +1")]).is_ok());
        assert!(check(vec![tag(&"k".repeat(128), &"v".repeat(256))]).is_ok());
        for (tags, expected) in [
            (vec![tag("", "v")], "greater than or equal to 1"),
            (vec![tag(&"k".repeat(129), "v")], "less than or equal to 128"),
            (vec![tag("k", &"v".repeat(257))], "less than or equal to 256"),
            (vec![tag("k!", "v")], "letters, numbers"),
            (vec![tag("k", "v\n")], "letters, numbers"),
            (vec![tag("AWS:k", "v")], "reserved prefix"),
            (vec![tag("k", "1"), tag("k", "2")], "more than once"),
            (vec![Tag { key: Some("k".into()), ..Default::default() }], "must not be null"),
        ] {
            let refused = check(tags).unwrap_err();
            assert_eq!(refused.code(), "InvalidTagParameterException");
            assert!(refused.to_string().contains(expected), "{refused}");
        }
        let many = (0..51).map(|i| tag(&format!("k{i}"), "")).collect();
        assert_eq!(check(many).unwrap_err().code(), "TooManyTagsException");
    }
}
