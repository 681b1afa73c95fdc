//! Bodies: what goes out is one buffer or a blob's stream; what comes in is read within a limit and a patience.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::store::{BlobReader, StoreError};

/// How long a client may be silent in the middle of a body.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How long the rest of a refused request's body is read.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);

/// A response's body.
pub enum Body {
    /// All of it.
    Full(Option<Bytes>),
    /// A blob's bytes, `remaining` of them, as the store reads them.
    Blob {
        /// The store's stream.
        reader: BlobReader,
        /// Bytes that are still to come; becomes Content-Length.
        remaining: u64,
    },
}

impl Body {
    /// No bytes.
    pub fn empty() -> Self {
        Self::Full(None)
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
            Self::Blob { reader, remaining } => reader.as_mut().poll_next(cx).map(|next| {
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
pub enum BodyError {
    /// It is longer than the limit, in bytes.
    #[error("the body is longer than {0} bytes")]
    TooLarge(usize),
    /// The client said nothing for [`PATIENCE`].
    #[error("the body stopped arriving")]
    TimedOut,
    /// The connection broke, or its framing did.
    #[error("the body ended early: {0}")]
    Broken(#[from] hyper::Error),
}

/// The next bytes of a body, or `None` at its end. Trailers are passed over.
pub async fn next_chunk(body: &mut Incoming) -> Result<Option<Bytes>, BodyError> {
    loop {
        let frame = tokio::time::timeout(PATIENCE, body.frame()).await.map_err(|_| BodyError::TimedOut)?;
        match frame {
            None => return Ok(None),
            Some(frame) => match frame?.into_data() {
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => return Ok(Some(bytes)),
                Err(_trailers) => {}
            },
        }
    }
}

/// Reads a whole body of at most `limit` bytes. One that announces more is refused before it is read.
pub async fn read_all(body: Incoming, limit: usize) -> Result<Bytes, BodyError> {
    RequestBody::new(body).read_up_to(limit).await
}

/// A request's body until a handler takes it: what nobody took can be read out before a refusal is sent.
#[derive(Debug)]
pub struct RequestBody(Option<Incoming>);

impl RequestBody {
    /// The body as it comes off the wire.
    pub fn new(body: Incoming) -> Self {
        Self(Some(body))
    }

    /// Whether there is nothing to be read.
    pub fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    /// The same body, leaving an empty one behind.
    pub fn take(&mut self) -> Self {
        Self(self.0.take())
    }

    /// The next bytes, or `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        match &mut self.0 {
            Some(body) => next_chunk(body).await,
            None => Ok(None),
        }
    }

    /// Reads all of it, at most `limit` bytes. One that announces more is refused before it is read.
    pub async fn read_up_to(&mut self, limit: usize) -> Result<Bytes, BodyError> {
        let Some(body) = &mut self.0 else { return Ok(Bytes::new()) };
        let hint = http_body::Body::size_hint(body);
        if hint.lower() > limit as u64 {
            return Err(BodyError::TooLarge(limit));
        }
        let Some(first) = next_chunk(body).await? else { return Ok(Bytes::new()) };
        if hint.exact() == Some(first.len() as u64) {
            return Ok(first);
        }
        // What is announced is within the limit, and growing by doubling would take more.
        let mut whole = BytesMut::with_capacity((hint.lower() as usize).max(first.len()));
        whole.extend_from_slice(&first);
        drop(first);
        while let Some(chunk) = next_chunk(body).await? {
            if whole.len() + chunk.len() > limit {
                return Err(BodyError::TooLarge(limit));
            }
            whole.extend_from_slice(&chunk);
        }
        if whole.len() > limit { Err(BodyError::TooLarge(limit)) } else { Ok(whole.freeze()) }
    }

    /// Reads and forgets up to `limit` bytes for a few seconds, so that a client that only then listens gets its answer.
    pub async fn drain(&mut self, limit: u64) {
        let drained = async {
            let mut left = limit;
            while let Ok(Some(chunk)) = self.next().await {
                left = left.saturating_sub(chunk.len() as u64);
                if left == 0 {
                    return;
                }
            }
        };
        // Who sends slower than this sees its connection close.
        let _ = tokio::time::timeout(DRAIN_PATIENCE, drained).await;
    }
}
