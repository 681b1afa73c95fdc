//! Outputs of the API. Handlers build JSON with `null` for absent members; rendering omits these.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::EcrCall;
use super::error::RepositoryRef;
use wharfage_store::images::TaggedImage;
use wharfage_store::repositories::Repository;

/// Renders an output without the members that are `null`.
pub(crate) fn render(mut output: Value) -> String {
    omit_absent(&mut output);
    output.to_string()
}

fn omit_absent(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(omit_absent);
        }
        Value::Array(entries) => entries.iter_mut().for_each(omit_absent),
        _ => {}
    }
}

/// Renders a time: seconds since the epoch, with milliseconds as a fraction.
pub(crate) fn time(timestamp: Timestamp) -> Value {
    json!(timestamp.as_millisecond() as f64 / 1000.0)
}

/// Renders an optional time.
pub(crate) fn optional_time(timestamp: Option<Timestamp>) -> Value {
    timestamp.map_or(Value::Null, time)
}

/// Renders ECR's `Repository`.
pub(crate) fn repository(call: &EcrCall, repository: &Repository) -> Value {
    let Repository { account, name, .. } = repository;
    json!({
        "repositoryArn": call.registry.arn(account, name).to_string(),
        "registryId": account,
        "repositoryName": name,
        "repositoryUri": call.registry.repository_uri(name),
        "createdAt": time(repository.created_at),
        "imageTagMutability": repository.tag_mutability.mode.as_str(),
        "imageTagMutabilityExclusionFilters": exclusion_filters(repository),
        "imageScanningConfiguration": { "scanOnPush": repository.scan_on_push },
        "encryptionConfiguration": {
            "encryptionType": repository.encryption.kind,
            "kmsKey": repository.encryption.kms_key,
        },
    })
}

/// Renders `imageTagMutabilityExclusionFilters`, absent when there are none.
pub(crate) fn exclusion_filters(repository: &Repository) -> Value {
    let filters = &repository.tag_mutability.exclusions;
    if filters.is_empty() {
        return Value::Null;
    }
    filters.iter().map(|filter| json!({ "filterType": "WILDCARD", "filter": filter })).collect()
}

/// Renders ECR's `ImageDetail`.
pub(crate) fn image_detail(repository_ref: &RepositoryRef, tagged: &TaggedImage) -> Value {
    let TaggedImage { image, tags } = tagged;
    json!({
        "registryId": repository_ref.account,
        "repositoryName": repository_ref.name,
        "imageDigest": image.digest,
        "imageTags": if tags.is_empty() { Value::Null } else { json!(tags) },
        "imageSizeInBytes": image.image_size,
        "imagePushedAt": time(image.pushed_at),
        "imageManifestMediaType": image.media_type,
        "artifactMediaType": image.artifact_type.as_ref().or(image.config_media_type.as_ref()),
        "lastRecordedPullTime": optional_time(image.last_pulled_at),
        "subjectManifestDigest": image.subject,
        "imageStatus": image.status.as_str(),
        "lastArchivedAt": optional_time(image.archived_at),
        "lastActivatedAt": optional_time(image.activated_at),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_members_are_omitted_at_any_depth() {
        let output =
            json!({ "a": null, "b": { "c": null, "d": 1 }, "e": [{ "f": null, "g": [] }] });
        assert_eq!(render(output), r#"{"b":{"d":1},"e":[{"g":[]}]}"#);
    }

    #[test]
    fn times_are_numbers_of_seconds() {
        let text = time("2023-11-14T22:13:20.123456Z".parse().unwrap()).to_string();
        assert_eq!(text, "1700000000.123");
    }
}
