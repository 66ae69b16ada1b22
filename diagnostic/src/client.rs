//! A client of diagnostic servers, this one and Docker's: one request, one answer, over a connection of its own or, for those
//! who ask much, over one that is kept.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::tls::{ClientFiles, TlsError, client_config};

/// How long a connection may take to be made, TLS included.
const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// How long a server may say nothing.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Largest answer that is kept: a table of some millions of entries.
const BODY_BYTES_MAX: usize = 2 << 30;

/// Connections that are kept; others are closed after their answer.
const KEPT_MAX: usize = 8;

/// Asks one diagnostic server.
#[derive(Clone)]
pub struct Client {
    host: String,
    port: u16,
    token: Option<HeaderValue>,
    tls: Option<TlsConnector>,
    /// Idle connections, shared by all clones; none when no connection is kept.
    kept: Option<Arc<Mutex<Vec<Connection>>>>,
}

/// What a server has answered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    /// The status; Docker's API says 200 to nearly everything.
    pub status: u16,
    /// The media type, as the server calls it.
    pub content_type: String,
    /// The body, whole.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The server is not there.
    #[error("connect to {addr}: {reason}")]
    Connect {
        /// Where it should be.
        addr: String,
        /// The system's reason.
        reason: io::Error,
    },
    /// What was asked for cannot be written as a request. Nothing was sent.
    #[error("request for {target:?}: {reason}")]
    Request {
        /// What was asked for.
        target: String,
        /// What is wrong with it.
        reason: hyper::http::Error,
    },
    /// The connection broke, or what came is no HTTP. The server may have done what it was asked.
    #[error("{addr}: {reason}")]
    Broken {
        /// The server.
        addr: String,
        /// What happened.
        reason: hyper::Error,
    },
    /// The server is silent. It may still do what it was asked.
    #[error("{addr} has said nothing for {} s", SILENCE_MAX.as_secs())]
    Silent {
        /// The server.
        addr: String,
    },
    /// The answer is larger than anything that a server should send.
    #[error("{addr} has sent more than {BODY_BYTES_MAX} bytes")]
    TooLarge {
        /// The server.
        addr: String,
    },
}

/// A file for the client cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientFileError {
    /// The file of the token cannot be read.
    #[error("token file {}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// There is no token in it that could be sent.
    #[error("token file {}: no token in it", path.display())]
    NoToken {
        /// The file.
        path: PathBuf,
    },
    /// The files of TLS cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Client {
    /// A client of the server at an address or name.
    #[must_use]
    pub fn new(host: &str, port: u16) -> Self {
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        Self {
            host: bare.unwrap_or(host).to_owned(),
            port,
            token: None,
            tls: None,
            kept: None,
        }
    }

    /// Keeps connections for the next requests. All of them have to be made in one runtime.
    #[must_use]
    pub fn with_kept_connections(mut self) -> Self {
        self.kept = Some(Arc::default());
        self
    }

    /// Brings the first token of a file with every request; a file as the server reads it will do.
    pub fn with_token_file(mut self, path: &Path) -> Result<Self, ClientFileError> {
        let unreadable = |reason| ClientFileError::Unreadable {
            path: path.to_owned(),
            reason,
        };
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        let mut lines = text.lines().map(str::trim);
        let token = lines.find(|line| !line.is_empty() && !line.starts_with('#'));
        let value = token.and_then(|token| HeaderValue::from_str(&format!("Bearer {token}")).ok());
        let mut value = value.ok_or_else(|| ClientFileError::NoToken {
            path: path.to_owned(),
        })?;
        value.set_sensitive(true);
        self.token = Some(value);
        Ok(self)
    }

    /// Speaks TLS.
    pub fn with_tls(mut self, files: &ClientFiles) -> Result<Self, ClientFileError> {
        self.tls = Some(TlsConnector::from(Arc::new(client_config(files)?)));
        Ok(self)
    }

    /// Returns the server, `HOST:PORT`.
    #[must_use]
    pub fn addr(&self) -> String {
        if self.host.contains(':') {
            return format!("[{}]:{}", self.host, self.port);
        }
        format!("{}:{}", self.host, self.port)
    }

    /// Asks for a path with its query.
    pub async fn get(&self, target: &str) -> Result<Answer, ClientError> {
        self.send(Method::GET, target, "", Bytes::new()).await
    }

    /// Sends a request with a body.
    pub async fn send(
        &self,
        method: Method,
        target: &str,
        content_type: &str,
        body: Bytes,
    ) -> Result<Answer, ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .header(HOST, self.addr());
        if !content_type.is_empty() {
            request = request.header(CONTENT_TYPE, content_type);
        }
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token);
        }
        let request = request.body(Full::new(body));
        let request = request.map_err(|reason| ClientError::Request {
            target: target.to_owned(),
            reason,
        })?;
        while let Some(mut connection) = self.kept() {
            // A server may close it at any time, and has not seen what was not sent.
            if connection.sender.ready().await.is_ok() {
                return self.exchange(connection, request).await;
            }
        }
        let connected = timeout(CONNECT_WAIT, self.connect()).await;
        let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let stream = connected.map_err(|reason| ClientError::Connect {
            addr: self.addr(),
            reason,
        })?;
        let connection = handshake(TokioIo::new(stream)).await;
        let (sender, connection) = connection.map_err(|reason| self.broken(reason))?;
        // What goes wrong with it is told by the request.
        let task = tokio::spawn(async move { drop(connection.await) });
        self.exchange(Connection { sender, task }, request).await
    }

    /// Returns a connection from an earlier request.
    fn kept(&self) -> Option<Connection> {
        self.kept.as_ref()?.lock().pop()
    }

    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let stream = TcpStream::connect((&*self.host, self.port)).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else {
            return Ok(Box::new(stream));
        };
        let name = ServerName::try_from(self.host.clone()).map_err(io::Error::other)?;
        Ok(Box::new(tls.connect(name, stream).await?))
    }

    async fn exchange(
        &self,
        mut connection: Connection,
        request: Request<Full<Bytes>>,
    ) -> Result<Answer, ClientError> {
        let broken = |reason| self.broken(reason);
        let silent = |_| ClientError::Silent { addr: self.addr() };
        let response = timeout(SILENCE_MAX, connection.sender.send_request(request)).await;
        let (head, mut body) = response.map_err(silent)?.map_err(broken)?.into_parts();
        let mut bytes = BytesMut::new();
        while let Some(frame) = timeout(SILENCE_MAX, body.frame()).await.map_err(silent)? {
            let Ok(data) = frame.map_err(broken)?.into_data() else {
                continue;
            };
            if bytes.len() + data.len() > BODY_BYTES_MAX {
                return Err(ClientError::TooLarge { addr: self.addr() });
            }
            bytes.extend_from_slice(&data);
        }
        if let Some(kept) = &self.kept {
            let mut kept = kept.lock();
            if kept.len() < KEPT_MAX && !connection.sender.is_closed() {
                kept.push(connection);
            }
        }
        let content_type = head.headers.get(CONTENT_TYPE);
        let content_type = content_type.map(|it| String::from_utf8_lossy(it.as_bytes()));
        Ok(Answer {
            status: head.status.as_u16(),
            content_type: content_type.unwrap_or_default().into_owned(),
            body: bytes.freeze(),
        })
    }

    fn broken(&self, reason: hyper::Error) -> ClientError {
        let addr = self.addr();
        ClientError::Broken { addr, reason }
    }
}

