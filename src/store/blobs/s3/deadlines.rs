//! Timeouts of S3 requests that the client's own ones cannot express. A large part on a slow line
//! takes minutes, and so does assembling ten thousand parts, but a silent server is detected in
//! seconds.

use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::Method;
use http_body::{Body, Frame, SizeHint};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody,
    HttpResponse, HttpResponseBody, HttpService, ReqwestConnector,
};
use tokio::time::{Instant, Sleep, sleep, timeout};

/// The timeout of the response's head where the server has little to do: reads and deletions.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The time for which the server may answer no request at all before it is pinged.
const PING_AFTER: Duration = Duration::from_secs(5);
/// The timeout of the response to a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest pause in a response's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// The timeout of a request with a body, or one that assembles parts, while the server answers
/// others.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(600);

/// Creates clients with these timeouts.
#[derive(Debug)]
pub(super) struct Deadlines;

impl HttpConnector for Deadlines {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(TimedService { inner, last_answer: Mutex::new(Instant::now()) }))
    }
}

struct TimedService {
    inner: HttpClient,
    /// When the server last answered any request.
    last_answer: Mutex<Instant>,
}

impl fmt::Debug for TimedService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimedService").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[async_trait]
impl HttpService for TimedService {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let works_long = matches!(*request.method(), Method::PUT | Method::POST);
        let ping = works_long.then(|| ping(&request));
        let answer = self.inner.execute(request);
        let answer = match ping {
            None => {
                timeout(ANSWER_TIMEOUT, answer).await.map_err(|_| timed_out(ANSWER_TIMEOUT))??
            }
            Some(ping) => timeout(REQUEST_TIMEOUT, self.while_alive(ping, answer))
                .await
                .map_err(|_| timed_out(REQUEST_TIMEOUT))??,
        };
        self.record_answer();
        let timeout = if works_long { REQUEST_TIMEOUT } else { BODY_TIMEOUT };
        Ok(answer.map(|body| HttpResponseBody::new(TimedBody { body, timeout, timer: None })))
    }
}

impl TimedService {
    fn record_answer(&self) {
        *self.last_answer.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Waits for the response as long as the server answers pings.
    async fn while_alive(
        &self,
        ping: HttpRequest,
        answer: impl Future<Output = Result<HttpResponse, HttpError>>,
    ) -> Result<HttpResponse, HttpError> {
        let mut answer = pin!(answer);
        let mut since = Instant::now();
        loop {
            if let Ok(answer) =
                timeout(PING_AFTER.saturating_sub(since.elapsed()), &mut answer).await
            {
                return answer;
            }
            let last_answer = *self.last_answer.lock().unwrap_or_else(PoisonError::into_inner);
            if last_answer > since {
                since = last_answer;
                continue;
            }
            let pong = timeout(PING_TIMEOUT, self.inner.execute(ping.clone()));
            tokio::select! {
                biased;
                answer = &mut answer => return answer,
                pong = pong => match pong {
                    Ok(Ok(_)) => self.record_answer(),
                    Ok(Err(error)) => return Err(error),
                    Err(_) => return Err(timed_out(PING_AFTER + PING_TIMEOUT)),
                }
            }
            since = Instant::now();
        }
    }
}

/// A response's body, which fails when it pauses for too long. Time in which nobody reads does not
/// count.
struct TimedBody {
    body: HttpResponseBody,
    timeout: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Body for TimedBody {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            this.timer = None;
            return Poll::Ready(frame);
        }
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep(this.timeout)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Some(Err(timed_out(this.timeout))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Builds an unsigned request, which every server answers at once, if only with a refusal.
fn ping(request: &HttpRequest) -> HttpRequest {
    let uri = request.uri();
    let root = http::Uri::builder()
        .scheme(uri.scheme_str().unwrap_or("https"))
        .authority(uri.authority().map_or("", http::uri::Authority::as_str))
        .path_and_query("/")
        .build();
    let mut ping = HttpRequest::new(HttpRequestBody::empty());
    *ping.uri_mut() = root.unwrap_or_else(|_| uri.clone());
    ping
}

fn timed_out(after: Duration) -> HttpError {
    #[derive(Debug, thiserror::Error)]
    #[error("no answer within {0:?}")]
    struct TimedOut(Duration);
    HttpError::new(HttpErrorKind::Timeout, TimedOut(after))
}
