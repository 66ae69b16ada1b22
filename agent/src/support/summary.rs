//! What a person should look at first: findings from the facts, one a line. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::{CheckedPeer, Facts, Member, Network};
use super::names::{line, shown};
use super::overlap;

/// Lines of one kind; the rest is counted.
const LINES_MAX: usize = 100;

/// Keys that a finding about a peer names.
const KEYS_MAX: usize = 5;

/// States in which a member is or goes missing.
const BAD_STATES: [&str; 3] = ["suspect", "down", "heard"];

/// What a finding is about.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Kind {
    /// The agent did not answer.
    Agent,
    /// An address that two have.
    Overlap,
    /// A peer that holds something else.
    Differs,
    /// A peer that did not tell what it holds, or a question that the agent did not answer.
    Unanswered,
    /// What is not as it should be in the data path.
    DataPath,
    /// Of the services.
    Services,
    /// A member that is not well.
    Member,
    /// Entries of a node that is not there.
    Owner,
    /// A value that is no record of its table.
    Record,
    /// A first sync that is not done.
    Sync,
    /// This node runs late.
    Health,
    /// Something was dropped or refused.
    Counter,
    /// A command that did not work.
    Command,
    /// The archive holds less than there is.
    Cut,
}

/// Something to look at.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Finding {
    kind: Kind,
    text: String,
}

/// How it ended, for the exit code.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// Nothing overlaps, nothing differs.
    Fine,
    /// Something overlaps or differs.
    Flagged,
    /// Not all could be checked.
    Unchecked,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Overlap => "overlap",
            Self::Differs => "differs",
            Self::Unanswered => "unanswered",
            Self::DataPath => "datapath",
            Self::Services => "services",
            Self::Member => "member",
            Self::Owner => "owner",
            Self::Record => "record",
            Self::Sync => "sync",
            Self::Health => "health",
            Self::Counter => "counter",
            Self::Command => "command",
            Self::Cut => "cut",
        }
    }
}

impl Finding {
    /// A finding; names of others in the text have passed [`shown`] or [`line`].
    pub(super) fn new(kind: Kind, text: String) -> Self {
        Self { kind, text }
    }

    /// Returns the text.
    #[cfg(test)]
    pub(super) fn text(&self) -> &str {
        &self.text
    }
}

/// Finds everything that a person should look at, by kind.
pub(super) fn findings(facts: &Facts, redact: bool) -> Vec<Finding> {
    let mut found = overlap::find(facts, redact);
    if let Some(reason) = &facts.unreachable {
        let text = format!(
            "does not tell what it is, so the cluster is not checked: {}",
            line(reason)
        );
        found.push(Finding::new(Kind::Agent, text));
    }
    facts.services.findings(&mut found);
    if let Some(path) = &facts.data_path {
        path.findings(&mut found);
    }
    for (what, reason) in &facts.unanswered {
        let text = format!("{}: {}", line(what), line(reason));
        found.push(Finding::new(Kind::Unanswered, text));
    }
    for network in &facts.networks {
        digests(network, &mut found);
        owners(network, &facts.members, &mut found);
        records(network, &mut found);
    }
    cluster(facts, &mut found);
    machine(facts, &mut found);
    found.sort_by_key(|finding| finding.kind);
    found
}

/// Returns how it ended.
pub(super) fn verdict(findings: &[Finding]) -> Verdict {
    let has = |kinds: &[Kind]| findings.iter().any(|it| kinds.contains(&it.kind));
    if has(&[Kind::Agent]) {
        return Verdict::Unchecked;
    }
    if has(&[Kind::Overlap, Kind::Differs]) {
        return Verdict::Flagged;
    }
    if has(&[Kind::Unanswered]) {
        return Verdict::Unchecked;
    }
    Verdict::Fine
}