impl Answer {
    /// Returns the body as text, whatever is no UTF-8 in it replaced.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Returns true for a status of success.
    #[must_use]
    pub fn is_success(&self) -> bool {
        StatusCode::from_u16(self.status).is_ok_and(|status| status.is_success())
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("addr", &self.addr())
            .finish_non_exhaustive()
    }
}

/// A connection, and the task that serves it.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    task: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a connection is made of, in TLS or not.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_and_names_are_written_as_hosts() {
        for (host, addr) in [
            ("192.0.2.1", "192.0.2.1:2000"),
            ("::1", "[::1]:2000"),
            ("[::1]", "[::1]:2000"),
            ("node-1", "node-1:2000"),
        ] {
            assert_eq!(Client::new(host, 2000).addr(), addr);
        }
    }

    #[test]
    fn the_first_token_of_a_file_is_brought() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let client = || Client::new("127.0.0.1", 1).with_token_file(&path);
        assert!(matches!(client(), Err(ClientFileError::Unreadable { .. })));
        std::fs::write(&path, "# for the night shift\n\n").unwrap();
        assert!(matches!(client(), Err(ClientFileError::NoToken { .. })));
        std::fs::write(&path, "# x\n first-token-of-two \nsecond\n").unwrap();
        let client = client().unwrap();
        assert_eq!(client.token.as_ref().unwrap(), "Bearer first-token-of-two");
        assert!(!format!("{client:?}").contains("first"));
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_told_with_its_address() {
        // Taken, so that nobody else listens there, and nobody does here.
        let taken = tokio::net::TcpSocket::new_v4().unwrap();
        taken.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = Client::new("127.0.0.1", port).get("/ready").await;
        let error = error.unwrap_err();
        assert!(matches!(error, ClientError::Connect { .. }));
        assert!(error.to_string().contains(&format!("127.0.0.1:{port}")));
    }

    #[tokio::test]
    async fn kept_connections_are_used_again_and_closed_ones_replaced() {
        use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        // Each connection answers two requests with its number, and is closed then.
        let server = tokio::spawn(async move {
            for number in 0..2 {
                let (stream, _) = listener.accept().await.unwrap();
                let mut stream = BufReader::new(stream);
                for _ in 0..2 {
                    let mut line = String::new();
                    while line != "\r\n" {
                        line.clear();
                        stream.read_line(&mut line).await.unwrap();
                    }
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{number}");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        });
        let client = Client::new("127.0.0.1", port).with_kept_connections();
        for number in ["0", "1"] {
            for _ in 0..2 {
                assert_eq!(client.get("/ready").await.unwrap().text(), number);
            }
            // The end of a connection is seen when its task runs.
            let is_open = || {
                let kept = client.kept.as_ref().unwrap().lock();
                kept.iter().any(|kept| !kept.sender.is_closed())
            };
            while is_open() {
                tokio::task::yield_now().await;
            }
        }
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_target_that_is_none_is_not_sent() {
        let error = Client::new("127.0.0.1", 1).get("/ x").await.unwrap_err();
        assert!(matches!(error, ClientError::Request { .. }), "{error}");
    }
}
