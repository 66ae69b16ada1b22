//! What happens to one request: limits, redirect, parameters, handler, reply, and one line in the log.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::response::IntoResponse as _;
use bytes::Bytes;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, LOCATION, WWW_AUTHENTICATE};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};
use parking_lot::RwLock;
use tower_service::Service;

use crate::access::{Access, Denied};
use crate::body::Body;
use crate::params::{Params, decode_path};
use crate::reply::Format;
use crate::routes::{Request, Route, Routes, cleaned};
use crate::upload::{UploadError, media_type, read};
use crate::v1::Problem;
use crate::{audit, web};

/// Largest body: room for a value of 1 MiB in base64 with every byte escaped, and for the names beside it.
pub(crate) const BODY_BYTES_MAX: usize = 5 << 20;

/// What a client gets.
pub(crate) type Response = hyper::Response<Body>;

/// All that one server answers, and to whom.
#[derive(Clone, Debug, Default)]
pub(crate) struct Site {
    /// Docker's paths and those of other layers.
    pub(crate) routes: Routes,
    /// The paths that [`web::owns`] names.
    pub(crate) web: axum::Router,
    /// Who may ask.
    pub(crate) access: Arc<RwLock<Arc<Access>>>,
}

/// A response and what the log says about it.
struct Answered {
    method: Word,
    outcome: Cow<'static, str>,
    response: Response,
}

