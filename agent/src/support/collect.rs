//! Asks the agent for everything it tells and puts each answer into the archive, together with where it is from.

use std::time::{Duration, Instant};

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use diagnostic::Client;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::archive::{Archive, Piece};
use super::facts::{Facts, Network, Table};
use super::{names, now};
use crate::shown::{CONFIG, LOGS};

/// Entries of a table that are read.
const ENTRIES_MAX: usize = 100_000;

/// Entries of a page.
const PAGE: usize = 1_000;

/// Pages of a table, so that the end does not depend on the server.
const PAGES_MAX: usize = 10 * ENTRIES_MAX / PAGE;

/// Bytes of one table's file.
const TABLE_BYTES_MAX: usize = 64 << 20;

/// How long networks are compared with peers; those whose turn has not come by then are left out.
const CHECKS_WAIT: Duration = Duration::from_secs(180);

/// Asks one agent.
#[derive(Debug)]
pub(super) struct Collector<'a> {
    client: &'a Client,
    archive: &'a mut Archive,
    facts: &'a mut Facts,
    /// Leaves values out.
    redact: bool,
    /// The agent no longer answers, and is not asked again.
    is_gone: bool,
    start: Instant,
}

impl<'a> Collector<'a> {
    /// Prepares to ask.
    pub(super) fn new(
        client: &'a Client,
        archive: &'a mut Archive,
        facts: &'a mut Facts,
        redact: bool,
    ) -> Self {
        Self {
            client,
            archive,
            facts,
            redact,
            is_gone: false,
            start: now(),
        }
    }

    /// Asks for everything.
    pub(super) async fn run(mut self) -> Result<()> {
        self.facts.node = self.ask("node", "/v1/node").await?;
        if self.facts.node.is_none() {
            let (_, reason) = self.facts.unanswered.pop().unwrap_or_default();
            self.facts.unreachable = Some(reason);
        }
        if self.is_gone {
            return Ok(());
        }
        // Early: each question leaves a line in the log, and it holds so many only.
        self.tell("log.txt", LOGS).await?;
        let members: Option<Value> = self.ask("members", "/v1/members").await?;
        self.facts.members = list(members, "members");
        let stats: Option<Value> = self.ask("stats", "/v1/stats").await?;
        self.facts.stats = stats
            .and_then(|it| serde_json::from_value(it).ok())
            .unwrap_or_default();
        let syncs: Option<Value> = self.ask("sync", "/v1/sync").await?;
        self.facts.syncs = list(syncs, "networks");
        self.tell("config.json", CONFIG).await?;
        for (file, target) in [
            ("help.txt", "/help"),
            ("ready.txt", "/ready"),
            ("clusterpeers.txt", "/clusterpeers"),
        ] {
            self.tell(file, target).await?;
        }
        let networks: Option<Value> = self.ask("networks", "/v1/networks").await?;
        for name in list::<String>(networks, "networks") {
            let network = self.network(name).await?;
            self.facts.networks.push(network);
        }
        self.facts.data_path = self.data_path().await?;
        self.facts.services = self.services().await?;
        Ok(())
    }

    /// Asks for everything about a network.
    async fn network(&mut self, name: String) -> Result<Network> {
        let dir = format!("networks/{}", names::file(&name));
        let id = names::url(&name);
        let base = format!("/v1/networks/{id}");
        let about: Option<Value> = self.ask(&format!("{dir}/network"), &base).await?;
        let about = about.unwrap_or_default();
        let peers: Option<Value> = self
            .ask(&format!("{dir}/peers"), &format!("{base}/peers"))
            .await?;
        let peers = peers.map(|peers| {
            let peers: Vec<Value> = list(Some(peers), "peers");
            let ids = peers.iter().filter_map(|peer| peer["id"].as_str());
            ids.map(str::to_owned).collect()
        });
        let _digest: Option<Value> = self
            .ask(&format!("{dir}/digest"), &format!("{base}/digest"))
            .await?;
        let tables: Option<Value> = self
            .ask(&format!("{dir}/tables"), &format!("{base}/tables"))
            .await?;
        for (file, target) in [
            ("networkpeers.txt", "networkpeers"),
            ("networkstats.txt", "networkstats"),
        ] {
            self.tell(&format!("{dir}/{file}"), &format!("/{target}?nid={id}"))
                .await?;
        }
        let mut network = Network {
            digest: about["digest"].as_str().unwrap_or_default().to_owned(),
            entries: about["entries"].as_u64().unwrap_or_default(),
            name,
            peers,
            tables: list(tables, "tables"),
            ..Network::default()
        };
        for table in network.tables.clone() {
            self.table(&dir, &base, &table, &mut network).await?;
        }
        if self.start.elapsed() > CHECKS_WAIT {
            let reason = "left out, comparing the networks before it took too long";
            self.miss(&format!("{base}/consistency"), reason);
        } else {
            let target = format!("{base}/consistency");
            network.consistency = self.ask(&format!("{dir}/consistency"), &target).await?;
        }
        Ok(network)
    }

