//! Who may ask for what.
//!
//! A page of any site runs in the operator's browser and can send requests to this server. It cannot read the answers, because
//! nothing here allows it (no CORS headers), unless its name is made to resolve to this server; so the `Host` of a request has
//! to be an address or a name that is allowed. And it could change something with a request whose answer it need not read,
//! since Docker's writes are plain GETs; so a request that changes something is refused when the browser says that another
//! site has caused it (`Sec-Fetch-Site`, `Origin`; Fetch Metadata, W3C). Clients that are no browsers send neither.

use std::fmt;
use std::net::IpAddr;

use hyper::header::{AUTHORIZATION, HOST, HeaderName, HeaderValue, ORIGIN};
use hyper::http::request::Parts;
use hyper::{HeaderMap, StatusCode};
use sha2::{Digest as _, Sha256};

/// Says in every browser whose page has caused a request.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Shortest token: 16 random bytes are 22 characters in base64.
const TOKEN_CHARS_MIN: usize = 16;

/// The rules of one server.
#[derive(Clone, Debug, Default)]
pub struct Access {
    any_host: bool,
    hosts: Vec<String>,
    tokens: Option<Tokens>,
    is_read_only: bool,
}

/// Secrets of which every request has to bring one. Only hashes are kept.
#[derive(Clone, Eq, PartialEq)]
pub struct Tokens(Vec<[u8; 32]>);

/// A file of tokens was not understood.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// There is none in it.
    #[error("no token in it, one a line is expected")]
    Empty,
    /// A token could be guessed.
    #[error("line {line}: the token has fewer than {TOKEN_CHARS_MIN} characters")]
    Short {
        /// The line, from 1.
        line: usize,
    },
    /// A token could not be sent in a header.
    #[error("line {line}: the token has spaces or characters that are not ASCII")]
    Character {
        /// The line, from 1.
        line: usize,
    },
}

/// Why a request is refused.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Denied {
    pub(crate) status: StatusCode,
    pub(crate) reason: String,
}

impl Access {
    /// Requests by address or as `localhost`; anybody who reaches the port may read and write.
    #[must_use]
    pub fn local() -> Self {
        Self::default()
    }

    /// Requests by any name. For servers that are open by contract: a page whose name resolves to one can read it.
    #[must_use]
    pub fn open() -> Self {
        Self {
            any_host: true,
            ..Self::default()
        }
    }

    /// Allows a name in `Host`, without port.
    #[must_use]
    pub fn allow_host(mut self, name: &str) -> Self {
        self.hosts.push(name.to_ascii_lowercase());
        self
    }

    /// Requires a token in every request, in the header `Authorization: Bearer TOKEN`.
    #[must_use]
    pub fn require(mut self, tokens: Tokens) -> Self {
        self.tokens = Some(tokens);
        self
    }

    /// Refuses everything that changes something.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.is_read_only = true;
        self
    }

    /// Checks what holds for every request; `needs_token` is false for pages that hold nothing of the node.
    pub(crate) fn check(&self, head: &Parts, needs_token: bool) -> Result<(), Denied> {
        let host = host_of(head);
        if let Some(host) = host.filter(|host| !self.allows_host(host)) {
            return Err(Denied::forbidden(format!(
                "the host {host:?} is not allowed: use an address, or allow the name (--diagnostic-host)"
            )));
        }
        match &self.tokens {
            Some(tokens) if needs_token && !tokens.are_met(&head.headers) => Err(Denied {
                status: StatusCode::UNAUTHORIZED,
                reason: "a token is needed, in the header \"Authorization: Bearer TOKEN\"".into(),
            }),
            Some(_) | None => Ok(()),
        }
    }

    /// Checks what holds beyond that for a request that changes something.
    pub(crate) fn check_change(&self, head: &Parts) -> Result<(), Denied> {
        if self.is_read_only {
            return Err(Denied::forbidden("this server is read-only".into()));
        }
        let (mut site, mut origin) = (None, None);
        // One walk over the few headers that most requests have is quicker than two searches. The first of a name counts.
        for (name, value) in &head.headers {
            if *name == ORIGIN {
                origin.get_or_insert(value);
            } else if *name == SEC_FETCH_SITE {
                site.get_or_insert(value);
            }
        }
        let site = site.map_or("none", text);
        if !["same-origin", "none"].contains(&site) {
            return Err(Denied::forbidden(format!(
                "a page of another site asks for a change (Sec-Fetch-Site: {site})"
            )));
        }
        let host = || head.headers.get(HOST).and_then(|host| host.to_str().ok());
        let is_own = |origin: &str| {
            let authority = origin.split_once("://").map(|(_, authority)| authority);
            authority.is_some_and(|it| host().is_some_and(|host| it.eq_ignore_ascii_case(host)))
        };
        match origin.map(text).filter(|origin| !is_own(origin)) {
            Some(origin) => Err(Denied::forbidden(format!(
                "a page of another site asks for a change (Origin: {origin})"
            ))),
            None => Ok(()),
        }
    }

    fn allows_host(&self, host: &str) -> bool {
        let name = host.strip_suffix('.').unwrap_or(host);
        let is_named = |allowed: &str| allowed.eq_ignore_ascii_case(name);
        let is_address = || {
            let bare = host
                .strip_prefix('[')
                .and_then(|host| host.strip_suffix(']'));
            bare.unwrap_or(host).parse::<IpAddr>().is_ok()
        };
        self.any_host
            || is_named("localhost")
            || self.hosts.iter().any(|host| is_named(host))
            || is_address()
    }
}

