//! The API under /v1 when much happens at once: many watchers, large batches, writers that race, tables that change while
//! they are paged, watchers that were cut off.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use diagnostic::{Answer, Client, Running, Server};
use networkdb::node::{HISTORY_EVENTS, NetworkDb, NodeConfig};
use networkdb::{Key, NetworkId, TableName};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Duration, timeout};

const TABLE: &str = "/v1/networks/net/tables/t";
const DEADLINE: Duration = Duration::from_secs(30);

struct Rig {
    server: Running,
    db: NetworkDb,
    client: Client,
}

/// A stream of events.
struct Events(BufReader<TcpStream>);

/// One of them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Event {
    name: String,
    id: Option<String>,
    data: Value,
}

impl Rig {
    async fn start() -> Self {
        let config = NodeConfig {
            bind: ([127, 0, 0, 1], 0).into(),
            ..NodeConfig::default()
        };
        let db = NetworkDb::start(config).await.expect("the node starts");
        db.join_network(&NetworkId::new("net").expect("a name"))
            .await
            .expect("it is new");
        let server = Server::bind(([127, 0, 0, 1], 0).into()).await;
        let server = server.expect("a free port").serve(db.clone());
        let client = Client::new("127.0.0.1", server.local_addr().port());
        Self { server, db, client }
    }

    async fn send(&self, method: &str, target: &str, body: &Value) -> Answer {
        let method = method.parse().expect("a method");
        let body = body.to_string().into();
        let answer = self.client.send(method, target, "application/json", body);
        answer.await.expect("it answers")
    }

    async fn get(&self, target: &str) -> Value {
        let answer = self.client.get(target).await.expect("it answers");
        assert_eq!(answer.status, 200, "{target}: {}", answer.text());
        serde_json::from_slice(&answer.body).expect("JSON")
    }

    /// Creates so many entries, `PREFIX-NUMBER`.
    async fn fill(&self, prefix: &str, entries: usize) {
        let writes = (0..entries).map(|number| {
            let key = format!("{prefix}-{number:05}");
            json!({"op": "put", "key": key, "value": "dg=="})
        });
        let batch = json!({"writes": writes.collect::<Vec<_>>()});
        let answer = self.send("POST", &format!("{TABLE}/batch"), &batch).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let results: Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!(results["accepted"], entries);
    }

    /// Adds one to the counter, unless somebody else has written it since it was read; returns whether it was written.
    async fn count_up(&self) -> bool {
        let (table, key) = (
            TableName::new("t").expect("a name"),
            Key::new("counter").expect("a name"),
        );
        let network = NetworkId::new("net").expect("a name");
        let entry = self.db.entry(&network, &table, &key).expect("it is there");
        let count: u32 = String::from_utf8_lossy(&entry.value)
            .parse()
            .expect("a number");
        let value = STANDARD.encode((count + 1).to_string());
        let version = entry.version().tag().to_string();
        let write = json!({"op": "update", "key": "counter", "value": value, "version": version});
        let batch = json!({"writes": [write]});
        let answer = self.send("POST", &format!("{TABLE}/batch"), &batch).await;
        let answer: Value = serde_json::from_slice(&answer.body).expect("JSON");
        let status = &answer["results"][0]["status"];
        assert!(*status == 200 || *status == 412, "{answer}");
        *status == 200
    }

    /// Opens a watch; returns its status and what it tells.
    async fn watch(&self, target: &str, last: Option<&str>) -> (u16, Events) {
        let stream = TcpStream::connect(self.server.local_addr()).await;
        let mut stream = stream.expect("it listens");
        let last = last.map_or(String::new(), |id| format!("Last-Event-ID: {id}\r\n"));
        // A chunk is whole events; its size is a line that means nothing here.
        let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n{last}\r\n");
        stream
            .write_all(request.as_bytes())
            .await
            .expect("it reads");
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).await.expect("a status line");
        let status = line[9..12].parse().expect("a status");
        while line != "\r\n" {
            line.clear();
            stream.read_line(&mut line).await.expect("a header");
        }
        (status, Events(stream))
    }
}

impl Events {
    async fn next(&mut self) -> Option<Event> {
        let mut event = Event::default();
        loop {
            let mut line = String::new();
            let read = timeout(DEADLINE, self.0.read_line(&mut line)).await;
            if read.expect("in time").expect("text") == 0 {
                return None;
            }
            let line = line.trim_end_matches('\n');
            match line.split_once(": ").or_else(|| line.split_once(':')) {
                None if line.is_empty() && !event.name.is_empty() => return Some(event),
                Some(("event", name)) => event.name = name.to_owned(),
                Some(("id", id)) => event.id = Some(id.to_owned()),
                Some(("data", data)) => event.data = serde_json::from_str(data).expect("JSON"),
                Some(_) | None => {}
            }
        }
    }