    /// Reads a table, an entry a line.
    async fn table(
        &mut self,
        dir: &str,
        base: &str,
        table: &Table,
        network: &mut Network,
    ) -> Result<()> {
        let name = &table.table;
        let table_base = format!("{base}/tables/{}", names::url(name));
        let file = format!("{dir}/tables/{}", names::file(name));
        let _digest: Option<Value> = self
            .ask(&format!("{file}.digest"), &format!("{table_base}/digest"))
            .await?;
        let (start, target) = (now(), format!("{table_base}/entries?limit={PAGE}"));
        let (mut text, mut count, mut cursor) = (String::new(), 0, String::new());
        // A page may be empty, when all in it was deleted while it was read.
        for _ in 0..PAGES_MAX {
            let Some(page) = self.fetch::<Value>(&format!("{target}{cursor}")).await else {
                break;
            };
            for mut entry in list::<Value>(page.get("entries").cloned(), "") {
                self.note(name, &entry, network);
                if self.redact {
                    redact(&mut entry);
                }
                text.push_str(&entry.to_string());
                text.push('\n');
                count += 1;
            }
            let Some(next) = page["next"].as_str() else {
                break;
            };
            if count >= ENTRIES_MAX || text.len() >= TABLE_BYTES_MAX {
                let why = format!(
                    "{file}.jsonl: the first {count} of {} entries",
                    table.entries
                );
                text.push_str(&serde_json::json!({ "cut": why }).to_string());
                text.push('\n');
                self.facts.cut.push(why);
                break;
            }
            cursor = format!("&cursor={}", names::url(next));
        }
        self.archive.add(&Piece {
            path: format!("agent/{file}.jsonl"),
            source: self.source(&target),
            text,
            taken: start.elapsed(),
        })
    }

    /// Keeps of an entry what the summary needs.
    fn note(&self, table: &str, entry: &Value, network: &mut Network) {
        let key = entry["key"].as_str().unwrap_or_default();
        let owner = entry["owner"].as_str().unwrap_or_default();
        let owned = network.owners.entry(owner.to_owned());
        let owned = owned.or_insert_with(|| (0, table.to_owned(), key.to_owned()));
        owned.0 += 1;
        let value = entry["value"].as_str().unwrap_or_default();
        if let Ok(value) = STANDARD.decode(value) {
            network.records.take(table, key, &value);
        }
    }

    /// Asks for JSON and keeps it, indented.
    async fn ask<T: DeserializeOwned>(&mut self, file: &str, target: &str) -> Result<Option<T>> {
        let start = now();
        let Some(value) = self.fetch::<Value>(target).await else {
            return Ok(None);
        };
        let text = serde_json::to_string_pretty(&value).unwrap_or_default() + "\n";
        self.archive.add(&Piece {
            path: format!("agent/{file}.json"),
            source: self.source(target),
            text,
            taken: start.elapsed(),
        })?;
        Ok(serde_json::from_value(value).ok())
    }

    /// The same of what not every agent has: that it is not there is nothing to tell.
    pub(super) async fn ask_if_there(&mut self, file: &str, target: &str) -> Result<Option<Value>> {
        let before = self.facts.unanswered.len();
        let answer = self.ask(file, target).await?;
        let is_missing = |(_, reason): &(String, String)| reason.starts_with("status 404");
        if answer.is_none() && self.facts.unanswered[before..].iter().all(is_missing) {
            self.facts.unanswered.truncate(before);
        }
        Ok(answer)
    }

    /// Notes that the archive holds less than there is.
    pub(super) fn cut(&mut self, what: String) {
        self.facts.cut.push(what);
    }

    /// Asks for text and keeps it.
    async fn tell(&mut self, file: &str, target: &str) -> Result<()> {
        let start = now();
        let Some(text) = self.get(target).await else {
            return Ok(());
        };
        // A server without the path says so with a status of success, as Docker's does.
        if text.starts_with("not implemented") {
            let source = self.source(target);
            self.facts
                .cut
                .push(format!("{source}: this server does not have it"));
        }
        self.archive.add(&Piece {
            path: format!("agent/{file}"),
            source: self.source(target),
            text,
            taken: start.elapsed(),
        })
    }

    async fn fetch<T: DeserializeOwned>(&mut self, target: &str) -> Option<T> {
        let text = self.get(target).await?;
        let parsed = serde_json::from_str(&text);
        if parsed.is_err() {
            self.miss(target, "the answer is no JSON, is this a networkdb agent?");
        }
        parsed.ok()
    }

    async fn get(&mut self, target: &str) -> Option<String> {
        if self.is_gone {
            return None;
        }
        match self.client.get(target).await {
            Ok(answer) if answer.is_success() => Some(answer.text()),
            Ok(answer) => {
                let problem: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
                let detail = problem["detail"].as_str().unwrap_or_default();
                self.miss(target, &format!("status {} {detail}", answer.status));
                None
            }
            Err(error) => {
                self.is_gone = true;
                self.miss(target, &error.to_string());
                None
            }
        }
    }

    fn miss(&mut self, target: &str, reason: &str) {
        let missed = (self.source(target), reason.trim().to_owned());
        self.facts.unanswered.push(missed);
    }

    fn source(&self, target: &str) -> String {
        format!("GET {}{target}", self.client.addr())
    }
}

/// Leaves the value of an entry out, in whatever form; its length stays.
fn redact(entry: &mut Value) {
    if let Some(fields) = entry.as_object_mut()
        && let Some(value) = fields.remove("value")
    {
        let value = STANDARD.decode(value.as_str().unwrap_or_default());
        let bytes = value.map_or(0, |value| value.len());
        fields.insert("value_bytes".into(), bytes.into());
    }
}

/// Takes the list of a field, or the value itself for no field.
fn list<T: DeserializeOwned>(value: Option<Value>, field: &str) -> Vec<T> {
    let Some(mut value) = value else {
        return Vec::new();
    };
    let value = if field.is_empty() {
        value
    } else {
        value[field].take()
    };
    serde_json::from_value(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_redacted_entry_keeps_all_but_its_value() {
        let mut entry = json!({"key": "k", "value": "c2VjcmV0", "owner": "o", "version": "00ff"});
        redact(&mut entry);
        assert_eq!(
            entry,
            json!({"key": "k", "value_bytes": 6, "owner": "o", "version": "00ff"})
        );
    }
}
