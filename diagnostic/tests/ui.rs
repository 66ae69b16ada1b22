//! The operators' page over a real connection: its files, what their headers allow, and who gets them.

use diagnostic::{Access, Running, Server, Tokens};
use networkdb::node::{NetworkDb, NodeConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Starts a node whose server lets nobody read anything without a token.
async fn start() -> (NetworkDb, Running) {
    let config = NodeConfig {
        bind: ([127, 0, 0, 1], 0).into(),
        ..NodeConfig::default()
    };
    let db = NetworkDb::start(config).await.expect("the node starts");
    let server = Server::bind(([127, 0, 0, 1], 0).into()).await;
    let tokens = Tokens::parse("0123456789abcdef").expect("a token");
    let server = server.expect("a free port");
    let server = server.with_access(Access::local().require(tokens));
    let running = server.serve(db.clone());
    (db, running)
}

/// Asks, and returns the head in lower case and the body.
async fn ask(server: &Running, method: &str, target: &str, headers: &str) -> (String, String) {
    let stream = TcpStream::connect(server.local_addr()).await;
    let mut stream = stream.expect("it listens");
    let request = format!("{method} {target} HTTP/1.0\r\nHost: localhost\r\n{headers}\r\n");
    let sent = stream.write_all(request.as_bytes()).await;
    sent.expect("it reads");
    let mut reply = String::new();
    let read = stream.read_to_string(&mut reply).await;
    read.expect("text until the end");
    let (head, body) = reply.split_once("\r\n\r\n").expect("a head");
    (head.to_lowercase(), body.to_owned())
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.find(|line| line.0 == name).map(|line| line.1)
}

#[tokio::test]
async fn page_and_its_files_come_without_a_token_and_allow_nothing_from_elsewhere() {
    let (_db, server) = start().await;
    for (target, media_type) in [
        ("/ui", "text/html; charset=utf-8"),
        ("/ui/", "text/html; charset=utf-8"),
        ("/ui?x", "text/html; charset=utf-8"),
        ("/ui/style.css", "text/css; charset=utf-8"),
        ("/ui/app.js", "text/javascript; charset=utf-8"),
    ] {
        let (head, body) = ask(&server, "GET", target, "").await;
        assert!(head.contains(" 200 "), "{target}: {head}");
        assert!(!body.is_empty(), "{target}");
        assert_eq!(header(&head, "content-type"), Some(media_type), "{target}");
        let policy = header(&head, "content-security-policy").expect("a policy");
        for part in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ] {
            assert!(policy.contains(part), "{target}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{target}: {policy}");
        let fixed = ["x-content-type-options", "referrer-policy", "cache-control"];
        let values = fixed.map(|name| header(&head, name).unwrap_or_default());
        assert_eq!(values, ["nosniff", "no-referrer", "no-cache"], "{target}");
    }
    let (head, _) = ask(&server, "GET", "/v1/node", "").await;
    assert!(head.contains(" 401 "), "{head}");
}

#[tokio::test]
async fn browser_that_has_a_file_is_not_sent_it_again() {
    let (_db, server) = start().await;
    let (head, _) = ask(&server, "GET", "/ui/app.js", "").await;
    let tag = header(&head, "etag").expect("a tag");
    let condition = format!("If-None-Match: {tag}\r\n");
    let (head, body) = ask(&server, "GET", "/ui/app.js", &condition).await;
    assert!(head.contains(" 304 ") && body.is_empty(), "{head}");
    assert_eq!(header(&head, "etag"), Some(tag));
    let (head, _) = ask(&server, "GET", "/ui/style.css", &condition).await;
    assert!(head.contains(" 200 "), "another file: {head}");
    let (head, body) = ask(&server, "HEAD", "/ui", "").await;
    assert!(head.contains(" 200 ") && body.is_empty(), "{head}");
}

#[tokio::test]
async fn what_the_page_has_not_is_a_problem() {
    let (_db, server) = start().await;
    for (method, target, status) in [
        ("GET", "/ui/nothing", " 404 "),
        ("GET", "/ui/../v1/node", " 404 "),
        ("GET", "/ui/app.js/", " 404 "),
        ("POST", "/ui", " 405 "),
    ] {
        let (head, body) = ask(&server, method, target, "").await;
        assert!(head.contains(status), "{method} {target}: {head}");
        let kind = header(&head, "content-type");
        assert_eq!(kind, Some("application/problem+json"), "{target}: {body}");
    }
}
