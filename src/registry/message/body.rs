//! Bodies. A response's body is one buffer or a blob's stream. A request's body is read within a
//! limit, at a minimum rate, and only as fast as there is memory for it.

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

/// The minimum rate of a client: these bytes in this time of waiting for it.
const MINIMUM_BYTES: usize = 16 * 1024;
const MINIMUM_TIME: Duration = Duration::from_secs(20);

/// The limit of bytes that are read from a refused request's body before its response, and the time
/// limit: a few bytes cost less than a new connection.
const DRAINED: usize = 64 * 1024;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The memory of a streamed body on its way to the store, in bytes.
const STREAM: usize = 256 * 1024;
/// The bytes of a streamed body that are free: they fit into the buffers of each connection.
const STREAM_FREE: u64 = 64 * 1024;

/// A response's body.
pub(crate) enum Body {
    /// The whole body.
    Full(Option<Bytes>),
    /// The next `remaining` bytes of a blob's stream.
    Blob {
        /// The stream of the store.
        reader: BlobReader,
        /// The bytes still to come; becomes Content-Length.
        remaining: u64,
        /// Accounts for the memory of the stream until the body is dropped.
        _memory: Account,
    },
}

impl Body {
    /// Creates an empty body.
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

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StoreError>>> {
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
            Self::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Blob { remaining, .. } => SizeHint::with_exact(*remaining),
        }
    }
}

/// The reason why a request's body did not arrive completely.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// It is longer than the limit, in bytes.
    #[error("the body is longer than {0} bytes")]
    TooLarge(usize),
    /// The client was slower than the minimum rate.
    #[error("the body arrived too slowly")]
    TooSlow,
    /// There is no memory for it.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// The connection or its framing broke.
    #[error("the body ended early: {0}")]
    Broken(#[from] hyper::Error),
}

/// Measures the rate of a body: only the time spent waiting for the client counts.
#[derive(Debug, Default)]
struct Pace {
    waited: Duration,
    bytes: usize,
}

impl Pace {
    /// Returns the time that the client has for the next bytes.
    fn left(&self) -> Duration {
        MINIMUM_TIME.saturating_sub(self.waited)
    }

    /// Records that `bytes` arrived after a wait.
    fn note(&mut self, waited: Duration, bytes: usize) {
        self.waited += waited;
        self.bytes += bytes;
        if self.bytes >= MINIMUM_BYTES {
            *self = Self::default();
        }
    }
}

/// The body of a request. Dropping it before its end marks the connection as having unread bytes.
#[derive(Debug)]
pub(crate) struct RequestBody {
    incoming: Option<Incoming>,
    activity: Arc<Activity>,
    pace: Pace,
    /// The bytes received.
    received: u64,
    /// The memory of a streamed body.
    stream: Option<Account>,
    /// The client sends nothing before it is asked to ("Expect: 100-continue").
    waits: bool,
}

impl RequestBody {
    /// Creates the body of a request. `waits` means that the client sends nothing before it is
    /// asked to.
    pub(crate) fn new(incoming: Incoming, activity: Arc<Activity>, waits: bool) -> Self {
        Self {
            incoming: Some(incoming),
            activity,
            pace: Pace::default(),
            received: 0,
            stream: None,
            waits,
        }
    }

    /// Returns whether there is nothing to read.
    pub(crate) fn is_empty(&self) -> bool {
        self.incoming.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    /// Returns the address of the client.
    pub(crate) fn peer(&self) -> std::net::IpAddr {
        self.activity.peer()
    }

    /// Takes the body, and leaves an empty one.
    pub(crate) fn take(&mut self) -> Self {
        let (incoming, pace) = (self.incoming.take(), std::mem::take(&mut self.pace));
        let (activity, received, stream) =
            (Arc::clone(&self.activity), self.received, self.stream.take());
        Self { incoming, activity, pace, received, stream, waits: self.waits }
    }

    /// Returns the next bytes of a verified caller's streamed body, or `None` at the end.
    pub(crate) async fn next(&mut self, caller: &Caller) -> Result<Option<Bytes>, BodyError> {
        if self.stream.is_none() && self.received > STREAM_FREE {
            let mut account = memory::process().open(caller, STREAM);
            account.hold(STREAM, memory::TIMEOUT).await?;
            self.stream = Some(account);
        }
        self.receive().await
    }

    /// Returns the next bytes, or `None` at the end. Skips trailers.
    async fn receive(&mut self) -> Result<Option<Bytes>, BodyError> {
        let Some(incoming) = &mut self.incoming else { return Ok(None) };
        loop {
            let asked = Instant::now();
            let frame = tokio::time::timeout(self.pace.left(), incoming.frame())
                .await
                .map_err(|_| BodyError::TooSlow)?;
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

    /// Reads the whole body, at most `limit` bytes, with the account of its memory, which may grow
    /// to twice the body for its readers. A body that announces more is refused before it is read.
    pub(crate) async fn read_up_to(
        &mut self,
        limit: usize,
        caller: &Caller,
    ) -> Result<(Bytes, Account), BodyError> {
        let memory = memory::process();
        let Some(incoming) = &self.incoming else {
            return Ok((Bytes::new(), memory.open(caller, 0)));
        };
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
        // The buffer grows as bytes arrive: announced bytes take no memory.
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
        if whole.len() > limit {
            Err(BodyError::TooLarge(limit))
        } else {
            Ok((whole.freeze(), account))
        }
    }

    /// Reads and discards a small unread rest, so that a refusal need not close the connection.
    pub(crate) async fn drain(&mut self) {
        let announced = self
            .incoming
            .as_ref()
            .map_or(0, |incoming| http_body::Body::size_hint(incoming).lower());
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
        // A slower client gets its response at once; then the connection is closed.
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
