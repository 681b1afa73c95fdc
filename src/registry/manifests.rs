//! Manifests as they come in: checks their bytes and reads what they refer to. Pure: whether the references exist is the
//! store's to say.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::json::Shape;
use wharfage_domain::names::{Algorithm, Digest};
use wharfage_store::manifests::{BlobReference, ChildReference, NewManifest, SizeMismatch};

/// How deep a manifest's JSON may nest. Real ones need five levels.
pub const MAX_DEPTH: usize = 64;
/// How many descriptors a manifest may hold: an image has at most a few hundred layers, an index a few hundred children.
pub const MAX_REFERENCES: usize = 10_000;
/// How many values a manifest's JSON may have: as many descriptors as it may hold have ten each.
const MAX_VALUES: usize = 10 * MAX_REFERENCES;
/// How many annotations a manifest with a subject may have, and how much text in bytes. They are repeated in each list of the
/// subject's referrers, of which a page has a hundred.
const MAX_ANNOTATIONS: usize = 1_000;
/// See [`MAX_ANNOTATIONS`].
const MAX_ANNOTATION_BYTES: usize = 64 * 1024;
/// A media type is two names of at most 127 characters (RFC 6838 §4.2).
const MAX_MEDIA_TYPE: usize = 255;

/// Docker's first schema, which is refused: its digest leaves the signatures out, so that it is not the digest of what is
/// stored, and neither Docker nor containerd nor the reference registry takes it any more.
const SCHEMA_1: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];

/// The kinds of manifests, by media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An image: Docker's second schema or the OCI image manifest.
    Image,
    /// A list of manifests: Docker's or the OCI index.
    Index,
}

impl Kind {
    /// The media types and what they are.
    pub const MEDIA_TYPES: [(&'static str, Self); 4] = [
        ("application/vnd.oci.image.manifest.v1+json", Self::Image),
        ("application/vnd.oci.image.index.v1+json", Self::Index),
        ("application/vnd.docker.distribution.manifest.v2+json", Self::Image),
        ("application/vnd.docker.distribution.manifest.list.v2+json", Self::Index),
    ];

    /// The kind of a media type, and the type's canonical spelling.
    fn of(media_type: &str) -> Option<(&'static str, Self)> {
        Self::MEDIA_TYPES.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(media_type))
    }
}

/// Why a manifest is refused; the texts are those of ECR's PutImage.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidManifest {
    /// It is longer than the limit, in bytes.
    #[error(
        "Invalid parameter at 'ImageManifest' failed to satisfy constraint: 'Member must have length less than or equal to {0}'"
    )]
    TooLarge(usize),
    /// It is no JSON, or neither it nor the request names a media type: ECR says the same of both.
    #[error("Invalid parameter at 'ImageManifest' failed to satisfy constraint: 'Invalid JSON syntax'")]
    Syntax,
    /// It is JSON, but not what its media type says.
    #[error("Invalid parameter at 'ImageManifest' failed to satisfy constraint: '{0}'")]
    Content(String),
    /// Its media type is contradictory or not one that a registry of images keeps.
    #[error("Invalid parameter at 'ImageManifestMediaType' failed to satisfy constraint: '{0}'")]
    MediaType(String),
}

impl From<SizeMismatch> for InvalidManifest {
    fn from(mismatch: SizeMismatch) -> Self {
        let SizeMismatch { digest, stated, actual } = mismatch;
        content(format!("The size of {digest} is {actual}, not {stated}"))
    }
}

/// A manifest that passed, with the foreign layers, which need not be in the repository.
#[derive(Debug, Clone)]
pub struct Checked {
    /// What to store.
    pub manifest: NewManifest,
    /// Its foreign layers: where the repository has one of them nevertheless, the manifest keeps it alive.
    pub foreign: Vec<BlobReference>,
}

