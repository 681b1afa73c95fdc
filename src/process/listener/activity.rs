//! The state of a connection as its listener sees it, and the timeouts of a client.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

/// The time in which a client must send its first request's head, a TLS handshake included.
const FIRST_HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest time that a connection may be idle between two requests, the next one's head
/// included.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// The longest time that a client whose request was refused may go on sending it, or may be silent
/// meanwhile.
const LINGER_TIMEOUT: Duration = Duration::from_secs(30);
const LINGER_SILENCE: Duration = Duration::from_secs(5);
/// The longest time that a client may read almost nothing of the bytes sent to it. The kernel's
/// send buffer asks for more only when a third of it is free, so a shorter time would cut off
/// clients that are merely slow.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);
/// The same while memory is scarce.
const SEND_TIMEOUT_SCARCE: Duration = Duration::from_secs(15);
/// Bytes that a client must take within those times.
const SEND_MINIMUM: u64 = 64 * 1024;
const SEND_MINIMUM_SCARCE: u64 = 16 * 1024;
/// The number of requests a client may take back before they are answered, beside as many as it
/// waited for. Only HTTP/2 knows that: it is how a client makes work for nothing.
const TAKEN_BACK: u32 = 128;
/// Bytes that a client may send between two requests that belong to none: frames of HTTP/2 that ask for nothing, and what was
/// on its way when a request was refused, which its windows bound.
const UNASKED: u64 = 4 * 1024 * 1024;
/// The overhead of a piece of a body however small it is: some TLS records, and the head of a
/// chunk or a frame.
const AROUND_A_PIECE: u64 = 256;

/// The reason for which a connection was ended from this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Ended {
    /// It was idle for longest when the listener was full.
    MadePlace = 1,
    /// No request came in time.
    NoRequest,
    /// It was idle for too long.
    Idle,
    /// The client took too little of what was sent to it.
    SlowReader,
    /// The client went on sending a request that was refused.
    Lingered,
    /// The client took most of its requests back, or sent much that was none.
    Idling,
}

impl Ended {
    const ALL: [Self; 6] = [
        Self::MadePlace,
        Self::NoRequest,
        Self::Idle,
        Self::SlowReader,
        Self::Lingered,
        Self::Idling,
    ];

    /// The reason as the metrics name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MadePlace => "made_place",
            Self::NoRequest => "no_request",
            Self::Idle => "idle",
            Self::SlowReader => "slow_reader",
            Self::Lingered => "lingered",
            Self::Idling => "idling",
        }
    }
}

/// The state of a connection. Times are milliseconds since it was accepted.
#[derive(Debug)]
pub struct Activity {
    peer: IpAddr,
    accepted: Instant,
    /// Requests that are being answered.
    running: AtomicU32,
    /// The same of all connections of this peer.
    running_of_peer: Arc<AtomicUsize>,
    /// Requests that were answered to the end, and that were not.
    answered: AtomicU32,
    taken_back: AtomicU32,
    /// Bytes that have come since the last request began, but for those of bodies.
    unasked: AtomicU64,
    /// True if there was a request.
    asked: AtomicBool,
    /// When it became idle.
    idle_since: AtomicU64,
    /// True if bytes have come that belong to no request yet.
    head_begun: AtomicBool,
    /// True if a request's body was left unread.
    body_unread: AtomicBool,
    /// True if windows bound what a client sends of a body that nobody reads.
    windowed: AtomicBool,
    /// True if the client has to take something before more can be sent.
    blocked: AtomicBool,
    /// Bytes sent.
    sent: AtomicU64,
    /// When bytes came last.
    heard: AtomicU64,
    /// When this side began to wait for the end of what it will not read; 0 before that.
    lingering_since: AtomicU64,
    sending: Mutex<SendWindow>,
    reason: AtomicU8,
    cancelled: CancellationToken,
}

/// A time in which the client has to take something.
#[derive(Debug, Default)]
struct SendWindow {
    began: u64,
    sent: u64,
}

impl Activity {
    pub(super) fn new(peer: IpAddr, running_of_peer: Arc<AtomicUsize>) -> Self {
        Self {
            peer,
            running_of_peer,
            answered: AtomicU32::new(0),
            taken_back: AtomicU32::new(0),
            unasked: AtomicU64::new(0),
            accepted: Instant::now(),
            running: AtomicU32::new(0),
            asked: AtomicBool::new(false),
            idle_since: AtomicU64::new(0),
            head_begun: AtomicBool::new(false),
            body_unread: AtomicBool::new(false),
            windowed: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            lingering_since: AtomicU64::new(0),
            sending: Mutex::default(),
            reason: AtomicU8::new(0),
            cancelled: CancellationToken::new(),
        }
    }