/// Writes the summary, after the lines that say what it is of.
pub(super) fn render(head: &str, facts: &Facts, findings: &[Finding], redact: bool) -> String {
    let mut text = head.to_owned();
    let mut say = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    about(facts, &mut say);
    for line in overlap::subnets(&facts.networks, redact)
        .iter()
        .take(LINES_MAX)
    {
        say(format!("INFO subnets: {line}"));
    }
    let mut by_kind: BTreeMap<Kind, usize> = BTreeMap::new();
    for finding in findings {
        let count = by_kind.entry(finding.kind).or_default();
        *count += 1;
        if *count <= LINES_MAX {
            say(format!("FLAG {}: {}", finding.kind.name(), finding.text));
        }
    }
    for (kind, count) in by_kind.iter().filter(|(_, count)| **count > LINES_MAX) {
        let more = count - LINES_MAX;
        say(format!("INFO {}: and {more} more", kind.name()));
    }
    say(match findings.len() {
        1 => "1 finding".into(),
        count => format!("{count} findings"),
    });
    text
}

/// Says what node, cluster and networks there are.
fn about(facts: &Facts, say: &mut impl FnMut(String)) {
    if let Some(node) = &facts.node {
        let cluster = if node.in_cluster {
            "in cluster"
        } else {
            "has left cluster"
        };
        say(format!(
            "node {} at {}, version {}, {cluster} {}, up {:.0} s",
            shown(&node.id),
            line(&node.advertised_addr),
            line(&node.version),
            shown(&node.cluster),
            node.uptime_seconds
        ));
        let alive = facts
            .members
            .iter()
            .filter(|it| it.state == "alive")
            .count();
        say(format!(
            "members: {} known, {alive} alive",
            facts.members.len()
        ));
    }
    for network in facts.networks.iter().take(LINES_MAX) {
        let bytes: u64 = network.tables.iter().map(|table| table.value_bytes).sum();
        let peers = network
            .peers
            .as_ref()
            .map_or("?".into(), |peers| peers.len().to_string());
        say(format!(
            "network {}: {} entries in {} tables, {bytes} bytes of values, {peers} nodes, digest {}",
            shown(&network.name),
            network.entries,
            network.tables.len(),
            line(&network.digest)
        ));
    }
    let more = facts.networks.len().saturating_sub(LINES_MAX);
    if more > 0 {
        say(format!("and {more} more networks"));
    }
    say(format!(
        "network namespaces: {} beside the machine's own",
        facts.host.namespaces
    ));
}

/// Peers that hold something else, or did not say.
fn digests(network: &Network, found: &mut Vec<Finding>) {
    let name = shown(&network.name);
    let peers = network.consistency.iter().flat_map(|it| &it.peers);
    for peer in peers {
        let who = format!(
            "network {name}: node {} at {}",
            shown(&peer.id),
            line(&peer.addr)
        );
        match peer.outcome.as_str() {
            "equal" => {}
            "differs" => {
                let text = format!("{who} holds something else{}", differences(peer));
                found.push(Finding::new(Kind::Differs, text));
            }
            _ => {
                let reason = peer.reason.as_deref().unwrap_or("no reason given");
                let text = format!("{who} did not tell what it holds: {}", line(reason));
                found.push(Finding::new(Kind::Unanswered, text));
            }
        }
    }
}

fn differences(peer: &CheckedPeer) -> String {
    let tables: Vec<_> = peer
        .tables
        .iter()
        .take(KEYS_MAX)
        .map(|it| shown(it))
        .collect();
    if tables.is_empty() {
        return String::new();
    }
    let differing = peer.differences.iter().take(KEYS_MAX);
    let keys = differing.map(|it| format!("{}/{}", shown(&it.table), shown(&it.key)));
    let keys: Vec<_> = keys.collect();
    let count = peer.differences.len();
    let more = if peer.is_cut { " or more" } else { "" };
    let (tables, keys) = (tables.join(", "), keys.join(", "));
    format!(": {count} keys{more} in tables {tables}, first {keys}")
}

/// Entries of nodes that are not in the cluster or not attached to the network.
fn owners(network: &Network, members: &[Member], found: &mut Vec<Finding>) {
    let is_gone = |state: &str| ["left", "down"].contains(&state);
    let present = members.iter().filter(|it| !is_gone(&it.state));
    let present: BTreeSet<&str> = present.map(|it| it.id.as_str()).collect();
    for (owner, (count, table, key)) in &network.owners {
        let attached = network.peers.as_ref();
        let what = if !members.is_empty() && !present.contains(owner.as_str()) {
            "is no member of the cluster"
        } else if attached.is_some_and(|attached| !attached.contains(owner)) {
            "is not attached to the network"
        } else {
            continue;
        };
        let (name, owner) = (shown(&network.name), shown(owner));
        let (table, key) = (shown(table), shown(key));
        let text = format!(
            "network {name}: {count} entries are of {owner}, which {what}; one is {table}/{key}"
        );
        found.push(Finding::new(Kind::Owner, text));
    }
}

