//! What the data path needs of this process and this kernel, tried out before anything is made.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::Path;

use netlink_packet_route::link::LinkAttribute;
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, capabilities};

use super::links::{self, bridge_name, vxlan_name};
use super::netns::{self, Namespaces};
use super::rows;
use super::socket::{Refusal, Socket};
use super::{Device, Flavour, Vni};
use crate::mac::Mac;
use crate::plan::Op;

/// What is missing, in words for an operator.
#[derive(Debug, Eq, PartialEq)]
pub struct Missing(Vec<String>);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the data path cannot work here: {}", self.0.join("; "))
    }
}

impl Error for Missing {}

/// Tries out all that the data path does, in a namespace of its own that is gone afterwards, and says what is missing.
/// `dir` is where namespaces are to be. Nothing of the host's network is touched.
pub fn check(dir: &Path) -> Result<(), Missing> {
    let lacking = lacking_capabilities();
    if !lacking.is_empty() {
        return Err(Missing(lacking));
    }
    let tried = Namespaces::new(dir).attempt(|| Ok(attempt_devices()));
    let found = match tried {
        Ok(found) => found,
        Err(error) => Err(format!(
            "no namespace can be made in {}: {error}",
            dir.display()
        )),
    };
    found.map_err(|text| Missing(vec![text]))
}

/// Says which capabilities the calling thread lacks, and what they are for.
fn lacking_capabilities() -> Vec<String> {
    let needed = [
        (
            CapabilitySet::NET_ADMIN,
            "CAP_NET_ADMIN, to make devices and rows",
        ),
        (
            CapabilitySet::SYS_ADMIN,
            "CAP_SYS_ADMIN, to make network namespaces",
        ),
    ];
    let Ok(held) = capabilities(None) else {
        return vec!["the kernel does not tell the capabilities of this process".to_owned()];
    };
    let lacking = needed
        .iter()
        .filter(|(set, _)| !held.effective.contains(*set));
    let texts = lacking.map(|(_, text)| format!("this process lacks the capability {text}"));
    texts.collect()
}

/// Makes a segment with a row of each kind in the calling thread's namespace, and reads the marks back.
fn attempt_devices() -> Result<(), String> {
    let no_socket = |error: io::Error| format!("no netlink socket can be opened: {error}");
    let mut socket = Socket::open().map_err(no_socket)?;
    let namespace = netns::own().map_err(no_socket)?;
    let (device, rows) = sample();
    let bridge = links::make_bridge(&device);
    let vxlan = links::make_vxlan(&device, namespace.as_fd());
    for (request, what, option) in [
        (bridge, "bridges", "CONFIG_BRIDGE"),
        (vxlan, "VXLAN devices", "CONFIG_VXLAN"),
    ] {
        let made = socket.request(request);
        made.map_err(|refusal| lacking_kind(&refusal, what, option))?;
    }
    let index = |socket: &mut Socket, name: &str| {
        let found = links::get_named(socket, name).map_err(|refusal| refusal.to_string())?;
        let index = found.map(|link| link.index);
        index.ok_or_else(|| format!("{name} was made and is not there"))
    };
    let bridge = index(&mut socket, &bridge_name(device.vni))?;
    let vxlan = index(&mut socket, &vxlan_name(device.vni))?;
    let enslave = links::set_up(vxlan, vec![LinkAttribute::Controller(bridge)]);
    let rows = rows.iter().filter_map(|op| rows::request(vxlan, op));
    let mut refused = None;
    let requests: Vec<_> = [enslave].into_iter().chain(rows).collect();
    socket.batch(requests, |_, refusal| refused = Some(refusal));
    match refused {
        Some(refusal) => Err(format!("devices cannot be set up: {refusal}")),
        None => marks_are_kept(&mut socket, vxlan),
    }
}

fn lacking_kind(refusal: &Refusal, what: &str, option: &str) -> String {
    match refusal.is(Errno::OPNOTSUPP) {
        true => format!("the kernel has no {what}, neither built in nor as a module ({option})"),
        false => format!("{what} cannot be made: {refusal}"),
    }
}

/// Returns a segment with an endpoint; the addresses are those of RFC 5737.
fn sample() -> (Device, [Op; 2]) {
    let vni = Vni::new(Vni::MIN).expect("the lowest there is");
    let mac = Mac::new([2, 0, 0, 0, 0, 1]).expect("a unicast address");
    let ip = |last| IpAddr::from([192, 0, 2, last]);
    let device = Device {
        vni,
        port: 4_789,
        local: ip(1),
        mtu: 1_400,
        flavour: Flavour::Quiet,
        gateways: [].into(),
    };
    let rows = [
        Op::SetFdb {
            vni,
            mac,
            vtep: ip(2),
        },
        Op::SetNeighbour {
            vni,
            ip: ip(3),
            mac,
        },
    ];
    (device, rows)
}

/// Tells whether the kernel keeps what tells our rows from others.
fn marks_are_kept(socket: &mut Socket, link: u32) -> Result<(), String> {
    let text = |refusal: Refusal| format!("rows cannot be read: {refusal}");
    let (fdb, _) = rows::fdb(socket, link).map_err(text)?;
    if !fdb.values().any(|row| row.is_ours) {
        return Err("the kernel does not keep the flag NTF_STICKY of forwarding rows".to_owned());
    }
    let neighbours = rows::neighbours(socket, link).map_err(text)?;
    if !neighbours.values().any(|row| row.is_ours) {
        return Err(
            "the kernel does not keep the originator of neighbours, as from 5.2 on".to_owned(),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_was_built_without_is_named() {
        let text = |errno: Errno| lacking_kind(&errno.into(), "bridges", "CONFIG_BRIDGE");
        assert_eq!(
            text(Errno::OPNOTSUPP),
            "the kernel has no bridges, neither built in nor as a module (CONFIG_BRIDGE)"
        );
        assert!(text(Errno::PERM).starts_with("bridges cannot be made: Operation not permitted"));
    }
}
