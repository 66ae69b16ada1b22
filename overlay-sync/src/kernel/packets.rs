//! Sockets for frames of a segment, in the namespace of its network. Needs `CAP_NET_RAW`.

use std::io::{self, ErrorKind, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::path::Path;

use networkdb::NetworkId;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{LinkAddr, bind};
use socket2::{Domain, Protocol, Socket, Type};

use super::Vni;
use super::links::{bridge_name, vxlan_name};
use super::netns::{self, Namespaces};

/// Sends by the VXLAN device of a segment, and receives what its bridge is sent.
#[derive(Debug)]
pub(crate) struct Packets {
    out: Socket,
    into: Socket,
}

impl Packets {
    /// Opens the sockets for frames of a type; none while the network has no namespace, or the segment no devices.
    pub(crate) fn open(
        dir: &Path,
        network: &NetworkId,
        vni: Vni,
        ether_type: u16,
    ) -> io::Result<Option<Self>> {
        let Some(namespace) = Namespaces::new(dir).open(network)? else {
            return Ok(None);
        };
        netns::inside(&namespace, || {
            let (mut vxlan, mut bridge) = (None, None);
            for interface in getifaddrs()? {
                let Some(addr) = interface.address.and_then(|it| it.as_link_addr().copied()) else {
                    continue;
                };
                match interface.interface_name {
                    name if name == vxlan_name(vni) => vxlan = Some(addr),
                    name if name == bridge_name(vni) => bridge = Some(addr),
                    _ => {}
                }
            }
            let (Some(vxlan), Some(bridge)) = (vxlan, bridge) else {
                return Ok(None);
            };
            Ok(Some(Self {
                // Of no protocol: it receives nothing.
                out: socket(0, &vxlan)?,
                into: socket(ether_type, &bridge)?,
            }))
        })
    }

    /// Sends a frame.
    pub(crate) fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.out.send(frame).map(drop)
    }

    /// Receives the beginning of a frame, as much as there is room for; none when there is no more.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match (&self.into).read(buffer) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Packets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.into.as_fd()
    }
}

fn socket(ether_type: u16, link: &LinkAddr) -> io::Result<Socket> {
    let protocol = Protocol::from(i32::from(ether_type.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
    socket.set_nonblocking(true)?;
    bind(socket.as_raw_fd(), link)?;
    Ok(socket)
}
