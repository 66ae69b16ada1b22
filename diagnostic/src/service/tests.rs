//! Requests as bytes on a socket against a server with one route that shows what reached it.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::access::Tokens;
use crate::reply::Reply;
use crate::routes::Route;
use crate::server::{Running, Server};

/// A form that both routes understand.
const FORM: &str = "Content-Type: application/x-www-form-urlencoded";

#[tokio::test]
async fn parameters_come_from_the_query_or_the_form() {
    let server = start().await;
    let echo = |head: &str, body: &str| request("/echo?key=query", head, body);
    for (method, head, body, key) in [
        ("GET", "", "", "query"),
        ("DELETE", "", "", "query"),
        ("POST", FORM, "key=form", "form"),
        ("PUT", FORM, "key=form", "form"),
        ("PATCH", FORM, "key=form", "form"),
        (
            "POST",
            &format!("{FORM}; charset=utf-8"),
            "key=form",
            "form",
        ),
        ("POST", &FORM.to_uppercase(), "key=form", "form"),
        ("POST", FORM, "other=x", "query"),
        ("GET", FORM, "key=form", "query"),
        ("DELETE", FORM, "key=form", "query"),
        ("POST", "", "key=form", "query"),
        ("POST", "Content-Type: text/plain", "key=form", "query"),
        (
            "POST",
            "Content-Type: multipart/form-data; boundary=b",
            "key=form",
            "query",
        ),
    ] {
        let reply = server
            .exchange(&format!("{method} {}", echo(head, body)))
            .await;
        assert_eq!(
            reply.body,
            format!("OK\n{key}").as_bytes(),
            "{method} {head}"
        );
        assert_eq!(reply.status(), 200);
    }
}

