//! `diagnosticClient` as it is run: against servers that replay what Docker's answered, against ours, and against none.

mod authority;

use std::io::Write;
use std::process::{Command, Stdio};

use diagnostic::{Access, Client, Running, Server, Tls, Tokens};
use networkdb::node::{NetworkDb, NodeConfig};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc::{Receiver, channel};

use crate::authority::Authority;

const READY: &str = "OK\nOK";
const CLUSTER: &str = r#"{"message":"OK","details":{"size":3,"entries":[{"-=name":"28c235f6ca17","ip":"10.77.0.2"},{"-=name":"493fd2aef9fe","ip":"10.77.0.3"},{"-=name":"c28245a91a0f","ip":"10.77.0.1"}]}}"#;
const NETWORK: &str = r#"{"message":"OK","details":{"size":2,"entries":[{"-=name":"c28245a91a0f","ip":"10.77.0.1"},{"-=name":"gone","ip":""}]}}"#;
const NONE: &str = r#"{"message":"OK","details":{"size":0,"entries":null}}"#;
const DONE: &str = r#"{"message":"OK","details":null}"#;
const TWICE: &str = r#"{"message":"FAIL","details":{"error":"cannot delete entry t1 with network id net-json and key k-json does not exist or is already being deleted"}}"#;
/// An endpoint of each kind of owner: here, elsewhere in the cluster, gone, and on the network only.
const ENDPOINTS: &str = r#"{"message":"OK","details":{"size":4,"entries":[
    {"key":"k1","value":"Cgp3ZWIuMi5laGR6EgN3ZWIaBTg3MXhuIggxMC4wLjEuOCoJMTAuMC4xLjEwQgwyMzk4M2UzZmE2OWE=","owner":"c28245a91a0f"},
    {"key":"k2","value":"CgZkYi4xLngiBTxuaWw+KgkxMC4wLjEuMTEyCwoEaHR0cBhQIJA/OgNzcWxIAQ==","owner":"28c235f6ca17"},
    {"key":"k/3","value":"","owner":"unknown"},
    {"key":"k4","value":"aGVsbG8=","owner":"gone"}]}}"#;
const PEER: &str = "CgwxMC4wLjEuMTAvMjQSETAyOjQyOjBhOjAwOjAxOjBhGgoxOTIuMC4yLjEx";

const ORPHANS: &str = r#"level=warning msg="The element with key:k2 does not belong to any node on this network"
level=warning msg="The element with key:k/3 does not belong to any node on this network"
level=warning msg="The element with key:k/3 does not belong to any node on this cluster"
level=warning msg="The element with key:k4 has a value that cannot be decoded" error="protobuf: failed to decode Protobuf message: unexpected end group tag"
level=warning msg="The element with key:k4 does not belong to any node on this cluster"
level=warning msg="These keys have no owner on the network:[k2 k/3] Delete them for good? [Yes/No]"
"#;

