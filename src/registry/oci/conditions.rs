//! Conditional and partial reads (RFC 9110 §13 and §14) of content whose entity tag is its digest.
//! Pure.

use std::ops::Range;

use http::{HeaderMap, HeaderValue, header};

use wharfage_domain::names::Digest;

/// The headers that identify content by its digest.
#[derive(Debug, Clone)]
pub(crate) struct ContentHeaders {
    /// `ETag`: the digest in quotes.
    pub(crate) etag: HeaderValue,
    /// `Docker-Content-Digest`.
    pub(crate) digest: HeaderValue,
}

impl ContentHeaders {
    /// Creates the headers of this digest in one allocation.
    pub(crate) fn new(digest: &Digest) -> Option<Self> {
        let text = digest.as_str();
        let mut quoted = Vec::with_capacity(text.len() + 2);
        quoted.push(b'"');
        quoted.extend_from_slice(text.as_bytes());
        quoted.push(b'"');
        let quoted = bytes::Bytes::from(quoted);
        let bare = quoted.slice(1..quoted.len() - 1);
        Some(Self {
            etag: HeaderValue::from_maybe_shared(quoted).ok()?,
            digest: HeaderValue::from_maybe_shared(bare).ok()?,
        })
    }
}

/// The result of a request's preconditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precondition {
    /// The request is executed.
    Met,
    /// 304: the client has the content already.
    NotModified,
    /// 412: the content is not the expected one.
    Failed,
}

/// Evaluates `If-Match` and `If-None-Match`.
pub(crate) fn precondition(headers: &HeaderMap, etag: &HeaderValue) -> Precondition {
    if headers.contains_key(header::IF_MATCH) && !names(headers, &header::IF_MATCH, etag) {
        return Precondition::Failed;
    }
    if names(headers, &header::IF_NONE_MATCH, etag) {
        Precondition::NotModified
    } else {
        Precondition::Met
    }
}

/// Returns whether a list of entity tags contains this one. Digests never collide, so weak tags are
/// as good as strong ones.
fn names(headers: &HeaderMap, name: &header::HeaderName, etag: &HeaderValue) -> bool {
    headers.get_all(name).iter().any(|value| {
        value.as_bytes().split(|byte| *byte == b',').any(|candidate| {
            let candidate = candidate.trim_ascii();
            candidate == b"*"
                || candidate.strip_prefix(b"W/").unwrap_or(candidate) == etag.as_bytes()
        })
    })
}

/// The requested part of the content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WantedRange {
    /// The whole content.
    Whole,
    /// These bytes, not empty and inside the content.
    Part(Range<u64>),
    /// These bytes in this order: at least two parts, together no more than the content.
    Parts(Vec<Range<u64>>),
    /// 416: bytes beyond the content.
    Unsatisfiable,
}

/// The number of ranges in a request; one with more gets the whole content. Clients that assemble a
/// layer from chunks request up to this many.
const MAX_RANGES: usize = 1024;

/// Reads `Range` and `If-Range` for content of `size` bytes. The response is the whole content, as
/// the RFC allows, when `Range` is not a list of byte ranges, or when its ranges overlap so much
/// that they exceed the content.
pub(crate) fn wanted_range(headers: &HeaderMap, etag: &HeaderValue, size: u64) -> WantedRange {
    let Some(range) = headers.get(header::RANGE) else { return WantedRange::Whole };
    if headers.get(header::IF_RANGE).is_some_and(|expected| expected != etag) {
        return WantedRange::Whole;
    }
    let Ok(text) = range.to_str() else { return WantedRange::Whole };
    parse_ranges(text, size).unwrap_or(WantedRange::Whole)
}

fn parse_ranges(text: &str, size: u64) -> Option<WantedRange> {
    let (unit, set) = text.split_once('=')?;
    // Empty content has no part; clients that request bytes after its end get all of it.
    if !unit.trim().eq_ignore_ascii_case("bytes") || size == 0 {
        return None;
    }
    let (mut parts, mut bytes, mut asked) = (Vec::new(), 0_u64, 0);
    // The RFC allows empty elements in a list.
    for range in set.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        asked += 1;
        if asked > MAX_RANGES {
            return None;
        }
        let Some(part) = parse_range(range, size)? else { continue };
        bytes = bytes.saturating_add(part.end - part.start);
        parts.push(part);
    }
    Some(match (asked, parts.len()) {
        (0, _) => return None,
        (_, 0) => WantedRange::Unsatisfiable,
        (_, 1) => WantedRange::Part(parts.swap_remove(0)),
        _ if bytes > size => WantedRange::Whole,
        _ => WantedRange::Parts(parts),
    })
}

/// Parses one range of a list; the inner `None` means that the content has none of its bytes.
fn parse_range(text: &str, size: u64) -> Option<Option<Range<u64>>> {
    let (first, last) = text.split_once('-')?;
    if first.is_empty() {
        let length = position(last)?.min(size);
        return Some((length > 0).then(|| size - length..size));
    }
    let first = position(first)?;
    let last = if last.is_empty() { u64::MAX } else { position(last)? };
    // By the RFC, a range that ends before it begins is invalid. The conformance suite and Go's
    // server report it as unsatisfiable, which is also more useful.
    let satisfiable = first <= last && first < size;
    Some(satisfiable.then(|| first..last.saturating_add(1).min(size)))
}

