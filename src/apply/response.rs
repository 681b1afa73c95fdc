//! Reads values of responses.

use serde_json::Value;

use wharfage_plan::model::{ApiError, ErrorKind};

/// Parses a field that holds a JSON document.
pub(crate) fn document(field: &str, text: Option<&str>) -> Result<Option<Value>, ApiError> {
    text.map(|text| serde_json::from_str(text).map_err(|_| unexpected(field, text))).transpose()
}

/// Creates the error about a value that cannot be read.
pub(crate) fn unexpected(field: &str, value: &str) -> ApiError {
    let value: String = value.chars().take(100).collect();
    // The error is about this one value; the registry itself works.
    ApiError::new(
        ErrorKind::Other,
        "UnexpectedValue",
        format!("the registry says {field} is {value:?}"),
    )
}