    /// The client's address, or the network that counts as one.
    pub fn peer(&self) -> IpAddr {
        self.peer
    }

    /// Notes that a request is being answered, until the returned value is dropped.
    pub fn begin(self: &Arc<Self>) -> Exchange {
        self.running.fetch_add(1, Ordering::Relaxed);
        self.running_of_peer.fetch_add(1, Ordering::Relaxed);
        self.unasked.store(0, Ordering::Relaxed);
        self.asked.store(true, Ordering::Relaxed);
        self.head_begun.store(false, Ordering::Relaxed);
        self.body_unread.store(false, Ordering::Relaxed);
        Exchange { activity: Arc::clone(self), answered: false, turned_away: false }
    }

    /// Notes that a request's body is not read to its end: the client may still be sending it when the connection closes.
    pub fn leave_unread(&self) {
        self.body_unread.store(true, Ordering::Relaxed);
    }

    /// Notes that the connection is one of HTTP/2, whose windows bound what a client sends of a body that nobody reads.
    pub fn bound_by_windows(&self) {
        self.windowed.store(true, Ordering::Relaxed);
    }

    /// Returns whether the client may have much to send of a body that was left unread.
    pub(super) fn has_much_unread(&self) -> bool {
        self.has_unread_body() && !self.windowed.load(Ordering::Relaxed)
    }

    /// Returns whether a request's body was left unread.
    pub fn has_unread_body(&self) -> bool {
        self.body_unread.load(Ordering::Relaxed)
    }

