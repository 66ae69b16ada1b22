//! The body of a response: in one piece, or made while it is sent.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::HttpBody;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Frame, SizeHint};

use crate::places::Busy;

/// The body of a response.
#[derive(Debug)]
pub(crate) struct Body {
    bytes: Kind,
    /// The connection is busy until the body has been sent and this is dropped.
    _busy: Option<Busy>,
}

#[derive(Debug)]
enum Kind {
    /// In one piece, which most are: no allocation beside the bytes.
    Whole(Full<Bytes>),
    /// Made while it is sent.
    Streamed(axum::body::Body),
}

impl Body {
    /// A body that is made while it is sent.
    pub(crate) fn streamed(body: axum::body::Body) -> Self {
        Self {
            bytes: Kind::Streamed(body),
            _busy: None,
        }
    }

    /// Keeps the connection until the body has been sent.
    pub(crate) fn keep(&mut self, busy: Busy) {
        self._busy = Some(busy);
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::from(Bytes::new())
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(bytes: T) -> Self {
        Self {
            bytes: Kind::Whole(Full::new(bytes.into())),
            _busy: None,
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match &mut self.get_mut().bytes {
            Kind::Whole(body) => Pin::new(body)
                .poll_frame(context)
                .map_err(|error| match error {}),
            Kind::Streamed(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.bytes {
            Kind::Whole(body) => body.is_end_stream(),
            Kind::Streamed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.bytes {
            Kind::Whole(body) => body.size_hint(),
            Kind::Streamed(body) => body.size_hint(),
        }
    }
}
