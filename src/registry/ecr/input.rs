//! Inputs of the API: JSON objects of optional members, and the constraints of members, in ECR's
//! texts.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::LazyLock;

use bytes::Bytes;
use regex::Regex;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::error::EcrError;
use crate::json::JsonShape;
use wharfage_domain::names::{Digest, InvalidName, RepositoryName, Tag};

/// A text that is mostly a constant.
pub(crate) type ErrorText = Cow<'static, str>;

/// Defines the input of an operation, or a structure in one: every member is optional until
/// [`required`] is called, unknown members are ignored, and only a JSON object is accepted.
macro_rules! input {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Default, serde::Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub(crate) struct $name {
            $(pub(super) $field: Option<$type>,)*
            // Serde also reads a struct from an array, by position; with a flattened member, it
            // does not.
            #[serde(flatten)]
            _object: (),
        }
    };
}
pub(super) use input;

/// The number of values that a body may have. The longest lists have a thousand; a parsed value
/// takes many times its text.
const MAX_VALUES: usize = 10_000;

/// Reads an input. An empty body is an empty object: clients may send operations without input so.
pub(crate) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, EcrError> {
    let body = if body.trim_ascii().is_empty() { b"{}" } else { body };
    if JsonShape::of(body).values > MAX_VALUES {
        return Err(EcrError::Serialization(format!("The body has more than {MAX_VALUES} values")));
    }
    serde_json::from_slice(body).map_err(|error| EcrError::Serialization(error.to_string()))
}

/// Reads an input; a large one on a blocking thread.
pub(crate) async fn parse_body<T: DeserializeOwned + Send + 'static>(
    body: Bytes,
) -> Result<T, EcrError> {
    if body.len() <= super::QUICK_BODY {
        return parse(&body);
    }
    tokio::task::spawn_blocking(move || parse(&body))
        .await
        .map_err(|error| EcrError::Server(error.into()))?
}

/// Creates the error of a member that breaks a constraint.
pub(crate) fn invalid(member: impl Into<ErrorText>, reason: impl Into<ErrorText>) -> EcrError {
    EcrError::InvalidParameter { member: member.into(), reason: reason.into() }
}

/// Returns the value of a required member.
pub(crate) fn required<T>(member: &'static str, value: Option<T>) -> Result<T, EcrError> {
    value.ok_or_else(|| invalid(member, "Member must not be null"))
}

fn bounds(value: i64, allowed: &RangeInclusive<i64>, what: &str) -> Result<(), String> {
    if value < *allowed.start() {
        return Err(format!(
            "Member must have {what} greater than or equal to {}",
            allowed.start()
        ));
    }
    if value > *allowed.end() {
        return Err(format!("Member must have {what} less than or equal to {}", allowed.end()));
    }
    Ok(())
}

/// Checks the length of a text, in characters.
pub(crate) fn length(
    member: &'static str,
    text: &str,
    allowed: RangeInclusive<i64>,
) -> Result<(), EcrError> {
    bounds(text.chars().count() as i64, &allowed, "length")
        .map_err(|reason| invalid(member, reason))
}

/// Checks the number of entries of a list.
pub(crate) fn count<T>(
    member: &'static str,
    list: &[T],
    allowed: RangeInclusive<i64>,
) -> Result<(), EcrError> {
    bounds(list.len() as i64, &allowed, "length").map_err(|reason| invalid(member, reason))
}

/// Checks the range of a number.
pub(crate) fn range(
    member: &'static str,
    value: i64,
    allowed: RangeInclusive<i64>,
) -> Result<(), EcrError> {
    bounds(value, &allowed, "value").map_err(|reason| invalid(member, reason))
}

