//! Health probes through the tunnels: how long a packet takes to another host and back by the very way that containers'
//! packets go, and how large it may be.
//!
//! A probe is an Ethernet frame of a type for experiments, sent by a network's VXLAN device to the hardware address of the
//! other host's bridge, which every host can derive; a forwarding row leads there. So it goes through the forwarding table,
//! the encapsulation and the hosts' network, and no container sees it. The answer comes the same way.
//!
//! Every host is asked by turns with a small packet and with the largest that the network should carry. When only small ones
//! come back, sizes in between tell what passes. Answers count when they bear the number of the probe that is under way,
//! which nobody can guess; questions are answered to hosts that have endpoints of the network, and never by more than was
//! sent.

pub(crate) mod packet;
pub mod report;
pub(crate) mod table;
