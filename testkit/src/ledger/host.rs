//! A host under test, asked over HTTP: writes that are recorded, and the views that are judged in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use diagnostic::Client;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::{Entry, Finding, Ledger, Outcome, View, Write, judge};
use crate::e2e::http::encode;
use crate::e2e::process::now;

/// How long a host may take for an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often hosts are asked whether they agree.
const POLL_PERIOD: Duration = Duration::from_millis(50);

/// How many findings an error tells.
const FINDINGS_MAX: usize = 10;

/// A host whose diagnostic server is asked. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its number.
    pub host: usize,
    client: Client,
}

/// What to do with an entry; values are text without a need for quoting.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Change<'a> {
    /// Creates it with a value.
    Create(&'a str),
    /// Gives it another value.
    Update(&'a str),
    /// Deletes it.
    Delete,
}

impl Host {
    /// A host by its number and where its diagnostic server listens.
    pub fn new(host: usize, ip: &str, port: u16) -> Self {
        let client = Client::new(ip, port);
        Self { host, client }
    }

    /// Writes an entry, and returns what to record: nothing when the host has refused. A request without an answer
    /// may have been done, so its outcome is unknown, even when the host was not reached.
    pub async fn write(
        &self,
        network: &str,
        (table, key): (&str, &str),
        change: Change<'_>,
    ) -> Option<Write> {
        let (action, value) = match change {
            Change::Create(value) => ("createentry", Some(value)),
            Change::Update(value) => ("updateentry", Some(value)),
            Change::Delete => ("deleteentry", None),
        };
        let target = format!(
            "/{action}?unsafe&nid={}&tname={}&key={}{}",
            encode(network),
            encode(table),
            encode(key),
            value.map_or_else(String::new, |value| format!("&value={}", encode(value)))
        );
        let outcome = match timeout(PATIENCE, self.client.get(&target)).await {
            Ok(Ok(answer)) if answer.text().lines().next() == Some("OK") => Outcome::Acknowledged,
            Ok(Ok(_)) => return None,
            Ok(Err(_)) | Err(_) => Outcome::Unknown,
        };
        Some(Write {
            host: self.host,
            table: table.into(),
            key: key.into(),
            value: value.map(Into::into),
            outcome,
        })
    }

    /// Returns what the host knows about a network.
    ///
    /// # Errors
    /// When the host does not answer in time, or not as the API says.
    pub async fn view(&self, network: &str) -> Result<View> {
        let network = format!("/v1/networks/{}", encode(network));
        let mut tables = BTreeMap::new();
        for table in list(&self.ask(&format!("{network}/tables")).await?, "tables")? {
            let table = text(table, "table")?;
            tables.insert(table.clone(), self.entries(&network, &table).await?);
        }
        Ok(View {
            host: self.host,
            node: text(&self.ask("/v1/node").await?, "id")?,
            members: ids(&self.ask("/v1/members").await?, "members")?,
            peers: ids(&self.ask(&format!("{network}/peers")).await?, "peers")?,
            digest: text(&self.ask(&format!("{network}/digest")).await?, "digest")?,
            tables,
        })
    }

    /// Reads all entries of a table, page by page.
    async fn entries(&self, network: &str, table: &str) -> Result<BTreeMap<String, Entry>> {
        let target = format!("{network}/tables/{}/entries?limit=500", encode(table));
        let mut entries = BTreeMap::new();
        let mut page = self.ask(&target).await?;
        loop {
            for entry in list(&page, "entries")? {
                let (value, owner) = (text(entry, "value")?, text(entry, "owner")?);
                let value = decoded(&value)?;
                entries.insert(text(entry, "key")?, Entry { value, owner });
            }
            let Some(next) = page["next"].as_str() else {
                return Ok(entries);
            };
            page = self
                .ask(&format!("{target}&cursor={}", encode(next)))
                .await?;
        }
    }

    /// Asks for a document.
    async fn ask(&self, target: &str) -> Result<Value> {
        let who = || format!("host {}: {target}", self.host);
        let answer = timeout(PATIENCE, self.client.get(target)).await;
        let answer = answer.with_context(who)?.with_context(who)?;
        ensure!(answer.status == 200, "{}: {}", who(), answer.text());
        serde_json::from_slice(&answer.body).with_context(who)
    }
}

/// Waits until all live hosts, all of them attached to the network, agree and hold what was acknowledged. Returns how
/// long that took.
///
/// # Errors
/// When the deadline passes: what is still wrong, by host, table and key.
pub async fn converged(
    ledger: &Ledger,
    hosts: &[Host],
    network: &str,
    deadline: Duration,
) -> Result<Duration> {
    ensure!(!hosts.is_empty(), "there is no host to ask");
    let start: Instant = now();
    loop {
        let problem = match views(hosts, network).await {
            Ok(views) => told(&judge(ledger, &views)),
            Err(error) => Some(format!("{error:#}")),
        };
        let elapsed = now() - start;
        let Some(problem) = problem else {
            return Ok(elapsed);
        };
        if elapsed > deadline {
            bail!("network {network} has not converged within {deadline:?}: {problem}");
        }
        sleep(POLL_PERIOD).await;
    }
}

/// Asks all hosts for their views.
async fn views(hosts: &[Host], network: &str) -> Result<Vec<View>> {
    let mut views = Vec::new();
    for host in hosts {
        views.push(host.view(network).await?);
    }
    Ok(views)
}

/// Returns the first findings as text, or nothing when there is none.
fn told(findings: &[Finding]) -> Option<String> {
    let lines: Vec<_> = findings
        .iter()
        .take(FINDINGS_MAX)
        .map(ToString::to_string)
        .collect();
    let count = findings.len();
    (count > 0).then(|| format!("{count} findings\n{}", lines.join("\n")))
}

/// Returns a list of a document.
fn list<'a>(document: &'a Value, name: &str) -> Result<&'a Vec<Value>> {
    document[name]
        .as_array()
        .with_context(|| format!("no list {name} in {document}"))
}

/// Returns a text of a document.
fn text(document: &Value, name: &str) -> Result<String> {
    let text = document[name].as_str().map(ToOwned::to_owned);
    text.with_context(|| format!("no text {name} in {document}"))
}

/// Returns the ids of nodes; members that are not alive are left out.
fn ids(document: &Value, name: &str) -> Result<BTreeSet<String>> {
    let all = list(document, name)?.iter();
    let alive = all.filter(|it| it["state"].as_str().is_none_or(|state| state == "alive"));
    alive.map(|it| text(it, "id")).collect()
}

/// Decodes a value.
fn decoded(value: &str) -> Result<String> {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(value)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_members_that_are_alive_count_and_peers_have_no_state() {
        let document = serde_json::json!({
            "members": [{"id": "a", "state": "alive"}, {"id": "b", "state": "down"}],
            "peers": [{"id": "a"}, {"id": "b"}],
        });
        assert_eq!(ids(&document, "members").unwrap().len(), 1);
        assert_eq!(ids(&document, "peers").unwrap().len(), 2);
        assert!(ids(&document, "nodes").is_err());
    }
}
