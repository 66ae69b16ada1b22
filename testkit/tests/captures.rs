//! Replays exchanges with Docker's server against three live ones of ours and compares byte for byte.
//!
//! The rows run in file order against the first server; `setup` rows say what the others are asked in between. The servers
//! are those of the e2e test service, as Docker's were. Normalised are node ids, addresses, the order of lists and what a
//! row's `varies` names, and `/help` has one path more; everything else has to be equal. No row that is
//! replayed meets a deliberate difference of ours (a refused write to a network that is not joined, refused empty
//! names, `/leave`): the second test is about those and about rules that have no row.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use diagnostic::{Running, Server};
use networkdb::node::{NetworkDb, NodeConfig};
use serde_json::Value;
use testkit::service;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

const CAPTURES: &str = include_str!("data/captures.jsonl");

/// Node ids in the captures, in the order of the servers.
const CAPTURED_IDS: [&str; 3] = ["c28245a91a0f", "28c235f6ca17", "493fd2aef9fe"];
/// Start of the addresses in the captures.
const CAPTURED_NET: &str = "10.77.0.";
/// Start of ours. All of it is loopback, so the nodes differ by address as the captured ones do.
const NET: &str = "127.0.0.";

/// Paths that change nothing and show what other nodes did; they are asked again until they agree.
const SHOWING: [&str; 6] = [
    "/clusterpeers",
    "/networkpeers",
    "/gettable",
    "/getentry",
    "/networkstats",
    "/watchedtableentries",
];

/// How long a change may take from node to node.
const CONVERGENCE_MAX: Duration = Duration::from_secs(10);
/// Pause between two looks.
const POLL: Duration = Duration::from_millis(10);
/// How long one exchange may take; a name that does not resolve takes the longest.
const EXCHANGE_MAX: Duration = Duration::from_secs(60);

