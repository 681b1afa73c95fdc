//! Pages of a listing: `maxResults` and `nextToken`, which is only valid for the same request
//! parameters.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::EcrCall;
use super::error::EcrError;
use super::input;
use wharfage_domain::names::AccountId;

/// An upper bound of the length of our tokens.
const MAX_TOKEN: usize = 2048;
const BINDING: usize = 16;

/// The page sizes of an operation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// The maximum.
    pub(crate) max: i64,
    /// The default.
    pub(crate) default: i64,
}

/// The page sizes of most operations.
pub(crate) const USUAL: Sizes = Sizes { max: 1000, default: 100 };

/// A requested page.
#[derive(Debug)]
pub(crate) struct ResultPage {
    /// The number of entries.
    pub(crate) limit: usize,
    /// The key of the entry after which the page begins.
    pub(crate) after: Option<String>,
    /// The hash of the listing's parameters.
    question: Vec<u8>,
}

impl ResultPage {
    /// Parses the paging members. `filter` is the identity of the listing: all its other
    /// parameters.
    pub(crate) fn new(
        call: &EcrCall,
        account: &AccountId,
        filter: impl Serialize,
        next_token: Option<&str>,
        max_results: Option<i64>,
        sizes: Sizes,
    ) -> Result<Self, EcrError> {
        let limit = max_results.unwrap_or(sizes.default);
        input::range("maxResults", limit, 1..=sizes.max)?;
        let question = serde_json::to_vec(&(call.operation.name, account, filter))
            .map_err(|error| EcrError::Serialization(error.to_string()))?;
        let after = next_token.map(|token| open(&question, token)).transpose()?;
        Ok(Self { limit: limit as usize, after, question })
    }

    /// Returns the number of entries to fetch: one more than the page, to detect another page.
    pub(crate) fn fetch(&self) -> usize {
        self.limit + 1
    }

    /// Cuts the fetched entries to the page, and creates the token of the next page if there is
    /// one. `key` returns the key of an entry.
    pub(crate) fn cut<T>(
        &self,
        mut entries: Vec<T>,
        key: impl Fn(&T) -> String,
    ) -> (Vec<T>, Option<String>) {
        if entries.len() <= self.limit {
            return (entries, None);
        }
        entries.truncate(self.limit);
        self.end(entries, key)
    }

    /// Creates a page of these entries that is not the last one.
    pub(crate) fn end<T>(
        &self,
        entries: Vec<T>,
        key: impl Fn(&T) -> String,
    ) -> (Vec<T>, Option<String>) {
        let token = entries.last().map(|last| seal(&self.question, &key(last)));
        (entries, token)
    }
}

/// Creates the error of a token that no page of this listing returned.
pub(crate) fn invalid_token() -> EcrError {
    input::invalid(
        "nextToken",
        "Member must be the nextToken of a previous answer to the same request",
    )
}

/// Creates a token: the key to continue after, and a hash that binds it to the listing. It protects
/// no secret: a forged token only moves within a list that the caller may read.
fn seal(question: &[u8], after: &str) -> String {
    BASE64.encode([&binding(question, after)[..], after.as_bytes()].concat())
}

fn open(question: &[u8], token: &str) -> Result<String, EcrError> {
    if token.len() > MAX_TOKEN {
        return Err(invalid_token());
    }
    let opened = BASE64.decode(token).ok().and_then(|bytes| {
        let (bound, after) = bytes.split_at_checked(BINDING)?;
        let after = std::str::from_utf8(after).ok()?;
        (bound == binding(question, after)).then(|| after.to_owned())
    });
    opened.ok_or_else(invalid_token)
}

fn binding(question: &[u8], after: &str) -> [u8; BINDING] {
    let hash =
        Sha256::new().chain_update(question).chain_update([0]).chain_update(after).finalize();
    let mut binding = [0; BINDING];
    binding.copy_from_slice(&hash[..BINDING]);
    binding
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_token_is_valid_only_for_its_own_listing() {
        let token = seal(b"one", "team/app");
        assert_eq!(open(b"one", &token).unwrap(), "team/app");
        let refused = open(b"two", &token).unwrap_err();
        assert_eq!(refused.code(), "InvalidParameterException");
        assert!(refused.to_string().starts_with("Invalid parameter at 'nextToken'"), "{refused}");
    }

    #[test]
    fn the_last_page_has_no_token() {
        let page = ResultPage { limit: 2, after: None, question: b"q".to_vec() };
        let (entries, token) = page.cut(vec!["a", "b"], |entry| (*entry).to_owned());
        assert_eq!((entries.len(), token), (2, None));
        let (entries, token) = page.cut(vec!["a", "b", "c"], |entry| (*entry).to_owned());
        assert_eq!(entries, ["a", "b"]);
        assert_eq!(open(b"q", &token.unwrap()).unwrap(), "b");
    }

    proptest! {
        #[test]
        fn garbage_is_refused(token in "\\PC{0,80}", bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            prop_assert!(open(b"q", &token).is_err());
            prop_assert!(open(b"q", &BASE64.encode(bytes)).is_err());
        }

        #[test]
        fn any_key_round_trips(key in "\\PC{0,80}") {
            prop_assert_eq!(open(b"q", &seal(b"q", &key)).unwrap(), key);
        }
    }
}
