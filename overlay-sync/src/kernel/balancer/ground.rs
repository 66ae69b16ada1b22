//! What balancing needs in a namespace whatever chooses the targets: the balancer's own addresses as sources, and a kernel
//! that forwards.
//!
//! Answers of a target go to the address that a connection comes from. With the client's own the target would answer past
//! the balancer, with an address that the client never asked. So connections to targets come from an address that is the
//! balancer's alone, one in each subnet, and every host has another.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::File;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::super::netns;
use super::super::socket::Refusal;
use super::nft;
use super::uplink::INNER_END;
use crate::service::plan::ServiceOp;
use crate::service::{Frontend, UPLINK};

/// The table.
pub(super) const TABLE: &str = "networkdb-sources";

/// Rules of the table, by chain.
const RULES: [(&str, usize); 2] = [("postrouting", 3), ("forward", 1)];

/// What the namespace's kernel has to do: send packets on, not tell containers of a shorter way, past the balancer, and leave
/// frames that are only bridged alone.
const SYSCTLS: [(&str, &str); 6] = [
    ("bridge/bridge-nf-call-iptables", "0"),
    ("bridge/bridge-nf-call-ip6tables", "0"),
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv6/conf/all/forwarding", "1"),
];

/// What is in the table.
#[derive(Clone, Debug, Default)]
pub(super) struct Ground {
    /// The rules that are always there are there.
    is_whole: bool,
    /// The own address by subnet.
    pub(super) sources: BTreeMap<IpNet, IpAddr>,
    /// Addresses that connections to targets were first sent to.
    pub(super) frontends: BTreeSet<IpAddr>,
}

impl Ground {
    /// Reads the table of a namespace.
    pub(super) fn read(namespace: &File) -> Result<Self, Refusal> {
        let objects = nft::list(Some(namespace), TABLE)?;
        let read = Self::of(&objects.unwrap_or_default());
        Ok(if read.is_whole { read } else { Self::default() })
    }

    fn of(objects: &[Value]) -> Self {
        let mut ground = Self {
            is_whole: nft::has_rules(objects, &RULES),
            ..Self::default()
        };
        for object in objects {
            if let Some(map) = object.get("map") {
                ground
                    .sources
                    .extend(nft::elements(map).filter_map(source_of));
            }
            if let Some(set) = object.get("set") {
                let ips = nft::elements(set).filter_map(|one| one.as_str()?.parse().ok());
                ground.frontends.extend(ips.collect::<Vec<IpAddr>>());
            }
        }
        ground
    }

    /// Applies what operations say of sources and of addresses that are frontends, in one transaction. `known` is the table
    /// as it was last read, and changed since; what it is then is returned.
    pub(super) fn apply<'a>(
        known: Option<Self>,
        namespace: &File,
        ops: impl Iterator<Item = &'a ServiceOp> + Clone,
    ) -> Result<Self, Refusal> {
        // What somebody else has changed makes it fail, and it is done again with what is there.
        if let Some(mut ground) = known.filter(|ground| ground.is_whole) {
            let script = ground.script(ops.clone());
            if nft::apply(Some(namespace), &script).is_ok() {
                return Ok(ground);
            }
        }
        let mut ground = Self::read(namespace)?;
        if !ground.is_whole {
            set_sysctls(namespace)?;
        }
        let script = ground.script(ops);
        nft::apply(Some(namespace), &script)?;
        Ok(ground)
    }

    /// Takes changes and writes what makes them.
    fn script<'a>(&mut self, ops: impl Iterator<Item = &'a ServiceOp>) -> String {
        let mut script = String::new();
        if !self.is_whole {
            self.is_whole = true;
            script.push_str(&skeleton());
        }
        for op in ops {
            self.change(op, &mut script);
        }
        script
    }

    fn change(&mut self, op: &ServiceOp, script: &mut String) {
        let version = |ip: &IpAddr| if ip.is_ipv4() { 4 } else { 6 };
        let mut write = |what: &str, name: &str, ip: &IpAddr, element: String| {
            let version = version(ip);
            writeln!(
                script,
                "{what} element inet {TABLE} {name}{version} {{ {element} }}"
            )
            .expect("a text takes everything");
        };
        match op {
            ServiceOp::SetSource(subnet, ip) => {
                match self.sources.insert(*subnet, *ip) {
                    Some(old) if old == *ip => return,
                    Some(_) => write("delete", "sources", ip, subnet.trunc().to_string()),
                    None => {}
                }
                write("add", "sources", ip, format!("{} : {ip}", subnet.trunc()));
            }
            ServiceOp::RemoveSource(subnet) => {
                if let Some(ip) = self.sources.remove(subnet) {
                    write("delete", "sources", &ip, subnet.trunc().to_string());
                }
            }
            ServiceOp::Set(Frontend::Address(ip), _) => {
                if self.frontends.insert(*ip) {
                    write("add", "frontends", ip, ip.to_string());
                }
            }
            ServiceOp::Remove(Frontend::Address(ip)) => {
                if self.frontends.remove(ip) {
                    write("delete", "frontends", ip, ip.to_string());
                }
            }
            // The address of the uplink is always among them.
            ServiceOp::Set(Frontend::Published(_), _)
            | ServiceOp::Remove(Frontend::Published(_))
            | ServiceOp::AddAddress(..)
            | ServiceOp::RemoveAddress(..)
            | ServiceOp::Forget(..) => {}
        }
    }
}

/// Writes what makes the table anew. What is routed directly keeps the address of the frontend and is no match. Packets
/// from outside are larger than tunnels carry, which the two ends learn when they meet. What leaves by the uplink is answered
/// by the host, which has no way to containers.
fn skeleton() -> String {
    let (v4, v6) = (UPLINK.v4[1], UPLINK.v6[1]);
    format!(
        "table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{
  map sources4 {{ type ipv4_addr : ipv4_addr; flags interval; }}
  map sources6 {{ type ipv6_addr : ipv6_addr; flags interval; }}
  set frontends4 {{ type ipv4_addr; elements = {{ {v4} }} }}
  set frontends6 {{ type ipv6_addr; elements = {{ {v6} }} }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ct original ip daddr @frontends4 ip daddr != @frontends4 snat ip to ip daddr map @sources4
    ct original ip6 daddr @frontends6 ip6 daddr != @frontends6 snat ip6 to ip6 daddr map @sources6
    oifname \"{INNER_END}\" masquerade
  }}
  chain forward {{
    type filter hook forward priority mangle; policy accept;
    tcp flags syn tcp option maxseg size set rt mtu
  }}
}}\n"
    )
}

fn set_sysctls(namespace: &File) -> Result<(), Refusal> {
    netns::inside(namespace, || {
        let mut all = SYSCTLS.iter();
        all.try_for_each(|(key, value)| netns::set(key, value))
    })?;
    Ok(())
}

fn source_of(element: &Value) -> Option<(IpNet, IpAddr)> {
    let prefix = &element[0]["prefix"];
    let subnet = IpNet::new(
        prefix["addr"].as_str()?.parse().ok()?,
        u8::try_from(prefix["len"].as_u64()?).ok()?,
    );
    Some((subnet.ok()?, element[1].as_str()?.parse().ok()?))
}