/// Parses a number of digits; one that is too large counts as the largest.
fn position(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

/// Parses a chunk's `Content-Range` (`first-last`, both inclusive) into the first byte and the
/// length.
pub(crate) fn chunk_range(text: &str) -> Option<(u64, u64)> {
    let (first, last) = text.trim().split_once('-')?;
    let (first, last) = (position(first)?, position(last)?);
    Some((first, last.checked_sub(first)?.checked_add(1)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn etag() -> HeaderValue {
        ContentHeaders::new(&Digest::sha256(b"")).unwrap().etag
    }

    fn range(text: &str, size: u64) -> WantedRange {
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, HeaderValue::from_str(text).unwrap());
        wanted_range(&headers, &etag(), size)
    }

    #[test]
    fn content_is_named_by_its_digest_with_and_without_quotes() {
        let digest = Digest::sha256(b"");
        let named = ContentHeaders::new(&digest).unwrap();
        assert_eq!(named.digest, digest.as_str());
        assert_eq!(named.etag, format!("\"{digest}\""));
    }

    #[test]
    fn ranges_are_bounded_open_or_suffixes() {
        for (text, expected) in [
            ("bytes=500-1499", WantedRange::Part(500..1500)),
            ("bytes=500-", WantedRange::Part(500..2048)),
            ("bytes=-500", WantedRange::Part(1548..2048)),
            ("bytes=-5000", WantedRange::Part(0..2048)),
            ("bytes=2000-5000", WantedRange::Part(2000..2048)),
            ("bytes=0-0", WantedRange::Part(0..1)),
            ("Bytes=0-99999999999999999999999", WantedRange::Part(0..2048)),
            ("bytes=500-0", WantedRange::Unsatisfiable),
            ("bytes=2048-", WantedRange::Unsatisfiable),
            ("bytes=5000-10000", WantedRange::Unsatisfiable),
            ("bytes=-0", WantedRange::Unsatisfiable),
            ("bytes=0-1,5-6", WantedRange::Parts(vec![0..2, 5..7])),
            ("bytes= 9-9 ,, -1, 5-6,", WantedRange::Parts(vec![9..10, 2047..2048, 5..7])),
            ("bytes=0-1,2-3", WantedRange::Parts(vec![0..2, 2..4])),
            ("bytes=0-1,5000-", WantedRange::Part(0..2)),
            ("bytes=3000-,5000-", WantedRange::Unsatisfiable),
            ("bytes=0-,0-0", WantedRange::Whole),
            ("bytes=0-1023,1024-,5-5", WantedRange::Whole),
            ("bytes=0-1,x", WantedRange::Whole),
            ("bytes=,", WantedRange::Whole),
            ("items=0-1", WantedRange::Whole),
            ("bytes=a-b", WantedRange::Whole),
            ("bytes=-", WantedRange::Whole),
            ("bytes", WantedRange::Whole),
            ("bytes=+1-2", WantedRange::Whole),
        ] {
            assert_eq!(range(text, 2048), expected, "{text}");
        }
        for text in ["bytes=0-", "bytes=-5", "bytes=0-0,2-3"] {
            assert_eq!(range(text, 0), WantedRange::Whole, "{text} of nothing");
        }
    }

    #[test]
    fn the_number_of_ranges_is_limited() {
        let ranges = |count: u64| {
            format!("bytes={}", (0..count).map(|n| format!("{0}-{0},", 2 * n)).collect::<String>())
        };
        assert!(
            matches!(range(&ranges(1024), 4096), WantedRange::Parts(parts) if parts.len() == 1024)
        );
        assert_eq!(range(&ranges(1025), 4096), WantedRange::Whole);
    }

    #[test]
    fn a_range_of_other_content_returns_the_whole() {
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, HeaderValue::from_static("bytes=0-1"));
        headers.insert(header::IF_RANGE, etag());
        assert_eq!(wanted_range(&headers, &etag(), 10), WantedRange::Part(0..2));
        headers.insert(header::IF_RANGE, HeaderValue::from_static("\"other\""));
        assert_eq!(wanted_range(&headers, &etag(), 10), WantedRange::Whole);
    }

    #[test]
    fn conditions_compare_entity_tags() {
        let check = |name: header::HeaderName, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_str(value).unwrap());
            precondition(&headers, &etag())
        };
        let tag = etag().to_str().unwrap().to_owned();
        assert_eq!(
            check(header::IF_NONE_MATCH, &format!("\"x\", W/{tag}")),
            Precondition::NotModified
        );
        assert_eq!(check(header::IF_NONE_MATCH, "*"), Precondition::NotModified);
        assert_eq!(check(header::IF_NONE_MATCH, "\"x\""), Precondition::Met);
        assert_eq!(check(header::IF_MATCH, &tag), Precondition::Met);
        assert_eq!(check(header::IF_MATCH, "\"x\""), Precondition::Failed);
        assert_eq!(precondition(&HeaderMap::new(), &etag()), Precondition::Met);
    }

    #[test]
    fn a_chunk_has_a_first_and_a_last_byte() {
        assert_eq!(chunk_range("0-1023"), Some((0, 1024)));
        assert_eq!(chunk_range("5-5"), Some((5, 1)));
        for bad in ["5-4", "a-b", "-5", "5-", "", "0-18446744073709551615", "bytes 0-1"] {
            assert_eq!(chunk_range(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn parts_are_inside_the_content_and_not_empty(
            text in "(bytes=)?([0-9]{0,4}-?[0-9]{0,22},?){0,5}",
            size in 0_u64..5000,
        ) {
            let parts = match range(&text, size) {
                WantedRange::Part(part) => vec![part],
                WantedRange::Parts(parts) => parts,
                WantedRange::Whole | WantedRange::Unsatisfiable => Vec::new(),
            };
            for part in &parts {
                prop_assert!(part.start < part.end && part.end <= size);
            }
            prop_assert!(parts.iter().map(|part| part.end - part.start).sum::<u64>() <= size);
        }
    }
}
