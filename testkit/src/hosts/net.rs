//! Namespaces, links and addresses.
//!
//! The switch namespace holds the bridge `br0` with a port `pN` for host N, whose other end is `eth0` there. All of it
//! is made inside the namespaces, nothing passes through the one of the caller.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use super::command::{ip, run, run_marked};
use super::state::State;
use crate::e2e::process::{SOON, until};

/// Where `ip` keeps named namespaces.
const NAMED: &str = "/run/netns";

/// What `ip netns exec NAME` binds over `/etc`.
const ETC: &str = "/etc/netns";

impl State {
    /// Returns the namespace of a host.
    #[must_use]
    pub fn namespace(&self, host: usize) -> String {
        format!("tk-{}-{host}", self.name)
    }

    /// Returns the namespace of the switch.
    #[must_use]
    pub fn switch(&self) -> String {
        format!("tk-{}-sw", self.name)
    }

    /// Returns every namespace, the switch last.
    #[must_use]
    pub fn namespaces(&self) -> Vec<String> {
        let hosts = (1..=self.count).map(|host| self.namespace(host));
        hosts.chain([self.switch()]).collect()
    }

    /// Returns the address of a host.
    #[must_use]
    pub fn address(&self, host: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.subnet, last_byte(host))
    }

    /// Returns the IPv6 address of a host.
    #[must_use]
    pub fn address_v6(&self, host: usize) -> Ipv6Addr {
        let [subnet, host] = [self.subnet, last_byte(host)].map(u16::from);
        Ipv6Addr::new(0xfd77, 0, 0, subnet, 0, 0, 0, host)
    }

    /// Refuses a host that is none of them.
    pub(super) fn check_host(&self, host: usize) -> Result<()> {
        ensure!(
            (1..=self.count).contains(&host),
            "{} has hosts 1 to {}, not {host}",
            self.name,
            self.count
        );
        Ok(())
    }
}

/// Returns the last byte of a host's addresses; the first one is left to whoever needs a gateway.
fn last_byte(host: usize) -> u8 {
    u8::try_from(host + 1).expect("hosts are fewer than HOSTS_MAX")
}

/// Returns the file that stands for a namespace.
pub(super) fn path(namespace: &str) -> PathBuf {
    Path::new(NAMED).join(namespace)
}

/// Refuses to go on if a namespace to be made is there already: it belongs to somebody else.
pub(super) fn check_free(state: &State) -> Result<()> {
    for namespace in state.namespaces() {
        let path = path(&namespace);
        ensure!(
            !path.exists(),
            "{} is there already, and not ours",
            path.display()
        );
    }
    Ok(())
}

/// Makes everything; a failure leaves a part of it, which is for the caller to take down.
pub(super) fn build(state: &State) -> Result<()> {
    let switch = state.switch();
    let add = |namespace: &String| format!("netns add {namespace}\n");
    let lines: String = state.namespaces().iter().map(add).collect();
    // What else is made is in these, and goes with them.
    run_marked("ip", &["-batch", "-"], &lines, Some(state.mark()))?;
    enter(&switch, quiet_switch)??;
    let bridge = "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0";
    let up = ["link set lo up", bridge, "link set br0 up"].map(str::to_owned);
    ip(Some(&switch), &up)?;
    let link = |host: usize| {
        let [name, subnet] = [state.namespace(host), format!("{:02x}", state.subnet)];
        let byte = last_byte(host);
        format!(
            "link add p{host} netns {switch} address 02:77:53:57:{subnet}:{byte:02x} \
             type veth peer name eth0 netns {name} address 02:77:00:00:{subnet}:{byte:02x}"
        )
    };
    let hosts = state.hosts();
    ip(
        None,
        &hosts.iter().map(|host| link(*host)).collect::<Vec<_>>(),
    )?;
    let port = |host: &usize| format!("link set p{host} master br0 up");
    ip(Some(&switch), &hosts.iter().map(port).collect::<Vec<_>>())?;
    let names = names(state);
    for host in &hosts {
        set_up(state, *host, &names)?;
    }
    let ports: Vec<_> = hosts.iter().map(|host| format!("p{host}")).collect();
    wait_for_ports(state, &ports)
}