/// How often free ports are looked for.
const PORT_TRIES: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn captured_exchanges_are_answered_alike() -> Result<()> {
    let cluster = Cluster::start().await?;
    let mut replayed = 0;
    for line in CAPTURES.lines() {
        let row: Value = serde_json::from_str(line)?;
        if let Some(setup) = row["setup"].as_str() {
            cluster.set_up(setup).await?;
        } else {
            cluster.replay(&row).await?;
            replayed += 1;
        }
    }
    // Guards against a data file that was cut or a field that was renamed.
    ensure!(replayed == 165, "{replayed}");
    cluster.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_without_a_row_hold() -> Result<()> {
    let cluster = Cluster::start().await?;
    cluster.help_lists_every_path().await?;
    cluster.network_must_be_joined_before_writes().await?;
    cluster.empty_names_are_refused().await?;
    cluster.any_bytes_are_a_value().await?;
    cluster.forms_are_read().await?;
    cluster.large_values_travel_in_forms().await?;
    cluster.node_leaves_and_joins_again().await?;
    cluster.stop().await;
    Ok(())
}

struct Node {
    db: NetworkDb,
    server: Running,
}

/// Three nodes with their servers, not joined to each other.
struct Cluster {
    nodes: Vec<Node>,
    /// The port of all gossip addresses.
    port: u16,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Reply {
    status: u16,
    content_type: String,
    body: Vec<u8>,
}

impl Cluster {
    async fn start() -> Result<Self> {
        for _ in 0..PORT_TRIES {
            let first = start_node(1, 0).await?;
            let port = first.gossip_addr().port();
            // The port that was free on the first address may be taken on another.
            let (Ok(second), Ok(third)) = (start_node(2, port).await, start_node(3, port).await)
            else {
                first.close().await;
                continue;
            };
            let mut nodes = Vec::new();
            for db in [first, second, third] {
                let server = Server::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
                service::mount(server.routes(), &db)?;
                let server = server.serve(db.clone());
                nodes.push(Node { db, server });
            }
            return Ok(Self { nodes, port });
        }
        bail!("no port is free on three addresses")
    }

    async fn stop(self) {
        for node in self.nodes {
            node.server.stop().await;
            node.db.close().await;
        }
    }

    /// Sends what a row like `servers 2 and 3 each get /path` says.
    async fn set_up(&self, setup: &str) -> Result<()> {
        let (servers, target) = setup.split_once('/').context("no path in the setup")?;
        let numbers = servers
            .split(' ')
            .filter_map(|word| word.parse::<usize>().ok());
        for number in numbers {
            let reply = self.get(number - 1, &format!("/{target}")).await?;
            ensure!(reply.body == b"OK", "{setup}: {reply:?}");
        }
        Ok(())
    }

    async fn replay(&self, row: &Value) -> Result<()> {
        let text = |field: &str| {
            row[field]
                .as_str()
                .with_context(|| format!("{field} in {row}"))
        };
        let varies = row["varies"].as_str().unwrap_or_default();
        let target = self.target(text("target")?);
        let expected = Reply {
            status: u16::try_from(row["status"].as_u64().context("status")?)?,
            content_type: text("content_type")?.into(),
            body: normal(text("body")?, varies).into_bytes(),
        };
        let is_showing = SHOWING.iter().any(|path| target.starts_with(path));
        let mut actual = self.asked(row, &target, varies).await?;
        if is_showing && actual != expected {
            let agree = async {
                while actual != expected {
                    sleep(POLL).await;
                    actual = self.asked(row, &target, varies).await?;
                }
                anyhow::Ok(())
            };
            // After the deadline the comparison below says what differs.
            timeout(CONVERGENCE_MAX, agree).await.unwrap_or(Ok(()))?;
        }
        ensure!(
            actual == expected,
            "{}: {target}\nanswered {}\nexpected {}",
            row["name"],
            shown(&actual),
            shown(&expected)
        );
        Ok(())
    }

    async fn asked(&self, row: &Value, target: &str, varies: &str) -> Result<Reply> {
        let method = row["method"].as_str().context("method")?;
        let form = row["form"].as_str();
        let mut reply = self.exchange(0, method, target, form).await?;
        let mut body = String::from_utf8(reply.body)?;
        for (node, captured) in self.nodes.iter().zip(CAPTURED_IDS) {
            body = body.replace(node.db.id().as_str(), captured);
        }
        let body = body.replace(&format!(":{}", self.port), ":7946");
        reply.body = normal(&body.replace(NET, CAPTURED_NET), varies).into_bytes();
        Ok(reply)
    }

    /// Gives the members of a captured target our addresses.
    fn target(&self, captured: &str) -> String {
        let Some((path, members)) = captured.split_once("members=") else {
            return captured.into();
        };
        let (members, rest) = match members.split_once('&') {
            Some((members, rest)) => (members, format!("&{rest}")),
            None => (members, String::new()),
        };
        let members: Vec<String> = members
            .split(',')
            .map(|member| match member.strip_prefix(CAPTURED_NET) {
                Some(host) => format!("{NET}{host}:{}", self.port),
                None => member.into(),
            })
            .collect();
        format!("{path}members={}{rest}", members.join(","))
    }

    async fn get(&self, node: usize, target: &str) -> Result<Reply> {
        self.exchange(node, "GET", target, None).await
    }

    /// Asserts the body that a GET on the first server answers.
    async fn expect(&self, target: &str, body: impl AsRef<[u8]>) -> Result<()> {
        let reply = self.get(0, target).await?;
        let expected = String::from_utf8_lossy(body.as_ref());
        ensure!(
            reply.body == body.as_ref(),
            "{target} answered {}, expected {expected}",
            shown(&reply)
        );
        Ok(())
    }

    async fn exchange(
        &self,
        node: usize,
        method: &str,
        target: &str,
        form: Option<&str>,
    ) -> Result<Reply> {
        let addr = self.nodes[node].server.local_addr();
        let body = form.unwrap_or_default();
        let form = match form {
            Some(_) => "Content-Type: application/x-www-form-urlencoded\r\n",
            None => "",
        };
        let request = format!(
            "{method} {target} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n{form}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        timeout(EXCHANGE_MAX, send(addr, request.as_bytes()))
            .await
            .with_context(|| format!("{method} {target}"))?
    }

    async fn help_lists_every_path(&self) -> Result<()> {
        let mut expected: BTreeSet<String> = CAPTURES
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|row| row["name"] == "help-plain")
            .filter_map(|row| row["body"].as_str().map(str::to_owned))
            .flat_map(|body| body.lines().map(str::to_owned).collect::<Vec<_>>())
            .filter(|line| line.starts_with('/'))
            .collect();
        ensure!(expected.insert("/leave".into()), "Docker has no /leave");
        let reply = self.get(0, "/help").await?;
        ensure!(reply.content_type == "text/plain; charset=utf-8");
        let body = String::from_utf8(reply.body)?;
        let paths = body.strip_prefix("OK\n").context("OK first")?;
        ensure!(paths.ends_with('\n'));
        ensure!(paths.lines().count() == expected.len(), "{paths}");
        ensure!(paths.lines().map(str::to_owned).collect::<BTreeSet<_>>() == expected);
        let escaped = paths.replace('\n', "\\n");
        let json = format!(r#"{{"message":"OK","details":{{"info":"{escaped}"}}}}"#);
        self.expect("/help?json", json).await?;
        let pretty = format!(
            "{{\n  \"message\": \"OK\",\n  \"details\": {{\n    \"info\": \"{escaped}\"\n  }}\n}}"
        );
        self.expect("/help?json=pretty", pretty).await
    }

    async fn network_must_be_joined_before_writes(&self) -> Result<()> {
        for path in ["/createentry", "/updateentry", "/deleteentry"] {
            let target = format!("{path}?nid=n%201&tname=t&key=k&value=");
            let refusal = "FAIL\nError: network n 1 is not joined on this node, join it first with /joinnetwork?nid=n%201";
            self.expect(&target, refusal).await?;
        }
        self.expect("/joinnetwork?nid=n", "OK").await
    }

    async fn empty_names_are_refused(&self) -> Result<()> {
        for target in [
            "/joinnetwork?nid=",
            "/leavenetwork?nid=",
            "/networkpeers?nid=",
            "/networkstats?nid=",
            "/gettable?nid=&tname=t",
            "/createentry?nid=&tname=t&key=k&value=",
        ] {
            let refusal = "FAIL\nError: parameter nid: network id is empty";
            self.expect(target, refusal).await?;
        }
        let refusal = "FAIL\nError: parameter tname: table name is empty";
        self.expect("/getentry?nid=n&tname=&key=k", refusal).await?;
        let refusal = "FAIL\nError: parameter key: key is empty";
        self.expect("/deleteentry?nid=n&tname=t&key=", refusal)
            .await
    }

    async fn any_bytes_are_a_value(&self) -> Result<()> {
        let place = "nid=n&tname=t&key=k";
        self.expect(&format!("/createentry?{place}&value="), "OK")
            .await?;
        self.expect(
            &format!("/getentry?{place}"),
            "OK\n0) k:`k` -> v:`` owner:``\n",
        )
        .await?;
        let update = format!("/updateentry?{place}&value=%00%ff%3Cnil%3E+%2B&unsafe");
        self.expect(&update, "OK").await?;
        self.expect(
            &format!("/getentry?{place}"),
            "OK\n0) k:`k` -> v:`AP88bmlsPiAr` owner:``\n",
        )
        .await?;
        let raw = self.get(0, &format!("/getentry?{place}&unsafe")).await?;
        ensure!(raw.content_type == "application/octet-stream");
        ensure!(raw.body == b"OK\n0) k:`k` -> v:`\0\xff<nil> +` owner:``\n");
        let json = r#"{"message":"OK","details":{"key":"k","value":"\u0000\ufffd\u003cnil\u003e +","owner":""}}"#;
        self.expect(&format!("/getentry?{place}&unsafe&json"), json)
            .await?;
        self.expect(&format!("/deleteentry?{place}"), "OK").await
    }

    async fn forms_are_read(&self) -> Result<()> {
        let form = Some("nid=n&tname=t&key=form&value=aGk%3D");
        let reply = self
            .exchange(0, "POST", "/createentry?key=query", form)
            .await?;
        ensure!(reply.body == b"OK", "{}", shown(&reply));
        self.expect("/gettable?nid=n&tname=t", self.row("form", "aGk="))
            .await?;
        let form = Some("nid=n&tname=t&key=form");
        let reply = self.exchange(0, "POST", "/deleteentry", form).await?;
        ensure!(reply.body == b"OK", "{}", shown(&reply));
        self.expect("/gettable?nid=n&tname=t", "OK\ntotal entries: 0\n")
            .await
    }

    async fn large_values_travel_in_forms(&self) -> Result<()> {
        let value = "x".repeat(64 << 10);
        let form = format!("nid=n&tname=t&key=large&unsafe&value={value}");
        let reply = self
            .exchange(0, "POST", "/createentry", Some(&form))
            .await?;
        ensure!(reply.body == b"OK", "{}", shown(&reply));
        self.expect("/gettable?nid=n&tname=t&unsafe", self.row("large", &value))
            .await?;
        let reply = self
            .exchange(0, "POST", "/updateentry", Some(&format!("{form}x")))
            .await?;
        let body = String::from_utf8(reply.body)?;
        ensure!(
            body.starts_with("FAIL\nError: ") && body.contains("65537"),
            "{body}"
        );
        Ok(())
    }

    async fn node_leaves_and_joins_again(&self) -> Result<()> {
        let second = self.nodes[1].db.advertised_addr();
        let join = format!("/join?members={second}");
        self.expect(&join, "OK").await?;
        self.shows_peers(1, 2).await?;
        let foreign = self.get(0, &format!("/leave?members={second}")).await?;
        let body = String::from_utf8(foreign.body)?;
        ensure!(
            body.starts_with("FAIL\nError: a node can only take itself out"),
            "{body}"
        );
        let own = self.nodes[0].db.id();
        self.expect(&format!("/leave?members={second},{own}"), "OK")
            .await?;
        self.shows_peers(1, 1).await?;
        self.expect("/leave?json", r#"{"message":"OK","details":null}"#)
            .await?;
        self.expect(&join, "OK").await?;
        self.shows_peers(1, 2).await
    }

    /// Waits until a server lists so many nodes of the cluster.
    async fn shows_peers(&self, node: usize, count: usize) -> Result<()> {
        let expected = format!("OK\ntotal entries: {count}\n");
        let agree = async {
            loop {
                let reply = self.get(node, "/clusterpeers").await?;
                if reply.body.starts_with(expected.as_bytes()) {
                    return Ok(());
                }
                sleep(POLL).await;
            }
        };
        timeout(CONVERGENCE_MAX, agree)
            .await
            .with_context(|| format!("server {node} does not show {count} nodes"))?
    }

    /// Returns a table of one entry that the first node owns.
    fn row(&self, key: &str, value: &str) -> String {
        let owner = self.nodes[0].db.id();
        format!("OK\ntotal entries: 1\n0) k:`{key}` -> v:`{value}` owner:`{owner}`\n")
    }
}

async fn start_node(host: u8, port: u16) -> Result<NetworkDb> {
    let config = NodeConfig {
        bind: SocketAddr::from(([127, 0, 0, host], port)),
        ..NodeConfig::default()
    };
    Ok(NetworkDb::start(config).await?)
}

/// Sends the bytes of a request and reads until the server closes.
async fn send(addr: SocketAddr, request: &[u8]) -> Result<Reply> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(request).await?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    let end = bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .context("no head in the reply")?;
    let head = str::from_utf8(&bytes[..end])?;
    let header = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines
            .find(|line| line.0.eq_ignore_ascii_case(name))
            .map(|line| line.1)
    };
    let body = bytes[end + 4..].to_vec();
    let length = header("content-length").context("no length")?;
    ensure!(
        length.parse::<usize>()? == body.len(),
        "{length} is not the length"
    );
    Ok(Reply {
        status: head.split(' ').nth(1).context("no status")?.parse()?,
        content_type: header("content-type").context("no content type")?.into(),
        body,
    })
}

/// Evens out what may differ in a body.
fn normal(body: &str, varies: &str) -> String {
    let mut body = paths(body).unwrap_or_else(|| sorted(body));
    if varies.contains("operating system's words") {
        body = without_reason(&body);
    }
    if varies.contains("qlen") {
        for name in ["qlen: ", "\"QueueLen\":", "\"QueueLen\": "] {
            body = without_number(&body, name);
        }
    }
    body
}

/// Sorts a list of paths and takes the one out that Docker's servers do not have; none when it is no such list.
fn paths(body: &str) -> Option<String> {
    let starts = ["OK\n/", "\"info\":\"/", "\"info\": \"/"];
    let begins = |start: &&str| body.find(start).map(|at| at + start.len() - 1);
    let begin = starts.iter().find_map(begins)?;
    let separator = if body.starts_with('{') { "\\n" } else { "\n" };
    let end = body.rfind(separator)?;
    let mut paths: Vec<&str> = body[begin..end].split(separator).collect();
    paths.retain(|path| *path != "/leave");
    paths.sort_unstable();
    let paths = paths.join(separator);
    Some(format!("{}{paths}{}", &body[..begin], &body[end..]))
}

/// Sorts the elements of a list, in text and in JSON. The numbers before the lines are checked and stay in order.
fn sorted(body: &str) -> String {
    if let Some((before, list)) = body.split_once('[')
        && let Some((list, after)) = list.rsplit_once(']')
    {
        let trimmed = list.trim_end();
        let space = &list[trimmed.len()..];
        let whole = trimmed.strip_suffix('}').unwrap_or(trimmed);
        let mut elements: Vec<&str> = whole.split("},").collect();
        elements.sort_unstable();
        return format!("{before}[{}}}{space}]{after}", elements.join("},"));
    }
    let Some(start) = body.find("\n0) ") else {
        return body.into();
    };
    let (before, list) = body.split_at(start + 1);
    let mut lines = Vec::new();
    for (index, line) in list.split_inclusive('\n').enumerate() {
        let number = format!("{index}) ");
        let line = line.strip_prefix(&number);
        lines.push(line.expect("the lines of a list are numbered from 0"));
    }
    lines.sort_unstable();
    let numbered = lines
        .iter()
        .enumerate()
        .map(|(index, line)| format!("{index}) {line}"));
    format!("{before}{}", numbered.collect::<String>())
}

/// Cuts the reason that follows the address or host of a failed join.
fn without_reason(body: &str) -> String {
    for words in ["* failed to join ", "* failed to resolve "] {
        if let Some((before, rest)) = body.split_once(words)
            && let Some((member, reason)) = rest.split_once(": ")
        {
            // A line ends as such in text and as an escape in JSON.
            let end = reason.find('\n').or_else(|| reason.find("\\n"));
            let after = &reason[end.unwrap_or(reason.len())..];
            return format!("{before}{words}{member}: REASON{after}");
        }
    }
    body.into()
}

/// Cuts the number that follows a name.
fn without_number(body: &str, name: &str) -> String {
    let Some((before, after)) = body.split_once(name) else {
        return body.into();
    };
    let rest = after.trim_start_matches(|character: char| character.is_ascii_digit());
    if rest.len() == after.len() {
        return body.into();
    }
    format!("{before}{name}N{rest}")
}

fn shown(reply: &Reply) -> String {
    let body = String::from_utf8_lossy(&reply.body);
    format!("{} {} {body:?}", reply.status, reply.content_type)
}
