//! What a client is told when it gets no action.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use serde_json::json;
use simloop_policies::PolicyError;
use simloop_policies::remote::{KeysError, WireError};

/// A refusal: a status and words that name the entry to blame, never a path or a trace of this program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) detail: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into() }
    }

    pub(super) fn closing() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down")
    }

    /// What may be said of a policy's error: not its files.
    pub(super) fn policy(error: &PolicyError) -> Self {
        match error {
            PolicyError::NonFinite { .. } => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the policy computed a number that is not finite",
            ),
            PolicyError::UnsupportedTask { .. } | PolicyError::Missing { .. } => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
            }
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the policy failed to act"),
        }
    }

    /// JSON with the request's number, under which the server's log has the rest.
    pub(super) fn response(&self, request_id: &str) -> Response<Body> {
        let body = json!({ "error": { "request_id": request_id, "message": self.detail } });
        let mut response = Response::new(Body::from(body.to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }

    /// The same as text, for a websocket: openpi's client raises it.
    pub(super) fn text(&self, request_id: &str) -> String {
        format!("{} (status {}, request {request_id})", self.detail, self.status.as_u16())
    }
}

impl From<WireError> for Refusal {
    fn from(error: WireError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error.to_string())
    }
}

impl From<KeysError> for Refusal {
    fn from(error: KeysError) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
    }
}