/// The word for a request in the log.
enum Word {
    Plain(&'static str),
    Method(Method),
    /// That of a route.
    Of(Arc<Route>),
}

/// Why a request did not get as far as a handler.
struct Refused {
    status: StatusCode,
    reason: String,
}

/// Answers one request.
pub(crate) async fn answer(
    site: &Site,
    request: hyper::Request<Incoming>,
    remote: SocketAddr,
) -> Response {
    let access = Arc::clone(&site.access.read());
    let uri = request.uri().clone();
    let is_web = web::owns(uri.path());
    let answered = if is_web {
        // On the heap, and so is a body: what most requests do not need would make the rest costly to move.
        Box::pin(handle_web(site.web.clone(), &access, request)).await
    } else {
        handle(&site.routes, &access, request, remote).await
    };
    let answered = answered.unwrap_or_else(|refused| refused.into_answered(is_web));
    audit::log(remote, answered.method.as_str(), &uri, &answered.outcome);
    answered.response
}

/// Answers one request with a status of its own.
async fn handle_web(
    mut web: axum::Router,
    access: &Access,
    request: hyper::Request<Incoming>,
) -> Result<Answered, Refused> {
    let (head, body) = request.into_parts();
    access.check(&head, !web::is_page(head.uri.path()))?;
    if !head.method.is_safe() {
        access.check_change(&head)?;
    }
    let method = Word::Method(head.method.clone());
    let response = match web.call(hyper::Request::from_parts(head, body)).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    Ok(Answered {
        method,
        outcome: response.status().as_str().to_owned().into(),
        response: response.map(Body::streamed),
    })
}

async fn handle(
    routes: &Routes,
    access: &Access,
    request: hyper::Request<Incoming>,
    remote: SocketAddr,
) -> Result<Answered, Refused> {
    let (head, body) = request.into_parts();
    let head = &head;
    access.check(head, true)?;
    let raw_path = head.uri.path();
    let path = decode_path(raw_path.as_bytes())
        .filter(|path| path.starts_with(b"/"))
        .ok_or_else(|| Refused::bad_request("bad path"))?;
    if let Some(clean) = cleaned(raw_path) {
        return redirect(&clean, head);
    }
    let route = routes
        .find(raw_path, &path)
        .ok_or_else(|| Refused::bad_request("no endpoint is mounted"))?;
    if route.is_change() {
        access.check_change(head)?;
    }
    // Also one that nobody needs, so that the next request on the connection is found.
    let body = match body.is_end_stream() {
        true => Bytes::new(),
        false => Box::pin(read(body, BODY_BYTES_MAX)).await?,
    };
    let form = if has_form(head) { &body[..] } else { b"" };
    let query = head.uri.query().unwrap_or_default();
    let params = Params::parse(form, query.as_bytes()).map_err(Refused::bad_request)?;
    let format = if route.is_text_only() {
        Format::default()
    } else {
        params.format()
    };
    let reply = route
        .call(Request {
            params,
            remote,
            path,
            routes: routes.clone(),
        })
        .await;
    let rendered = reply.render(format);
    let mut response = Response::new(rendered.body);
    let content_type = HeaderValue::from_static(rendered.content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    Ok(Answered {
        method: Word::Of(route),
        outcome: reply.message().into(),
        response,
    })
}

/// Returns true when the body is a form. Go looks for one in these three methods only.
fn has_form(head: &Parts) -> bool {
    [Method::POST, Method::PUT, Method::PATCH].contains(&head.method)
        && media_type(&head.headers) == "application/x-www-form-urlencoded"
}

/// Sends the client to the clean form of the path, with its query.
fn redirect(clean: &str, head: &Parts) -> Result<Answered, Refused> {
    let mut location = escaped(clean);
    if let Some(query) = head.uri.query().filter(|query| !query.is_empty()) {
        location.push('?');
        location.push_str(&escaped_beyond_ascii(query));
    }
    let location_value =
        HeaderValue::from_str(&location).map_err(|_| Refused::bad_request("bad path"))?;
    let mut response = Response::default();
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    response.headers_mut().insert(LOCATION, location_value);
    // For people with a browser; Go writes it for these two methods.
    if [Method::GET, Method::HEAD].contains(&head.method) {
        let link = location
            .replace('&', "&amp;")
            .replace('"', "&#34;")
            .replace('\'', "&#39;");
        let page = format!("<a href=\"{link}\">Temporary Redirect</a>.\n\n");
        *response.body_mut() = Body::from(page);
        let content_type = HeaderValue::from_static("text/html; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, content_type);
    }
    Ok(Answered {
        method: Word::Plain("redirect"),
        outcome: StatusCode::TEMPORARY_REDIRECT.as_str().to_owned().into(),
        response,
    })
}

/// Escapes what may not stand in the path of a `Location`: a browser takes `/\host` for another host, for one.
fn escaped(path: &str) -> String {
    let escape = |byte: u8| byte.is_ascii_alphanumeric() || b"/%-._~!$&'()*+,;=:@".contains(&byte);
    escape_unless(path, escape)
}

fn escaped_beyond_ascii(query: &str) -> String {
    escape_unless(query, |byte| matches!(byte, 0x21..=0x7e))
}

fn escape_unless(text: &str, is_plain: impl Fn(u8) -> bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if is_plain(byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

impl Word {
    fn as_str(&self) -> &str {
        match self {
            Self::Plain(word) => word,
            Self::Method(method) => method.as_str(),
            Self::Of(route) => route.method(),
        }
    }
}

impl Refused {
    fn bad_request(reason: impl ToString) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            reason: reason.to_string(),
        }
    }

    /// Makes the response; the connection ends with it, because the rest of the request may still be on its way.
    fn into_answered(self, is_web: bool) -> Answered {
        let outcome = format!("{}: {}", self.status.as_str(), self.reason);
        let mut response = if is_web {
            let problem = Problem::refused(self.status, self.reason);
            problem.into_response().map(Body::streamed)
        } else {
            let text = format!("{}: {}\n", self.status, self.reason);
            let mut response = Response::new(Body::from(text));
            *response.status_mut() = self.status;
            let text = HeaderValue::from_static("text/plain; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, text);
            response
        };
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer realm=\"networkdb\"");
            headers.insert(WWW_AUTHENTICATE, scheme);
        }
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        Answered {
            method: Word::Plain("refused"),
            outcome: outcome.into(),
            response,
        }
    }
}

impl From<Denied> for Refused {
    fn from(Denied { status, reason }: Denied) -> Self {
        Self { status, reason }
    }
}

impl From<UploadError> for Refused {
    fn from(error: UploadError) -> Self {
        let status = match error {
            UploadError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            UploadError::TooSlow => StatusCode::REQUEST_TIMEOUT,
            UploadError::Broken(_) => StatusCode::BAD_REQUEST,
        };
        let reason = error.to_string();
        Self { status, reason }
    }
}

#[cfg(test)]
mod tests;
