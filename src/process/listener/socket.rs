//! A connection's socket: notes what the client takes and sends, reads in pieces of a bounded size, and ends in a way that
//! lets the client read the last answer.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

use super::{Activity, Slot};

/// The longest time that the kernel keeps on sending to a client that acknowledges nothing.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(120);
/// The size of one read of a connection when too many others read in large pieces, in bytes.
const SMALL_READ: usize = 16 * 1024;
/// The part of a refused request that is read and discarded, in bytes.
const LINGER_BYTES: u64 = 1024 * 1024 * 1024;
/// The same of bytes that are no request's body: a head that was not understood, or frames that ask
/// for nothing. A body by HTTP/2 is no longer than its windows before somebody reads it.
const LINGER_NOISE: u64 = 4 * 1024 * 1024;

/// A connection that holds a slot of the listener.
///
/// Closing a socket whose client is still sending makes the kernel reset the connection, and the reset destroys what the
/// client has not read yet. So a shutdown sends this side's end first and then reads, within limits, until the client ends.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
    slot: Slot,
    /// The right to read in large pieces, kept once it was needed.
    large_reads: Option<OwnedSemaphorePermit>,
    ended: Option<Lingering>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lingering {
    Over,
    /// So many bytes are left to be read.
    Left(u64),
}

impl Socket {
    pub(super) fn new(stream: TcpStream, slot: Slot) -> Self {
        // Both only tune; a socket that refuses them serves all the same.
        let _ = stream.set_nodelay(true);
        let _ = rustix::net::sockopt::set_tcp_user_timeout(
            &stream,
            ACKNOWLEDGE_TIMEOUT.as_millis() as u32,
        );
        Self { stream, slot, large_reads: None, ended: None }
    }

    /// Returns what the connection is doing.
    pub fn activity(&self) -> &Arc<Activity> {
        &self.slot.activity
    }

    fn may_read_at_once(&mut self, wanted: usize) -> usize {
        if wanted > SMALL_READ && self.large_reads.is_none() {
            self.large_reads =
                Arc::clone(&self.slot.connections.large_readers).try_acquire_owned().ok();
        }
        if self.large_reads.is_some() { wanted } else { wanted.min(SMALL_READ) }
    }

    /// Reads and forgets until the client ends or has sent enough.
    fn poll_linger(&mut self, cx: &mut Context<'_>, mut left: u64) -> Poll<()> {
        let mut scratch = [0; SMALL_READ];
        while left > 0 {
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.slot.activity.read(buffer.filled().len());
                    left = left.saturating_sub(buffer.filled().len() as u64);
                }
                Poll::Ready(Ok(()) | Err(_)) => break,
                Poll::Pending => {
                    self.ended = Some(Lingering::Left(left));
                    return Poll::Pending;
                }
            }
        }
        self.ended = Some(Lingering::Over);
        Poll::Ready(())
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let wanted = buf.remaining();
        let limit = this.may_read_at_once(wanted);
        let read = if limit == wanted {
            let before = buf.filled().len();
            ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
            buf.filled().len() - before
        } else {
            let mut part = ReadBuf::new(buf.initialize_unfilled_to(limit));
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut part))?;
            let read = part.filled().len();
            buf.advance(read);
            read
        };
        this.slot.activity.read(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, slices);
        match &written {
            Poll::Ready(Ok(written)) => this.slot.activity.wrote(*written),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => this.slot.activity.block(),
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let left = match this.ended {
            Some(Lingering::Over) => return Poll::Ready(Ok(())),
            Some(Lingering::Left(left)) => left,
            None => {
                ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
                match (this.slot.activity.linger(), this.slot.activity.has_much_unread()) {
                    (true, true) => LINGER_BYTES,
                    (true, false) => LINGER_NOISE,
                    (false, _) => 0,
                }
            }
        };
        this.poll_linger(cx, left).map(Ok)
    }
}
