//! The rotation in which cached objects are read again: a part of them per interval, so that the number of calls does not grow
//! with the number of objects.

use std::time::{Duration, Instant};

use wharfage_plan::ObjectKey;

/// The objects per interval whose details are read again when nothing else asks for it.
pub const READS_PER_INTERVAL: usize = 100;

/// The minimum freshness of a value.
#[derive(Debug, Clone, Copy)]
pub struct Freshness {
    /// The resource's interval: an older value is read again.
    pub interval: Duration,
    /// Read again now.
    pub now: bool,
}

/// When a value was read, and when it is due again: after 50 % to 100 % of a rotation, jittered so that reads spread out.
#[derive(Debug, Clone, Copy)]
pub(super) struct RefreshDue {
    pub(super) at: Instant,
    part: f64,
}

impl RefreshDue {
    pub(super) fn of(at: Instant) -> Self {
        Self { at, part: 0.5 + 0.5 * fastrand::f64() }
    }

    /// Returns whether the value is due; never before an interval has passed.
    pub(super) fn is_over(self, now: Instant, interval: Duration, rotation: u32) -> bool {
        let intervals = (f64::from(rotation) * self.part).max(1.0);
        now.duration_since(self.at) >= interval.mul_f64(intervals)
    }
}

/// Returns the number of intervals in which each of so many objects is read once.
pub(super) fn rotation(objects: usize) -> u32 {
    u32::try_from(objects.div_ceil(READS_PER_INTERVAL)).unwrap_or(u32::MAX).max(1)
}

/// Returns at most `limit` objects that are due: those that were never read, then the longest unread first.
pub(super) fn most_overdue(
    objects: impl Iterator<Item = (ObjectKey, Option<RefreshDue>)>,
    now: Instant,
    interval: Duration,
    rotation: u32,
    limit: usize,
) -> Vec<ObjectKey> {
    let is_due =
        |due: &Option<RefreshDue>| due.is_none_or(|due| due.is_over(now, interval, rotation));
    let due = objects.filter(|(_, due)| is_due(due)).map(|(key, due)| (due.map(|it| it.at), key));
    let mut due: Vec<_> = due.collect();
    due.sort_unstable();
    due.into_iter().take(limit).map(|(_, key)| key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_read_together_are_read_again_in_turns() {
        let (start, interval) = (Instant::now(), Duration::from_secs(60));
        let values: Vec<RefreshDue> = (0..5000).map(|_| RefreshDue::of(start)).collect();
        let over = |intervals: u32, rotation| {
            let now = start + interval * intervals;
            values.iter().filter(|due| due.is_over(now, interval, rotation)).count()
        };
        assert_eq!(
            (over(24, 50), over(50, 50)),
            (0, 5000),
            "not before half a rotation, and all within one"
        );
        let most = (25..50).map(|it| over(it + 1, 50) - over(it, 50)).max().unwrap();
        assert!(most < READS_PER_INTERVAL * 3, "{most} in one interval");
        assert_eq!((over(0, 1), over(1, 1)), (0, 5000), "few are read every interval");
    }

    #[test]
    fn the_longest_unread_objects_of_any_kind_come_first() {
        let (now, minute) = (Instant::now(), Duration::from_secs(60));
        let ago = |minutes: u32| now.checked_sub(minute * minutes).map(RefreshDue::of);
        let (hub, role) =
            (ObjectKey::PullThroughCacheRule("hub".into()), ObjectKey::Role("ci".into()));
        let (new, user) =
            (ObjectKey::RepositoryCreationTemplate("new".into()), ObjectKey::User("bot".into()));
        let objects =
            [(hub.clone(), ago(3)), (role.clone(), ago(9)), (user, ago(0)), (new.clone(), None)];
        let due = |limit| most_overdue(objects.iter().cloned(), now, minute, 1, limit);
        assert_eq!(due(9), [new.clone(), role.clone(), hub]);
        assert_eq!(due(2), [new, role]);
        assert_eq!([0, 100, 101, 5000].map(rotation), [1, 1, 2, 50]);
    }
}
