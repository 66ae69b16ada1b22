//! Which packets are a service's: those to its address get its number as their firewall mark.
//!
//! A table of nftables holds what Docker has as rules such as `iptables -t mangle -A INPUT -d VIP -j MARK --set-mark 256`,
//! and tells which address has which number after a restart.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::net::IpAddr;

use serde_json::Value;

use super::super::nft;
use crate::kernel::socket::Refusal;

/// The table, of the family `inet`.
pub(super) const TABLE: &str = "networkdb-ipvs";

/// Its maps and the types of their keys.
const MAPS: [(&str, &str); 2] = [("marks4", "ipv4_addr"), ("marks6", "ipv6_addr")];

/// How many rules mark packets.
const RULES: [(&str, usize); 1] = [("input", 2)];

/// What marks packets in a namespace.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Marks {
    /// The mark of each address.
    pub(super) of: BTreeMap<IpAddr, u32>,
    /// The rules are there; without them nothing is marked.
    pub(super) is_whole: bool,
}

impl Marks {
    /// Reads what marks packets in a namespace.
    pub(super) fn read(namespace: &File) -> Result<Self, Refusal> {
        let listed = nft::list(Some(namespace), TABLE)?;
        Ok(listed.map(|objects| parse(&objects)).unwrap_or_default())
    }

    /// Makes it mark other packets in one step: addresses that have another mark now, or none. Does nothing else.
    pub(super) fn turn_into(
        &self,
        namespace: &File,
        wanted: &BTreeMap<IpAddr, u32>,
    ) -> Result<(), Refusal> {
        nft::apply(Some(namespace), &self.script(wanted))
    }

    fn script(&self, wanted: &BTreeMap<IpAddr, u32>) -> String {
        let mut script = String::new();
        let is_new = |(ip, mark): &(&IpAddr, &u32)| self.of.get(ip) != Some(mark);
        let added: Vec<_> = wanted.iter().filter(is_new).collect();
        if !self.is_whole && !wanted.is_empty() {
            script.push_str(&definition());
        }
        let is_gone = |(ip, mark): &(&IpAddr, &u32)| wanted.get(ip) != Some(mark);
        for (ip, _) in self.of.iter().filter(is_gone) {
            push(
                &mut script,
                format_args!("delete element inet {TABLE} {} {{ {ip} }}", map(*ip)),
            );
        }
        for (ip, mark) in added {
            let element = format_args!("add element inet {TABLE} {} {{ {ip} : {mark} }}", map(*ip));
            push(&mut script, element);
        }
        script
    }
}

/// Returns what makes the table, whatever of it is there.
fn definition() -> String {
    let mut script = format!("add table inet {TABLE}\n");
    for (name, key) in MAPS {
        let typed = format_args!("add map inet {TABLE} {name} {{ type {key} : mark; }}");
        push(&mut script, typed);
    }
    // IPVS looks at packets at a later priority of the same hook (`ip_vs_ops4` in net/netfilter/ipvs/ip_vs_core.c).
    let chain = "{ type filter hook input priority mangle; }";
    push(
        &mut script,
        format_args!("add chain inet {TABLE} input {chain}"),
    );
    push(&mut script, format_args!("flush chain inet {TABLE} input"));
    for (family, name) in [("ip", MAPS[0].0), ("ip6", MAPS[1].0)] {
        // Other protocols, such as ICMP, are answered by the address itself.
        let matched = "meta l4proto { tcp, udp, sctp }";
        let marked = format_args!(
            "add rule inet {TABLE} input {matched} meta mark set {family} daddr map @{name}"
        );
        push(&mut script, marked);
    }
    script
}

fn push(script: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(script, "{line}").expect("a string takes everything");
}

fn map(ip: IpAddr) -> &'static str {
    MAPS[usize::from(ip.is_ipv6())].0
}

fn parse(objects: &[Value]) -> Marks {
    let (mut marks, mut maps) = (Marks::default(), 0);
    for object in objects {
        let map = &object["map"];
        if !MAPS.iter().any(|(name, _)| map["name"] == *name) {
            continue;
        }
        maps += 1;
        marks
            .of
            .extend(nft::elements(map).filter_map(parse_element));
    }
    marks.is_whole = nft::has_rules(objects, &RULES) && maps == MAPS.len();
    marks
}

fn parse_element(element: &Value) -> Option<(IpAddr, u32)> {
    let ip = element.get(0)?.as_str()?.parse().ok()?;
    let mark = element.get(1)?.as_u64()?;
    Some((ip, u32::try_from(mark).ok()?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn listed_table_is_read() {
        let map = |name: &str, elements: Value| json!({"map": {"name": name, "elem": elements}});
        let rule = json!({"rule": {"chain": "input"}});
        let mut objects = vec![
            json!({"table": {"name": TABLE}}),
            map("marks4", json!([["10.0.0.1", 256], ["10.0.0.2", "x"], 7])),
            json!({"map": {"name": "marks6"}}),
            json!({"chain": {"name": "input"}}),
            rule.clone(),
        ];
        let read = parse(&objects);
        assert_eq!(read.of, [(ip("10.0.0.1"), 256)].into());
        assert!(!read.is_whole);
        objects.push(rule);
        objects[2] = map("marks6", json!([["fd00::1", 257]]));
        let read = parse(&objects);
        assert!(read.is_whole);
        assert_eq!(read.of[&ip("fd00::1")], 257);
    }

    #[test]
    fn only_what_differs_is_written() {
        let held = [(ip("10.0.0.1"), 256), (ip("fd00::1"), 257)];
        let marks = Marks {
            of: held.into(),
            is_whole: true,
        };
        assert_eq!(marks.script(&held.into()), "");
        let wanted = [
            (ip("10.0.0.1"), 256),
            (ip("fd00::1"), 300),
            (ip("10.0.0.3"), 258),
        ];
        let script = marks.script(&wanted.into());
        let expected = "delete element inet networkdb-ipvs marks6 { fd00::1 }\n\
            add element inet networkdb-ipvs marks4 { 10.0.0.3 : 258 }\n\
            add element inet networkdb-ipvs marks6 { fd00::1 : 300 }\n";
        assert_eq!(script, expected);
        let nothing = Marks::default();
        assert_eq!(nothing.script(&BTreeMap::new()), "");
        let script = nothing.script(&held.into());
        assert!(
            script.starts_with("add table inet networkdb-ipvs\n"),
            "{script}"
        );
    }
}