/// How a scripted server treats a connection, once it has a request.
enum Reply {
    /// An answer with status 200.
    Ok(&'static str),
    /// An answer with another status.
    Status(u16, &'static str),
    /// Bytes, and the end.
    Raw(&'static str),
    /// Nothing while it lasts.
    Silence,
}

/// A server that answers in turn, whatever it is asked, and is gone after the last answer.
struct Script {
    port: u16,
    requests: Receiver<String>,
}

/// What a run has left: its exit code, and its log without the times.
#[derive(Debug, Eq, PartialEq)]
struct Outcome {
    code: Option<i32>,
    log: String,
}

/// How the program is run.
#[derive(Clone, Copy, Default)]
struct Setting {
    input: &'static str,
    is_disposable: bool,
}

const DISPOSABLE: Setting = Setting {
    input: "",
    is_disposable: true,
};

impl Script {
    async fn start(replies: Vec<Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let (sender, requests) = channel(16);
        tokio::spawn(async move {
            let mut silent = Vec::new();
            for reply in replies {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let head = read_head(&mut stream).await;
                let line = head.lines().next().unwrap_or_default();
                sender.send(line.to_owned()).await.expect("a reader");
                let text = match reply {
                    Reply::Ok(body) => answer(200, body),
                    Reply::Status(status, body) => answer(status, body),
                    Reply::Raw(text) => text.to_owned(),
                    Reply::Silence => {
                        silent.push(stream);
                        continue;
                    }
                };
                let sent = stream.write_all(text.as_bytes()).await;
                sent.expect("it reads");
            }
        });
        Self { port, requests }
    }

    /// Runs the program; returns what it has left and which targets it has asked for.
    async fn run(mut self, args: &str, setting: Setting) -> (Outcome, Vec<String>) {
        let outcome = run(&format!("-port {} {args}", self.port), setting).await;
        let mut targets = Vec::new();
        while let Ok(line) = self.requests.try_recv() {
            let target = line.strip_prefix("GET ");
            let target = target.and_then(|line| line.strip_suffix(" HTTP/1.1"));
            targets.push(target.expect(&line).to_owned());
        }
        (outcome, targets)
    }
}

/// Reads the head of a request, or what comes until the end.
async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}

fn answer(status: u16, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status} -\r\nContent-Type: x/y\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

fn command(args: &str, setting: Setting) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_diagnosticClient"));
    command.args(args.split_whitespace());
    command.env("TZ", "UTC").env_remove("DIND_CLIENT");
    if setting.is_disposable {
        command.env("DIND_CLIENT", "");
    }
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

async fn run(args: &str, setting: Setting) -> Outcome {
    let mut command = command(args, setting);
    let run = move || {
        let mut child = command.spawn().expect("it runs");
        let mut stdin = child.stdin.take().expect("a pipe");
        // Most runs do not read it.
        drop(stdin.write_all(setting.input.as_bytes()));
        drop(stdin);
        let output = child.wait_with_output().expect("it ends");
        assert!(output.stdout.is_empty());
        let log = String::from_utf8(output.stderr).expect("text");
        Outcome {
            code: output.status.code(),
            log: without_times(&log),
        }
    };
    tokio::task::spawn_blocking(run).await.expect("no panic")
}

/// Takes the time off each line of a log.
fn without_times(log: &str) -> String {
    let mut lines = String::new();
    for line in log.lines() {
        let (time, rest) = line.split_at_checked(28).expect(line);
        let is_time = time.starts_with("time=\"20") && time.ends_with("Z\" ");
        assert!(is_time, "{line}");
        lines.push_str(rest);
        lines.push('\n');
    }
    lines
}

/// Returns the lines that every run against a server begins with, and those that are given.
fn log(port: u16, rest: &str) -> String {
    format!(
        "level=info msg=\"Connecting to 127.0.0.1:{port} checking ready\"\nlevel=info msg=\"Fetch cluster peers\"\n{rest}"
    )
}

#[tokio::test]
async fn without_a_network_the_cluster_is_asked_for() {
    let script = Script::start(vec![Reply::Ok(READY), Reply::Ok(CLUSTER)]).await;
    let port = script.port;
    let (outcome, targets) = script.run("-v -r", Setting::default()).await;
    assert_eq!(targets, ["/ready", "/clusterpeers?json"]);
    let expected = log(
        port,
        r#"level=debug msg="Parsing JSON response"
level=debug msg="name:28c235f6ca17 ip:10.77.0.2"
level=debug msg="name:493fd2aef9fe ip:10.77.0.3"
level=debug msg="name:c28245a91a0f ip:10.77.0.1"
"#,
    );
    assert_eq!(outcome.log, expected);
    assert_eq!(outcome.code, Some(0));
}

#[tokio::test]
async fn entries_are_shown_and_owners_checked() {
    let replies = [READY, CLUSTER, NETWORK, ENDPOINTS].map(Reply::Ok);
    let script = Script::start(replies.into()).await;
    let port = script.port;
    let (outcome, targets) = script.run("-net n/1&x -t sd -v", Setting::default()).await;
    assert_eq!(
        targets,
        [
            "/ready",
            "/clusterpeers?json",
            "/networkpeers?nid=n%2F1%26x&json",
            "/gettable?nid=n%2F1%26x&tname=endpoint_table&json",
        ]
    );
    let expected = log(
        port,
        r#"level=debug msg="Parsing JSON response"
level=debug msg="name:28c235f6ca17 ip:10.77.0.2"
level=debug msg="name:493fd2aef9fe ip:10.77.0.3"
level=debug msg="name:c28245a91a0f ip:10.77.0.1"
level=info msg="Fetch peers network:\"n/1&x\""
level=debug msg="Parsing JSON response"
level=debug msg="name:c28245a91a0f ip:10.77.0.1"
level=debug msg="name:gone ip:<nil>"
level=info msg="Fetch endpoint_table table and check owners"
level=debug msg="Parsing data structures"
level=debug msg="key:k1 value:{Name:web.2.ehdz ServiceName:web ServiceID:871xn VirtualIP:10.0.1.8 EndpointIP:10.0.1.10 IngressPorts:[] Aliases:[] TaskAliases:[23983e3fa69a] ServiceDisabled:false} owner:c28245a91a0f"
level=debug msg="key:k2 value:{Name:db.1.x ServiceName: ServiceID: VirtualIP:<nil> EndpointIP:10.0.1.11 IngressPorts:[&PortConfig{Name:http,Protocol:TCP,TargetPort:80,PublishedPort:8080,}] Aliases:[sql] TaskAliases:[] ServiceDisabled:true} owner:28c235f6ca17"
level=warning msg="The element with key:k2 does not belong to any node on this network"
level=debug msg="key:k/3 value:{Name: ServiceName: ServiceID: VirtualIP:<nil> EndpointIP:<nil> IngressPorts:[] Aliases:[] TaskAliases:[] ServiceDisabled:false} owner:unknown"
level=warning msg="The element with key:k/3 does not belong to any node on this network"
level=warning msg="The element with key:k/3 does not belong to any node on this cluster"
level=warning msg="The element with key:k4 has a value that cannot be decoded" error="protobuf: failed to decode Protobuf message: unexpected end group tag"
level=warning msg="The element with key:k4 does not belong to any node on this cluster"
"#,
    );
    assert_eq!(outcome.log, expected);
    assert_eq!(outcome.code, Some(0));
}

#[tokio::test]
async fn a_network_without_peers_is_warned_of() {
    let replies = [READY, CLUSTER, NONE, NONE].map(Reply::Ok);
    let script = Script::start(replies.into()).await;
    let port = script.port;
    let args = "--net=nope --t=overlay";
    let (outcome, targets) = script.run(args, Setting::default()).await;
    assert_eq!(
        targets[2..],
        [
            "/networkpeers?nid=nope&json",
            "/gettable?nid=nope&tname=overlay_peer_table&json",
        ]
    );
    let expected = log(
        port,
        r#"level=info msg="Fetch peers network:\"nope\""
level=warning msg="There is no peer on network \"nope\", check the network ID, and verify that is the non truncated version"
level=info msg="Fetch overlay_peer_table table and check owners"
"#,
    );
    assert_eq!(outcome.log, expected);
    assert_eq!(outcome.code, Some(0));
}

#[tokio::test]
async fn what_servers_send_does_not_steer_the_terminal() {
    const TABLE: &str = r#"{"message":"OK","details":{"entries":[{"key":"\u001b[2J\nlevel=info\u202e","value":"%","owner":"a"}]}}"#;
    let replies = [READY, CLUSTER, NETWORK, TABLE].map(Reply::Ok);
    let script = Script::start(replies.into()).await;
    let (outcome, _) = script.run("-net n -t sd", Setting::default()).await;
    let key = r"\x1b[2J\nlevel=info\u202e";
    let expected = format!(
        "level=warning msg=\"The element with key:{key} has a value that cannot be decoded\" error=\"base64: Invalid symbol 37, offset 0.\"\n"
    );
    assert!(outcome.log.contains(&expected), "{}", outcome.log);
    assert_eq!(outcome.code, Some(0));
}

#[tokio::test]
async fn exactly_yes_deletes_the_orphans() {
    for input in ["Yes\n", "Yes"] {
        let replies = [READY, CLUSTER, NETWORK, ENDPOINTS, DONE, DONE].map(Reply::Ok);
        let script = Script::start(replies.into()).await;
        let setting = Setting {
            input,
            ..Setting::default()
        };
        let (outcome, targets) = script.run("-net n -t sd -r", setting).await;
        assert!(outcome.log.ends_with(ORPHANS), "{}", outcome.log);
        assert_eq!(outcome.code, Some(0));
        assert_eq!(
            targets[4..],
            [
                "/deleteentry?nid=n&tname=endpoint_table&key=k2&json",
                "/deleteentry?nid=n&tname=endpoint_table&key=k%2F3&json",
            ]
        );
    }
}

#[tokio::test]
async fn anything_else_deletes_nothing() {
    for input in ["yes\n", "No\n", ""] {
        let replies = [READY, CLUSTER, NETWORK, ENDPOINTS, DONE, DONE].map(Reply::Ok);
        let script = Script::start(replies.into()).await;
        let setting = Setting {
            input,
            ..Setting::default()
        };
        let (outcome, targets) = script.run("-net n -t sd -r", setting).await;
        let expected = format!("{ORPHANS}level=info msg=\"Nothing is deleted\"\n");
        assert!(outcome.log.ends_with(&expected), "{}", outcome.log);
        assert_eq!((outcome.code, targets.len()), (Some(0), 4), "{input:?}");
    }
}

#[tokio::test]
async fn a_delete_that_fails_is_told() {
    let refused = r#"level=error msg="Cannot delete key:k2" error="the server says FAIL: cannot delete entry t1 with network id net-json and key k-json does not exist or is already being deleted"
level=fatal msg="Deleted 1 of 2 keys"
"#;
    let broken = r#"level=error msg="Cannot delete key:k2" error="127.0.0.1:PORT: connection closed before message completed"
level=fatal msg="Deleted 0 of 2 keys"
"#;
    for (reply, expected, count) in [
        (Reply::Ok(TWICE), refused, 6),
        // There is no use in asking such a server again.
        (Reply::Raw(""), broken, 5),
    ] {
        let mut replies: Vec<Reply> = [READY, CLUSTER, NETWORK, ENDPOINTS].map(Reply::Ok).into();
        replies.extend([reply, Reply::Ok(DONE)]);
        let script = Script::start(replies).await;
        let expected = expected.replace("PORT", &script.port.to_string());
        let setting = Setting {
            input: "Yes\n",
            ..Setting::default()
        };
        let (outcome, targets) = script.run("-net n -t sd -r", setting).await;
        assert!(outcome.log.ends_with(&expected), "{}", outcome.log);
        assert_eq!((outcome.code, targets.len()), (Some(1), count));
    }
}

#[tokio::test]
async fn a_network_is_not_joined_by_mistake() {
    let script = Script::start(vec![Reply::Ok(READY)]).await;
    let (outcome, targets) = script.run("-a -net n", Setting::default()).await;
    assert!(targets.is_empty());
    assert_eq!(
        outcome.log,
        "level=fatal msg=\"-a leaves the network in the end, which cuts the data path of a live daemon: set DIND_CLIENT in \
         the environment if this one runs in a container for tests, else do without -a\"\n"
    );
    assert_eq!(outcome.code, Some(1));
}

#[tokio::test]
async fn a_joined_network_is_left() {
    let replies = [READY, CLUSTER, "OK", NETWORK, NONE, "OK"].map(Reply::Ok);
    let script = Script::start(replies.into()).await;
    let port = script.port;
    let (outcome, targets) = script.run("-a -net n -t sd", DISPOSABLE).await;
    assert_eq!(
        targets,
        [
            "/ready",
            "/clusterpeers?json",
            "/joinnetwork?nid=n",
            "/networkpeers?nid=n&json",
            "/gettable?nid=n&tname=endpoint_table&json",
            "/leavenetwork?nid=n",
        ]
    );
    let expected = log(
        port,
        r#"level=info msg="Join network:\"n\""
level=info msg="Fetch peers network:\"n\""
level=info msg="Fetch endpoint_table table and check owners"
level=info msg="Leave network:\"n\""
"#,
    );
    assert_eq!(outcome.log, expected);
    assert_eq!(outcome.code, Some(0));
}

#[tokio::test]
async fn a_joined_network_is_left_after_an_error_too() {
    let twice = "FAIL\nError: networkdb: network OK is already joined";
    let unknown = "FAIL\nError: could not find network OK while trying to leave";
    let leave = "/leavenetwork?nid=OK";
    for (replies, last_target, expected) in [
        (
            vec![Reply::Ok("OK"), Reply::Ok("<html>"), Reply::Ok("OK")],
            leave,
            r#"level=info msg="Leave network:\"OK\""
level=fatal msg="Cannot fetch the network's peers" error="the answer is not the JSON expected (expected value at line 1 column 1): <html>"
"#,
        ),
        (
            vec![Reply::Ok("OK"), Reply::Raw(""), Reply::Ok(unknown)],
            leave,
            r#"level=info msg="Leave network:\"OK\""
level=error msg="Cannot leave network \"OK\"" error="the server says FAIL\nError: could not find network OK while trying to leave"
level=fatal msg="Cannot fetch the network's peers" error="127.0.0.1:PORT: connection closed before message completed"
"#,
        ),
        (
            vec![Reply::Ok("OK"), Reply::Ok(NETWORK), Reply::Ok(unknown)],
            leave,
            r#"level=fatal msg="Cannot leave network \"OK\"" error="the server says FAIL\nError: could not find network OK while trying to leave"
"#,
        ),
        // It was joined before, and by somebody else.
        (
            vec![Reply::Ok(twice), Reply::Ok("OK")],
            "/joinnetwork?nid=OK",
            r#"level=fatal msg="Cannot join network \"OK\"" error="the server says FAIL\nError: networkdb: network OK is already joined"
"#,
        ),
    ] {
        let mut all = vec![Reply::Ok(READY), Reply::Ok(CLUSTER)];
        all.extend(replies);
        let script = Script::start(all).await;
        let expected = expected.replace("PORT", &script.port.to_string());
        let (outcome, targets) = script.run("-a -net OK", DISPOSABLE).await;
        assert!(outcome.log.ends_with(&expected), "{}", outcome.log);
        assert_eq!(outcome.code, Some(1));
        assert_eq!(targets.last().map(String::as_str), Some(last_target));
    }
}

#[tokio::test]
async fn a_joined_network_is_left_when_the_run_is_interrupted() {
    let mut replies: Vec<Reply> = [READY, CLUSTER, "OK"].map(Reply::Ok).into();
    replies.extend([Reply::Silence, Reply::Ok("OK")]);
    let mut script = Script::start(replies).await;
    let port = script.port;
    let args = format!("-port {port} -a -net n");
    let child = command(&args, DISPOSABLE).spawn().expect("it runs");
    for target in ["ready", "clusterpeers", "joinnetwork", "networkpeers"] {
        let line = script.requests.recv().await.expect("a request");
        assert!(line.starts_with(&format!("GET /{target}")), "{line}");
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = tokio::task::spawn_blocking(|| child.wait_with_output()).await;
    let output = output.unwrap().unwrap();
    let line = script.requests.recv().await;
    assert_eq!(line.as_deref(), Some("GET /leavenetwork?nid=n HTTP/1.1"));
    let log = without_times(&String::from_utf8_lossy(&output.stderr));
    let expected = "level=info msg=\"Leave network:\\\"n\\\"\"\nlevel=fatal msg=Interrupted\n";
    assert!(log.ends_with(expected), "{log}");
    assert_eq!(output.status.code(), Some(1));
}

#[tokio::test]
async fn servers_that_are_none_are_told() {
    let not_ready = |error: &str| {
        format!("level=fatal msg=\"127.0.0.1:PORT is not ready\" error=\"{error}\"\n")
    };
    for (reply, error) in [
        (Reply::Ok("FAIL"), "the server says FAIL"),
        (Reply::Ok(""), "the server says nothing"),
        (
            Reply::Status(401, "a token is needed\n"),
            "the server answers 401: a token is needed",
        ),
        (Reply::Status(500, "OK"), "the server answers 500: OK"),
        (
            Reply::Raw(""),
            "127.0.0.1:PORT: connection closed before message completed",
        ),
        (
            Reply::Raw("\x1b[31mSSH-2.0-x\r\n"),
            "127.0.0.1:PORT: invalid HTTP version parsed",
        ),
    ] {
        let script = Script::start(vec![reply]).await;
        let port = script.port.to_string();
        let (outcome, targets) = script.run("", Setting::default()).await;
        let expected = not_ready(error).replace("PORT", &port);
        let (_, rest) = outcome.log.split_once('\n').unwrap();
        assert_eq!((rest, outcome.code), (&*expected, Some(1)));
        assert_eq!(targets, ["/ready"]);
    }
    // Taken, so that nobody else listens there, and nobody does here.
    let taken = TcpSocket::new_v4().unwrap();
    taken.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let port = taken.local_addr().unwrap().port();
    let outcome = run(&format!("-port {port}"), Setting::default()).await;
    let expected = not_ready("connect to 127.0.0.1:PORT: Connection refused (os error 111)");
    let expected = expected.replace("PORT", &port.to_string());
    assert!(outcome.log.ends_with(&expected), "{}", outcome.log);
    assert_eq!(outcome.code, Some(1));
}

#[tokio::test]
async fn answers_that_refuse_are_told() {
    for (replies, expected) in [
        (
            vec![Reply::Ok("<html>")],
            r#"level=fatal msg="Cannot fetch the cluster's peers" error="the answer is not the JSON expected (expected value at line 1 column 1): <html>""#,
        ),
        (
            vec![Reply::Ok(CLUSTER), Reply::Status(403, "no")],
            r#"level=fatal msg="Cannot fetch the network's peers" error="the server answers 403: no""#,
        ),
        (
            vec![Reply::Ok(CLUSTER), Reply::Ok(NETWORK), Reply::Ok(TWICE)],
            r#"level=fatal msg="Cannot fetch endpoint_table" error="the server says FAIL: cannot delete entry t1 with network id net-json and key k-json does not exist or is already being deleted""#,
        ),
    ] {
        let mut all = vec![Reply::Ok(READY)];
        all.extend(replies);
        let count = all.len();
        let script = Script::start(all).await;
        let (outcome, targets) = script.run("-net n -t sd", Setting::default()).await;
        assert!(
            outcome.log.ends_with(&format!("{expected}\n")),
            "{}",
            outcome.log
        );
        assert_eq!((outcome.code, targets.len()), (Some(1), count));
    }
}

async fn node() -> NetworkDb {
    let config = NodeConfig {
        bind: ([127, 0, 0, 1], 0).into(),
        ..NodeConfig::default()
    };
    NetworkDb::start(config).await.expect("the node starts")
}

async fn server(db: &NetworkDb, with: impl FnOnce(Server) -> Server) -> Running {
    let server = Server::bind(([127, 0, 0, 1], 0).into()).await;
    with(server.expect("a free port")).serve(db.clone())
}

#[tokio::test]
async fn our_server_is_asked_like_dockers() {
    let db = node().await;
    let server = server(&db, |server| server).await;
    let port = server.local_addr().port();
    let outcome = run(&format!("-port {port} -a -net net -t sd"), DISPOSABLE).await;
    let expected = log(
        port,
        r#"level=info msg="Join network:\"net\""
level=info msg="Fetch peers network:\"net\""
level=info msg="Fetch endpoint_table table and check owners"
level=info msg="Leave network:\"net\""
"#,
    );
    assert_eq!((outcome.log, outcome.code), (expected, Some(0)));
    let client = Client::new("127.0.0.1", port);
    let entry = format!("/createentry?nid=net&tname=overlay_peer_table&key=k%201&value={PEER}");
    for target in ["/joinnetwork?nid=net", &entry] {
        let answer = client.get(target).await.unwrap();
        assert_eq!(answer.text(), "OK");
    }
    let args = format!("-port {port} -net net -t overlay -v");
    let outcome = run(&args, Setting::default()).await;
    let me = format!("level=debug msg=\"name:{} ip:127.0.0.1\"\n", db.id());
    let expected = log(
        port,
        &format!(
            r#"level=debug msg="Parsing JSON response"
{me}level=info msg="Fetch peers network:\"net\""
level=debug msg="Parsing JSON response"
{me}level=info msg="Fetch overlay_peer_table table and check owners"
level=debug msg="Parsing data structures"
level=debug msg="key:k 1 value:{{EndpointIP:10.0.1.10/24 EndpointMAC:02:42:0a:00:01:0a TunnelEndpointIP:192.0.2.11}} owner:{}"
"#,
            db.id()
        ),
    );
    assert_eq!((outcome.log, outcome.code), (expected, Some(0)));
    db.close().await;
}

#[tokio::test]
async fn tokens_and_certificates_are_brought() {
    let authority = Authority::new();
    for name in ["server", "client"] {
        authority.sign(name);
    }
    let token = "a-token-of-more-than-16-letters";
    std::fs::write(authority.path("token"), token).unwrap();
    let tls = Tls::load(&authority.files(Some(authority.path("root")))).unwrap();
    let access = Access::local().require(Tokens::parse(token).unwrap());
    let db = node().await;
    let server = server(&db, |server| server.with_tls(tls).with_access(access)).await;
    let path = |name| authority.path(name).display().to_string();
    let base = format!(
        "-ip localhost -port {} -cacert {}",
        server.local_addr().port(),
        path("root")
    );
    let identity = format!("-cert {} -key {}", path("client.cert"), path("client.key"));
    let token = format!("-token-file {}", path("token"));
    let outcome = run(&format!("{base} {identity} {token}"), Setting::default()).await;
    assert_eq!(outcome.code, Some(0), "{}", outcome.log);
    for (args, word) in [
        (format!("{base} {identity}"), "the server answers 401: "),
        (format!("{base} {token}"), "is not ready"),
        (
            format!("{base} {identity} -token-file {}", path("missing")),
            "level=fatal msg=\"Cannot bring a token\" error=\"token file ",
        ),
        (
            format!("{base} -cert {0} -key {0}", path("token")),
            "level=fatal msg=\"Cannot speak TLS\" error=\"TLS file ",
        ),
    ] {
        let outcome = run(&args, Setting::default()).await;
        assert!(outcome.log.contains(word), "{}", outcome.log);
        assert_eq!(outcome.code, Some(1));
    }
    db.close().await;
}

#[test]
fn usage_goes_to_stderr() {
    for (arg, code) in [("-h", 0), ("-nonsense", 1)] {
        let output = command(arg, Setting::default()).output().unwrap();
        assert_eq!(output.status.code(), Some(code));
        assert!(output.stdout.is_empty());
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("Usage: diagnosticClient "), "{text}");
    }
}
