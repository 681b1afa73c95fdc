//! The JSON of a manifest, and its descriptors.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::InvalidManifest;
use super::error::content;
use super::media_type::{limited_text, shortened};
use wharfage_domain::names::Digest;

/// The members of every kind that the registry reads; others are stored with the payload.
/// A duplicate member is refused: two readers could take different ones.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WireManifest<'a> {
    pub(super) schema_version: Option<i64>,
    #[serde(borrow)]
    pub(super) media_type: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) artifact_type: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) config: Option<Descriptor<'a>>,
    #[serde(borrow, default, deserialize_with = "list")]
    pub(super) layers: Option<Vec<Descriptor<'a>>>,
    #[serde(borrow, default, deserialize_with = "list")]
    pub(super) manifests: Option<Vec<Descriptor<'a>>>,
    #[serde(borrow)]
    pub(super) subject: Option<Descriptor<'a>>,
    /// `null` counts as no annotations, and a `null` value as an empty one, as in Go's decoder.
    pub(super) annotations: Option<BTreeMap<String, Option<String>>>,
}

/// A descriptor. [`Descriptor::check`] finds missing members and wrong types, and knows the
/// position for the error.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor<'a> {
    #[serde(borrow)]
    media_type: Option<&'a RawValue>,
    #[serde(borrow)]
    digest: Option<&'a RawValue>,
    #[serde(borrow)]
    size: Option<&'a RawValue>,
    #[serde(borrow)]
    urls: Option<&'a RawValue>,
}

impl Descriptor<'_> {
    /// Returns the digest and the size, which the OCI image spec requires.
    /// (The reference registry reads a missing size as zero, and clients then fail to pull.)
    pub(super) fn check(&self, member: &str) -> Result<(Digest, u64), InvalidManifest> {
        let required = |name: &str| content(format!("{member}: {name} is missing"));
        let digest: String =
            read(member, "digest", self.digest)?.ok_or_else(|| required("digest"))?;
        let size: i64 = read(member, "size", self.size)?.ok_or_else(|| required("size"))?;
        let size = u64::try_from(size)
            .map_err(|_| content(format!("{member}: size must not be negative, but is {size}")))?;
        Ok((digest.parse().map_err(|error| content(format!("{member}: {error}")))?, size))
    }

    /// Returns the media type; empty when it is missing.
    pub(super) fn media_type(&self, member: &str) -> Result<String, InvalidManifest> {
        let text: Option<String> = read(member, "mediaType", self.media_type)?;
        limited_text(&format!("{member}: mediaType"), &text.unwrap_or_default())
    }

    /// Returns whether the bytes belong elsewhere: a media type of foreign layers, with URLs.
    pub(super) fn is_foreign(&self, member: &str) -> Result<bool, InvalidManifest> {
        let urls: Vec<String> = read(member, "urls", self.urls)?.unwrap_or_default();
        if let Some(url) = urls.iter().find(|url| !is_web_address(url)) {
            let url = shortened(url);
            return Err(content(format!(
                "{member}: urls must begin with http:// or https://, but one is {url:?}"
            )));
        }
        let media_type = self.media_type(member)?;
        let is_of_foreign_type = media_type
            .starts_with("application/vnd.oci.image.layer.nondistributable.")
            || media_type.starts_with("application/vnd.docker.image.rootfs.foreign.");
        Ok(is_of_foreign_type && !urls.is_empty())
    }
}

/// Reads a member of a descriptor; `null` counts as missing.
fn read<'a, T: Deserialize<'a>>(
    member: &str,
    name: &str,
    value: Option<&'a RawValue>,
) -> Result<Option<T>, InvalidManifest> {
    let Some(value) = value else { return Ok(None) };
    serde_json::from_str(value.get()).map_err(|error| {
        // The position in the member's own text helps nobody.
        let error = error.to_string();
        let reason = error.split(" at line ").next().unwrap_or_default();
        content(format!("{member}: {name} has an {reason}"))
    })
}

fn is_web_address(url: &str) -> bool {
    let lower = url.get(..8).unwrap_or(url).to_ascii_lowercase();
    lower.starts_with("https://") || lower.starts_with("http://")
}

/// Reads a list that is present; `null`, which Go writes for an empty list, counts as present.
fn list<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<Descriptor<'de>>>, D::Error> {
    Ok(Some(Option::deserialize(deserializer)?.unwrap_or_default()))
}