impl Tokens {
    /// Reads tokens, one a line; empty lines and those that begin with `#` are skipped.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let mut tokens = Vec::new();
        for (line, token) in (1..).zip(text.lines().map(str::trim)) {
            if token.is_empty() || token.starts_with('#') {
                continue;
            }
            if token.len() < TOKEN_CHARS_MIN {
                return Err(TokenError::Short { line });
            }
            if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(TokenError::Character { line });
            }
            tokens.push(hash(token.as_bytes()));
        }
        if tokens.is_empty() {
            return Err(TokenError::Empty);
        }
        Ok(Self(tokens))
    }

    /// Whether a request brings one. Hashes are compared, so that the time taken tells nothing of a token.
    fn are_met(&self, headers: &HeaderMap) -> bool {
        let value = headers
            .get(AUTHORIZATION)
            .map_or(&b""[..], |value| value.as_bytes());
        let token = value
            .split_at_checked(7)
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "))
            .map(|(_, token)| token.trim_ascii());
        token.is_some_and(|token| self.0.contains(&hash(token)))
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokens({})", self.0.len())
    }
}

impl Denied {
    fn forbidden(reason: String) -> Self {
        Self {
            status: StatusCode::FORBIDDEN,
            reason,
        }
    }
}

/// Returns the value of a header as text, something that is never allowed when it is none.
fn text(value: &HeaderValue) -> &str {
    value.to_str().unwrap_or("?")
}

/// Returns the host that a request names, without port; none when it names none, as old clients do and no browser does.
fn host_of(head: &Parts) -> Option<&str> {
    let header = head.headers.get(HOST).map(text);
    let host = header.or_else(|| head.uri.host())?;
    let port = host.rfind(':').filter(|at| !host[*at..].contains(']'));
    Some(port.map_or(host, |at| &host[..at]))
}

fn hash(token: &[u8]) -> [u8; 32] {
    Sha256::digest(token).into()
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn head(headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri("/createentry");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn allowed(access: &Access, host: &str) -> bool {
        access.check(&head(&[("host", host)]), true).is_ok()
    }

    #[test]
    fn addresses_localhost_and_allowed_names_are_hosts_of_this_server() {
        let access = Access::local().allow_host("Node-1.example");
        for host in [
            "127.0.0.1",
            "127.0.0.1:2000",
            "192.0.2.7:1",
            "[::1]:2000",
            "[::1]",
            "localhost",
            "LOCALHOST:2000",
            "localhost.",
            "node-1.example:2000",
            "NODE-1.EXAMPLE",
        ] {
            assert!(allowed(&access, host), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:2000",
            "",
            ":2000",
            "node-1",
            "127.0.0.1@evil.example",
            "[::1].evil.example",
            "::1.evil",
        ] {
            assert!(!allowed(&access, host), "{host}");
            assert!(allowed(&Access::open(), host), "{host}");
        }
        assert!(
            access.check(&head(&[]), true).is_ok(),
            "no browser sends none"
        );
    }

    #[test]
    fn the_token_is_needed_in_the_header() {
        let tokens = Tokens::parse("# ours\n\n0123456789abcdef\nfedcba9876543210\n").unwrap();
        let access = Access::local().require(tokens);
        let status = |value: &str| {
            let head = head(&[("authorization", value)]);
            access.check(&head, true).err().map(|denied| denied.status)
        };
        for good in ["Bearer 0123456789abcdef", "bearer  fedcba9876543210"] {
            assert_eq!(status(good), None, "{good}");
        }
        for bad in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer 0123456789abcde",
            "Basic 0123456789abcdef",
            "0123456789abcdef",
            "Bearer 0123456789abcdef0",
        ] {
            assert_eq!(status(bad), Some(StatusCode::UNAUTHORIZED), "{bad}");
        }
        assert!(access.check(&head(&[]), false).is_ok());
        assert_eq!(format!("{access:?}").matches("0123").count(), 0);
    }

    #[test]
    fn token_files_are_refused_with_the_line() {
        let error = |text| Tokens::parse(text).unwrap_err();
        assert_eq!(error("# nothing\n\n"), TokenError::Empty);
        assert_eq!(error("\nshort\n"), TokenError::Short { line: 2 });
        assert_eq!(
            error("0123456789 abcdef"),
            TokenError::Character { line: 1 }
        );
        assert_eq!(
            error("0123456789abcdé\n"),
            TokenError::Character { line: 1 }
        );
    }

    #[test]
    fn a_change_that_another_site_asks_for_is_refused() {
        let refused = |headers: &[(&str, &str)]| {
            let host = [("host", "127.0.0.1:2000")];
            Access::local()
                .check_change(&head(&[&host, headers].concat()))
                .is_err()
        };
        assert!(!refused(&[]));
        assert!(!refused(&[("sec-fetch-site", "same-origin")]));
        assert!(!refused(&[("sec-fetch-site", "none")]));
        assert!(!refused(&[("origin", "http://127.0.0.1:2000")]));
        for site in ["cross-site", "same-site", "", "Same-Origin, cross-site"] {
            assert!(refused(&[("sec-fetch-site", site)]), "{site}");
        }
        for origin in [
            "null",
            "",
            "http://evil.example",
            "http://127.0.0.1:2001",
            "http://127.0.0.1",
            "http://evil.example/http://127.0.0.1:2000",
            "127.0.0.1:2000",
        ] {
            assert!(refused(&[("origin", origin)]), "{origin}");
        }
    }

    #[test]
    fn nothing_is_changed_on_a_read_only_server() {
        let access = Access::local().read_only();
        assert!(access.check(&head(&[]), true).is_ok());
        let denied = access.check_change(&head(&[])).unwrap_err();
        assert_eq!(denied.status, StatusCode::FORBIDDEN);
        assert!(denied.reason.contains("read-only"));
    }
}