/// Waits until ports of the bridge forward: the kernel lets them when it gets to notice that both ends of a link are up
/// (linkwatch), and drops frames until then.
pub(super) fn wait_for_ports(state: &State, ports: &[String]) -> Result<()> {
    let switch = state.switch();
    let list = [
        "-n", &switch, "-json", "-details", "link", "show", "master", "br0",
    ];
    until("ports of the bridge to forward", SOON, || {
        let links: Vec<Value> = serde_json::from_str(&run("ip", &list, "")?)?;
        let forwards = |port: &String| {
            let is_it = |link: &&Value| link["ifname"] == port.as_str();
            let link = links.iter().find(is_it);
            link.is_some_and(|link| link["linkinfo"]["info_slave_data"]["state"] == "forwarding")
        };
        Ok(ports.iter().all(forwards))
    })
    .map(drop)
}

/// Lets the switch say nothing of its own and leaves bridged packets to the rules of bridges.
fn quiet_switch() -> Result<()> {
    let net = Path::new("/proc/sys/net");
    // What the kernel was built without needs no silencing.
    for (key, value) in [
        ("ipv6/conf/default/disable_ipv6", "1"),
        ("bridge/bridge-nf-call-iptables", "0"),
        ("bridge/bridge-nf-call-ip6tables", "0"),
        ("bridge/bridge-nf-call-arptables", "0"),
    ] {
        match fs::write(net.join(key), value) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("write {key}"));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Gives a host its addresses and names.
fn set_up(state: &State, host: usize, names: &str) -> Result<()> {
    let namespace = state.namespace(host);
    let [v4, v6] = [
        state.address(host).to_string(),
        state.address_v6(host).to_string(),
    ];
    let lines = [
        "link set lo up".to_owned(),
        format!("addr add {v4}/24 dev eth0"),
        format!("addr add {v6}/64 dev eth0 nodad"),
        "link set eth0 up".to_owned(),
        // Nobody is there; but programs that look for the interface of the default route find one.
        "route add default dev eth0".to_owned(),
    ];
    ip(Some(&namespace), &lines)?;
    // A relay in user space sees what is sent: without this, frames without checksums and larger than the MTU.
    let offload = ["-K", "eth0", "tx", "off", "tso", "off", "gso", "off"];
    enter(&namespace, || run("ethtool", &offload, ""))??;
    let dir = Path::new(ETC).join(&namespace);
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    fs::write(dir.join("hosts"), names)?;
    // No server: what the hosts file lacks is unknown at once.
    fs::write(dir.join("resolv.conf"), "options attempts:1 timeout:1\n")?;
    Ok(())
}

/// Returns the hosts file.
fn names(state: &State) -> String {
    let mut text = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n".to_owned();
    for host in state.hosts() {
        let (v4, v6) = (state.address(host), state.address_v6(host));
        let all: String = state
            .names_of_all
            .iter()
            .map(|name| format!(" {name}"))
            .collect();
        writeln!(text, "{v4} host{host}{all}\n{v6} host{host}.v6")
            .expect("a string takes every write");
    }
    text
}

/// Removes the namespaces and their files, as far as they are there.
pub(super) fn remove(state: &State) -> Result<()> {
    let all = state.namespaces();
    let there = all.iter().filter(|namespace| path(namespace).exists());
    let delete = |namespace: &String| format!("netns delete {namespace}");
    let lines: Vec<_> = there.map(delete).collect();
    if !lines.is_empty() {
        ip(None, &lines)?;
    }
    for namespace in all {
        match fs::remove_dir_all(Path::new(ETC).join(&namespace)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {ETC}/{namespace}"));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Runs something on a thread of its own inside a namespace of ours.
pub(super) fn enter<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
    enter_file(&path(namespace), work)
}

/// Runs something on a thread of its own inside the namespace that a file stands for. Sockets it opens and processes it
/// starts stay there.
pub fn enter_file<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    #[expect(clippy::disallowed_methods, reason = "the thread ends right after")]
    let inside = || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(work())
    };
    let result = thread::scope(|scope| scope.spawn(inside).join());
    result.map_err(|_| anyhow!("a thread in {} panicked", path.display()))?
}
