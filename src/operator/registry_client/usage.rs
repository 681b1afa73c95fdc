//! What a registry holds: its repositories are listed, and their images counted in rotation. Repositories that resources declare
//! are counted when those are looked at; the others here, oldest count first, and no more of them the more there are.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::RegistryClient;
use super::cache::{Freshness, RefreshDue};
use super::health::RegistryError;
use super::listing::LOOKS_PER_INTERVAL;
use wharfage_apply::{ImageUsage, Listing};
use wharfage_crd::common::DEFAULT_INTERVAL;
use wharfage_domain::names::RepositoryName;

/// For how long the first look at a registry counts, as there is none before it.
const FIRST: Duration = Duration::from_secs(60);

/// What a registry holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Totals {
    /// How many repositories.
    pub repositories: usize,
    /// What is known of their images.
    pub images: ImageUsage,
    /// Whether each of them was counted since the client began.
    pub all_counted: bool,
}

/// How many repositories may be counted this long after the last of it, so that it is [`LOOKS_PER_INTERVAL`] in an interval.
fn allowance(since: Duration) -> usize {
    let looks = since.min(DEFAULT_INTERVAL).as_secs_f64() / DEFAULT_INTERVAL.as_secs_f64();
    let looks = looks * f64::from(u32::try_from(LOOKS_PER_INTERVAL).unwrap_or(u32::MAX));
    // Of an interval at most, and never negative.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let looks = looks as usize;
    looks
}

impl RegistryClient {
    /// What it holds, by a listing at most this old; meanwhile some images are counted whose turn it is.
    ///
    /// # Errors
    /// When the repositories cannot be listed.
    pub async fn totals(self: &Arc<Self>, max_age: Duration) -> Result<Totals, RegistryError> {
        let listing = self.listing(max_age).await?;
        self.count(&listing.repositories).await;
        let places = self.places();
        let is_counted = |name| places.get(name).is_some_and(|it| it.summary.usage.is_some());
        let all_counted = listing.repositories.keys().all(is_counted);
        drop(places);
        Ok(Totals { repositories: listing.repositories.len(), images: self.counted(), all_counted })
    }

    pub(super) fn counted(&self) -> ImageUsage {
        let places = self.places();
        let usages = places.values().filter_map(|it| it.summary.usage.clone());
        usages.fold(ImageUsage::default(), |sum, (_, usage)| sum.and(usage))
    }

    /// Counts the images of as many repositories as it is time for. Whoever is busy with one counts it himself.
    async fn count(self: &Arc<Self>, listed: &Listing) {
        let now = Instant::now();
        let most = {
            let mut last = self.counting.lock().unwrap_or_else(PoisonError::into_inner);
            let most = allowance(last.map_or(FIRST, |last| now.duration_since(last)));
            if most > 0 {
                *last = Some(now);
            }
            most
        };
        for name in self.due(listed, now, most) {
            let Some(mut held) = self.idle_repository(&name) else { continue };
            match held.usage(Freshness { interval: DEFAULT_INTERVAL, now: false }).await {
                Ok(_) => {}
                Err(RegistryError::Unavailable(_)) => return,
                Err(RegistryError::Rejected(error)) => {
                    tracing::debug!(registry = self.name, %name, %error, "images cannot be counted");
                    drop(held);
                    // As good as none, until its next turn: others are to have theirs.
                    if let Some(entry) = self.places().get_mut(&name) {
                        entry.summary.usage = Some((RefreshDue::of(now), ImageUsage::default()));
                    }
                }
            }
        }
    }

    /// Those that are to be counted, the longest not counted first.
    fn due(&self, listed: &Listing, now: Instant, most: usize) -> Vec<RepositoryName> {
        let rotation = self.rotation();
        let places = self.places();
        let mut due: Vec<(Option<Instant>, &RepositoryName)> = listed
            .keys()
            .map(|name| (places.get(name).and_then(|it| it.summary.usage.as_ref()).map(|(turn, _)| *turn), name))
            .filter(|(turn, _)| turn.is_none_or(|turn| turn.is_over(now, DEFAULT_INTERVAL, rotation)))
            .map(|(turn, name)| (turn.map(|it| it.at), name))
            .collect();
        due.sort_unstable();
        due.into_iter().take(most).map(|(_, name)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_are_counted_than_a_rotation_has() {
        let counted = [0, 5, 6, 60, 600, 86_400].map(|seconds| allowance(Duration::from_secs(seconds)));
        assert_eq!(counted, [0, 0, 1, 10, LOOKS_PER_INTERVAL, LOOKS_PER_INTERVAL]);
    }
}
