//! The renewal of tokens.

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};

/// The least time between two tokens, however soon one expires: a wrong clock must not cause requests without pause.
const SHORTEST_INTERVAL: SignedDuration = SignedDuration::from_secs(60);

/// Returns when to renew a token that was issued and expires at these times: after half of its life, or up to a tenth of that
/// earlier.
///
/// `seed` determines how much earlier, so that PullSecrets that began together do not renew together forever.
pub(crate) fn renews_at(issued: Timestamp, expires: Timestamp, seed: &str) -> Timestamp {
    let half = (expires.as_second() - issued.as_second()) / 2;
    let hash = Sha256::digest(seed);
    let share = i64::from(u16::from_be_bytes([hash[0], hash[1]]));
    let early = (half / 10).max(0) * share / i64::from(u16::MAX);
    let wait = SignedDuration::from_secs(half - early).max(SHORTEST_INTERVAL);
    issued.saturating_add(wait).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn seeds_spread_the_renewals() {
        let hours = 12 * 3600;
        let times: std::collections::BTreeSet<_> =
            (0..50).map(|seed| renews_at(at(0), at(hours), &format!("team-{seed}/pull"))).collect();
        assert!(times.len() > 40, "{times:?}");
    }

    proptest! {
        #[test]
        fn a_token_is_renewed_before_half_of_its_life(issued in 0_i64..4_000_000_000, life in 120_i64..1_000_000, seed in "[a-z/]{0,20}") {
            let renews = renews_at(at(issued), at(issued + life), &seed).as_second();
            prop_assert!(renews <= issued + (life / 2).max(60));
            prop_assert!(renews >= issued + (life / 2 * 9 / 10).min(60).max(life / 2 * 9 / 10 - 1));
        }

        #[test]
        fn an_expired_token_is_not_requested_without_pause(issued in 0_i64..4_000_000_000, ago in 0_i64..4_000_000_000) {
            let renews = renews_at(at(issued), at(issued - ago), "x");
            prop_assert_eq!(renews.as_second(), issued + 60);
        }
    }
}