#[tokio::test]
async fn head_answers_the_headers_of_get() {
    let server = start().await;
    for target in ["/echo?key=k", "/echo?key=k&json", "/nosuch", "//echo"] {
        let get = server
            .exchange(&format!("GET {}", request(target, "", "")))
            .await;
        let head = server
            .exchange(&format!("HEAD {}", request(target, "", "")))
            .await;
        let undated = |reply: &Received| {
            let lines = reply.head.lines().filter(|line| !line.starts_with("Date:"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(undated(&head), undated(&get), "{target}");
        assert!(!get.body.is_empty());
        assert!(head.body.is_empty());
    }
}

#[tokio::test]
async fn path_that_is_not_clean_is_redirected_with_its_query() {
    let server = start().await;
    for (target, location) in [
        ("//echo", "/echo"),
        ("/x/../echo?key=a%2Fb&key=//x", "/echo?key=a%2Fb&key=//x"),
        ("/echo/.", "/echo"),
        ("//echo?", "/echo"),
        ("//a%20b", "/a%20b"),
        ("/x/..//\\host", "/%5Chost"),
        ("//é?é", "/%C3%A9?%C3%A9"),
    ] {
        let reply = server
            .exchange(&format!("GET {}", request(target, "", "")))
            .await;
        assert_eq!(reply.status(), 307, "{target}");
        assert_eq!(reply.header("Location"), Some(location));
        let post = server
            .exchange(&format!("POST {}", request(target, "", "")))
            .await;
        assert_eq!(post.header("Location"), Some(location));
        assert!(post.body.is_empty());
    }
}

#[tokio::test]
async fn unknown_path_is_no_error() {
    let server = start().await;
    for target in ["/", "/nosuch", "/echo/", "/echo%2F"] {
        let reply = server
            .exchange(&format!("GET {}", request(target, "", "")))
            .await;
        let shown = target.replace("%2F", "/");
        let expected = format!(
            "not implemented\nUsage: URL path: {shown} no method implemented check /help\n"
        );
        assert_eq!(reply.body, expected.as_bytes());
        assert_eq!(reply.status(), 200);
    }
}

#[tokio::test]
async fn missing_parameter_shows_the_usage() {
    let server = start().await;
    let reply = server
        .exchange(&format!("GET {}", request("/echo?Key=k", "", "")))
        .await;
    assert_eq!(reply.body, b"missing parameter\nUsage: /echo?key=k");
    assert_eq!(
        reply.header("Content-Type"),
        Some("text/plain; charset=utf-8")
    );
    let reply = server
        .exchange(&format!("GET {}", request("/text?json", "", "")))
        .await;
    assert_eq!(
        reply.body,
        b"missing parameter\nUsage: /text?tname=table_name"
    );
}

#[tokio::test]
async fn route_of_another_layer_is_answered_while_the_server_runs() {
    let server = start().await;
    let late = Route::new("/late", |_| ready(Ok(Reply::text("late\n"))));
    server.running.routes().register(late).unwrap();
    let reply = server
        .exchange(&format!("GET {}", request("/late?json", "", "")))
        .await;
    assert_eq!(reply.body, b"late\n");
}

#[tokio::test]
async fn largest_value_fits_into_a_form_and_more_is_refused() {
    let server = start().await;
    let body = format!("key={}", "%41".repeat((1 << 20) * 4 / 3 + 4));
    let reply = server
        .exchange(&format!("POST {}", request("/echo", FORM, &body)))
        .await;
    assert_eq!(reply.status(), 200);
    assert_eq!(reply.body.len(), "OK\n".len() + (1 << 20) * 4 / 3 + 4);
    let announced = format!("Content-Length: {}\r\n\r\n", BODY_BYTES_MAX + 1);
    let reply = server
        .exchange(&format!(
            "POST /echo HTTP/1.1\r\nHost: localhost\r\n{announced}"
        ))
        .await;
    assert_eq!(reply.status(), 413);
    assert_eq!(reply.header("Connection"), Some("close"));
}

#[tokio::test]
async fn unannounced_body_is_refused_when_it_grows_too_large() {
    let server = start().await;
    let chunk = format!("100000\r\n{}\r\n", "a".repeat(1 << 20));
    let head = "POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    let reply = server.exchange(&format!("{head}{}", chunk.repeat(6))).await;
    assert_eq!(reply.status(), 413);
}

#[tokio::test]
async fn limits_answer_with_their_own_status() {
    let server = start().await;
    let long = "x".repeat(70_000);
    for (request, status) in [
        (request("/%zz", "", ""), 400),
        (
            request(&format!("/echo?{}", "a&".repeat(1_001)), "", ""),
            400,
        ),
        (request(&format!("/echo?key={long}"), "", ""), 414),
        (
            request("/echo?key=k", &format!("X: {long}\r\nY: {long}"), ""),
            431,
        ),
        (request("*", "", ""), 400),
    ] {
        let reply = server.exchange(&format!("GET {request}")).await;
        assert_eq!(reply.status(), status, "{}", &request[..20]);
    }
}

#[tokio::test]
async fn body_that_nobody_needs_does_not_hide_the_next_request() {
    let server = start().await;
    let first = "GET /echo?key=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nGET ";
    let reply = server
        .exchange(&format!("{first}GET {}", request("/echo?key=2", "", "")))
        .await;
    assert!(reply.body.ends_with(b"OK\n2"));
}

#[tokio::test]
async fn any_bytes_on_the_socket_leave_the_server_alive() {
    let server = start().await;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for length in 0..64 {
        let mut bytes = b"GET /".to_vec();
        for _ in 0..length * 8 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.push(state.to_le_bytes()[0]);
        }
        let mut stream = TcpStream::connect(server.running.local_addr())
            .await
            .unwrap();
        // A server that has seen enough may close while this is still being written.
        drop(stream.write_all(&bytes[length % 6..]).await);
    }
    let reply = server
        .exchange(&format!("GET {}", request("/echo?key=k", "", "")))
        .await;
    assert_eq!(reply.body, b"OK\nk");
}

#[tokio::test]
async fn who_may_not_ask_is_told_so_before_anything_happens() {
    let server = start().await;
    let calls = || server.calls.load(Ordering::Relaxed);
    let change = "/change HTTP/1.1\r\nConnection: close\r\nHost: ";
    for (request, status, reason) in [
        (
            format!("GET {change}evil.example\r\n\r\n"),
            403,
            "evil.example",
        ),
        (
            format!("GET {change}localhost\r\nSec-Fetch-Site: cross-site\r\n\r\n"),
            403,
            "cross-site",
        ),
        (
            format!("HEAD {change}localhost\r\nOrigin: http://evil.example\r\n\r\n"),
            403,
            "",
        ),
        (
            format!("POST {change}localhost\r\nOrigin: null\r\nContent-Length: 0\r\n\r\n"),
            403,
            "null",
        ),
    ] {
        let reply = server.exchange(&request).await;
        assert_eq!(reply.status(), status, "{request}");
        let body = String::from_utf8(reply.body).unwrap();
        assert!(body.contains(reason), "{body}");
        assert_eq!(calls(), 0, "{request}");
    }
    let allowed = format!("GET {change}localhost\r\nSec-Fetch-Site: none\r\n\r\n");
    assert_eq!(server.exchange(&allowed).await.status(), 200);
    assert_eq!(calls(), 1);
    let token = Tokens::parse("0123456789abcdef").unwrap();
    server
        .running
        .set_access(Access::local().require(token).read_only());
    let reply = server.exchange(&allowed).await;
    assert_eq!(reply.status(), 401);
    assert_eq!(
        reply.header("Www-Authenticate"),
        Some("Bearer realm=\"networkdb\"")
    );
    let bearer = "Authorization: Bearer 0123456789abcdef";
    let with_token = format!("GET {}", request("/echo?key=k", bearer, ""));
    assert_eq!(server.exchange(&with_token).await.body, b"OK\nk");
    let with_token = format!("GET {}", request("/change", bearer, ""));
    let reply = server.exchange(&with_token).await;
    assert_eq!(reply.status(), 403, "it is read-only");
    assert_eq!(calls(), 1);
    let page = server
        .exchange(&format!("GET {}", request("/v1/x", "", "")))
        .await;
    assert_eq!(page.status(), 401);
    assert_eq!(
        page.header("Content-Type"),
        Some("application/problem+json")
    );
}

struct Started {
    running: Running,
    /// How often something was changed.
    calls: Arc<AtomicUsize>,
}

struct Received {
    head: String,
    body: Vec<u8>,
}

async fn start() -> Started {
    let server = Server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let unknown = |request: Request| ready(Ok(Reply::unknown(request.other_path())));
    let echo = |request: Request| ready(request.params.text("key").map(Reply::info));
    server.routes().mount(Route::new("/", unknown));
    server
        .routes()
        .mount(Route::new("/echo", echo).requires("key=k"));
    let text = Route::new("/text", echo)
        .requires("tname=table_name")
        .text_only();
    server.routes().mount(text);
    let calls = Arc::new(AtomicUsize::new(0));
    let called = Arc::clone(&calls);
    let change = Route::new("/change", move |_| {
        called.fetch_add(1, Ordering::Relaxed);
        ready(Ok(Reply::done()))
    });
    server.routes().mount(change.changes());
    Started {
        calls,
        running: server.run(),
    }
}

/// Returns a request without its method, after which the server closes.
fn request(target: &str, header: &str, body: &str) -> String {
    let header = if header.is_empty() { "X: y" } else { header };
    let length = body.len();
    format!(
        "{target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{header}\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

impl Started {
    async fn exchange(&self, request: &str) -> Received {
        let stream = TcpStream::connect(self.running.local_addr()).await.unwrap();
        let (mut reader, mut writer) = stream.into_split();
        let mut bytes = Vec::new();
        let write = async {
            // A refused request is answered before all of it is written.
            drop(writer.write_all(request.as_bytes()).await);
        };
        let read = async {
            // After a refusal the reset of the unread rest may follow the reply.
            drop(reader.read_to_end(&mut bytes).await);
        };
        tokio::join!(write, read);
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        let end = end.expect("the head of a reply");
        Received {
            head: String::from_utf8(bytes[..end].to_vec()).unwrap(),
            body: bytes[end + 4..].to_vec(),
        }
    }
}

impl Received {
    fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|line| line.0 == name).map(|line| line.1)
    }
}
