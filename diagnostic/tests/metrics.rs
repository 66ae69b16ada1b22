//! What `/metrics` tells, read as Prometheus reads it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};

use diagnostic::{Client, Running, Server};
use networkdb::node::{NetworkDb, NodeConfig};
use networkdb::{Key, NetworkId, TableName};
use tokio::time::{Duration, sleep, timeout};

/// Samples by name and labels.
type Samples = BTreeMap<String, f64>;

struct Node {
    db: NetworkDb,
    server: Running,
}

impl Node {
    async fn start(join: &[String]) -> Self {
        let config = NodeConfig {
            bind: ([127, 0, 0, 1], 0).into(),
            join: join.to_vec(),
            ..NodeConfig::default()
        };
        let db = NetworkDb::start(config).await.expect("the node starts");
        if !join.is_empty() {
            db.join(join).await.expect("the other one answers");
        }
        let server = Server::bind(([127, 0, 0, 1], 0).into()).await;
        let server = server.expect("a free port").serve(db.clone());
        Self { db, server }
    }

    async fn text(&self) -> String {
        let client = Client::new("127.0.0.1", self.server.local_addr().port());
        let answer = client.get("/metrics").await.expect("it answers");
        assert_eq!(answer.status, 200);
        assert_eq!(answer.content_type, "text/plain; version=0.0.4");
        answer.text()
    }

    async fn samples(&self) -> Samples {
        samples(&self.text().await)
    }

    /// Waits until a sample is what it should be.
    async fn wait(&self, name: &str, is_it: impl Fn(f64) -> bool) {
        let mut last = Samples::new();
        let look = async {
            while !last.get(name).is_some_and(|value| is_it(*value)) {
                sleep(Duration::from_millis(10)).await;
                last = self.samples().await;
            }
        };
        let seen = timeout(Duration::from_secs(20), look).await;
        assert!(seen.is_ok(), "{name} in {last:#?}");
    }
}

/// Reads the format by its rules: every sample belongs to a family with help and type, nothing is told twice.
fn samples(text: &str) -> Samples {
    let (mut samples, mut types) = (Samples::new(), BTreeMap::new());
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').expect("a help");
            assert!(
                help.ends_with('.') || !name.starts_with("networkdb"),
                "{line}"
            );
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a type");
            let before = types.insert(name.to_owned(), kind.to_owned());
            assert_eq!(before, None, "{name} twice");
        } else {
            let (name, value) = line.rsplit_once(' ').expect("a value");
            let family = name.split('{').next().expect("a name");
            let base = ["_bucket", "_sum", "_count"].iter();
            let base = base.filter_map(|end| family.strip_suffix(end));
            let kind = base.chain([family]).find_map(|name| types.get(name));
            let kind = kind.unwrap_or_else(|| panic!("{name} has no type"));
            assert_eq!(kind == "counter", family.ends_with("_total"), "{name}");
            let value = value.parse().expect("a number");
            let before = samples.insert(name.to_owned(), value);
            assert_eq!(before, None, "{name} twice");
        }
    }
    samples
}

/// Asks promtool for its opinion when it is there.
fn check_with_promtool(text: &str) {
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = promtool else {
        assert!(
            std::env::var_os("CI").is_none(),
            "promtool is missing in CI"
        );
        let mut stderr = std::io::stderr();
        writeln!(
            stderr,
            "SKIPPED: promtool is not installed (Debian: prometheus)"
        )
        .expect("stderr");
        return;
    };
    let mut stdin = promtool.stdin.take().expect("it is piped");
    stdin.write_all(text.as_bytes()).expect("it reads");
    drop(stdin);
    let output = promtool.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{said}");
    assert_eq!(said, "", "a lint");
}

#[tokio::test]
async fn two_nodes_tell_what_they_hold_and_how_it_came() {
    let first = Node::start(&[]).await;
    let second = Node::start(&[first.db.gossip_addr().to_string()]).await;
    let network = NetworkId::new("net \"1\"\n").unwrap();
    let (table, key) = (TableName::new("t").unwrap(), Key::new("k").unwrap());
    for node in [&first, &second] {
        node.db.join_network(&network).await.unwrap();
    }
    let label = r#"{network="net \"1\"\n"}"#;
    second
        .wait(&format!("networkdb_attached_nodes{label}"), |it| it == 2.0)
        .await;
    let created = first.db.create_entry(&network, &table, &key, "value");
    created.await.unwrap();
    second
        .wait(&format!("networkdb_entries{label}"), |it| it == 1.0)
        .await;
    let here = second.samples().await;
    assert_eq!(here[&format!("networkdb_value_bytes{label}")], 5.0);
    assert_eq!(here[&format!("networkdb_divergence_seconds{label}")], 0.0);
    assert_eq!(here["networkdb_members{state=\"alive\"}"], 2.0);
    assert!(here["networkdb_apply_seconds_count"] >= 1.0);
    let mine = first.samples().await;
    let written = r#"networkdb_changes_total{source="local",kind="create"}"#;
    assert_eq!((mine[written], here[written]), (1.0, 0.0));
    // The digest that tells of it has to come soon; where it does not the next change gets another.
    let lag = async {
        while first.samples().await["networkdb_convergence_lag_seconds_count"] < 1.0 {
            let updated = first.db.update_entry(&network, &table, &key, "another");
            updated.await.unwrap();
            sleep(Duration::from_millis(200)).await;
        }
    };
    timeout(Duration::from_secs(20), lag)
        .await
        .expect("a digest that tells soon that all is the same");
    first.db.delete_entry(&network, &table, &key).await.unwrap();
    second
        .wait(&format!("networkdb_tombstones{label}"), |it| it == 1.0)
        .await;
    check_with_promtool(&second.text().await);
    second.db.close().await;
    first
        .wait("networkdb_members{state=\"left\"}", |it| it == 1.0)
        .await;
}

#[tokio::test]
async fn only_get_is_answered_and_a_closed_node_says_so() {
    let node = Node::start(&[]).await;
    check_with_promtool(&node.text().await);
    let client = Client::new("127.0.0.1", node.server.local_addr().port());
    let post = client.send("POST".parse().unwrap(), "/metrics", "", "".into());
    assert_eq!(post.await.unwrap().status, 405);
    assert_eq!(client.get("/metrics/x").await.unwrap().status, 404);
    node.db.close().await;
    assert_eq!(client.get("/metrics").await.unwrap().status, 503);
}
