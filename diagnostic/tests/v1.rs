//! The API under /v1 over a real connection: what is written, read, paged and watched, and how mistakes are told.

use diagnostic::{Running, Server};
use networkdb::node::{NetworkDb, NodeConfig};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Duration, timeout};

const ENTRIES: &str = "/v1/networks/net/tables/t/entries";

struct Rig {
    server: Running,
    db: NetworkDb,
}

struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Rig {
    async fn start() -> Self {
        let config = NodeConfig {
            bind: ([127, 0, 0, 1], 0).into(),
            ..NodeConfig::default()
        };
        let db = NetworkDb::start(config).await.expect("the node starts");
        let server = Server::bind(([127, 0, 0, 1], 0).into()).await;
        let server = server.expect("a free port").serve(db.clone());
        let rig = Self { server, db };
        let joined = rig.ask("PUT", "/v1/networks/net", "", "").await;
        assert!([201, 204, 200].contains(&joined.status), "{}", joined.body);
        rig
    }

    async fn send(&self, request: &str) -> TcpStream {
        let stream = TcpStream::connect(self.server.local_addr()).await;
        let mut stream = stream.expect("it listens");
        let sent = stream.write_all(request.as_bytes()).await;
        sent.expect("it reads");
        stream
    }

    async fn ask(&self, method: &str, target: &str, headers: &str, body: &str) -> Reply {
        let length = body.len();
        let mut stream = self
            .send(&format!(
                "{method} {target} HTTP/1.0\r\nHost: localhost\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
            ))
            .await;
        let mut reply = String::new();
        let read = stream.read_to_string(&mut reply).await;
        read.expect("text until the end");
        let (head, body) = reply.split_once("\r\n\r\n").expect("a head");
        Reply {
            status: head[9..12].parse().expect("a status"),
            head: head.to_lowercase(),
            body: body.to_owned(),
        }
    }

    async fn get(&self, target: &str) -> Value {
        let reply = self.ask("GET", target, "", "").await;
        assert_eq!(reply.status, 200, "{target}: {}", reply.body);
        reply.json()
    }

    /// Writes a value as it is; returns the reply and the new version.
    async fn put(&self, key: &str, headers: &str, value: &str) -> (Reply, String) {
        let headers = format!("Content-Type: application/octet-stream\r\n{headers}");
        let target = format!("{ENTRIES}/{key}");
        let reply = self.ask("PUT", &target, &headers, value).await;
        let tag = reply.header("etag").unwrap_or_default().to_owned();
        (reply, tag)
    }
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("JSON")
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|line| line.0 == name).map(|line| line.1)
    }

    fn is_problem(&self, status: u16) {
        assert_eq!(self.status, status, "{}", self.body);
        let kind = self.header("content-type");
        assert_eq!(kind, Some("application/problem+json"), "{}", self.head);
        assert_eq!(self.json()["status"], status);
    }
}

#[tokio::test]
async fn a_write_names_the_version_that_it_may_replace() {
    let rig = Rig::start().await;
    let (created, first) = rig.put("k", "If-None-Match: *\r\n", "one").await;
    assert_eq!(created.status, 201, "{}", created.body);
    rig.put("k", "If-None-Match: *\r\n", "two")
        .await
        .0
        .is_problem(412);
    let condition = format!("If-Match: {first}\r\n");
    let (updated, second) = rig.put("k", &condition, "two").await;
    assert!((200..300).contains(&updated.status), "{}", updated.body);
    assert_ne!(first, second);
    rig.put("k", &condition, "three").await.0.is_problem(412);
    let target = format!("{ENTRIES}/k");
    rig.ask("DELETE", &target, &condition, "")
        .await
        .is_problem(412);
    let condition = format!("If-Match: {second}\r\n");
    let deleted = rig.ask("DELETE", &target, &condition, "").await;
    assert!((200..300).contains(&deleted.status), "{}", deleted.body);
    rig.ask("GET", &target, "", "").await.is_problem(404);
}

