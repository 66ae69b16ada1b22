//! A host under test, asked over HTTP: writes that are recorded, and the view that is judged in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Entry, Outcome, View, Write};
use crate::e2e::http::{Connection, Reply, encode};
use crate::e2e::process::now;

/// How long a host may take for an answer.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// How a connection to a host is made.
type Connect = dyn Fn() -> Result<Connection> + Send + Sync;

/// A host whose diagnostic server is asked, over one connection that is made again when it breaks.
pub struct Host {
    /// Its number.
    pub host: usize,
    connect: Arc<Connect>,
    connection: Option<Connection>,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

impl Clone for Host {
    fn clone(&self) -> Self {
        Self {
            host: self.host,
            connect: Arc::clone(&self.connect),
            connection: None,
        }
    }
}

/// What to do with an entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Change<'a> {
    /// Creates it with a value.
    Create(&'a str),
    /// Gives it another value.
    Update(&'a str),
    /// Deletes it.
    Delete,
}

/// What came of asking for a change.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Written {
    /// It is to be recorded: the host has confirmed it, or has not answered, so that it may have been done.
    Done(Write),
    /// The host has refused, and nothing was changed.
    Refused(String),
    /// The host was not reached, and nothing was changed.
    Unreachable,
}

impl Host {
    /// A host by its number and the way to it.
    pub fn new(
        host: usize,
        connect: impl Fn() -> Result<Connection> + Send + Sync + 'static,
    ) -> Self {
        Self {
            host,
            connect: Arc::new(connect),
            connection: None,
        }
    }

    /// Writes an entry.
    pub fn write(
        &mut self,
        network: &str,
        (table, key): (&str, &str),
        change: Change<'_>,
    ) -> Written {
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
        if self.ensure_connected().is_err() {
            return Written::Unreachable;
        }
        let outcome = match self.request(&target) {
            Ok(reply) if reply.body.lines().next() == Some("OK") => Outcome::Acknowledged,
            Ok(reply) => return Written::Refused(reply.body),
            Err(_) => Outcome::Unknown,
        };
        Written::Done(Write {
            host: self.host,
            table: table.into(),
            key: key.into(),
            value: value.map(Into::into),
            at: now(),
            outcome,
        })
    }

    /// Returns what the host knows about a network.
    ///
    /// # Errors
    /// When the host does not answer in time, or not as the API says.
    pub fn view(&mut self, network: &str) -> Result<View> {
        let network = format!("/v1/networks/{}", encode(network));
        let mut tables = BTreeMap::new();
        for table in list(&self.ask(&format!("{network}/tables"))?, "tables")? {
            let table = text(table, "table")?;
            tables.insert(table.clone(), self.entries(&network, &table)?);
        }
        Ok(View {
            host: self.host,
            node: text(&self.ask("/v1/node")?, "id")?,
            members: alive(&self.ask("/v1/members")?)?,
            peers: ids(&self.ask(&format!("{network}/peers"))?, "peers")?,
            digest: text(&self.ask(&format!("{network}/digest"))?, "digest")?,
            tables,
        })
    }

    /// Asks for a document.
    ///
    /// # Errors
    /// When the host does not answer in time, or with another status than 200.
    pub fn ask(&mut self, target: &str) -> Result<Value> {
        let reply = self.get(target)?;
        serde_json::from_str(&reply.body).with_context(|| format!("host {}: {target}", self.host))
    }

    /// Asks for a text.
    ///
    /// # Errors
    /// When the host does not answer in time, or with another status than 200.
    pub fn get(&mut self, target: &str) -> Result<Reply> {
        let who = format!("host {}: {target}", self.host);
        // A question that is asked twice changes nothing.
        let reply = self
            .request(target)
            .or_else(|_| self.request(target))
            .with_context(|| who.clone())?;
        ensure!(reply.status == 200, "{who}: {}", reply.body);
        Ok(reply)
    }

    /// Reads all entries of a table, page by page.
    fn entries(&mut self, network: &str, table: &str) -> Result<BTreeMap<String, Entry>> {
        let target = format!("{network}/tables/{}/entries?limit=500", encode(table));
        let mut entries = BTreeMap::new();
        let mut page = self.ask(&target)?;
        loop {
            for entry in list(&page, "entries")? {
                let (value, owner) = (text(entry, "value")?, text(entry, "owner")?);
                let value = decoded(&value)?;
                entries.insert(text(entry, "key")?, Entry { value, owner });
            }
            let Some(next) = page["next"].as_str() else {
                return Ok(entries);
            };
            page = self.ask(&format!("{target}&cursor={}", encode(next)))?;
        }
    }

    /// Connects unless that was done. A kept connection may have been closed meanwhile, which cannot be told from a host that
    /// dies while it is asked.
    fn ensure_connected(&mut self) -> Result<()> {
        if self.connection.is_none() {
            self.connection = Some((self.connect)()?);
        }
        Ok(())
    }

    /// Sends a request, over a new connection if there is none, and drops the connection unless it can be used again.
    fn request(&mut self, target: &str) -> Result<Reply> {
        self.ensure_connected()?;
        let connection = self.connection.as_mut().context("it was just made")?;
        let reply = connection.get(target);
        let is_last = |line: &String| line.eq_ignore_ascii_case("connection: close");
        if reply
            .as_ref()
            .map_or(true, |reply| reply.headers.iter().any(is_last))
        {
            self.connection = None;
        }
        reply
    }
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

/// Returns the ids of nodes.
fn ids(document: &Value, name: &str) -> Result<BTreeSet<String>> {
    let all = list(document, name)?.iter();
    all.map(|it| text(it, "id")).collect()
}

/// Returns the ids of the members that are alive; one that is suspected is not.
fn alive(document: &Value) -> Result<BTreeSet<String>> {
    let all = list(document, "members")?.iter();
    let alive = all.filter(|it| it["state"] == "alive");
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
            "members": [
                {"id": "a", "state": "alive"}, {"id": "b", "state": "down"}, {"id": "c", "state": "suspect"},
            ],
            "peers": [{"id": "a"}, {"id": "b"}],
        });
        assert_eq!(alive(&document).unwrap().len(), 1);
        assert_eq!(ids(&document, "peers").unwrap().len(), 2);
        assert!(ids(&document, "nodes").is_err());
    }

    #[test]
    fn a_host_that_is_not_reached_has_changed_nothing() {
        let mut host = Host::new(1, || anyhow::bail!("no way"));
        let written = host.write("net", ("t", "k"), Change::Delete);
        assert_eq!(written, Written::Unreachable);
        assert!(host.ask("/v1/node").is_err());
    }
}
