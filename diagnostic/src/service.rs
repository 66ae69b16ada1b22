//! What happens to one request: limits, redirect, parameters, handler, reply, and one line in the log.

use std::borrow::Cow;
use std::future::{Future, Ready, ready};
use std::mem;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::response::IntoResponse as _;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, LOCATION, WWW_AUTHENTICATE};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, StatusCode, Uri};
use parking_lot::RwLock;
use tower_service::Service;

use crate::access::{Access, Denied};
use crate::body::Body;
use crate::params::{Params, decode_path};
use crate::reply::{Format, Rendered, Reply};
use crate::routes::{Handled, Handling, Request, Route, Routes, cleaned};
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

/// What comes of a request. Most are answered at once; what is not is on the heap.
pub(crate) enum Answering {
    Now(Ready<Response>),
    Later(Pin<Box<dyn Future<Output = Response> + Send>>),
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
}

/// Why a request did not get as far as a handler.
struct Refused {
    status: StatusCode,
    reason: String,
}

/// What is done with a request to one of Docker's paths or of other layers.
enum Admitted {
    Call(Call),
    Redirect(Answered),
}

/// A request that has a route.
struct Call {
    route: Arc<Route>,
    unknown_path: Option<Vec<u8>>,
    routes: Routes,
}

/// Answers one request.
pub(crate) fn answer(
    site: &Site,
    request: hyper::Request<Incoming>,
    remote: SocketAddr,
) -> Answering {
    let (head, body) = request.into_parts();
    if web::owns(head.uri.path()) {
        return answer_web(site, head, body, remote);
    }
    match admit(site, &head) {
        // Also a body that nobody needs is read, so that the next request on the connection is found.
        Ok(Admitted::Call(call)) if !body.is_end_stream() => Answering::later(async move {
            match read(body, BODY_BYTES_MAX).await {
                Ok(body) => call.answer(head, &body, remote).await,
                Err(error) => Refused::from(error).answer(&head.uri, remote).await,
            }
        }),
        Ok(Admitted::Call(call)) => call.answer(head, b"", remote),
        Ok(Admitted::Redirect(answered)) => Answering::now(answered.log(&head.uri, remote)),
        Err(refused) => refused.answer(&head.uri, remote),
    }
}

/// Answers one request with a status of its own.
fn answer_web(site: &Site, head: Parts, body: Incoming, remote: SocketAddr) -> Answering {
    let access = Arc::clone(&site.access.read());
    let mut web = site.web.clone();
    Answering::later(async move {
        let (uri, method) = (head.uri.clone(), head.method.clone());
        let is_open = web::is_page(head.uri.path());
        let checked = access
            .check(&head, !is_open)
            .and_then(|()| match method.is_safe() {
                true => Ok(()),
                false => access.check_change(&head),
            });
        let answered = match checked {
            Ok(()) => {
                let answered = web.call(hyper::Request::from_parts(head, body)).await;
                let response = answered.unwrap_or_else(|never| match never {});
                Answered {
                    method: Word::Method(method),
                    outcome: response.status().as_str().to_owned().into(),
                    response: response.map(Body::streamed),
                }
            }
            Err(denied) => Refused::from(denied).into_answered(true),
        };
        answered.log(&uri, remote)
    })
}

/// Looks whether a request may be answered, and by which route.
fn admit(site: &Site, head: &Parts) -> Result<Admitted, Refused> {
    let access = site.access.read();
    access.check(head, true)?;
    let raw_path = head.uri.path();
    let path = decode_path(raw_path.as_bytes())
        .filter(|path| path.starts_with(b"/"))
        .ok_or_else(|| Refused::bad_request("bad path"))?;
    if let Some(clean) = cleaned(raw_path) {
        return Ok(Admitted::Redirect(redirect(&clean, head)?));
    }
    let route = site
        .routes
        .find(raw_path, &path)
        .ok_or_else(|| Refused::bad_request("no endpoint is mounted"))?;
    if route.is_change() {
        access.check_change(head)?;
    }
    let is_known = *path == *route.path().as_bytes();
    Ok(Admitted::Call(Call {
        unknown_path: (!is_known).then(|| path.into_owned()),
        route,
        routes: site.routes.clone(),
    }))
}

impl Call {
    /// Calls the handler.
    fn answer(self, mut head: Parts, body: &[u8], remote: SocketAddr) -> Answering {
        let form = if has_form(&head) { body } else { b"" };
        let query = head.uri.query().unwrap_or_default();
        let params = match Params::parse(form, query.as_bytes()) {
            Ok(params) => params,
            Err(error) => return Refused::bad_request(error).answer(&head.uri, remote),
        };
        let route = self.route;
        let format = match route.is_text_only() {
            true => Format::default(),
            false => params.format(),
        };
        let handling = route.call(Request {
            params,
            remote,
            unknown_path: self.unknown_path,
            routes: self.routes,
        });
        let respond = move |head: &mut Parts, handled: Handled| {
            let reply = handled.unwrap_or_else(Reply::failed);
            audit::log(remote, route.method(), &head.uri, reply.message());
            // The map that the headers of the request were in has room, and the library takes it back for the next one.
            response(&reply, format, mem::take(&mut head.headers))
        };
        match handling {
            Handling::Now(handled) => Answering::now(respond(&mut head, handled)),
            Handling::Later(handled) => {
                Answering::later(async move { respond(&mut head, handled.await) })
            }
        }
    }
}

/// Writes a reply.
fn response(reply: &Reply, format: Format, mut headers: HeaderMap) -> Response {
    let Rendered { content_type, body } = reply.render(format);
    headers.clear();
    headers.insert(CONTENT_TYPE, content_type.clone());
    let mut response = Response::new(body);
    *response.headers_mut() = headers;
    response
}

impl Answering {
    fn now(response: Response) -> Self {
        Self::Now(ready(response))
    }

    fn later(answer: impl Future<Output = Response> + Send + 'static) -> Self {
        Self::Later(Box::pin(answer))
    }
}

impl Future for Answering {
    type Output = Response;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Response> {
        match self.get_mut() {
            Self::Now(response) => Pin::new(response).poll(context),
            Self::Later(answer) => answer.as_mut().poll(context),
        }
    }
}

impl Answered {
    /// Writes the line of the log.
    fn log(self, uri: &Uri, remote: SocketAddr) -> Response {
        audit::log(remote, self.method.as_str(), uri, &self.outcome);
        self.response
    }
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

    /// Answers with the reason.
    fn answer(self, uri: &Uri, remote: SocketAddr) -> Answering {
        Answering::now(self.into_answered(false).log(uri, remote))
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