    /// Returns whether the client has to take something before more can be sent.
    pub fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }

    /// Ends the connection.
    pub(super) fn end(&self, reason: Ended) {
        if self
            .reason
            .compare_exchange(0, reason as u8, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
        {
            self.cancelled.cancel();
        }
    }

    /// Returns reason the connection was ended from this side, if it was.
    pub fn ended(&self) -> Option<Ended> {
        let reason = self.reason.load(Ordering::Relaxed);
        Ended::ALL.into_iter().find(|candidate| *candidate as u8 == reason)
    }

    /// Waits until the connection is to be ended.
    pub async fn cancelled(&self) {
        self.cancelled.cancelled().await;
    }

    pub(super) fn read(&self, bytes: usize) {
        if bytes > 0 {
            self.heard.store(self.now(), Ordering::Relaxed);
            if self.running.load(Ordering::Relaxed) == 0 {
                self.head_begun.store(true, Ordering::Relaxed);
            }
            // A lingering connection has separate limits.
            if self.lingering_since.load(Ordering::Relaxed) == 0
                && self.unasked.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64
                    > self.may_send_unasked()
            {
                self.end(Ended::Idling);
            }
        }
    }

    /// Returns how many bytes a client may send unasked: it acknowledges what it receives in frames of HTTP/2.
    fn may_send_unasked(&self) -> u64 {
        UNASKED + self.sent.load(Ordering::Relaxed) / 16
    }

    /// Notes that so many bytes of what came were a request's body. The bytes around them belong to
    /// it: TLS records, frames and chunks, of which a large layer has more than any limit that does
    /// not grow with it, and one that comes in tiny pieces more than bytes.
    pub fn received(&self, bytes: usize) {
        let bytes = bytes as u64;
        let less = |unasked: u64| Some(unasked.saturating_sub(bytes + bytes / 16 + AROUND_A_PIECE));
        // The closure always gives a value.
        let _ = self.unasked.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    pub(super) fn wrote(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        self.blocked.store(false, Ordering::Relaxed);
    }

    pub(super) fn block(&self) {
        self.blocked.store(true, Ordering::Relaxed);
    }

    /// Notes that this side has said its last word. Returns whether the client may not have.
    pub(super) fn linger(&self) -> bool {
        self.blocked.store(false, Ordering::Relaxed);
        let unread = self.has_unread_body() || self.head_begun.load(Ordering::Relaxed);
        if unread {
            self.heard.store(self.now(), Ordering::Relaxed);
            self.lingering_since.store(self.now().max(1), Ordering::Relaxed);
        }
        unread
    }

    /// For how long the connection has been idle, in milliseconds; none while it is at work.
    pub(super) fn idle_for(&self) -> Option<u64> {
        let idle = self.running.load(Ordering::Relaxed) == 0 && !self.is_blocked();
        idle.then(|| self.now().saturating_sub(self.idle_since.load(Ordering::Relaxed)))
    }

    /// Returns reason the connection should end now, if it should. `scarce` says that memory is scarce.
    pub(super) fn overdue(&self, scarce: bool) -> Option<Ended> {
        self.overdue_at(self.now(), scarce)
    }

    fn overdue_at(&self, now: u64, scarce: bool) -> Option<Ended> {
        let passed =
            |since: u64, limit: Duration| now.saturating_sub(since) >= limit.as_millis() as u64;
        let lingering = self.lingering_since.load(Ordering::Relaxed);
        if lingering > 0 {
            let silent = passed(self.heard.load(Ordering::Relaxed), LINGER_SILENCE);
            return (silent || passed(lingering, LINGER_TIMEOUT)).then_some(Ended::Lingered);
        }
        if !self.asked.load(Ordering::Relaxed) && passed(0, FIRST_HEAD_TIMEOUT) {
            return Some(Ended::NoRequest);
        }
        let sent = self.sent.load(Ordering::Relaxed);
        // Two numbers cannot be half changed, so a panic elsewhere leaves nothing to fear in them.
        let mut window = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = sent - window.sent;
        if !self.is_blocked() || taken >= SEND_MINIMUM {
            *window = SendWindow { began: now, sent };
        } else if passed(window.began, SEND_TIMEOUT)
            || (scarce && taken < SEND_MINIMUM_SCARCE && passed(window.began, SEND_TIMEOUT_SCARCE))
        {
            return Some(Ended::SlowReader);
        }
        drop(window);
        let idle = self.running.load(Ordering::Relaxed) == 0 && !self.is_blocked();
        (idle && passed(self.idle_since.load(Ordering::Relaxed), IDLE_TIMEOUT))
            .then_some(Ended::Idle)
    }

    fn now(&self) -> u64 {
        self.accepted.elapsed().as_millis() as u64
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub struct Exchange {
    activity: Arc<Activity>,
    answered: bool,
    turned_away: bool,
}

impl Exchange {
    /// The connection's activity.
    pub fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    /// Returns how many requests of this peer are being answered, on all its connections.
    pub fn running_of_peer(&self) -> usize {
        self.activity.running_of_peer.load(Ordering::Relaxed)
    }

    /// Notes that the request is refused because there are too many. Such an answer does not count among those that the client
    /// waited for: it may be sent before the client takes the request back.
    pub fn turn_away(&mut self) {
        self.turned_away = true;
    }

    /// Notes that all of the answer was taken.
    pub fn answered(&mut self) {
        self.answered = true;
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let activity = &self.activity;
        activity.idle_since.store(activity.now(), Ordering::Relaxed);
        activity.running.fetch_sub(1, Ordering::Relaxed);
        activity.running_of_peer.fetch_sub(1, Ordering::Relaxed);
        if self.answered {
            activity.answered.fetch_add(u32::from(!self.turned_away), Ordering::Relaxed);
            return;
        }
        let taken_back = activity.taken_back.fetch_add(1, Ordering::Relaxed) + 1;
        if taken_back > activity.answered.load(Ordering::Relaxed).saturating_add(TAKEN_BACK) {
            activity.end(Ended::Idling);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn activity() -> Arc<Activity> {
        Arc::new(Activity::new(IpAddr::from([192, 0, 2, 1]), Arc::default()))
    }

    const SECOND: u64 = 1_000;

    #[test]
    fn a_first_request_has_ten_seconds() {
        let activity = activity();
        activity.read(3);
        assert_eq!(activity.overdue_at(9 * SECOND, false), None);
        assert_eq!(activity.overdue_at(10 * SECOND, false), Some(Ended::NoRequest));
        let exchange = activity.begin();
        assert_eq!(activity.overdue_at(1_000 * SECOND, false), None, "an answer may take its time");
        drop(exchange);
        assert_eq!(activity.overdue_at(74 * SECOND, false), None);
        assert_eq!(activity.overdue_at(80 * SECOND, false), Some(Ended::Idle));
    }

    #[test]
    fn who_takes_nothing_is_cut_off_and_sooner_when_memory_is_scarce() {
        let activity = activity();
        let _exchange = activity.begin();
        activity.wrote(100);
        activity.block();
        assert_eq!(activity.overdue_at(0, false), None);
        assert_eq!(activity.overdue_at(16 * SECOND, false), None);
        assert_eq!(activity.overdue_at(16 * SECOND, true), Some(Ended::SlowReader));
        assert_eq!(activity.overdue_at(61 * SECOND, false), Some(Ended::SlowReader));
    }

    #[test]
    fn who_takes_little_by_little_is_cut_off_too() {
        let activity = activity();
        let _exchange = activity.begin();
        activity.block();
        let mut ended = None;
        for second in 0..70 {
            activity.wrote(1_000);
            activity.block();
            ended = ended.or(activity.overdue_at(second * SECOND, false));
        }
        assert_eq!(ended, Some(Ended::SlowReader));
    }

    #[test]
    fn a_slow_but_steady_reader_is_served() {
        let activity = activity();
        let _exchange = activity.begin();
        activity.block();
        for second in 0..600 {
            activity.wrote(2_000);
            activity.block();
            assert_eq!(activity.overdue_at(second * SECOND, true), None, "at second {second}");
        }
    }

    #[test]
    fn who_takes_most_requests_back_is_cut_off() {
        let (patient, hasty) = (activity(), activity());
        for _ in 0..1_000 {
            patient.begin().answered();
            drop((patient.begin(), hasty.begin()));
        }
        assert_eq!(patient.ended(), None);
        assert_eq!(hasty.ended(), Some(Ended::Idling));
        let busy = activity();
        for _ in 0..=TAKEN_BACK {
            let mut turned_away = busy.begin();
            turned_away.turn_away();
            turned_away.answered();
            drop((turned_away, busy.begin()));
        }
        assert_eq!(busy.ended(), Some(Ended::Idling));
        let few = activity();
        (0..TAKEN_BACK).for_each(|_| drop(few.begin()));
        assert_eq!(few.ended(), None);
    }

    #[test]
    fn who_sends_much_that_is_no_request_is_cut_off() {
        const FRAME: usize = 17;
        let (chatter, uploader, reader) = (activity(), activity(), activity());
        let _running = (chatter.begin(), uploader.begin(), reader.begin());
        for _ in 0..UNASKED / FRAME as u64 + 1 {
            for activity in [&chatter, &uploader, &reader] {
                activity.read(FRAME);
            }
            uploader.received(FRAME);
            reader.wrote(16 * 1024);
        }
        assert_eq!(chatter.ended(), Some(Ended::Idling));
        assert_eq!((uploader.ended(), reader.ended()), (None, None));
    }

    #[test]
    fn a_layer_may_be_as_large_as_it_likes() {
        // 64 GiB in chunks of 4 KiB by TLS.
        const BODY: usize = 64 * 1024;
        const AROUND: usize = 4 * 22 + 16 * 8;
        let uploader = activity();
        let _running = uploader.begin();
        for _ in 0..1024 * 1024 {
            uploader.read(BODY + AROUND);
            uploader.received(BODY);
        }
        assert_eq!(uploader.ended(), None);
    }

    #[test]
    fn a_layer_may_come_a_byte_at_a_time() {
        // A chunk of one byte, each part of it in a separate TLS record.
        let uploader = activity();
        let _running = uploader.begin();
        for _ in 0..UNASKED {
            uploader.read(6 + 4 * 22);
            uploader.received(1);
        }
        assert_eq!(uploader.ended(), None);
    }

    #[test]
    fn little_of_an_unread_body_comes_where_windows_bound_it() {
        let (http1, http2) = (activity(), activity());
        http2.bound_by_windows();
        for activity in [&http1, &http2] {
            activity.begin().activity().leave_unread();
            assert!(activity.linger());
        }
        assert!(http1.has_much_unread() && !http2.has_much_unread());
    }

    #[test]
    fn a_connection_lingers_only_when_something_was_left_unread() {
        let settled = activity();
        settled.read(100);
        drop(settled.begin());
        assert!(!settled.linger());
        let unread = activity();
        unread.read(100);
        unread.begin().activity().leave_unread();
        assert!(unread.linger());
        assert_eq!(unread.overdue_at(4 * SECOND, false), None);
        assert_eq!(unread.overdue_at(6 * SECOND, false), Some(Ended::Lingered));
        let nonsense = activity();
        nonsense.read(100);
        assert!(nonsense.linger());
    }
}