    /// Reads until an event of a name; returns those before it, and it.
    async fn until(&mut self, name: &str) -> (Vec<Event>, Event) {
        let mut before = Vec::new();
        loop {
            let event = self.next().await.expect("the stream goes on");
            if event.name == name {
                return (before, event);
            }
            before.push(event);
        }
    }
}

#[tokio::test]
async fn two_hundred_watchers_see_every_write_and_further_ones_are_refused() {
    let rig = Rig::start().await;
    rig.fill("before", 10).await;
    let mut watchers = Vec::new();
    for _ in 0..200 {
        let (status, mut events) = rig.watch("/v1/networks/net/watch", None).await;
        assert_eq!(status, 200);
        assert_eq!(events.until("synced").await.0.len(), 10);
        watchers.push(events);
    }
    let (status, _) = rig.watch("/v1/watch", None).await;
    assert_eq!(status, 503);
    rig.fill("after", 500).await;
    let mut readers = JoinSet::new();
    for mut events in watchers {
        readers.spawn(async move {
            let mut seen = BTreeSet::new();
            while seen.len() < 500 {
                let event = events.next().await.expect("it goes on");
                assert_eq!(event.name, "create");
                assert!(seen.insert(event.data["key"].to_string()), "told twice");
            }
        });
    }
    while let Some(read) = readers.join_next().await {
        read.expect("every watcher sees all of them");
    }
    // All of them are gone: there is room again.
    let mut status = 503;
    while status == 503 {
        status = rig.watch("/v1/watch", None).await.0;
    }
    assert_eq!(status, 200);
    rig.db.close().await;
}

#[tokio::test]
async fn a_batch_of_five_thousand_answers_each_write() {
    let rig = Rig::start().await;
    rig.fill("k", 5_000).await;
    let writes = (0..5_000).map(|number| {
        let key = format!("k-{number:05}");
        if number % 2 == 0 {
            json!({"op": "create", "key": key, "value": ""})
        } else {
            json!({"op": "delete", "key": key})
        }
    });
    let batch = json!({"writes": writes.collect::<Vec<_>>()});
    let answer = rig.send("POST", &format!("{TABLE}/batch"), &batch).await;
    let answer: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(answer["accepted"], 2_500);
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results.len(), 5_000);
    for (number, result) in results.iter().enumerate() {
        let expected = if number % 2 == 0 { 409 } else { 204 };
        assert_eq!(result["status"], expected, "{number}: {result}");
    }
    assert_eq!(rig.get("/v1/networks/net").await["entries"], 2_500);
    rig.db.close().await;
}

