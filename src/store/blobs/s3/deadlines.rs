//! How long S3 may take to answer one request, which the client's own timeouts can't say: a large part on a slow line takes
//! minutes, and so does putting ten thousand of them together, but a server that says nothing at all is found in seconds.

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
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody,
    HttpService, ReqwestConnector,
};
use tokio::time::{Instant, Sleep, sleep, timeout};

/// How long the head of an answer may take where the server has little to do: reads and deletions.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the server may be silent towards every request before it is asked whether it is there.
const SILENCE: Duration = Duration::from_secs(5);
/// How long it may take to say anything to that.
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the rest of an answer may pause.
const BODY_SILENCE: Duration = Duration::from_secs(10);
/// How long a request with a body, or one that puts parts together, may take while the server answers others.
const LONGEST: Duration = Duration::from_secs(600);

/// Makes clients that keep to these limits.
#[derive(Debug)]
pub(super) struct Deadlines;

impl HttpConnector for Deadlines {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Timed { inner, heard: Mutex::new(Instant::now()) }))
    }
}

struct Timed {
    inner: HttpClient,
    /// When the server last answered anything.
    heard: Mutex<Instant>,
}

impl fmt::Debug for Timed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timed").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[async_trait]
impl HttpService for Timed {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let works_long = matches!(*request.method(), Method::PUT | Method::POST);
        let ping = works_long.then(|| ping(&request));
        let answer = self.inner.execute(request);
        let answer = match ping {
            None => timeout(ANSWER_TIMEOUT, answer).await.map_err(|_| silent(ANSWER_TIMEOUT))??,
            Some(ping) => timeout(LONGEST, self.while_there(ping, answer)).await.map_err(|_| silent(LONGEST))??,
        };
        self.hear();
        let patience = if works_long { LONGEST } else { BODY_SILENCE };
        Ok(answer.map(|body| HttpResponseBody::new(TimedBody { body, patience, silence: None })))
    }
}

impl Timed {
    fn hear(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Waits for the answer as long as the server is there.
    async fn while_there(
        &self,
        ping: HttpRequest,
        answer: impl Future<Output = Result<HttpResponse, HttpError>>,
    ) -> Result<HttpResponse, HttpError> {
        let mut answer = pin!(answer);
        let mut since = Instant::now();
        loop {
            if let Ok(answer) = timeout(SILENCE.saturating_sub(since.elapsed()), &mut answer).await {
                return answer;
            }
            let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            if heard > since {
                since = heard;
                continue;
            }
            let pong = timeout(PING_TIMEOUT, self.inner.execute(ping.clone()));
            tokio::select! {
                biased;
                answer = &mut answer => return answer,
                pong = pong => match pong {
                    Ok(Ok(_)) => self.hear(),
                    Ok(Err(error)) => return Err(error),
                    Err(_) => return Err(silent(SILENCE + PING_TIMEOUT)),
                }
            }
            since = Instant::now();
        }
    }
}

/// An answer's body, which ends in an error when it pauses for too long. The time in which nobody reads does not count.
struct TimedBody {
    body: HttpResponseBody,
    patience: Duration,
    silence: Option<Pin<Box<Sleep>>>,
}

impl Body for TimedBody {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            this.silence = None;
            return Poll::Ready(frame);
        }
        let silence = this.silence.get_or_insert_with(|| Box::pin(sleep(this.patience)));
        ready!(silence.as_mut().poll(cx));
        Poll::Ready(Some(Err(silent(this.patience))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A question that every server answers at once, if only by a refusal: it is not signed.
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

fn silent(after: Duration) -> HttpError {
    #[derive(Debug, thiserror::Error)]
    #[error("no answer within {0:?}")]
    struct Silent(Duration);
    HttpError::new(HttpErrorKind::Timeout, Silent(after))
}