fn records(network: &Network, found: &mut Vec<Finding>) {
    for (table, key) in &network.records.unreadable {
        let (name, key) = (shown(&network.name), shown(key));
        let text =
            format!("network {name}: {table}: the value of key {key} is no record of this table");
        found.push(Finding::new(Kind::Record, text));
    }
}

/// Members, first syncs, health and counters.
fn cluster(facts: &Facts, found: &mut Vec<Finding>) {
    let mut add = |kind, text| found.push(Finding::new(kind, text));
    for member in &facts.members {
        if BAD_STATES.contains(&member.state.as_str()) {
            let addr = member.addr.as_deref().unwrap_or("no known address");
            let (id, state) = (shown(&member.id), &member.state);
            add(Kind::Member, format!("{id} at {} is {state}", line(addr)));
        }
    }
    if let Some(node) = &facts.node {
        if !node.in_cluster {
            add(
                Kind::Member,
                format!("{} has left the cluster", shown(&node.id)),
            );
        }
        if node.health_score > 0 {
            let score = node.health_score;
            add(
                Kind::Health,
                format!("score {score}: this node runs late, 0 would be healthy"),
            );
        }
    }
    for sync in facts.syncs.iter().filter(|sync| !sync.is_done) {
        let (name, records) = (shown(&sync.network), sync.records);
        let seconds = sync.elapsed_ms / 1_000.0;
        add(
            Kind::Sync,
            format!(
                "network {name}: first sync not done after {seconds:.1} s and {records} records"
            ),
        );
    }
    for (name, count) in &facts.stats {
        let is_loss = name.starts_with("dropped_") || name.starts_with("refused_");
        if is_loss && count.as_u64().is_some_and(|count| count > 0) {
            add(Kind::Counter, format!("{} is {count}", line(name)));
        }
    }
}