#[tokio::test]
async fn of_writers_that_race_on_one_version_one_wins_each_time() {
    let rig = std::sync::Arc::new(Rig::start().await);
    let start = json!({"writes": [{"op": "create", "key": "counter", "value": "MA=="}]});
    rig.send("POST", &format!("{TABLE}/batch"), &start).await;
    let mut writers = JoinSet::new();
    for _ in 0..8 {
        let rig = rig.clone();
        writers.spawn(async move {
            let mut wins = 0;
            while wins < 25 {
                wins += u32::from(rig.count_up().await);
            }
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer.expect("no writer fails");
    }
    let target = format!("{TABLE}/entries/counter?raw");
    let count = rig.client.get(&target).await.unwrap();
    assert_eq!(count.text(), "200");
    rig.db.close().await;
}

#[tokio::test]
async fn every_key_that_stays_is_on_one_page_while_others_come_and_go() {
    let rig = Rig::start().await;
    rig.fill("m", 2_000).await;
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let (mut target, mut page) = (format!("{TABLE}/entries?limit=100"), 0);
    loop {
        let answer = rig.get(&target).await;
        for entry in answer["entries"].as_array().unwrap() {
            let key = entry["key"].as_str().unwrap().to_owned();
            *seen.entry(key).or_default() += 1;
        }
        // Before and behind of where the pages are.
        for prefix in ["a", "z"] {
            rig.fill(&format!("{prefix}{page}"), 20).await;
        }
        let gone = format!("{TABLE}/entries/z{}-00003", page / 2);
        rig.client
            .send("DELETE".parse().unwrap(), &gone, "", "".into())
            .await
            .unwrap();
        page += 1;
        let Some(next) = answer["next"].as_str() else {
            break;
        };
        if page > 60 {
            break;
        }
        target = format!("{TABLE}/entries?limit=100&cursor={next}");
    }
    let stayed: Vec<_> = seen
        .iter()
        .filter(|(key, _)| key.starts_with('m'))
        .collect();
    assert_eq!(stayed.len(), 2_000);
    assert!(seen.values().all(|count| *count == 1), "told twice");
    rig.db.close().await;
}

#[tokio::test]
async fn a_watcher_that_was_cut_off_goes_on_or_starts_anew() {
    let rig = Rig::start().await;
    rig.fill("old", 3).await;
    let target = format!("{TABLE}/watch");
    let (_, mut events) = rig.watch(&target, None).await;
    let (_, synced) = events.until("synced").await;
    drop(events);
    rig.fill("new", 5).await;
    // Nothing of what was there before is told again.
    let (_, mut events) = rig.watch(&target, synced.id.as_deref()).await;
    let mut last = None;
    for number in 0..5 {
        let event = events.next().await.unwrap();
        assert_eq!(event.name, "create");
        assert_eq!(event.data["key"], format!("new-{number:05}"));
        last = event.id;
    }
    drop(events);
    // More than is kept has happened: it forgets everything and gets a snapshot.
    let rounds = HISTORY_EVENTS / 5_000 + 2;
    for _ in 0..rounds {
        rig.fill("many", 5_000).await;
        rig.fill("many", 5_000).await;
    }
    let (_, mut events) = rig.watch(&target, last.as_deref()).await;
    assert_eq!(events.next().await.unwrap().name, "resync");
    assert_eq!(events.until("synced").await.0.len(), 5_008);
    drop(events);
    // An id of another watch, or of nothing, means the same.
    for id in ["0-0-0", "x"] {
        let (_, mut events) = rig.watch(&target, Some(id)).await;
        assert_eq!(events.next().await.unwrap().name, "resync", "{id}");
    }
    rig.db.close().await;
}

#[tokio::test]
async fn what_the_document_describes_is_there_and_nothing_else() {
    let rig = Rig::start().await;
    rig.fill("k", 1).await;
    let document = rig.get("/v1/openapi.json").await;
    let paths = document["paths"].as_object().unwrap();
    for (path, item) in paths {
        let target = path
            .replace("{network}", "net")
            .replace("{table}", "t")
            .replace("{key}", "k-00000");
        let options = "OPTIONS".parse().unwrap();
        let answer = rig
            .client
            .send(options, &target, "", "".into())
            .await
            .unwrap();
        assert_eq!(answer.status, 204, "{path}");
        for method in ["get", "put", "post", "delete", "patch"] {
            let is_described = item.get(method).is_some();
            if is_described && method != "patch" {
                continue;
            }
            let sent = method.to_uppercase().parse().unwrap();
            let answer = rig.client.send(sent, &target, "", "".into()).await.unwrap();
            assert_eq!(answer.status, 405, "{method} {path}");
        }
        let is_watch = path.ends_with("/watch");
        if item.get("get").is_some() {
            let query = if is_watch { "?follow=false" } else { "" };
            let answer = rig.client.get(&format!("{target}{query}")).await.unwrap();
            assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        }
    }
    assert!(paths.len() >= 20);
    rig.db.close().await;
}

#[tokio::test]
async fn nodes_that_hold_the_same_are_consistent_and_those_alone_too() {
    let rig = Rig::start().await;
    let other = NetworkDb::start(NodeConfig {
        bind: ([127, 0, 0, 1], 0).into(),
        ..NodeConfig::default()
    });
    let other = other.await.unwrap();
    let check = "/v1/networks/net/consistency";
    let alone = rig.get(check).await;
    assert_eq!(alone["is_consistent"], true);
    assert_eq!(alone["peers"], json!([]));
    other
        .join(&[rig.db.gossip_addr().to_string()])
        .await
        .unwrap();
    other
        .join_network(&NetworkId::new("net").unwrap())
        .await
        .unwrap();
    rig.fill("k", 100).await;
    let found = rig.get(check).await;
    assert_eq!(found["is_consistent"], true, "{found}");
    assert_eq!(found["peers"][0]["id"], json!(other.id().as_str()));
    assert_eq!(found["peers"][0]["outcome"], "equal");
    assert_eq!(
        (&found["hash"], &found["peers"][0]["hash"]),
        (&json!(null), &json!(null))
    );
    let found = rig.get(&format!("{check}?table=table")).await;
    assert_eq!(found["hash"].as_str().map(str::len), Some(64), "{found}");
    assert_eq!(found["hash"], found["peers"][0]["hash"]);
    let none = rig.get(&format!("{check}?table=none")).await;
    let nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert_eq!(none["peers"][0]["hash"], nothing, "a table without entries");
    for (target, status) in [
        ("/v1/networks/other/consistency", 404),
        ("/v1/networks/net/consistency?within=0", 400),
        ("/v1/networks/net/consistency?within=31", 400),
        ("/v1/networks/net/consistency?table=", 400),
    ] {
        assert_eq!(rig.client.get(target).await.unwrap().status, status);
    }
    other.close().await;
    rig.db.close().await;
}
