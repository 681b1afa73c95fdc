//! Bodies: what goes out is one buffer or a blob's stream; what comes in is read within a limit, at a minimum rate, and
//! only as fast as there is memory for it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::memory::{self, Caller};
use wharfage_process::budget::{Account, Exhausted};
use wharfage_process::listener::Activity;
use wharfage_store::{BlobReader, StoreError};

/// A client must send so many bytes in so much time spent waiting for it.
const MINIMUM_BYTES: usize = 16 * 1024;
const MINIMUM_TIME: Duration = Duration::from_secs(20);

/// How much of a refused request's body is read before the refusal is sent, and for how long: few bytes that are on their
/// way already cost less than another connection.
const DRAINED: usize = 64 * 1024;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// What a body that is passed on piece by piece holds on its way to the store, in bytes.
const STREAM: usize = 256 * 1024;
/// The bytes of such a body that are free: what fits into the buffers that each connection has.
const STREAM_FREE: u64 = 64 * 1024;

/// A response's body.
pub(crate) enum Body {
    /// All of it.
    Full(Option<Bytes>),
    /// A blob's bytes, `remaining` of them, as the store reads them.
    Blob {
        /// The store's stream.
        reader: BlobReader,
        /// Bytes that are still to come; becomes Content-Length.
        remaining: u64,
        /// Accounts for the memory of the stream until the body is dropped.
        _memory: Account,
    },
}

