//! Cross-origin requests (the Fetch standard's CORS protocol): lets pages of configured origins
//! call the registry from a browser. Disabled by default. Pure.

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};

use crate::message::Response;
use crate::message::body::Body;

/// The time for which a browser may cache the response to a preflight, in seconds.
const MAX_AGE: HeaderValue = HeaderValue::from_static("3600");
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE");
/// The headers that clients of both APIs send.
const REQUEST_HEADERS: HeaderValue = HeaderValue::from_static(
    "accept, amz-sdk-invocation-id, amz-sdk-request, authorization, content-range, content-type, if-match, if-none-match, \
     if-range, range, x-amz-content-sha256, x-amz-date, x-amz-security-token, x-amz-target, x-amz-user-agent, \
     x-amzn-query-mode",
);
/// The response headers that a page may read.
const RESPONSE_HEADERS: HeaderValue = HeaderValue::from_static(
    "accept-ranges, content-length, content-range, docker-content-digest, docker-distribution-api-version, \
     docker-upload-uuid, etag, link, location, oci-chunk-min-length, oci-filters-applied, oci-subject, oci-tag, range, \
     retry-after, www-authenticate, x-amzn-errortype, x-amzn-requestid",
);

/// An origin that may call the registry from a browser.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Every origin.
    Any,
    /// One scheme, host and port.
    One(HeaderValue),
}

impl std::str::FromStr for Origin {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let refused = || {
            anyhow::anyhow!(
                "{text:?} is not an origin: write https://HOST, with :PORT if it has one, or *"
            )
        };
        let uri: Uri = text.parse().map_err(|_| refused())?;
        let (Some("http" | "https"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(refused());
        };
        if text.ends_with('/')
            || uri.path() != "/"
            || uri.query().is_some()
            || authority.as_str().contains('@')
        {
            return Err(refused());
        }
        Ok(Self::One(HeaderValue::try_from(text)?))
    }
}

/// The CORS settings of a server.
#[derive(Debug)]
pub(crate) struct Cors {
    origins: Vec<Origin>,
}

impl Cors {
    /// Allows these origins; returns `None` when there are none.
    pub(crate) fn new(origins: &[Origin]) -> Option<Self> {
        (!origins.is_empty()).then(|| Self { origins: origins.to_vec() })
    }

    /// Returns the value of `Access-Control-Allow-Origin`: the origin if it is allowed, `*` if all
    /// are.
    pub(crate) fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        if self.origins.contains(&Origin::Any) {
            return Some(HeaderValue::from_static("*"));
        }
        let listed = self
            .origins
            .iter()
            .any(|listed| matches!(listed, Origin::One(listed) if listed == origin));
        listed.then(|| origin.clone())
    }

    /// Returns the response to a preflight; `None` for other requests.
    pub(crate) fn preflight(&self, request: &Parts) -> Option<Response> {
        let asks = request.method == Method::OPTIONS
            && request.headers.contains_key(header::ORIGIN)
            && request.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        if !asks {
            return None;
        }
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        if self.allowed(&request.headers).is_some() {
            let headers = response.headers_mut();
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS);
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        }
        Some(response)
    }

    /// Adds the CORS headers to a response. `allowed` is the result of [`Cors::allowed`].
    pub(crate) fn mark(&self, allowed: Option<HeaderValue>, response: &mut Response) {
        let headers = response.headers_mut();
        // Also without an origin: a cache must not return one origin's response to another.
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
        if let Some(origin) = allowed {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, RESPONSE_HEADERS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_a_scheme_a_host_and_a_port() {
        for origin in ["https://ui.example.com", "http://localhost:8080", "*"] {
            assert!(origin.parse::<Origin>().is_ok(), "{origin}");
        }
        for origin in [
            "ui.example.com",
            "https://ui.example.com/",
            "https://a/b",
            "ftp://a",
            "",
            "https://u@h",
            "null",
        ] {
            let error = origin.parse::<Origin>().unwrap_err().to_string();
            assert!(error.contains("is not an origin"), "{origin}: {error}");
        }
    }

    #[test]
    fn listed_origins_are_allowed() {
        let allowed = |origins: &[&str], origin: &'static str| {
            let origins: Vec<Origin> =
                origins.iter().map(|origin| origin.parse().unwrap()).collect();
            let headers =
                HeaderMap::from_iter([(header::ORIGIN, HeaderValue::from_static(origin))]);
            Cors::new(&origins).unwrap().allowed(&headers)
        };
        let listed = ["https://a.example.com", "https://b.example.com"];
        assert_eq!(allowed(&listed, "https://b.example.com").unwrap(), "https://b.example.com");
        assert_eq!(allowed(&listed, "http://b.example.com"), None);
        assert_eq!(allowed(&["*"], "https://c.example.com").unwrap(), "*");
        assert!(Cors::new(&[]).is_none());
    }
}
