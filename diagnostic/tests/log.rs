//! What the log tells of requests. The one test of its program: which log hears a line is remembered by `tracing` for all threads
//! at once, and those of other tests would have none.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use diagnostic::Server;
use networkdb::node::{NetworkDb, NodeConfig};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn every_request_leaves_one_line_without_the_value() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone());
    subscriber.init();
    let config = NodeConfig {
        bind: ([127, 0, 0, 1], 0).into(),
        ..NodeConfig::default()
    };
    let db = NetworkDb::start(config).await.expect("the node starts");
    let server = Server::bind(([127, 0, 0, 1], 0).into()).await;
    let server = server.expect("a free port").serve(db);
    for (target, form, expected) in [
        (
            "/joinnetwork?nid=n",
            "",
            r#"method="joinnetwork" url="/joinnetwork?nid=n" outcome="OK""#,
        ),
        (
            "/createentry?nid=n&tname=t&key=a%20b&value=c2VjcmV0",
            "",
            r#"method="createentry" url="/createentry?nid=n&tname=t&key=a%20b&value=<8 bytes>" outcome="OK""#,
        ),
        (
            "/createentry?nid=n&tname=t&key=b&value=secret",
            "",
            r#"method="createentry" url="/createentry?nid=n&tname=t&key=b&value=<6 bytes>" outcome="FAIL""#,
        ),
        (
            "/nosuch",
            "",
            r#"method="unknown" url="/nosuch" outcome="not implemented""#,
        ),
        (
            "//createentry?value=secret",
            "",
            r#"method="redirect" url="//createentry?value=<6 bytes>" outcome="307""#,
        ),
        (
            "/%zz?value=secret",
            "",
            r#"method="refused" url="/%zz?value=<6 bytes>" outcome="400: bad path""#,
        ),
        (
            "/createentry",
            "nid=n&tname=t&key=k&value=c2VjcmV0",
            r#"method="createentry" url="/createentry" outcome="OK""#,
        ),
    ] {
        log.0.lock().clear();
        ask(server.local_addr(), target, form).await;
        let log = String::from_utf8(log.0.lock().clone()).expect("text");
        for value in ["secret", "c2VjcmV0"] {
            assert!(!log.contains(value), "{log}");
        }
        let lines: Vec<&str> = log.lines().filter(|line| is_of_request(line)).collect();
        let [line] = lines[..] else {
            panic!("of {target}: {log}");
        };
        assert!(line.ends_with(expected), "{line}");
    }
}

/// What was logged.
#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn is_of_request(line: &str) -> bool {
    line.contains(r#"INFO diagnostic::audit: request component="diagnostic" remote=127.0.0.1:"#)
}

/// Sends a form, and returns once the answer is there.
async fn ask(server: SocketAddr, target: &str, form: &str) {
    let length = form.len();
    let request = format!(
        "POST {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {length}\r\n\r\n{form}"
    );
    let mut stream = TcpStream::connect(server).await.expect("it listens");
    let sent = stream.write_all(request.as_bytes()).await;
    sent.expect("it reads");
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer).await;
    assert_ne!(read.expect("an answer"), 0, "to {target}");
}