impl Body {
    /// No bytes.
    pub(crate) fn empty() -> Self {
        Self::Full(None)
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::empty()
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self::from(Bytes::from(text))
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::Full((!bytes.is_empty()).then_some(bytes))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = StoreError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StoreError>>> {
        match self.get_mut() {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Blob { reader, remaining, .. } => reader.as_mut().poll_next(cx).map(|next| {
                next.map(|chunk| {
                    chunk.map(|bytes| {
                        *remaining = remaining.saturating_sub(bytes.len() as u64);
                        Frame::data(bytes)
                    })
                })
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_none(),
            Self::Blob { remaining, .. } => *remaining == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Blob { remaining, .. } => SizeHint::with_exact(*remaining),
        }
    }
}

/// Why a request's body did not arrive whole.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// It is longer than the limit, in bytes.
    #[error("the body is longer than {0} bytes")]
    TooLarge(usize),
    /// The client sent next to nothing.
    #[error("the body arrived too slowly")]
    TooSlow,
    /// There is no memory for it now.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// The connection broke, or its framing did.
    #[error("the body ended early: {0}")]
    Broken(#[from] hyper::Error),
}

/// Measures how fast a body arrives: only the time counts in which its client was waited for.
#[derive(Debug, Default)]
struct Pace {
    waited: Duration,
    bytes: usize,
}

impl Pace {
    /// How long the client may take for the next bytes.
    fn left(&self) -> Duration {
        MINIMUM_TIME.saturating_sub(self.waited)
    }

    /// Notes that `bytes` came after a wait.
    fn note(&mut self, waited: Duration, bytes: usize) {
        self.waited += waited;
        self.bytes += bytes;
        if self.bytes >= MINIMUM_BYTES {
            *self = Self::default();
        }
    }
}

/// A request's body. Dropping it before its end tells the connection that the client may still be sending.
#[derive(Debug)]
pub(crate) struct RequestBody {
    incoming: Option<Incoming>,
    activity: Arc<Activity>,
    pace: Pace,
    /// Bytes that came.
    received: u64,
    /// What a body holds that is passed on piece by piece.
    stream: Option<Account>,
    /// Whether the client sends nothing before it is asked to ("Expect: 100-continue").
    waits: bool,
}

impl RequestBody {
    /// The body as it comes off the wire of a connection. `waits` says that the client sends nothing before it is asked to.
    pub(crate) fn new(incoming: Incoming, activity: Arc<Activity>, waits: bool) -> Self {
        Self { incoming: Some(incoming), activity, pace: Pace::default(), received: 0, stream: None, waits }
    }

    /// Whether there is nothing to be read.
    pub(crate) fn is_empty(&self) -> bool {
        self.incoming.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    /// The address that the body comes from.
    pub(crate) fn peer(&self) -> std::net::IpAddr {
        self.activity.peer()
    }

    /// The same body, leaving an empty one behind.
    pub(crate) fn take(&mut self) -> Self {
        let (incoming, pace) = (self.incoming.take(), std::mem::take(&mut self.pace));
        let (activity, received, stream) = (Arc::clone(&self.activity), self.received, self.stream.take());
        Self { incoming, activity, pace, received, stream, waits: self.waits }
    }

    /// The next bytes of a verified caller's body that is passed on piece by piece, or `None` at the end.
    pub(crate) async fn next(&mut self, caller: &Caller) -> Result<Option<Bytes>, BodyError> {
        if self.stream.is_none() && self.received > STREAM_FREE {
            let mut account = memory::process().open(caller, STREAM);
            account.hold(STREAM, memory::TIMEOUT).await?;
            self.stream = Some(account);
        }
        self.receive().await
    }

    /// The next bytes, or `None` at the end. Trailers are passed over.
    async fn receive(&mut self) -> Result<Option<Bytes>, BodyError> {
        let Some(incoming) = &mut self.incoming else { return Ok(None) };
        loop {
            let asked = Instant::now();
            let frame =
                tokio::time::timeout(self.pace.left(), incoming.frame()).await.map_err(|_| BodyError::TooSlow)?;
            let waited = asked.elapsed();
            match frame {
                None => return Ok(None),
                Some(frame) => match frame?.into_data() {
                    Ok(bytes) if bytes.is_empty() => self.pace.note(waited, 0),
                    Ok(bytes) => {
                        self.pace.note(waited, bytes.len());
                        self.received += bytes.len() as u64;
                        self.activity.received(bytes.len());
                        return Ok(Some(bytes));
                    }
                    Err(_trailers) => {}
                },
            }
        }
    }

    /// Reads all of it, at most `limit` bytes, with the account that holds their memory. It may grow to twice of them for
    /// those who work on them. One that announces more is refused before it is read.
    pub(crate) async fn read_up_to(&mut self, limit: usize, caller: &Caller) -> Result<(Bytes, Account), BodyError> {
        let memory = memory::process();
        let Some(incoming) = &self.incoming else { return Ok((Bytes::new(), memory.open(caller, 0))) };
        let hint = http_body::Body::size_hint(incoming);
        if hint.lower() > limit as u64 {
            return Err(BodyError::TooLarge(limit));
        }
        let announced = hint.exact().map_or(limit, |length| length as usize);
        let mut account = memory.open(caller, 2 * announced);
        let Some(first) = self.receive().await? else { return Ok((Bytes::new(), account)) };
        account.hold(first.len(), memory::TIMEOUT).await?;
        if hint.exact() == Some(first.len() as u64) {
            return Ok((first, account));
        }
        // It grows as bytes arrive: what is only announced takes no memory.
        let mut whole = BytesMut::from(first.as_ref());
        drop(first);
        while let Some(chunk) = self.receive().await? {
            let length = whole.len() + chunk.len();
            if length > limit {
                return Err(BodyError::TooLarge(limit));
            }
            if length > whole.capacity() {
                let capacity = (whole.capacity() * 2).clamp(length, announced.max(length));
                account.hold(capacity, memory::TIMEOUT).await?;
                whole.reserve(capacity - whole.len());
            }
            whole.extend_from_slice(&chunk);
        }
        if whole.len() > limit { Err(BodyError::TooLarge(limit)) } else { Ok((whole.freeze(), account)) }
    }

    /// Reads and forgets a little of what nobody took, so that a refusal need not end the connection.
    pub(crate) async fn drain(&mut self) {
        let announced = self.incoming.as_ref().map_or(0, |incoming| http_body::Body::size_hint(incoming).lower());
        if (self.waits && self.received == 0) || announced > DRAINED as u64 {
            return;
        }
        let drained = async {
            let mut left = DRAINED;
            while let Ok(Some(chunk)) = self.receive().await {
                left = left.saturating_sub(chunk.len());
                if left == 0 {
                    return;
                }
            }
        };
        // A client that is slower than this gets its answer at once; the connection then ends.
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, drained).await;
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if !self.is_empty() {
            self.activity.leave_unread();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_waiting_counts_against_a_client() {
        let mut pace = Pace::default();
        pace.note(Duration::from_secs(19), MINIMUM_BYTES - 1);
        assert_eq!(pace.left(), Duration::from_secs(1));
        pace.note(Duration::ZERO, 1);
        assert_eq!(pace.left(), MINIMUM_TIME, "enough came");
        for _ in 0..20 {
            pace.note(Duration::from_secs(1), 100);
        }
        assert_eq!(pace.left(), Duration::ZERO, "a hundred bytes a second are too few");
    }
}
