//! Media types of manifests.

use super::InvalidManifest;
use super::error::content;

/// A media type is two names of at most 127 characters (RFC 6838 §4.2).
const MAX_MEDIA_TYPE: usize = 255;

/// Docker's schema 1, which is refused: its digest excludes the signatures, so it is not the digest
/// of the stored bytes. Docker, containerd and the reference registry do not accept it any more.
const SCHEMA_1: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];

/// The kinds of manifests, by media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ManifestKind {
    /// An image: Docker's second schema or the OCI image manifest.
    Image,
    /// A list of manifests: Docker's or the OCI index.
    Index,
}

impl ManifestKind {
    /// The supported media types with their kinds.
    pub(crate) const MEDIA_TYPES: [(&'static str, Self); 4] = [
        ("application/vnd.oci.image.manifest.v1+json", Self::Image),
        ("application/vnd.oci.image.index.v1+json", Self::Index),
        ("application/vnd.docker.distribution.manifest.v2+json", Self::Image),
        ("application/vnd.docker.distribution.manifest.list.v2+json", Self::Index),
    ];

    /// Returns the canonical spelling and the kind of a media type.
    fn of(media_type: &str) -> Option<(&'static str, Self)> {
        Self::MEDIA_TYPES.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(media_type))
    }
}

/// Returns a Content-Type without its parameters.
pub(crate) fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// Returns the media type and the kind of a manifest: its own type, which the request's must not
/// contradict.
pub(super) fn media_type(
    own: Option<&str>,
    declared: Option<&str>,
) -> Result<(&'static str, ManifestKind), InvalidManifest> {
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
        let text = format!(
            "Media type {text} is not supported: Docker's image manifest version 2, schema 1 is obsolete"
        );
        return Err(InvalidManifest::MediaType(text));
    }
    ManifestKind::of(text).ok_or_else(|| {
        let known: Vec<&str> = ManifestKind::MEDIA_TYPES.iter().map(|(known, _)| *known).collect();
        let text = shortened(text);
        InvalidManifest::MediaType(format!(
            "Media type {text} is not supported; supported: [{}]",
            known.join(", ")
        ))
    })
}

/// Shortens a rejected value for an error message.
pub(super) fn shortened(text: &str) -> String {
    text.chars().take(MAX_MEDIA_TYPE).collect()
}

/// Checks the length and the characters of a media type.
pub(super) fn limited_text(member: &str, text: &str) -> Result<String, InvalidManifest> {
    if text.len() > MAX_MEDIA_TYPE {
        return Err(content(format!("{member} must have at most {MAX_MEDIA_TYPE} characters")));
    }
    // No media type has control characters, and PostgreSQL's text cannot hold a NUL.
    if text.contains(char::is_control) {
        return Err(content(format!("{member} must not have control characters")));
    }
    Ok(text.to_owned())
}
