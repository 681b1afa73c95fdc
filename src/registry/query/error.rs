//! The errors of the Query protocol: STS's codes and statuses, and their wire format.

use http::StatusCode;
use uuid::Uuid;

use super::{element, sts};
use crate::auth::sigv4::AuthError;
use crate::message::body::BodyError;

/// The number of characters of a caller's text that an error quotes.
const QUOTED: usize = 128;

/// The reason why a request was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueryError {
    /// The signature is missing or not accepted.
    #[error("{}", auth_message(.0))]
    Auth(#[from] AuthError),
    /// The body did not arrive completely.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// The request has no action.
    #[error("Missing Action")]
    MissingAction,
    /// The action does not exist.
    #[error("Could not find operation {action} for version {version}")]
    InvalidAction {
        /// The action, in printable ASCII.
        action: String,
        version: String,
    },
}

fn auth_message(error: &AuthError) -> String {
    match error {
        AuthError::MissingAuthenticationToken => {
            "Request is missing Authentication Token".to_owned()
        }
        error => error.to_string(),
    }
}

impl QueryError {
    /// Creates the error of an action that does not exist in this version.
    pub(crate) fn invalid_action(action: &str, version: Option<&str>) -> Self {
        let quoted =
            |text: &str| text.chars().filter(char::is_ascii_graphic).take(QUOTED).collect();
        Self::InvalidAction {
            action: quoted(action),
            version: version.map_or("NO_VERSION_SPECIFIED".into(), quoted),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Auth(AuthError::MissingAuthenticationToken) => "MissingAuthenticationToken",
            Self::Auth(AuthError::IncompleteSignature(_)) => "IncompleteSignature",
            Self::Auth(AuthError::UnrecognizedClient) => "InvalidClientTokenId",
            Self::Auth(AuthError::InvalidSignature(_)) => "SignatureDoesNotMatch",
            Self::Body(BodyError::TooLarge(_)) => "RequestEntityTooLarge",
            Self::Body(BodyError::TooSlow | BodyError::Broken(_)) => "RequestTimeout",
            Self::Body(BodyError::Exhausted(_)) => "Throttling",
            Self::MissingAction => "MissingAction",
            Self::InvalidAction { .. } => "InvalidAction",
        }
    }

    /// Returns the status of the response.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Auth(AuthError::IncompleteSignature(_))
            | Self::Body(BodyError::Exhausted(_))
            | Self::MissingAction
            | Self::InvalidAction { .. } => StatusCode::BAD_REQUEST,
            Self::Auth(_) => StatusCode::FORBIDDEN,
            Self::Body(BodyError::TooLarge(_)) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Body(BodyError::TooSlow | BodyError::Broken(_)) => StatusCode::REQUEST_TIMEOUT,
        }
    }

    /// Renders the error.
    pub(crate) fn to_xml(&self, request_id: Uuid) -> String {
        format!(
            "<ErrorResponse xmlns=\"{}\"><Error><Type>Sender</Type>{}{}</Error>{}</ErrorResponse>\n",
            sts::NAMESPACE,
            element("Code", self.code()),
            element("Message", &self.to_string()),
            element("RequestId", &request_id.to_string()),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_the_format_of_sts() {
        let xml = QueryError::invalid_action("Assume<Role>\u{0}\n", Some("2011-06-15"))
            .to_xml(Uuid::nil());
        insta::assert_snapshot!(xml.trim(), @r#"<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>InvalidAction</Code><Message>Could not find operation Assume&lt;Role&gt; for version 2011-06-15</Message></Error><RequestId>00000000-0000-0000-0000-000000000000</RequestId></ErrorResponse>"#);
    }

    #[test]
    fn codes_and_texts_are_those_of_sts() {
        let rendered =
            |error: QueryError| (error.status().as_u16(), error.code(), error.to_string());
        let missing = QueryError::from(AuthError::MissingAuthenticationToken);
        let text = "Request is missing Authentication Token".to_owned();
        assert_eq!(rendered(missing), (403, "MissingAuthenticationToken", text));
        let unknown = QueryError::from(AuthError::UnrecognizedClient);
        let text = "The security token included in the request is invalid.".to_owned();
        assert_eq!(rendered(unknown), (403, "InvalidClientTokenId", text));
        let text = "Could not find operation ListUsers for version NO_VERSION_SPECIFIED".to_owned();
        assert_eq!(
            rendered(QueryError::invalid_action("ListUsers", None)),
            (400, "InvalidAction", text)
        );
        let long = QueryError::invalid_action(&"x".repeat(9999), None).to_string();
        assert!(long.len() < 200, "{long}");
    }
}