/// Checks a manifest of at most `max_bytes`, whose media type the request may have `declared`, and names it by `algorithm`.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn check(
    payload: Bytes,
    declared: Option<&str>,
    algorithm: Algorithm,
    max_bytes: usize,
) -> Result<Checked, InvalidManifest> {
    if payload.len() > max_bytes {
        return Err(InvalidManifest::TooLarge(max_bytes));
    }
    // What the parser skips it does not look into, and the API gives manifests out as text.
    if std::str::from_utf8(&payload).is_err() {
        return Err(InvalidManifest::Syntax);
    }
    // The parser's own limit does not hold for what it passes over, and it has none for how much it makes of a text.
    let shape = Shape::of(&payload);
    if shape.depth > MAX_DEPTH {
        return Err(content(format!("JSON nests deeper than {MAX_DEPTH} levels")));
    }
    if shape.values > MAX_VALUES {
        return Err(content(format!("JSON has more than {MAX_VALUES} values")));
    }
    let wire: Wire<'_> = serde_json::from_slice(&payload).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => content(error.to_string()),
        _ => InvalidManifest::Syntax,
    })?;
    let (media_type, kind) = media_type(wire.media_type.as_deref(), declared)?;
    let read = match kind {
        Kind::Image => image(&wire)?,
        Kind::Index => index(&wire)?,
    };
    let subject = wire.subject.as_ref().map(|subject| subject.check("subject")).transpose()?;
    let subject = subject.map(|(digest, _size)| digest);
    let artifact_type = wire.artifact_type.as_deref().filter(|text| !text.is_empty());
    let manifest = NewManifest {
        digest: Digest::of(algorithm, &payload),
        media_type: media_type.to_owned(),
        artifact_type: artifact_type.map(|text| bounded("artifactType", text)).transpose()?,
        config_media_type: read.config_media_type,
        annotations: match wire.annotations {
            Some(annotations) if subject.is_some() => listed(annotations)?,
            _ => BTreeMap::new(),
        },
        subject,
        blobs: read.blobs,
        children: read.children,
        payload,
    };
    Ok(Checked { manifest, foreign: read.foreign })
}

/// The annotations of a manifest with a subject, as lists of referrers repeat them.
fn listed(annotations: BTreeMap<String, Option<String>>) -> Result<BTreeMap<String, String>, InvalidManifest> {
    let annotations: BTreeMap<String, String> =
        annotations.into_iter().map(|(key, value)| (key, value.unwrap_or_default())).collect();
    let bytes: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if annotations.len() > MAX_ANNOTATIONS || bytes > MAX_ANNOTATION_BYTES {
        return Err(content(format!(
            "A manifest with a subject has at most {MAX_ANNOTATIONS} annotations of {MAX_ANNOTATION_BYTES} bytes together, not {} of {bytes}",
            annotations.len()
        )));
    }
    Ok(annotations)
}

/// A Content-Type without its parameters.
pub fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

fn content(reason: String) -> InvalidManifest {
    InvalidManifest::Content(reason)
}

/// The manifest's own word comes first, and the request's must not contradict it.
fn media_type(own: Option<&str>, declared: Option<&str>) -> Result<(&'static str, Kind), InvalidManifest> {
    let own = own.filter(|text| !text.is_empty());
    let declared = declared.map(essence).filter(|text| !text.is_empty());
    if let (Some(own), Some(declared)) = (own, declared)
        && !own.eq_ignore_ascii_case(declared)
    {
        let (own, declared) = (shortened(own), shortened(declared));
        return Err(InvalidManifest::MediaType(format!(
            "The manifest says mediaType {own}, the request says {declared}"
        )));
    }
    let text = own.or(declared).ok_or(InvalidManifest::Syntax)?;
    if SCHEMA_1.iter().any(|old| old.eq_ignore_ascii_case(text)) {
        let text =
            format!("Media type {text} is not supported: Docker's image manifest version 2, schema 1 is obsolete");
        return Err(InvalidManifest::MediaType(text));
    }
    Kind::of(text).ok_or_else(|| {
        let known: Vec<&str> = Kind::MEDIA_TYPES.iter().map(|(known, _)| *known).collect();
        let text = shortened(text);
        InvalidManifest::MediaType(format!("Media type {text} is not supported; supported: [{}]", known.join(", ")))
    })
}

/// An offending value as an error shows it.
fn shortened(text: &str) -> String {
    text.chars().take(MAX_MEDIA_TYPE).collect()
}

fn bounded(member: &str, text: &str) -> Result<String, InvalidManifest> {
    if text.len() > MAX_MEDIA_TYPE {
        return Err(content(format!("{member} must have at most {MAX_MEDIA_TYPE} characters")));
    }
    // No media type has one, and PostgreSQL's text cannot hold a NUL.
    if text.contains(char::is_control) {
        return Err(content(format!("{member} must not have control characters")));
    }
    Ok(text.to_owned())
}

