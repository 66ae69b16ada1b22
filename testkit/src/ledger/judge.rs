//! Compares what hosts show with what was acknowledged.

use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};

use super::{Ledger, View};

/// Something that is not as it should be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// The host that shows it.
    pub host: usize,
    /// The table and the key, unless it is about the host as a whole.
    pub place: Option<(String, String)>,
    /// What should be.
    pub expected: String,
    /// What is.
    pub found: String,
}

impl Display for Finding {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "host {}", self.host)?;
        if let Some((table, key)) = &self.place {
            write!(f, ", table {table}, key {key}")?;
        }
        write!(f, ": expected {}, found {}", self.expected, self.found)
    }
}

/// Returns what is wrong with the views of all live hosts that are attached to the network; nothing, when they agree,
/// know exactly each other, show no orphan, and hold what was acknowledged. Give every live host: members and peers
/// are compared with the views' nodes.
pub fn judge(ledger: &Ledger, views: &[View]) -> Vec<Finding> {
    let mut findings = differences(views);
    for view in views {
        entries(ledger, view, &mut findings);
    }
    findings
}

/// The same without what was acknowledged: what the hosts themselves show to be wrong.
pub fn differences(views: &[View]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let nodes: BTreeSet<String> = views.iter().map(|view| view.node.clone()).collect();
    for view in views {
        whole(view, &views[0], &nodes, &mut findings);
        orphans(view, &mut findings);
    }
    findings
}

/// Checks a host's members, peers, digest and tables.
fn whole(view: &View, first: &View, nodes: &BTreeSet<String>, findings: &mut Vec<Finding>) {
    let mut add = |expected, found| {
        findings.push(Finding {
            host: view.host,
            place: None,
            expected,
            found,
        });
    };
    if view.members != *nodes {
        add(format!("members {nodes:?}"), format!("{:?}", view.members));
    }
    if view.peers != *nodes {
        add(format!("peers {nodes:?}"), format!("{:?}", view.peers));
    }
    if view.digest != first.digest {
        let expected = format!("digest {} as on host {}", first.digest, first.host);
        add(expected, view.digest.clone());
    }
    for (table, key) in places(view).union(&places(first)) {
        let entry = |view: &View| view.tables.get(table).and_then(|it| it.get(key).cloned());
        let (own, other) = (entry(view), entry(first));
        if own != other {
            findings.push(Finding {
                host: view.host,
                place: Some((table.clone(), key.clone())),
                expected: format!("{other:?} as on host {}", first.host),
                found: format!("{own:?}"),
            });
        }
    }
}

/// Looks for entries of nodes that are none of the network.
fn orphans(view: &View, findings: &mut Vec<Finding>) {
    for (table, entries) in &view.tables {
        for (key, entry) in entries
            .iter()
            .filter(|(_, it)| !view.peers.contains(&it.owner))
        {
            findings.push(Finding {
                host: view.host,
                place: Some((table.clone(), key.clone())),
                expected: "an owner among the peers".into(),
                found: entry.owner.clone(),
            });
        }
    }
}

/// Checks a host's entries against the ledger.
fn entries(ledger: &Ledger, view: &View, findings: &mut Vec<Finding>) {
    let allowed = ledger.allowed();
    let mut all = places(view);
    all.extend(
        allowed
            .keys()
            .map(|(table, key)| ((*table).into(), (*key).into())),
    );
    for (table, key) in all {
        let entry = view.tables.get(&table).and_then(|it| it.get(&key));
        let value = entry.map(|it| it.value.as_str());
        let values = allowed.get(&(table.as_str(), key.as_str()));
        let mut add = |expected, found| {
            findings.push(Finding {
                host: view.host,
                place: Some((table.clone(), key.clone())),
                expected,
                found,
            });
        };
        match values {
            Some(values) if values.contains(&value) => {}
            Some(values) => add(format!("one of {values:?}"), format!("{value:?}")),
            None => add("nothing, as nobody wrote it".into(), format!("{value:?}")),
        }
    }
}

