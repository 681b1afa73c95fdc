//! What a failed request means, after the client has sent it again within its budget.
//!
//! The client's own errors tell few causes apart: a bucket that is gone and an object that is not there are one to it. S3's
//! code is in the answer's body, which its messages quote. They hold no secret: they name the object and the answer.

use object_store::Error;

use crate::store::StoreError;

/// Codes that say that the credentials are wrong, rather than what they may do.
const CREDENTIALS: [&str; 9] = [
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidSecurity",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    "RequestTimeTooSkewed",
    "AuthorizationHeaderMalformed",
    "InvalidClientTokenId",
];

/// What a failure says is not there.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// The object.
    Object,
    /// The multipart upload.
    Upload,
    /// The answer does not say what.
    Something,
    /// It says something else.
    Nothing,
}

/// What a failure says is not there.
pub(super) fn missing(error: &Error) -> Missing {
    let Error::NotFound { .. } = error else { return Missing::Nothing };
    match code(&error.to_string()) {
        Some("NoSuchKey" | "NoSuchVersion") => Missing::Object,
        Some("NoSuchUpload") => Missing::Upload,
        Some(_) => Missing::Nothing,
        None => Missing::Something,
    }
}

/// What a failure means to the store's callers.
pub(super) fn failed(error: Error) -> StoreError {
    let text = error.to_string();
    let code = code(&text);
    match &error {
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => refused(code, &text),
        Error::NotFound { .. } => match code {
            Some("NoSuchUpload") => StoreError::Inconsistent(format!("a multipart upload is gone: {text}")),
            Some("NoSuchBucket") => StoreError::Unavailable(format!("the bucket does not exist: {text}")),
            // What is missing though it was there: a bucket that was replaced, or a path that leads elsewhere.
            _ => StoreError::Backend(Box::new(error)),
        },
        Error::Generic { .. } => match (status(&text), code) {
            (Some(400), Some(code)) if CREDENTIALS.contains(&code) => refused(Some(code), &text),
            (Some(400), Some("RequestTimeout")) => StoreError::Unavailable(text),
            (Some(status), _) if (400..500).contains(&status) && !matches!(status, 408 | 429) => {
                StoreError::Backend(Box::new(error))
            }
            // No connection, silence, SlowDown, a 5xx: all of them pass.
            _ => StoreError::Unavailable(text),
        },
        _ => StoreError::Backend(Box::new(error)),
    }
}

/// A refusal passes when somebody mends the permissions; until then the log says which.
fn refused(code: Option<&str>, text: &str) -> StoreError {
    let what = match code {
        Some(code) if CREDENTIALS.contains(&code) => format!("S3 does not take the credentials ({code})"),
        _ => format!("S3 refuses {}: check what the credentials may do to the bucket", permission(text)),
    };
    StoreError::Unavailable(format!("{what}: {text}"))
}

/// The permission that the request needs which a message is about.
fn permission(text: &str) -> &'static str {
    let request = text.split_once("Error performing ").map_or("", |(_, request)| request);
    let (method, rest) = request.split_once(' ').unwrap_or_default();
    let uri = rest.split(' ').next().unwrap_or_default();
    match method {
        "GET" if uri.contains("list-type=") => "s3:ListBucket",
        "GET" | "HEAD" => "s3:GetObject",
        "PUT" | "POST" => "s3:PutObject",
        "DELETE" if uri.contains("uploadId=") => "s3:AbortMultipartUpload",
        "DELETE" => "s3:DeleteObject",
        _ => "the request",
    }
}

/// S3's code of an error: its answer's `<Code>`.
fn code(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("<Code>")?;
    Some(rest.split_once("</Code>")?.0)
}

/// The answer's status.
fn status(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("non-2xx status code: ")?;
    rest.get(..3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(wrap: impl Fn(String) -> Error, request: &str, status: &str, body: &str) -> Error {
        wrap(format!("Error performing {request} in 3.1ms - Server returned non-2xx status code: {status}: {body}"))
    }

    fn not_found(text: String) -> Error {
        Error::NotFound { path: "blobs/1".into(), source: text.into() }
    }

    fn generic(text: String) -> Error {
        Error::Generic { store: "S3", source: text.into() }
    }

    fn denied(text: String) -> Error {
        Error::PermissionDenied { path: "blobs/1".into(), source: text.into() }
    }

    fn body(code: &str) -> String {
        format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>no</Message></Error>")
    }

    #[test]
    fn only_s3_itself_says_that_an_object_is_missing() {
        let missing = |body: &str| missing(&error(not_found, "DELETE http://s3/b/k", "404 Not Found", body));
        assert_eq!(missing(&body("NoSuchKey")), Missing::Object);
        assert_eq!(missing(&body("NoSuchUpload")), Missing::Upload);
        assert_eq!(missing(&body("NoSuchBucket")), Missing::Nothing);
        assert_eq!(missing(""), Missing::Something);
        assert_eq!(missing("<html>no such page</html>"), Missing::Something);
    }

    #[test]
    fn a_bucket_that_is_gone_may_be_back() {
        let gone = error(not_found, "DELETE http://s3/b/k", "404 Not Found", &body("NoSuchBucket"));
        assert!(matches!(failed(gone), StoreError::Unavailable(_)));
    }

    #[test]
    fn a_refusal_names_the_permission() {
        for (request, permission) in [
            ("GET http://s3/b/k", "s3:GetObject"),
            ("GET http://s3/b?list-type=2&prefix=x", "s3:ListBucket"),
            ("PUT http://s3/b/k?partNumber=1&uploadId=u", "s3:PutObject"),
            ("DELETE http://s3/b/k", "s3:DeleteObject"),
            ("DELETE http://s3/b/k?uploadId=u", "s3:AbortMultipartUpload"),
        ] {
            let told = failed(error(denied, request, "403 Forbidden", &body("AccessDenied")));
            assert!(matches!(&told, StoreError::Unavailable(text) if text.contains(permission)), "{told}");
        }
        for (wrap, status, code) in [
            (denied as fn(String) -> Error, "403 Forbidden", "InvalidAccessKeyId"),
            (generic, "400 Bad Request", "ExpiredToken"),
        ] {
            let told = failed(error(wrap, "GET http://s3/b/k", status, &body(code)));
            let expected = format!("does not take the credentials ({code})");
            assert!(matches!(&told, StoreError::Unavailable(text) if text.contains(&expected)), "{told}");
        }
    }

    #[test]
    fn what_passes_is_unavailable_and_the_rest_is_a_fault() {
        for (status, code) in [
            ("503 Service Unavailable", "SlowDown"),
            ("500 Internal Server Error", "InternalError"),
            ("507 Insufficient Storage", "XMinioStorageFull"),
            ("429 Too Many Requests", "TooManyRequests"),
            ("400 Bad Request", "RequestTimeout"),
        ] {
            let told = failed(error(generic, "PUT http://s3/b/k", status, &body(code)));
            assert!(matches!(told, StoreError::Unavailable(_)), "{told}");
        }
        let silent = generic("Error performing GET http://s3/b/k in 5s - HTTP error: no answer within 5s".into());
        assert!(matches!(failed(silent), StoreError::Unavailable(_)));
        let fault = failed(error(generic, "PUT http://s3/b/k", "400 Bad Request", &body("InvalidArgument")));
        assert!(matches!(fault, StoreError::Backend(_)), "{fault}");
        let gone = failed(error(not_found, "PUT http://s3/b/k", "404 Not Found", &body("NoSuchUpload")));
        assert!(matches!(gone, StoreError::Inconsistent(_)), "{gone}");
    }
}