/// What a kind's reader found.
#[derive(Default)]
struct References {
    config_media_type: Option<String>,
    blobs: Vec<BlobReference>,
    foreign: Vec<BlobReference>,
    children: Vec<ChildReference>,
}

/// The digests of a manifest's descriptors with their sizes: each is referred to once, and has one size.
#[derive(Default)]
struct Seen(HashMap<Digest, u64>);

impl Seen {
    /// Whether it is the first descriptor of its digest.
    fn is_first(&mut self, member: &str, digest: &Digest, size: u64) -> Result<bool, InvalidManifest> {
        match self.0.insert(digest.clone(), size) {
            None => Ok(true),
            Some(before) if before == size => Ok(false),
            Some(before) => {
                Err(content(format!("{member}: size is {size}, but another descriptor of {digest} says {before}")))
            }
        }
    }
}

fn image(wire: &Wire<'_>) -> Result<References, InvalidManifest> {
    schema_version(wire, 2)?;
    // A document that could be read as either kind would be scanned as one and run as the other (CVE-2021-41190).
    if wire.manifests.is_some() {
        return Err(content("An image manifest must not have the member manifests".to_owned()));
    }
    let config = wire.config.as_ref().ok_or_else(|| missing("config"))?;
    let layers = wire.layers.as_deref().ok_or_else(|| missing("layers"))?;
    bound_references("layers", layers.len())?;

    let config_media_type = config.media_type("config")?;
    let mut seen = Seen::default();
    let mut read = References::default();
    let (digest, size) = config.check("config")?;
    seen.is_first("config", &digest, size)?;
    read.blobs.push(BlobReference { digest, media_type: config_media_type.clone(), size });
    for (place, layer) in layers.iter().enumerate() {
        let member = format!("layers[{place}]");
        let (digest, size) = layer.check(&member)?;
        let foreign = layer.is_foreign(&member)?;
        if seen.is_first(&member, &digest, size)? {
            let reference = BlobReference { digest, media_type: layer.media_type(&member)?, size };
            if foreign { read.foreign.push(reference) } else { read.blobs.push(reference) }
        }
    }
    read.config_media_type = Some(config_media_type).filter(|text| !text.is_empty());
    Ok(read)
}

fn index(wire: &Wire<'_>) -> Result<References, InvalidManifest> {
    schema_version(wire, 2)?;
    if wire.layers.is_some() || wire.config.is_some() {
        return Err(content("An index must not have the members config and layers".to_owned()));
    }
    let manifests = wire.manifests.as_deref().ok_or_else(|| missing("manifests"))?;
    bound_references("manifests", manifests.len())?;
    let mut seen = Seen::default();
    let mut read = References::default();
    for (place, child) in manifests.iter().enumerate() {
        let member = format!("manifests[{place}]");
        let (digest, size) = child.check(&member)?;
        let media_type = child.media_type(&member)?;
        if is_blob(&media_type) {
            return Err(content(format!(
                "{member}: an index refers to manifests, and {media_type} is a blob's media type. Put blobs into an image \
                 manifest's layers (BuildKit's cache export has image-manifest=true for that)"
            )));
        }
        if seen.is_first(&member, &digest, size)? {
            read.children.push(ChildReference { digest, size });
        }
    }
    Ok(read)
}

/// Whether a media type is one of a layer or config, which an index cannot hold.
fn is_blob(media_type: &str) -> bool {
    const BLOBS: [&str; 5] = [
        "application/vnd.oci.image.layer.",
        "application/vnd.oci.image.config.",
        "application/vnd.docker.image.rootfs.",
        "application/vnd.docker.container.image.",
        "application/vnd.buildkit.cacheconfig.",
    ];
    BLOBS.iter().any(|blob| media_type.starts_with(blob))
}

fn schema_version(wire: &Wire<'_>, expected: i64) -> Result<(), InvalidManifest> {
    match wire.schema_version {
        Some(version) if version == expected => Ok(()),
        Some(version) => Err(content(format!("schemaVersion must be {expected}, not {version}"))),
        None => Err(missing("schemaVersion")),
    }
}

fn missing(member: &str) -> InvalidManifest {
    content(format!("The member {member} is missing"))
}