/// Commands that did not work, and what the archive lacks.
fn machine(facts: &Facts, found: &mut Vec<Finding>) {
    let mut add = |kind, text| found.push(Finding::new(kind, text));
    if facts.host.is_limited {
        let text = "not run as root, so much of the kernel's state is missing";
        add(Kind::Command, text.to_owned());
    }
    for program in &facts.host.missing {
        add(Kind::Command, format!("{} is not installed", line(program)));
    }
    for command in &facts.host.hung {
        add(
            Kind::Command,
            format!("{} was killed, it took too long", line(command)),
        );
    }
    for command in &facts.host.failed {
        add(
            Kind::Command,
            format!("{} ended with an error", line(command)),
        );
    }
    for what in &facts.cut {
        add(Kind::Cut, line(what));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::facts::{Consistency, KeyDifference, Node, Sync};
    use super::*;

    fn lines(facts: &Facts) -> Vec<String> {
        let text = render("", facts, &findings(facts, false), false);
        let flags = text.lines().filter(|line| line.starts_with("FLAG"));
        flags.map(str::to_owned).collect()
    }

    fn network(name: &str) -> Network {
        Network {
            name: name.into(),
            ..Network::default()
        }
    }

    fn member(id: &str, state: &str) -> Member {
        Member {
            id: id.into(),
            addr: None,
            state: state.into(),
        }
    }

    #[test]
    fn nothing_learned_is_nothing_found() {
        let facts = Facts::default();
        assert!(lines(&facts).is_empty());
        assert_eq!(verdict(&findings(&facts, false)), Verdict::Fine);
        assert!(render("", &facts, &[], false).ends_with("\n0 findings\n"));
    }

    #[test]
    fn a_peer_that_differs_is_flagged_with_tables_and_keys() {
        let key = |key: &str| KeyDifference {
            table: "t".into(),
            key: key.into(),
        };
        let peer = |id: &str, outcome: &str| CheckedPeer {
            id: id.into(),
            addr: "192.0.2.1:7946".into(),
            outcome: outcome.into(),
            ..CheckedPeer::default()
        };
        let differing = CheckedPeer {
            tables: vec!["t".into()],
            differences: vec![key("a"), key("b\nFLAG x")],
            ..peer("two", "differs")
        };
        let silent = CheckedPeer {
            reason: Some("no answer".into()),
            ..peer("three", "failed")
        };
        let mut facts = Facts {
            networks: vec![Network {
                consistency: Some(Consistency {
                    peers: vec![silent, peer("one", "equal"), differing],
                }),
                ..network("n")
            }],
            ..Facts::default()
        };
        assert_eq!(
            lines(&facts),
            [
                r#"FLAG differs: network "n": node "two" at 192.0.2.1:7946 holds something else: 2 keys in tables "t", first "t"/"a", "t"/"b\u{a}FLAG x""#,
                r#"FLAG unanswered: network "n": node "three" at 192.0.2.1:7946 did not tell what it holds: no answer"#,
            ]
        );
        assert_eq!(verdict(&findings(&facts, false)), Verdict::Flagged);
        let checked = facts.networks[0].consistency.as_mut().unwrap();
        checked.peers.pop();
        assert_eq!(verdict(&findings(&facts, false)), Verdict::Unchecked);
    }

    #[test]
    fn entries_of_nodes_that_are_not_there_are_flagged() {
        let owned = |owner: &str| (owner.to_owned(), (2, "t".to_owned(), "k".to_owned()));
        let facts = Facts {
            members: vec![
                member("a", "alive"),
                member("b", "alive"),
                member("c", "left"),
            ],
            networks: vec![Network {
                peers: Some(BTreeSet::from(["a".to_owned()])),
                owners: ["a", "b", "c", "d"].map(owned).into(),
                ..network("n")
            }],
            ..Facts::default()
        };
        let found = lines(&facts);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].contains("2 entries are of \"b\", which is not attached"));
        assert!(found[1].contains("of \"c\", which is no member"));
        assert!(found[2].contains("of \"d\", which is no member"));
    }

    #[test]
    fn members_syncs_health_and_counters_are_flagged_when_bad() {
        let facts = Facts {
            node: Some(Node {
                in_cluster: true,
                health_score: 2,
                ..Node::default()
            }),
            members: vec![
                member("a", "alive"),
                member("b", "down"),
                member("c", "left"),
            ],
            syncs: vec![
                Sync::default(),
                Sync {
                    is_done: true,
                    ..Sync::default()
                },
            ],
            stats: BTreeMap::from([
                ("dropped_push".to_owned(), json!(3)),
                ("refused_seal".to_owned(), json!(0)),
                ("events_received".to_owned(), json!(9)),
            ]),
            ..Facts::default()
        };
        let found = lines(&facts);
        let kinds = found
            .iter()
            .map(|line| line.split(':').next().unwrap_or_default());
        let kinds: Vec<_> = kinds.collect();
        assert_eq!(
            kinds,
            ["FLAG member", "FLAG sync", "FLAG health", "FLAG counter"]
        );
        assert!(found[3].ends_with("dropped_push is 3"));
        assert_eq!(verdict(&findings(&facts, false)), Verdict::Fine);
    }

    #[test]
    fn without_the_agent_nothing_counts_as_checked() {
        let mut facts = Facts {
            unreachable: Some("connect: refused".into()),
            ..Facts::default()
        };
        facts.host.missing.insert("ipvsadm".into());
        let found = lines(&facts);
        assert!(found[0].starts_with("FLAG agent: does not tell"));
        assert_eq!(found[1], "FLAG command: ipvsadm is not installed");
        assert_eq!(verdict(&findings(&facts, false)), Verdict::Unchecked);
    }

    #[test]
    fn many_findings_of_a_kind_are_counted() {
        let members = (0..150).map(|index| member(&format!("m{index}"), "down"));
        let facts = Facts {
            members: members.collect(),
            ..Facts::default()
        };
        assert_eq!(lines(&facts).len(), LINES_MAX);
        let text = render("", &facts, &findings(&facts, false), false);
        assert!(
            text.ends_with("INFO member: and 50 more\n150 findings\n"),
            "{text}"
        );
    }
}
