//! Tables too large to be copied for a reply, over a real connection.

use std::collections::BTreeMap;

use bytes::Bytes;
use diagnostic::{Running, Server};
use networkdb::node::{NetworkDb, NodeConfig, Write, WriteAction};
use networkdb::{Key, NetworkId, TableName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const ENTRIES: usize = 20_000;

struct Rig {
    db: NetworkDb,
    server: Running,
}

impl Rig {
    /// A node with one table of 20,000 entries, some 2 MB of keys and values.
    async fn start() -> Self {
        let config = NodeConfig {
            bind: "127.0.0.1:0".parse().expect("an address"),
            ..NodeConfig::default()
        };
        let db = NetworkDb::start(config).await.expect("loopback answers");
        db.join_network(&network()).await.expect("loopback answers");
        let writes = (0..ENTRIES).map(|number| Write {
            network: network(),
            table: table(),
            key: key(number),
            action: WriteAction::Create(value(number)),
        });
        let written = db
            .write_batch(writes.collect())
            .await
            .expect("loopback answers");
        assert!(written.iter().all(Result::is_ok));
        let server = Server::bind("127.0.0.1:0".parse().expect("an address"))
            .await
            .expect("loopback answers")
            .serve(db.clone());
        Self { db, server }
    }

    async fn get(&self, query: &str) -> String {
        let addr = self.server.local_addr();
        let mut stream = TcpStream::connect(addr).await.expect("loopback answers");
        // HTTP/1.0 has no chunks: the body is what comes.
        let request = format!("GET /gettable?nid=net&tname=table{query} HTTP/1.0\r\n\r\n");
        stream
            .write_all(request.as_bytes())
            .await
            .expect("loopback answers");
        let mut reply = String::new();
        stream
            .read_to_string(&mut reply)
            .await
            .expect("loopback answers");
        let (head, body) = reply.split_once("\r\n\r\n").expect("loopback answers");
        assert!(head.starts_with("HTTP/1.0 200 OK"), "{head}");
        body.to_owned()
    }
}

fn network() -> NetworkId {
    NetworkId::new("net").expect("a valid name")
}

fn table() -> TableName {
    TableName::new("table").expect("a valid name")
}

fn key(number: usize) -> Key {
    Key::new(format!("key-{number}")).expect("a valid name")
}

fn value(number: usize) -> Bytes {
    format!("{number:0100}").into()
}

fn owner(rig: &Rig) -> String {
    rig.db.id().to_string()
}

#[tokio::test]
async fn every_line_is_there_once_and_numbered() {
    let rig = Rig::start().await;
    let body = rig.get("&unsafe").await;
    let mut lines = body.lines();
    assert_eq!(lines.next(), Some("OK"));
    assert_eq!(lines.next(), Some("total entries: 20000"));
    let mut seen = BTreeMap::new();
    for (index, line) in lines.enumerate() {
        let rest = line.strip_prefix(&format!("{index}) k:`")).unwrap();
        let rest = rest.strip_suffix(&format!("` owner:`{}`", owner(&rig)));
        let (key, value) = rest.unwrap().split_once("` -> v:`").unwrap();
        seen.insert(key.to_owned(), value.to_owned());
    }
    assert_eq!(seen.len(), ENTRIES);
    for number in [0, 7, ENTRIES - 1] {
        assert_eq!(seen[key(number).as_str()].as_bytes(), value(number));
    }
}

#[tokio::test]
async fn json_is_the_same_document_as_for_a_small_table() {
    let rig = Rig::start().await;
    for (query, start, end) in [
        (
            "&json",
            r#"{"message":"OK","details":{"size":20000,"entries":[{"key":""#,
            "\"}]}}",
        ),
        (
            "&json=pretty",
            "{\n  \"message\": \"OK\",\n  \"details\": {\n    \"size\": 20000,\n    \"entries\": [\n      {\n        \"key\": \"",
            "\"\n      }\n    ]\n  }\n}",
        ),
    ] {
        let body = rig.get(query).await;
        assert!(body.starts_with(start), "{}", &body[..200]);
        assert!(body.ends_with(end), "{}", &body[body.len() - 100..]);
        let read: serde_json::Value = serde_json::from_str(&body).unwrap();
        let entries = read["details"]["entries"].as_array().unwrap();
        assert_eq!(entries.len(), ENTRIES);
        assert!(entries.iter().all(|entry| entry["owner"] == owner(&rig)));
    }
}

#[tokio::test]
async fn entries_that_stay_are_shown_while_others_come_and_go() {
    let rig = Rig::start().await;
    let db = rig.db.clone();
    let writing = tokio::spawn(async move {
        for number in 0.. {
            let key = Key::new(format!("passing-{number}")).unwrap();
            let (network, table) = (network(), table());
            db.create_entry(&network, &table, &key, "v").await.unwrap();
            db.delete_entry(&network, &table, &key).await.unwrap();
        }
    });
    for _ in 0..3 {
        let body = rig.get("&unsafe").await;
        let staying = body.matches(" k:`key-").count();
        assert_eq!(staying, ENTRIES);
        let said = body.lines().nth(1).unwrap();
        assert!(["total entries: 20000", "total entries: 20001"].contains(&said));
    }
    writing.abort();
}
