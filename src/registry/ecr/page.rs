//! Pages of a listing: `maxResults`, and `nextToken`, which means something only to the same question asked again.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::EcrCall;
use super::error::EcrError;
use super::input;
use wharfage_domain::names::AccountId;

/// Longer than any token of ours.
const MAX_TOKEN: usize = 2048;
const BINDING: usize = 16;

/// How many entries an operation gives on a page.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// At most.
    pub(crate) max: i64,
    /// Unless the caller says otherwise.
    pub(crate) default: i64,
}

/// Most operations.
pub(crate) const USUAL: Sizes = Sizes { max: 1000, default: 100 };

/// A page that was asked for.
#[derive(Debug)]
pub(crate) struct ResultPage {
    /// Entries on it.
    pub(crate) limit: usize,
    /// The key of the entry that it starts behind.
    pub(crate) after: Option<String>,
    /// What the question was.
    question: Vec<u8>,
}

impl ResultPage {
    /// The page that the members ask for. `filter` is everything else that makes it this question and not another one.
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

    /// How many entries to fetch: one more than the page shows, to know whether there is another page.
    pub(crate) fn fetch(&self) -> usize {
        self.limit + 1
    }

    /// Cuts what was fetched to the page, and makes the token of the next one, if there is one. `key` is what an entry is
    /// listed by.
    pub(crate) fn cut<T>(&self, mut entries: Vec<T>, key: impl Fn(&T) -> String) -> (Vec<T>, Option<String>) {
        if entries.len() <= self.limit {
            return (entries, None);
        }
        entries.truncate(self.limit);
        self.end(entries, key)
    }

    /// Makes a page of these entries, after which others come.
    pub(crate) fn end<T>(&self, entries: Vec<T>, key: impl Fn(&T) -> String) -> (Vec<T>, Option<String>) {
        let token = entries.last().map(|last| seal(&self.question, &key(last)));
        (entries, token)
    }
}

/// The error of a token that no page of this question gave.
pub(crate) fn invalid_token() -> EcrError {
    input::invalid("nextToken", "Member must be the nextToken of a previous answer to the same request")
}

/// A token holds where to go on, and a hash that binds that to the question. It protects no secret: whoever forges one only
/// moves in a list that he may read.
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
    let hash = Sha256::new().chain_update(question).chain_update([0]).chain_update(after).finalize();
    let mut binding = [0; BINDING];
    binding.copy_from_slice(&hash[..BINDING]);
    binding
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_token_goes_on_only_with_the_question_that_gave_it() {
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