/// Returns the variant with this spelling.
pub(crate) fn one_of<T: Copy>(
    member: &'static str,
    text: &str,
    variants: &[(&'static str, T)],
) -> Result<T, EcrError> {
    variants.iter().find(|(spelling, _)| *spelling == text).map(|(_, variant)| *variant).ok_or_else(
        || {
            let spellings: Vec<&str> = variants.iter().map(|(spelling, _)| *spelling).collect();
            invalid(
                member,
                format!("Member must satisfy enum value set: [{}]", spellings.join(", ")),
            )
        },
    )
}

fn expression(member: &'static str, expression: &str) -> EcrError {
    invalid(member, format!("must satisfy regular expression '{expression}'"))
}

/// Parses a name that a regular expression constrains.
pub(crate) fn matching<T: FromStr<Err = InvalidName>>(
    member: &'static str,
    text: &str,
    rule: &str,
) -> Result<T, EcrError> {
    text.parse().map_err(|_| expression(member, rule))
}

/// Parses `repositoryName`, or an entry of `repositoryNames`.
pub(crate) fn repository_name(
    member: &'static str,
    text: &str,
) -> Result<RepositoryName, EcrError> {
    length(member, text, 2..=256)?;
    matching(member, text, RepositoryName::PATTERN)
}

/// The expression that ECR cites for digests of images and layers.
pub(crate) const DIGEST_EXPRESSION: &str = "[a-zA-Z0-9-_+.]+:[a-fA-F0-9]+";

/// Returns whether a text has the syntax of a digest, of any algorithm.
pub(crate) fn is_digest_like(text: &str) -> bool {
    static SYNTAX: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new("^[a-zA-Z0-9_+.-]+:[a-fA-F0-9]+$").ok());
    SYNTAX.as_ref().is_some_and(|syntax| syntax.is_match(text))
}

/// Parses a member that must look like a digest; `None` for a digest that nothing here can have,
/// such as of another algorithm.
pub(crate) fn digest(member: &'static str, text: &str) -> Result<Option<Digest>, EcrError> {
    if is_digest_like(text) {
        Ok(text.parse().ok())
    } else {
        Err(expression(member, DIGEST_EXPRESSION))
    }
}

/// Parses an image tag, which may be longer than at `/v2/`.
pub(crate) fn image_tag(member: &'static str, text: &str) -> Result<Tag, EcrError> {
    length(member, text, 1..=300)?;
    matching(member, text, "[a-zA-Z0-9_][a-zA-Z0-9._-]*")
}

input! {
    /// ECR's `ImageIdentifier`.
    ImageId { image_digest: String, image_tag: String }
}

/// The selection of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Selector {
    /// The image that the tag points at.
    Tag(Tag),
    /// The image with the digest.
    Digest(Digest),
    /// The image that the tag points at, if it has the digest.
    Both(Tag, Digest),
}

/// The reason why an identifier selects no image, as a failure of a batch operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ImageFault {
    /// Neither a digest nor a tag is given.
    MissingDigestAndTag,
    /// The digest has the wrong syntax.
    InvalidImageDigest,
    /// The tag has the wrong syntax.
    InvalidImageTag,
    /// The image does not exist.
    ImageNotFound,
    /// The tag points at another digest.
    ImageTagDoesNotMatchDigest,
    /// The image is archived.
    ImageInaccessible,
}

impl ImageFault {
    /// Returns the `failureCode`.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::MissingDigestAndTag => "MissingDigestAndTag",
            Self::InvalidImageDigest => "InvalidImageDigest",
            Self::InvalidImageTag => "InvalidImageTag",
            Self::ImageNotFound => "ImageNotFound",
            Self::ImageTagDoesNotMatchDigest => "ImageTagDoesNotMatchDigest",
            Self::ImageInaccessible => "ImageInaccessible",
        }
    }

    /// Returns the `failureReason`.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::MissingDigestAndTag => {
                "Invalid request parameters: both tag and digest cannot be null"
            }
            Self::InvalidImageDigest => {
                "Invalid request parameters: image digest should satisfy the regex '[a-zA-Z0-9-_+.]+:[a-fA-F0-9]+'"
            }
            Self::InvalidImageTag => {
                "Invalid request parameters: image tag should satisfy the regex '[a-zA-Z0-9_][a-zA-Z0-9._-]*' and have 1 to 300 characters"
            }
            Self::ImageNotFound => "Requested image not found",
            Self::ImageTagDoesNotMatchDigest => {
                "Requested image tag does not point at the requested image digest"
            }
            Self::ImageInaccessible => "Requested image is archived: restore it before pulling it",
        }
    }
}

impl ImageId {
    /// Returns the selection of the identifier.
    pub(crate) fn selector(&self) -> Result<Selector, ImageFault> {
        let tag = self
            .image_tag
            .as_deref()
            .map(|text| text.parse::<Tag>().map_err(|_| ImageFault::InvalidImageTag));
        let digest = self.image_digest.as_deref().map(|text| match text.parse::<Digest>() {
            Ok(digest) => Ok(digest),
            // The syntax is right, but nothing here has such a digest.
            Err(_) if is_digest_like(text) => Err(ImageFault::ImageNotFound),
            Err(_) => Err(ImageFault::InvalidImageDigest),
        });
        match (tag.transpose()?, digest.transpose()?) {
            (Some(tag), Some(digest)) => Ok(Selector::Both(tag, digest)),
            (Some(tag), None) => Ok(Selector::Tag(tag)),
            (None, Some(digest)) => Ok(Selector::Digest(digest)),
            (None, None) => Err(ImageFault::MissingDigestAndTag),
        }
    }