#[tokio::test]
async fn a_value_is_taken_as_it_is_unless_it_says_that_it_is_json() {
    let rig = Rig::start().await;
    let target = format!("{ENTRIES}/k?raw");
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    let written = rig.ask("PUT", &target, form, "a=b").await;
    assert_eq!(written.status, 201, "{}", written.body);
    assert_eq!(rig.ask("GET", &target, "", "").await.body, "a=b");
    let json_body = "Content-Type: application/json\r\n";
    rig.ask("PUT", &target, json_body, "a=b")
        .await
        .is_problem(400);
    let written = rig
        .ask("PUT", &target, json_body, r#"{"value": "Yw=="}"#)
        .await;
    assert_eq!(written.status, 200, "{}", written.body);
    assert_eq!(rig.ask("GET", &target, "", "").await.body, "c");
    let target = format!("{ENTRIES}/k");
    rig.ask("PUT", &target, form, "a=b").await.is_problem(415);
}

#[tokio::test]
async fn names_of_any_kind_are_keys_and_every_page_follows_the_last() {
    let rig = Rig::start().await;
    let names = ["a%2Fb", "%2E%2E", "%3Cscript%3E", "%C3%A9%20%25", "zz"];
    for name in names {
        let (reply, _) = rig.put(name, "", "v").await;
        assert_eq!(reply.status, 201, "{name}: {}", reply.body);
    }
    let mut seen = Vec::new();
    let mut target = format!("{ENTRIES}?limit=2");
    loop {
        let page = rig.get(&target).await;
        let entries = page["entries"].as_array().expect("a list").clone();
        let keys = entries.iter().map(|entry| entry["key"].as_str());
        seen.extend(keys.map(|key| key.expect("a text").to_owned()));
        let Some(cursor) = page["next"].as_str().or(page["cursor"].as_str()) else {
            break;
        };
        target = format!("{ENTRIES}?limit=2&cursor={cursor}");
    }
    let mut expected = vec!["..", "<script>", "a/b", "zz", "é %"];
    expected.sort_unstable();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn mistakes_are_problems_with_their_status() {
    let rig = Rig::start().await;
    let json_body = "Content-Type: application/json\r\n";
    // Not too many characters for a name, yet too many bytes.
    let wide = "%C3%A9".repeat(128);
    for (method, target, headers, body, status) in [
        ("GET", "/v1/nothing", "", "", 404),
        ("GET", "/v1/networks/other", "", "", 404),
        ("GET", "/v1/networks/other/watch", "", "", 404),
        ("GET", "/v1/networks/other/tables/t/watch", "", "", 404),
        ("DELETE", "/v1/node", "", "", 405),
        ("GET", "/v1/node?x=1", "", "", 400),
        (
            "GET",
            "/v1/networks/net/tables/t/entries/missing",
            "",
            "",
            404,
        ),
        ("GET", &format!("/v1/networks/{wide}"), "", "", 404),
        ("PUT", &format!("/v1/networks/{wide}"), "", "", 404),
        ("PUT", &format!("{ENTRIES}/{wide}"), "", "v", 404),
        (
            "GET",
            &format!("/v1/networks/net/consistency?table={wide}"),
            "",
            "",
            404,
        ),
        ("GET", "/v1/networks/%ff", "", "", 400),
        ("POST", "/v1/join", json_body, "{", 400),
        ("POST", "/v1/join", json_body, "{}", 422),
        (
            "POST",
            "/v1/join",
            "Content-Type: text/plain\r\n",
            "{}",
            415,
        ),
    ] {
        let reply = rig.ask(method, target, headers, body).await;
        assert_eq!(reply.status, status, "{method} {target}: {}", reply.body);
        reply.is_problem(status);
    }
}

#[tokio::test]
async fn a_key_that_nothing_can_have_keeps_no_other_write_of_a_batch_back() {
    let rig = Rig::start().await;
    let keys = ["first", "", &"é".repeat(128), &"x".repeat(256), "last"];
    let writes = keys.map(|key| json!({"op": "put", "key": key, "value": ""}));
    let body = json!({"writes": writes}).to_string();
    let target = "/v1/networks/net/tables/t/batch";
    let json_body = "Content-Type: application/json\r\n";
    let reply = rig.ask("POST", target, json_body, &body).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let answer: Value = serde_json::from_str(&reply.body).expect("JSON");
    assert_eq!(answer["accepted"], 2, "{answer}");
    let results = answer["results"].as_array().expect("a list").iter();
    let statuses: Vec<&Value> = results.map(|result| &result["status"]).collect();
    assert_eq!(statuses, [201, 404, 404, 404, 201]);
    assert_eq!(
        answer["results"][2]["problem"]["detail"],
        "key is 256 bytes long, the limit is 255"
    );
}

#[tokio::test]
async fn a_watch_is_a_snapshot_and_then_what_happens() {
    let rig = Rig::start().await;
    rig.put("before", "", "v").await;
    let watch = "GET /v1/networks/net/watch HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut stream = rig.send(watch).await;
    let mut text = String::new();
    let wait_for = async |stream: &mut TcpStream, text: &mut String, word: &str| {
        let mut bytes = [0; 4_096];
        while !text.contains(word) {
            let read = timeout(Duration::from_secs(20), stream.read(&mut bytes)).await;
            let read = read.expect("in time").expect("it is open");
            assert!(read > 0, "it ended after {text}");
            text.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
    };
    wait_for(&mut stream, &mut text, "before").await;
    rig.put("after", "", "v").await;
    wait_for(&mut stream, &mut text, "after").await;
    assert!(text.to_lowercase().contains("text/event-stream"), "{text}");
    assert!(text.contains("event: create"), "{text}");
    rig.db.close().await;
}

#[tokio::test]
async fn a_watch_without_snapshot_follows_from_where_it_began() {
    let rig = Rig::start().await;
    rig.put("before", "", "v").await;
    for path in ["/v1", "/v1/networks/net", "/v1/networks/net/tables/t"] {
        let target = format!("{path}/watch?follow=false&snapshot=false");
        let text = rig.ask("GET", &target, "", "").await.body;
        assert!(!text.contains("before"), "{text}");
        assert!(!text.contains("event: member"), "{text}");
        let events = text.matches("event: ").count();
        assert_eq!(
            (events, text.matches("event: synced\nid: ").count()),
            (1, 1)
        );
    }
    let unknown = "Last-Event-ID: from-elsewhere\r\n";
    let target = "/v1/watch?follow=false&snapshot=false";
    let text = rig.ask("GET", target, unknown, "").await.body;
    let resync = text.find("event: resync").expect("it is told");
    assert!(text.find("event: synced") > Some(resync), "{text}");
    assert_eq!(text.matches("event: ").count(), 2, "{text}");
    let id = text.rsplit_once("id: ").and_then(|it| it.1.lines().next());
    let known = format!("Last-Event-ID: {}\r\n", id.expect("synced has one"));
    rig.put("after", "", "v").await;
    let mut stream = rig
        .send(&format!(
            "GET /v1/watch?snapshot=false HTTP/1.1\r\nHost: localhost\r\n{known}\r\n"
        ))
        .await;
    let mut told = String::new();
    while !told.contains("after") {
        let mut bytes = [0; 4_096];
        let read = timeout(Duration::from_secs(20), stream.read(&mut bytes)).await;
        let read = read.expect("in time").expect("it is open");
        assert!(read > 0, "it ended after {told}");
        told.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
    assert!(told.contains("event: create"), "{told}");
    assert!(!told.contains("resync"), "{told}");
}

#[tokio::test]
async fn the_document_describes_the_node_and_the_server_moves_away_from_its_watchers() {
    let rig = Rig::start().await;
    let document = rig.get("/v1/openapi.json").await;
    assert!(
        document["openapi"]
            .as_str()
            .is_some_and(|it| it.starts_with("3.1"))
    );
    for path in ["/v1/node", "/v1/members", "/v1/watch", "/v1/stats"] {
        assert!(document["paths"][path]["get"].is_object(), "{path}");
    }
    assert_eq!(rig.get("/v1/node").await["id"], json!(rig.db.id().as_str()));
    let watch = "GET /v1/watch HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut stream = rig.send(watch).await;
    let mut byte = [0];
    stream.read_exact(&mut byte).await.unwrap();
    let addr = rig.server.local_addr();
    let retired = timeout(Duration::from_secs(10), rig.server.retire()).await;
    assert!(retired.is_ok(), "a watcher keeps the port");
    assert!(Server::bind(addr).await.is_ok());
}
