//! Bodies of requests: what they are, how large they may be and how long they may take.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::HeaderMap;
use hyper::body::Body;
use hyper::header::CONTENT_TYPE;
use tokio::time::timeout;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// A body was not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    /// It has too many bytes.
    #[error("the body is larger than {bytes_max} bytes")]
    TooLarge {
        /// The limit.
        bytes_max: usize,
    },
    /// It took too long.
    #[error("the body did not arrive within {} seconds", BODY_TIMEOUT.as_secs())]
    TooSlow,
    /// It broke off.
    #[error("{0}")]
    Broken(Box<dyn std::error::Error + Send + Sync>),
}

/// Reads a body to its end.
pub(crate) async fn read<B>(body: B, bytes_max: usize) -> Result<Bytes, UploadError>
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let too_large = UploadError::TooLarge { bytes_max };
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(too_large);
    }
    match timeout(BODY_TIMEOUT, Limited::new(body, bytes_max).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large),
        Ok(Err(error)) => Err(UploadError::Broken(error)),
        Err(_) => Err(UploadError::TooSlow),
    }
}

/// Returns the media type of a body, without its parameters, in lower case; empty when it has none.
pub(crate) fn media_type(headers: &HeaderMap) -> String {
    let value = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let media_type = value.and_then(|value| value.split(';').next());
    media_type.unwrap_or_default().trim().to_ascii_lowercase()
}