fn bound_references(member: &str, count: usize) -> Result<(), InvalidManifest> {
    if count > MAX_REFERENCES {
        return Err(content(format!("{member} must have at most {MAX_REFERENCES} entries, not {count}")));
    }
    Ok(())
}

/// The members that matter of every kind; others are kept in the payload and otherwise ignored. A member that comes twice
/// is refused: two readers could take different ones.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire<'a> {
    schema_version: Option<i64>,
    #[serde(borrow)]
    media_type: Option<Cow<'a, str>>,
    #[serde(borrow)]
    artifact_type: Option<Cow<'a, str>>,
    #[serde(borrow)]
    config: Option<Descriptor<'a>>,
    #[serde(borrow, default, deserialize_with = "list")]
    layers: Option<Vec<Descriptor<'a>>>,
    #[serde(borrow, default, deserialize_with = "list")]
    manifests: Option<Vec<Descriptor<'a>>>,
    #[serde(borrow)]
    subject: Option<Descriptor<'a>>,
    /// `null` counts as none, for the whole and as the empty text for a value, as Go's decoder has it.
    annotations: Option<BTreeMap<String, Option<String>>>,
}

/// A descriptor. What it lacks or has of another type is found by [`Descriptor::check`], which knows its place.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor<'a> {
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
    /// Its digest and size, which the OCI image spec requires. (The reference registry reads a missing size as zero, and
    /// clients then fail to pull.)
    fn check(&self, member: &str) -> Result<(Digest, u64), InvalidManifest> {
        let required = |name: &str| content(format!("{member}: {name} is missing"));
        let digest: String = read(member, "digest", self.digest)?.ok_or_else(|| required("digest"))?;
        let size: i64 = read(member, "size", self.size)?.ok_or_else(|| required("size"))?;
        let size =
            u64::try_from(size).map_err(|_| content(format!("{member}: size must not be negative, but is {size}")))?;
        Ok((digest.parse().map_err(|error| content(format!("{member}: {error}")))?, size))
    }

    /// Its media type, empty where it has none.
    fn media_type(&self, member: &str) -> Result<String, InvalidManifest> {
        let text: Option<String> = read(member, "mediaType", self.media_type)?;
        bounded(&format!("{member}: mediaType"), &text.unwrap_or_default())
    }

    /// Whether the bytes are somewhere else and not to be here: a media type for such layers, and where they are.
    fn is_foreign(&self, member: &str) -> Result<bool, InvalidManifest> {
        let urls: Vec<String> = read(member, "urls", self.urls)?.unwrap_or_default();
        if let Some(url) = urls.iter().find(|url| !is_web_address(url)) {
            let url = shortened(url);
            return Err(content(format!("{member}: urls must begin with http:// or https://, but one is {url:?}")));
        }
        let media_type = self.media_type(member)?;
        let is_of_foreign_type = media_type.starts_with("application/vnd.oci.image.layer.nondistributable.")
            || media_type.starts_with("application/vnd.docker.image.rootfs.foreign.");
        Ok(is_of_foreign_type && !urls.is_empty())
    }
}

/// A descriptor's member; `null` counts as missing.
fn read<'a, T: Deserialize<'a>>(
    member: &str,
    name: &str,
    value: Option<&'a RawValue>,
) -> Result<Option<T>, InvalidManifest> {
    let Some(value) = value else { return Ok(None) };
    serde_json::from_str(value.get()).map_err(|error| {
        // Where it is in its own text helps nobody.
        let error = error.to_string();
        let reason = error.split(" at line ").next().unwrap_or_default();
        content(format!("{member}: {name} has an {reason}"))
    })
}

fn is_web_address(url: &str) -> bool {
    let lower = url.get(..8).unwrap_or(url).to_ascii_lowercase();
    lower.starts_with("https://") || lower.starts_with("http://")
}

