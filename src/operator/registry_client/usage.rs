//! The usage of a registry: its repositories are listed, and their images counted in rotation. Repositories of resources are
//! counted when those are reconciled; the others here, the oldest count first and about a hundred per interval.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::RegistryClient;
use super::health::RegistryError;
use super::rotation::{Freshness, READS_PER_INTERVAL, RefreshDue, most_overdue};
use wharfage_apply::{ImageUsage, Listing};
use wharfage_crd::common::DEFAULT_INTERVAL;
use wharfage_plan::ObjectKey;

/// The time that the first count of a registry is worth, because there is none before it.
const FIRST_ALLOWANCE: Duration = Duration::from_secs(60);

/// The usage of a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Totals {
    /// The number of repositories.
    pub repositories: usize,
    /// Their images, as far as they are counted.
    pub images: ImageUsage,
    /// Every repository was counted since the client started.
    pub all_counted: bool,
}

/// Returns the number of repositories to count this long after the last ones: [`READS_PER_INTERVAL`] per interval.
fn allowance(since: Duration) -> usize {
    let reads = since.min(DEFAULT_INTERVAL).as_secs_f64() / DEFAULT_INTERVAL.as_secs_f64();
    let reads = reads * f64::from(u32::try_from(READS_PER_INTERVAL).unwrap_or(u32::MAX));
    // At most those of one interval, and never negative.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let reads = reads as usize;
    reads
}

impl RegistryClient {
    /// Returns the usage by a listing at most this old, and counts some images that are due.
    ///
    /// # Errors
    /// When the repositories cannot be listed.
    pub async fn totals(self: &Arc<Self>, max_age: Duration) -> Result<Totals, RegistryError> {
        let listing = self.listing(max_age).await?;
        self.count(&listing.objects).await;
        let entries = self.repositories.entries();
        let is_counted =
            |key: ObjectKey| entries.get(&key).is_some_and(|it| it.summary.usage.is_some());
        let all_counted = listing.objects.keys().cloned().all(|name| is_counted(name.into()));
        drop(entries);
        Ok(Totals { repositories: listing.objects.len(), images: self.counted(), all_counted })
    }

    pub(super) fn counted(&self) -> ImageUsage {
        let entries = self.repositories.entries();
        let usages = entries.values().filter_map(|it| it.summary.usage.clone());
        usages.fold(ImageUsage::default(), |sum, (_, usage)| sum.and(usage))
    }

    /// Counts the images of the repositories that are due. A locked one is counted by the holder of its lock.
    async fn count(self: &Arc<Self>, listed: &Listing) {
        let now = Instant::now();
        let most = {
            let mut last = self.counting.lock().unwrap_or_else(PoisonError::into_inner);
            let most = allowance(last.map_or(FIRST_ALLOWANCE, |last| now.duration_since(last)));
            if most > 0 {
                *last = Some(now);
            }
            most
        };
        for key in self.due(listed, now, most) {
            let Some(mut held) = self.idle_repository(&key) else { continue };
            match held.usage(Freshness { interval: DEFAULT_INTERVAL, now: false }).await {
                Ok(_) => {}
                Err(RegistryError::Unavailable(_)) => return,
                Err(RegistryError::Rejected(error)) => {
                    tracing::debug!(registry = self.name, name = key.name(), %error, "images cannot be counted");
                    drop(held);
                    // It counts as empty until it is due again, so that the others get their turn.
                    if let Some(entry) = self.repositories.entries().get_mut(&key) {
                        entry.summary.usage = Some((RefreshDue::of(now), ImageUsage::default()));
                    }
                }
            }
        }
    }

    fn due(&self, listed: &Listing, now: Instant, most: usize) -> Vec<ObjectKey> {
        let rotation = self.rotation();
        let entries = self.repositories.entries();
        let objects = listed.keys().cloned().map(ObjectKey::from).map(|key| {
            let due =
                entries.get(&key).and_then(|it| it.summary.usage.as_ref()).map(|(due, _)| *due);
            (key, due)
        });
        most_overdue(objects, now, DEFAULT_INTERVAL, rotation, most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_stay_within_the_rotation() {
        let counted =
            [0, 5, 6, 60, 600, 86_400].map(|seconds| allowance(Duration::from_secs(seconds)));
        assert_eq!(counted, [0, 0, 1, 10, READS_PER_INTERVAL, READS_PER_INTERVAL]);
    }
}