/// Returns the tables and keys of a view's entries.
fn places(view: &View) -> BTreeSet<(String, String)> {
    let keys = |(table, entries): (&String, &std::collections::BTreeMap<String, _>)| {
        let table = table.clone();
        let keys: Vec<String> = entries.keys().cloned().collect();
        keys.into_iter().map(move |key| (table.clone(), key))
    };
    view.tables.iter().flat_map(keys).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::e2e::process::now;
    use crate::ledger::{Entry, Outcome, Write};

    fn ledger(writes: &[(usize, &str, Option<&str>, Outcome)]) -> Ledger {
        let mut ledger = Ledger::default();
        for (host, key, value, outcome) in writes {
            ledger.record(Write {
                host: *host,
                table: "t".into(),
                key: (*key).into(),
                value: value.map(Into::into),
                at: now(),
                outcome: *outcome,
            });
        }
        ledger
    }

    /// Two hosts that agree about some entries: key, value, owner.
    fn views(entries: &[(&str, &str, &str)]) -> Vec<View> {
        let nodes = BTreeSet::from(["n1".to_owned(), "n2".to_owned()]);
        let entry = |(key, value, owner): &(&str, &str, &str)| {
            let (value, owner) = ((*value).into(), (*owner).into());
            ((*key).to_owned(), Entry { value, owner })
        };
        let view = |host| View {
            host,
            node: format!("n{host}"),
            members: nodes.clone(),
            peers: nodes.clone(),
            digest: "d".into(),
            tables: [("t".to_owned(), entries.iter().map(entry).collect())].into(),
        };
        vec![view(1), view(2)]
    }

    use Outcome::{Acknowledged, Unknown};

    #[test]
    fn what_was_acknowledged_and_is_there_is_fine() {
        let ledger = ledger(&[
            (1, "a", Some("1"), Acknowledged),
            (1, "a", Some("2"), Acknowledged),
            (2, "b", Some("1"), Acknowledged),
            (2, "b", None, Acknowledged),
        ]);
        assert_eq!(judge(&ledger, &views(&[("a", "2", "n1")])), []);
        assert_eq!(ledger.acknowledged(), 4);
    }

    #[test]
    fn lost_and_stale_writes_and_resurrected_deletes_are_found() {
        let written = ledger(&[
            (1, "a", Some("1"), Acknowledged),
            (1, "a", Some("2"), Acknowledged),
        ]);
        let findings = judge(&written, &views(&[]));
        assert_eq!(findings.len(), 2);
        let text = "host 1, table t, key a: expected one of {Some(\"2\")}, found None";
        assert_eq!(findings[0].to_string(), text);
        assert_eq!(judge(&written, &views(&[("a", "1", "n1")])).len(), 2);
        let deleted = ledger(&[
            (1, "a", Some("1"), Acknowledged),
            (1, "a", None, Acknowledged),
        ]);
        assert_eq!(judge(&deleted, &views(&[("a", "1", "n1")])).len(), 2);
        assert_eq!(judge(&ledger(&[]), &views(&[("x", "1", "n1")])).len(), 2);
    }

    #[test]
    fn orphans_are_found() {
        let ledger = ledger(&[(3, "a", Some("1"), Unknown)]);
        let findings = judge(&ledger, &views(&[("a", "1", "n3")]));
        assert_eq!(findings.len(), 2);
        assert_eq!(findings[0].found, "n3");
    }

    #[test]
    fn hosts_that_differ_are_found() {
        let ledger = ledger(&[(1, "a", Some("1"), Unknown)]);
        let mut differing = views(&[("a", "1", "n1")]);
        differing[1].tables.clear();
        let findings = judge(&ledger, &differing);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].host, 2);
        let mut differing = views(&[]);
        differing[1].digest = "e".into();
        differing[1].members.insert("n9".into());
        differing[1].peers.remove("n1");
        assert_eq!(judge(&ledger, &differing).len(), 3);
    }

    #[test]
    fn only_what_was_acknowledged_lately_is_doubted() {
        let mut ledger = ledger(&[(1, "a", Some("1"), Acknowledged)]);
        let since = now();
        let last = |value: Option<&str>| Write {
            host: 1,
            table: "t".into(),
            key: "a".into(),
            value: value.map(Into::into),
            at: since,
            outcome: Acknowledged,
        };
        ledger.record(last(Some("2")));
        ledger.doubt(1, Some(since));
        // This one was acknowledged before the host died, and is recorded late.
        ledger.record(last(Some("3")));
        for value in ["1", "2", "3"] {
            assert_eq!(judge(&ledger, &views(&[("a", value, "n1")])), [], "{value}");
        }
        assert_eq!(judge(&ledger, &views(&[])).len(), 2);
    }

    #[test]
    fn compaction_changes_nothing_that_is_allowed() {
        let mut written = ledger(&[
            (1, "a", Some("1"), Acknowledged),
            (1, "a", Some("2"), Unknown),
            (1, "a", Some("3"), Acknowledged),
            (2, "a", Some("4"), Acknowledged),
        ]);
        let before = written.clone();
        written.compact();
        assert_eq!(written.acknowledged(), 2);
        for ledger in [&before, &written] {
            for (value, wrong) in [("1", 2), ("2", 0), ("3", 0), ("4", 0)] {
                assert_eq!(judge(ledger, &views(&[("a", value, "n1")])).len(), wrong);
            }
        }
    }

    #[test]
    fn unknown_outcomes_conflicts_and_lost_hosts_allow_either() {
        let mut unknown = ledger(&[(1, "a", Some("1"), Acknowledged), (1, "a", None, Unknown)]);
        assert_eq!(judge(&unknown, &views(&[("a", "1", "n1")])), []);
        assert_eq!(judge(&unknown, &views(&[])), []);
        assert_eq!(judge(&unknown, &views(&[("a", "2", "n1")])).len(), 2);
        unknown.doubt(1, None);
        assert_eq!(unknown.acknowledged(), 0);
        let conflict = ledger(&[
            (1, "a", Some("1"), Acknowledged),
            (2, "a", Some("2"), Acknowledged),
        ]);
        for value in ["1", "2"] {
            assert_eq!(judge(&conflict, &views(&[("a", value, "n1")])), []);
        }
        assert_eq!(judge(&conflict, &views(&[])).len(), 2);
    }
}