/// A list that is there; `null`, which Go writes for an empty one, counts as there.
fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Descriptor<'de>>>, D::Error> {
    Ok(Some(Option::deserialize(deserializer)?.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";

    fn digest(of: &str) -> String {
        Digest::sha256(of.as_bytes()).to_string()
    }

    fn descriptor(of: &str) -> Value {
        json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest(of), "size": 3})
    }

    fn child(of: &str, size: u64) -> Value {
        json!({"mediaType": IMAGE, "digest": digest(of), "size": size})
    }

    fn image_manifest() -> Value {
        json!({
            "schemaVersion": 2, "mediaType": IMAGE,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest("config"), "size": 1},
            "layers": [descriptor("a"), descriptor("b"), descriptor("a")],
        })
    }

    fn check_json(manifest: &Value, declared: Option<&str>) -> Result<Checked, InvalidManifest> {
        check(Bytes::from(manifest.to_string()), declared, Algorithm::Sha256, 4_194_304)
    }

    fn with(member: &str, value: Value) -> Value {
        let mut manifest = image_manifest();
        manifest[member] = value;
        manifest
    }

    fn reason(result: Result<Checked, InvalidManifest>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn an_image_needs_its_config_and_each_layer_once() {
        let checked = check_json(&image_manifest(), Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8"));
        let manifest = checked.unwrap().manifest;
        let blobs: Vec<String> = manifest.blobs.iter().map(|blob| blob.digest.to_string()).collect();
        assert_eq!(blobs, [digest("config"), digest("a"), digest("b")]);
        assert_eq!(manifest.digest, Digest::sha256(image_manifest().to_string().as_bytes()));
        assert_eq!(manifest.config_media_type.as_deref(), Some("application/vnd.oci.image.config.v1+json"));
        assert!(manifest.children.is_empty() && manifest.subject.is_none());
    }

    #[test]
    fn a_foreign_layer_need_not_be_here_where_it_says_where_it_is() {
        let urls = json!(["https://example.com/layer"]);
        let mut number = 0;
        let mut layer = |media_type: &str, urls: Option<&Value>| {
            number += 1;
            let mut layer = descriptor(&number.to_string());
            layer["mediaType"] = media_type.into();
            if let Some(urls) = urls {
                layer["urls"] = urls.clone();
            }
            layer
        };
        const FOREIGN: [&str; 3] = [
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.oci.image.layer.nondistributable.v1.tar",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        ];
        for media_type in FOREIGN {
            let nowhere =
                [layer(media_type, None), layer(media_type, Some(&json!([]))), layer(media_type, Some(&json!(null)))];
            let checked = check_json(
                &with("layers", json!([layer(media_type, Some(&urls)), nowhere[0], nowhere[1], nowhere[2]])),
                None,
            );
            let checked = checked.unwrap();
            assert_eq!((checked.foreign.len(), checked.manifest.blobs.len()), (1, 4), "{media_type}");
        }
        for ordinary in ["application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.example", ""] {
            let checked = check_json(&with("layers", json!([layer(ordinary, Some(&urls))])), None).unwrap();
            assert_eq!((checked.foreign.len(), checked.manifest.blobs.len()), (0, 2), "{ordinary}");
        }
        for bad in ["", "file:///etc/passwd", "example.com/layer", "https:/"] {
            let refused = check_json(&with("layers", json!([layer(FOREIGN[0], Some(&json!([bad])))])), None);
            assert!(reason(refused).contains("layers[0]: urls must begin with"), "{bad}");
        }
    }

    #[test]
    fn an_index_of_layers_is_refused_without_calling_them_images() {
        let mut layer = descriptor("a");
        layer["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+gzip");
        let mut child = descriptor("child");
        child["mediaType"] = json!(IMAGE);
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [child, layer]});
        let reason = reason(check_json(&index, None));
        assert!(reason.contains("manifests[1]") && reason.contains("image.layer.v1"), "{reason}");
        assert!(!reason.contains("Images with digests"), "{reason}");
    }

    #[test]
    fn one_digest_has_one_size() {
        let (one, mut other) = (descriptor("a"), descriptor("a"));
        other["size"] = json!(4);
        assert!(reason(check_json(&with("layers", json!([one, other])), None)).contains("layers[1]: size is 4"));
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [child("a", 1), child("a", 2)]});
        assert!(reason(check_json(&index, None)).contains("manifests[1]: size is 2"));
    }

    #[test]
    fn null_annotations_are_none_and_a_null_value_is_empty() {
        let mut manifest = with("annotations", json!({"key": null, "other": "value"}));
        manifest["subject"] = descriptor("subject");
        manifest["layers"][0]["annotations"] = json!(null);
        let annotations = check_json(&manifest, None).unwrap().manifest.annotations;
        assert_eq!((annotations["key"].as_str(), annotations["other"].as_str()), ("", "value"));
        manifest["annotations"] = json!(null);
        assert!(check_json(&manifest, None).unwrap().manifest.annotations.is_empty());
    }

    #[test]
    fn an_index_needs_its_children() {
        let index = json!({
            "schemaVersion": 2, "mediaType": INDEX, "artifactType": "application/x",
            "manifests": [child("one", 1), child("two", 2), child("one", 1)], "subject": descriptor("subject"),
            "annotations": {"key": "value"},
        });
        let manifest = check_json(&index, None).unwrap().manifest;
        assert_eq!(manifest.children.len(), 2);
        assert_eq!(manifest.artifact_type.as_deref(), Some("application/x"));
        assert_eq!(manifest.subject.unwrap().to_string(), digest("subject"));
        assert_eq!(manifest.annotations["key"], "value");
    }

    #[test]
    fn an_index_of_nothing_is_one_whether_it_says_so_by_a_list_or_by_null() {
        for empty in [json!([]), Value::Null] {
            let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": empty});
            assert!(check_json(&index, None).unwrap().manifest.children.is_empty());
        }
        let index = json!({"schemaVersion": 2, "mediaType": INDEX});
        assert!(reason(check_json(&index, None)).contains("manifests is missing"));
    }

    #[test]
    fn annotations_are_kept_for_referrers_only() {
        let manifest = with("annotations", json!({"key": "value"}));
        assert!(check_json(&manifest, None).unwrap().manifest.annotations.is_empty());
    }

    #[test]
    fn very_many_values_are_refused_before_they_are_read() {
        for value in ["{}", "0"] {
            let many = vec![value; MAX_VALUES].join(",");
            let manifest = format!(r#"{{"schemaVersion":2,"mediaType":"{IMAGE}","layers":[{many}]}}"#);
            let refused = check(manifest.into(), None, Algorithm::Sha256, 4 * 1024 * 1024);
            assert!(reason(refused).contains("more than 100000 values"));
        }
    }

    #[test]
    fn what_lists_of_referrers_repeat_is_bounded() {
        let many = |number: usize| -> Value { (0..number).map(|n| (n.to_string(), json!(""))).collect() };
        let long = |bytes: usize| json!({ "a": "x".repeat(bytes - 1) });
        let subject = with("annotations", Value::Null)["config"].clone();
        for (right, wrong) in [(many(1_000), many(1_001)), (long(65_536), long(65_537))] {
            let mut manifest = with("annotations", right.clone());
            manifest["subject"] = subject.clone();
            assert_eq!(json!(check_json(&manifest, None).unwrap().manifest.annotations), right);
            manifest["annotations"] = wrong;
            assert!(reason(check_json(&manifest, None)).contains("at most 1000 annotations of 65536 bytes together"));
            // Nobody repeats those of other manifests.
            manifest["subject"] = Value::Null;
            check_json(&manifest, None).unwrap();
        }
    }

    #[test]
    fn dockers_first_schema_is_refused_signed_or_not() {
        for (end, signatures) in [("json", json!(null)), ("prettyjws", json!([{"header": {}}]))] {
            let old = json!({
                "schemaVersion": 1, "name": "app", "fsLayers": [{"blobSum": digest("a")}], "signatures": signatures,
            });
            let media_type = format!("application/vnd.docker.distribution.manifest.v1+{end}");
            assert!(reason(check_json(&old, Some(&media_type))).contains("schema 1 is obsolete"));
        }
    }

    #[test]
    fn the_media_type_is_the_manifests_own_or_else_the_requests() {
        let mut silent = image_manifest();
        silent.as_object_mut().unwrap().remove("mediaType");
        assert_eq!(check_json(&silent, Some(IMAGE)).unwrap().manifest.media_type, IMAGE);
        let refused = reason(check_json(&silent, None));
        let text = "Invalid parameter at 'ImageManifest' failed to satisfy constraint: 'Invalid JSON syntax'";
        assert_eq!(refused, text);
        assert!(reason(check_json(&image_manifest(), Some(INDEX))).contains(INDEX));
        assert!(
            reason(check_json(&with("mediaType", json!("text/plain")), None)).contains("text/plain is not supported")
        );
    }

    #[test]
    fn a_manifest_that_could_be_read_as_either_kind_is_refused() {
        assert!(reason(check_json(&with("manifests", json!([])), None)).contains("must not have"));
        let mut index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [], "layers": []});
        assert!(reason(check_json(&index, None)).contains("must not have"));
        index.as_object_mut().unwrap().remove("layers");
        assert!(check_json(&index, None).is_ok());
    }

    #[test]
    fn a_member_that_comes_twice_is_refused() {
        let text = format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[],"manifests":[]}}"#);
        let refused = check(Bytes::from(text), None, Algorithm::Sha256, 1000);
        assert!(reason(refused).contains("duplicate field"));
    }

    #[test]
    fn a_broken_descriptor_is_named() {
        let bad = |member: &str, value: Value| {
            let mut layer = descriptor("b");
            layer[member] = value;
            let text = reason(check_json(&with("layers", json!([descriptor("a"), layer])), None));
            assert!(text.contains("layers[1]: "), "{text}");
            text
        };
        for member in ["digest", "size"] {
            assert!(bad(member, Value::Null).contains(&format!("{member} is missing")));
        }
        for place in ["config", "subject"] {
            let sizeless = json!({"mediaType": "a/b", "digest": digest("a")});
            assert!(reason(check_json(&with(place, sizeless), None)).contains(&format!("{place}: size is missing")));
        }
        assert!(bad("urls", json!("https://example.com")).contains("urls has an invalid type"));
        assert!(bad("digest", json!("sha256:short")).contains("sha256:short"));
        assert!(bad("digest", json!("md5:d41d8cd98f00b204e9800998ecf8427e")).contains("md5:"));
        assert!(bad("size", json!(-1)).contains("-1"));
        assert!(bad("size", json!("3")).contains("invalid type"));
        assert!(bad("mediaType", json!("x".repeat(256))).contains("at most 255"));
        assert!(bad("mediaType", json!("x/\u{0}y")).contains("control characters"));
    }

    #[test]
    fn what_is_no_json_is_refused_with_ecrs_words() {
        for text in ["", "{", "{]", "not json"] {
            let refused = check(Bytes::from(text), Some(IMAGE), Algorithm::Sha256, 1000);
            assert_eq!(
                reason(refused),
                "Invalid parameter at 'ImageManifest' failed to satisfy constraint: 'Invalid JSON syntax'"
            );
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_refused_wherever_they_stand() {
        let text = with("custom", json!("~")).to_string();
        let bytes: Vec<u8> = text.bytes().map(|byte| if byte == b'~' { 0xff } else { byte }).collect();
        let refused = check(Bytes::from(bytes), None, Algorithm::Sha256, 4096);
        assert_eq!(refused.unwrap_err(), InvalidManifest::Syntax);
    }

    #[test]
    fn size_depth_and_references_have_limits() {
        let text = image_manifest().to_string();
        let refused = check(Bytes::from(text.clone()), None, Algorithm::Sha256, text.len() - 1);
        assert_eq!(refused.unwrap_err(), InvalidManifest::TooLarge(text.len() - 1));
        let nested = |levels: usize| {
            let deep: Value = serde_json::from_str(&("[".repeat(levels) + &"]".repeat(levels))).unwrap();
            check_json(&with("custom", deep), None)
        };
        assert!(nested(MAX_DEPTH - 1).is_ok());
        assert!(reason(nested(MAX_DEPTH)).contains("deeper than 64"));
        let brackets = with("custom", json!("[".repeat(MAX_DEPTH + 1) + "\\\"["));
        assert!(check_json(&brackets, None).is_ok(), "brackets in strings nest nothing");
        let many = with("layers", Value::Array(vec![descriptor("a"); MAX_REFERENCES + 1]));
        assert!(reason(check_json(&many, None)).contains("at most 10000"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let declared = Some(IMAGE);
            prop_assert!(check(Bytes::from(bytes), declared, Algorithm::Sha256, 1000).is_err());
        }

        #[test]
        fn any_json_members_do_not_panic(
            member in "schemaVersion|mediaType|config|layers|manifests|subject|annotations|artifactType|fsLayers|signatures",
            text in r#"[\[\]{}:",a-c0-9\\ -]{0,40}"#,
            kind in prop::sample::select(Kind::MEDIA_TYPES.to_vec()),
        ) {
            let value: Value = serde_json::from_str(&text).unwrap_or(Value::String(text));
            let _ = check_json(&with(&member, value), Some(kind.0));
        }
    }
}
