//! A small HTTP/1.1 client on blocking sockets: exact bytes out, every wait bounded.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// How long a server may be silent.
const SILENCE_MAX: Duration = Duration::from_secs(20);

/// A kept connection to one server.
#[derive(Debug)]
pub struct Connection {
    addr: SocketAddr,
    stream: BufReader<TcpStream>,
}

/// What a server answered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Header lines as they came, without the status line.
    pub headers: Vec<String>,
    /// Body as text.
    pub body: String,
}

impl Connection {
    /// Connects to a server.
    pub fn open(addr: SocketAddr) -> Result<Self> {
        Self::open_within(addr, SILENCE_MAX)
    }

    /// Connects to a server that may not be silent for longer than this.
    pub fn open_within(addr: SocketAddr, silence_max: Duration) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&addr, silence_max)
            .with_context(|| format!("connect to {addr}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(silence_max))?;
        stream.set_write_timeout(Some(silence_max))?;
        let stream = BufReader::new(stream);
        Ok(Self { addr, stream })
    }

    /// Asks for `target` and returns the whole answer.
    pub fn get(&mut self, target: &str) -> Result<Reply> {
        self.send("GET", target, "")
    }

    /// Sends a request with a body of JSON, or an empty one, and returns the whole answer.
    pub fn send(&mut self, method: &str, target: &str, body: &str) -> Result<Reply> {
        let (addr, length) = (self.addr, body.len());
        let about_body = match method {
            "GET" => String::new(),
            _ => format!("Content-Type: application/json\r\nContent-Length: {length}\r\n"),
        };
        let request =
            format!("{method} {target} HTTP/1.1\r\nHost: {addr}\r\n{about_body}\r\n{body}");
        self.exchange(&request)
            .with_context(|| format!("{method} http://{addr}{target}"))
    }

    fn exchange(&mut self, request: &str) -> Result<Reply> {
        self.stream.get_mut().write_all(request.as_bytes())?;
        let status_line = self.line()?;
        let status = status_line
            .split(' ')
            .nth(1)
            .with_context(|| format!("no status in {status_line:?}"))?
            .parse()?;
        let mut headers = Vec::new();
        loop {
            match self.line()? {
                line if line.is_empty() => break,
                line => headers.push(line),
            }
        }
        // 204 has no body and says no length (RFC 9110, section 8.6).
        let length = if status == 204 {
            0
        } else {
            body_bytes(&headers)?
        };
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(Reply {
            status,
            headers,
            body: String::from_utf8(body)?,
        })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(
            self.stream.read_line(&mut line)? > 0,
            "the server closed the connection"
        );
        Ok(line.trim_end_matches(['\r', '\n']).to_owned())
    }
}

/// Asks one server once.
pub fn get(addr: SocketAddr, target: &str) -> Result<Reply> {
    Connection::open(addr)?.get(target)
}

/// Encodes text for a query parameter.
#[must_use]
pub fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte.into());
        } else {
            write!(encoded, "%{byte:02X}").expect("a string takes every write");
        }
    }
    encoded
}

/// Returns the length that the headers state.
fn body_bytes(headers: &[String]) -> Result<usize> {
    for header in headers {
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            return Ok(value.trim().parse()?);
        }
    }
    bail!("no content-length in {headers:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoding_leaves_only_unreserved_characters() {
        assert_eq!(encode("a/b \"é"), "a%2Fb%20%22%C3%A9");
    }

    #[test]
    fn length_is_found_in_any_case() {
        let headers = ["Server: x".to_owned(), "content-Length: 12".to_owned()];
        assert_eq!(body_bytes(&headers).unwrap(), 12);
        assert!(body_bytes(&headers[..1]).is_err());
    }
}
