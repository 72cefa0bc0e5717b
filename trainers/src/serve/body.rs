//! Bodies of requests: read within limits, or let go.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt as _;

use super::refusal::Refusal;

/// A refused body is taken in for so long before its connection is closed, so that a client which only writes gets to
/// read the refusal instead of a reset.
const LINGER: Duration = Duration::from_secs(5);

/// The whole body.
///
/// # Errors
/// 415 for a compressed one (nothing is ever decompressed), 413 for a large one (before it is read, where it says its size),
/// 408 for a slow one, 400 for one that breaks off.
pub(super) async fn read(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
    timeout: Duration,
) -> Result<Bytes, Refusal> {
    let refuse = |body: Body, status: StatusCode, detail: String| {
        discard(headers, body);
        Err(Refusal::new(status, detail))
    };
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        return refuse(
            body,
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "content-encoding: compressed bodies are not read".to_owned(),
        );
    }
    let large = || format!("the body is larger than {limit} bytes");
    let claimed = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    if claimed.is_some_and(|n: u64| n > limit as u64) {
        return refuse(body, StatusCode::PAYLOAD_TOO_LARGE, large());
    }
    let mut body = body;
    let mut bytes = Vec::new();
    let deadline = tokio::time::sleep(timeout);
    tokio::pin!(deadline);
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            () = &mut deadline => {
                let detail = format!("the body did not arrive within {} s", timeout.as_secs_f64());
                return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, detail));
            }
        };
        match frame {
            None => return Ok(bytes.into()),
            Some(Err(_)) => {
                return Err(Refusal::new(StatusCode::BAD_REQUEST, "the body breaks off"));
            }
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else { continue };
                if bytes.len() + data.len() > limit {
                    return refuse(body, StatusCode::PAYLOAD_TOO_LARGE, large());
                }
                bytes.extend_from_slice(&data);
            }
        }
    }
}

/// Takes in the rest of a body and forgets it, for a moment. A client that waits to be told to go on is not told.
pub(super) fn discard(headers: &HeaderMap, mut body: Body) {
    if headers.contains_key(header::EXPECT) {
        return;
    }
    tokio::spawn(tokio::time::timeout(LINGER, async move {
        while let Some(Ok(_)) = body.frame().await {}
    }));
}
