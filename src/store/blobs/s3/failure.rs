//! Errors of S3 requests, after the client has retried them within its budget.
//!
//! The client's own errors distinguish few causes: a missing bucket and a missing object are the
//! same. S3's error code is in the response's body, which the client's messages quote. The messages
//! contain no secret, only the object and the response.

use object_store::Error;

use crate::StoreError;

/// Error codes of invalid credentials, as opposed to missing permissions.
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

/// The missing object, as an error reports it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// The object.
    Object,
    /// The multipart upload.
    Upload,
    /// Something that the response does not name.
    Unknown,
    /// Nothing: it is another error.
    None,
}

/// Returns the object that an error reports as missing.
pub(super) fn missing(error: &Error) -> Missing {
    let Error::NotFound { .. } = error else { return Missing::None };
    match code(&error.to_string()) {
        Some("NoSuchKey" | "NoSuchVersion") => Missing::Object,
        Some("NoSuchUpload") => Missing::Upload,
        Some(_) => Missing::None,
        None => Missing::Unknown,
    }
}

/// Converts an error of the client.
pub(super) fn store_error(error: Error) -> StoreError {
    let text = error.to_string();
    let code = code(&text);
    match &error {
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => refused(code, &text),
        Error::NotFound { .. } => match code {
            Some("NoSuchUpload") => {
                StoreError::Inconsistent(format!("a multipart upload is gone: {text}"))
            }
            Some("NoSuchBucket") => {
                StoreError::Unavailable(format!("the bucket does not exist: {text}"))
            }
            // An object that should exist is missing: the bucket was replaced, or the path leads
            // elsewhere.
            _ => StoreError::Backend(Box::new(error)),
        },
        Error::Generic { .. } => match (status(&text), code) {
            (Some(400), Some(code)) if CREDENTIALS.contains(&code) => refused(Some(code), &text),
            (Some(400), Some("RequestTimeout")) => StoreError::Unavailable(text),
            (Some(status), _) if (400..500).contains(&status) && !matches!(status, 408 | 429) => {
                StoreError::Backend(Box::new(error))
            }
            // No connection, a timeout, SlowDown and 5xx are all temporary.
            _ => StoreError::Unavailable(text),
        },
        _ => StoreError::Backend(Box::new(error)),
    }
}

/// Converts a refusal. It passes when the permissions are corrected; until then the log names the
/// missing one.
fn refused(code: Option<&str>, text: &str) -> StoreError {
    let what = match code {
        Some(code) if CREDENTIALS.contains(&code) => format!("S3 rejects the credentials ({code})"),
        _ => format!(
            "S3 refuses {}: check what the credentials may do to the bucket",
            permission(text)
        ),
    };
    StoreError::Unavailable(format!("{what}: {text}"))
}

/// Returns the permission that the request of a message needs.
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

/// Returns S3's error code: the response's `<Code>`.
fn code(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("<Code>")?;
    Some(rest.split_once("</Code>")?.0)
}

/// Returns the response's HTTP status.
fn status(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("non-2xx status code: ")?;
    rest.get(..3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(wrap: impl Fn(String) -> Error, request: &str, status: &str, body: &str) -> Error {
        wrap(format!(
            "Error performing {request} in 3.1ms - Server returned non-2xx status code: {status}: {body}"
        ))
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
    fn only_s3s_error_code_says_that_an_object_is_missing() {
        let missing =
            |body: &str| missing(&error(not_found, "DELETE http://s3/b/k", "404 Not Found", body));
        assert_eq!(missing(&body("NoSuchKey")), Missing::Object);
        assert_eq!(missing(&body("NoSuchUpload")), Missing::Upload);
        assert_eq!(missing(&body("NoSuchBucket")), Missing::None);
        assert_eq!(missing(""), Missing::Unknown);
        assert_eq!(missing("<html>no such page</html>"), Missing::Unknown);
    }

    #[test]
    fn a_missing_bucket_is_unavailable() {
        let gone = error(not_found, "DELETE http://s3/b/k", "404 Not Found", &body("NoSuchBucket"));
        assert!(matches!(store_error(gone), StoreError::Unavailable(_)));
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
            let converted =
                store_error(error(denied, request, "403 Forbidden", &body("AccessDenied")));
            assert!(
                matches!(&converted, StoreError::Unavailable(text) if text.contains(permission)),
                "{converted}"
            );
        }
        for (wrap, status, code) in [
            (denied as fn(String) -> Error, "403 Forbidden", "InvalidAccessKeyId"),
            (generic, "400 Bad Request", "ExpiredToken"),
        ] {
            let converted = store_error(error(wrap, "GET http://s3/b/k", status, &body(code)));
            let expected = format!("rejects the credentials ({code})");
            assert!(
                matches!(&converted, StoreError::Unavailable(text) if text.contains(&expected)),
                "{converted}"
            );
        }
    }

    #[test]
    fn temporary_errors_are_unavailable_and_others_are_faults() {
        for (status, code) in [
            ("503 Service Unavailable", "SlowDown"),
            ("500 Internal Server Error", "InternalError"),
            ("507 Insufficient Storage", "XMinioStorageFull"),
            ("429 Too Many Requests", "TooManyRequests"),
            ("400 Bad Request", "RequestTimeout"),
        ] {
            let converted = store_error(error(generic, "PUT http://s3/b/k", status, &body(code)));
            assert!(matches!(converted, StoreError::Unavailable(_)), "{converted}");
        }
        let silent = generic(
            "Error performing GET http://s3/b/k in 5s - HTTP error: no answer within 5s".into(),
        );
        assert!(matches!(store_error(silent), StoreError::Unavailable(_)));
        let fault = store_error(error(
            generic,
            "PUT http://s3/b/k",
            "400 Bad Request",
            &body("InvalidArgument"),
        ));
        assert!(matches!(fault, StoreError::Backend(_)), "{fault}");
        let gone = store_error(error(
            not_found,
            "PUT http://s3/b/k",
            "404 Not Found",
            &body("NoSuchUpload"),
        ));
        assert!(matches!(gone, StoreError::Inconsistent(_)), "{gone}");
    }
}