    /// Returns the selection for an operation on one image: a wrong syntax is an invalid parameter,
    /// otherwise the image does not exist.
    pub(crate) fn required_selector(
        &self,
        member: &'static str,
    ) -> Result<Option<Selector>, EcrError> {
        match self.selector() {
            Ok(selector) => Ok(Some(selector)),
            Err(ImageFault::ImageNotFound) => Ok(None),
            Err(fault) => Err(invalid(member, fault.reason())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    input! {
        /// A structure with one in it.
        Outer { name: String, inner: Inner, number: i64 }
    }
    input! {
        /// A structure.
        Inner { flag: bool }
    }

    #[test]
    fn unknown_members_are_ignored_and_null_is_absent() {
        let outer: Outer = parse(
            br#"{"name": "x", "inner": {"flag": true, "more": [1]}, "number": null, "a": {}}"#,
        )
        .unwrap();
        assert_eq!(outer.name.as_deref(), Some("x"));
        assert_eq!(outer.inner.unwrap().flag, Some(true));
        assert_eq!(outer.number, None);
        assert!(parse::<Outer>(b"").is_ok() && parse::<Outer>(b" \n").is_ok());
    }

    #[test]
    fn only_objects_with_the_right_types_are_accepted() {
        for body in [
            "[]",
            "[\"x\"]",
            "\"x\"",
            "1",
            "null",
            "{",
            "{} {}",
            r#"{"name":1}"#,
            r#"{"inner":[true]}"#,
            r#"{"number":1.5}"#,
            r#"{"number":"1"}"#,
            "\u{feff}{}",
        ] {
            let refused = parse::<Outer>(body.as_bytes());
            assert!(matches!(refused, Err(EcrError::Serialization(_))), "{body}: {refused:?}");
        }
    }

    #[test]
    fn a_body_with_too_many_values_is_refused_unparsed() {
        let list = |count: usize, value: &str| {
            format!(r#"{{"other":[{}]}}"#, vec![value; count].join(","))
        };
        assert!(parse::<Outer>(list(MAX_VALUES - 2, "0").as_bytes()).is_ok());
        for value in ["0", "{}", "[]", r#""""#, r#"{"flag":true}"#] {
            let refused = parse::<Outer>(list(MAX_VALUES, value).as_bytes());
            let text = refused.unwrap_err().to_string();
            assert!(text.contains("more than 10000 values"), "{value}: {text}");
        }
        // A text is one value, whatever is in it.
        let text = r#",[{\"\\,"#.repeat(MAX_VALUES);
        let outer: Outer = parse(format!(r#"{{"name":"{text}"}}"#).as_bytes()).unwrap();
        assert_eq!(outer.name.unwrap().len(), 6 * MAX_VALUES);
    }

    #[test]
    fn broken_constraints_have_ecrs_texts() {
        let text = |result: Result<(), EcrError>| result.unwrap_err().to_string();
        assert_eq!(
            text(length("policyText", &"x".repeat(11), 0..=10)),
            "Invalid parameter at 'policyText' failed to satisfy constraint: 'Member must have length less than or equal to 10'"
        );
        assert_eq!(
            text(range("maxResults", 0, 1..=1000)),
            "Invalid parameter at 'maxResults' failed to satisfy constraint: 'Member must have value greater than or equal to 1'"
        );
        assert_eq!(
            text(one_of("x", "c", &[("A", ()), ("B", ())])),
            "Invalid parameter at 'x' failed to satisfy constraint: 'Member must satisfy enum value set: [A, B]'"
        );
        assert!(
            text(repository_name("repositoryName", "UPPER").map(drop))
                .contains("must satisfy regular expression '[a-z0-9]+")
        );
        assert!(text(required::<()>("repositoryName", None)).contains("'repositoryName'"));
    }

    #[test]
    fn an_identifier_selects_an_image_or_has_a_failure() {
        let id = |digest: Option<&str>, tag: Option<&str>| {
            let (image_digest, image_tag) = (digest.map(str::to_owned), tag.map(str::to_owned));
            ImageId { image_digest, image_tag, ..Default::default() }.selector()
        };
        let digest = Digest::sha256(b"");
        let tag: Tag = "v1".parse().unwrap();
        assert_eq!(id(Some(digest.as_str()), None), Ok(Selector::Digest(digest.clone())));
        assert_eq!(id(None, Some("v1")), Ok(Selector::Tag(tag.clone())));
        assert_eq!(id(Some(digest.as_str()), Some("v1")), Ok(Selector::Both(tag, digest)));
        assert_eq!(id(None, None), Err(ImageFault::MissingDigestAndTag));
        assert_eq!(id(Some("nonsense"), None), Err(ImageFault::InvalidImageDigest));
        assert_eq!(
            id(Some("md5:d41d8cd98f00b204e9800998ecf8427e"), None),
            Err(ImageFault::ImageNotFound)
        );
        assert_eq!(id(None, Some("a b")), Err(ImageFault::InvalidImageTag));
        assert_eq!(id(None, Some("")), Err(ImageFault::InvalidImageTag));
        assert_eq!(id(None, Some(&"t".repeat(301))), Err(ImageFault::InvalidImageTag));
    }
}
