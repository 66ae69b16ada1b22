//! What is asked of the system: the commands for the node, and those for each of its network namespaces.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::command::{Spec, find};
use super::names;

/// Namespaces that are looked at.
const NAMESPACES_MAX: usize = 500;

/// Lines of a log of the system.
const LOG_LINES: usize = 2_000;

/// Where namespaces have names, and what the archive calls them.
const NAMESPACE_DIRS: [(&str, &str); 2] = [
    ("netns", "/var/run/netns"),
    ("docker", "/var/run/docker/netns"),
];

/// A network namespace with a name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Namespace {
    /// Its directory in the archive.
    pub(super) dir: String,
    /// What people call it.
    pub(super) name: String,
    file: PathBuf,
}

/// The namespaces of this machine.
#[derive(Debug, Default)]
pub(super) struct Namespaces {
    /// Each once, sorted by directory.
    pub(super) found: Vec<Namespace>,
    /// Those beyond what is looked at.
    pub(super) left_out: usize,
}

/// Returns the commands that tell of the machine as a whole.
pub(super) fn of_machine() -> Vec<Spec> {
    let me = std::env::current_exe().unwrap_or_else(|_| "networkdb".into());
    let mut version = Spec::new("networkdb-version", "networkdb --version");
    version.args[0] = me.to_string_lossy().into_owned();
    vec![
        version,
        Spec::new("uname", "uname -a"),
        Spec::new("os-release", "cat /etc/os-release"),
        Spec::new("uptime", "uptime"),
        Spec::new("memory", "free -k"),
        Spec::new("disks", "df -k"),
        Spec::new("modules", "lsmod"),
        Spec::new("netns-list", "ip netns list"),
        Spec::new("dmesg", "dmesg").tail(LOG_LINES),
        Spec::new(
            "journal",
            "journalctl --no-pager --lines 2000 --unit networkdb",
        )
        .optional(),
    ]
}

/// Returns the commands that tell of one network namespace, the machine's own as well.
pub(super) fn of_namespace() -> Vec<Spec> {
    vec![
        Spec::new("links", "ip -d -s link"),
        Spec::new("addresses", "ip -d addr"),
        Spec::new(ADDRESSES, "ip -j addr"),
        Spec::new("rules", "ip -d rule"),
        Spec::new("rules6", "ip -6 -d rule"),
        Spec::new("routes", "ip -d route show table all"),
        Spec::new("routes6", "ip -6 -d route show table all"),
        Spec::new("neighbours", "ip -s neigh"),
        Spec::new("fdb", "bridge -d -s fdb show"),
        Spec::new("bridge-links", "bridge -d link"),
        Spec::new("bridge-vlans", "bridge vlan"),
        Spec::new("nftables", "nft -a list ruleset"),
        Spec::new("iptables", "iptables-save -c"),
        Spec::new("ip6tables", "ip6tables-save -c"),
        Spec::new("ipvs", "ipvsadm -Ln --stats"),
        // Without the program the kernel tells the same itself.
        Spec::new("proc-ip_vs", "cat /proc/net/ip_vs").optional(),
        Spec::new("proc-ip_vs_stats", "cat /proc/net/ip_vs_stats").optional(),
        Spec::new("sockets", "ss -tuanpH"),
        Spec::new(
            "sysctl",
            "sysctl -a --pattern ^net\\.(ipv4|ipv6|bridge|core|netfilter)\\.",
        ),
        Spec::new("proc-snmp", "cat /proc/net/snmp"),
        Spec::new("proc-netstat", "cat /proc/net/netstat"),
        Spec::new("proc-softnet_stat", "cat /proc/net/softnet_stat"),
        Spec::new("proc-udp", "cat /proc/net/udp"),
        Spec::new("proc-dev", "cat /proc/net/dev"),
        // Keys are left out here, and once more on the way into the archive.
        Spec::new("xfrm-state", "ip -s xfrm state list nokeys"),
        Spec::new("xfrm-policy", "ip -s xfrm policy"),
        // Never `showconf`, which prints private keys.
        Spec::new("wireguard", "wg show all").optional(),
    ]
}

/// The file whose content the summary reads.
pub(super) const ADDRESSES: &str = "addresses-json";

impl Namespace {
    /// Returns what runs a command in it; none when no program can.
    pub(super) fn prefix(&self) -> Option<Vec<String>> {
        if find("nsenter").is_some() {
            return Some(vec![
                "nsenter".into(),
                format!("--net={}", self.file.display()),
                "--".into(),
            ]);
        }
        let is_named = self.file.parent() == Some(Path::new(NAMESPACE_DIRS[0].1));
        let words = ["ip", "netns", "exec", &self.name];
        is_named.then(|| words.map(str::to_owned).to_vec())
    }
}

/// Whether the kernel shows us everything.
pub(super) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// Finds the namespaces that have names.
pub(super) fn namespaces() -> Namespaces {
    let dirs = NAMESPACE_DIRS.map(|(kind, dir)| (kind, PathBuf::from(dir)));
    let own = identity(Path::new("/proc/self/ns/net"));
    namespaces_in(&dirs, own)
}

/// Finds the namespaces in these directories, each once and without our own.
fn namespaces_in(dirs: &[(&str, PathBuf)], own: Option<(u64, u64)>) -> Namespaces {
    let mut seen: BTreeSet<(u64, u64)> = own.into_iter().collect();
    let mut all = Namespaces::default();
    for (kind, dir) in dirs {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let mut files: Vec<_> = entries.map(|entry| entry.path()).collect();
        files.sort();
        for file in files {
            let Some(identity) = identity(&file) else {
                continue;
            };
            if !seen.insert(identity) {
                continue;
            }
            if all.found.len() == NAMESPACES_MAX {
                all.left_out += 1;
                continue;
            }
            let name = file.file_name().unwrap_or_default();
            let name = name.to_string_lossy().into_owned();
            all.found.push(Namespace {
                dir: format!("namespaces/{kind}/{}", names::file(&name)),
                name,
                file,
            });
        }
    }
    all
}

/// Two files with one of these are one namespace.
fn identity(file: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(file).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_file_of_its_own() {
        let specs = [of_machine(), of_namespace()].concat();
        let files: BTreeSet<_> = specs.iter().map(|spec| &spec.name).collect();
        assert_eq!(files.len(), specs.len());
        for spec in &specs {
            assert!(!spec.line().contains("showconf"));
            assert_eq!(names::file(&spec.name), spec.name);
        }
    }

    #[test]
    fn a_namespace_with_two_names_is_one_and_our_own_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| dir.path().join(name));
        for dir in [&first, &second] {
            fs::create_dir(dir).unwrap();
        }
        fs::write(first.join("a b"), "").unwrap();
        fs::write(first.join("own"), "").unwrap();
        fs::hard_link(first.join("a b"), second.join("again")).unwrap();
        fs::write(second.join("c"), "").unwrap();
        let own = identity(&first.join("own"));
        let dirs = [
            ("one", first),
            ("two", second),
            ("three", dir.path().join("none")),
        ];
        let found = namespaces_in(&dirs, own).found;
        let dirs: Vec<_> = found.iter().map(|it| it.dir.as_str()).collect();
        assert_eq!(dirs, ["namespaces/one/a%20b", "namespaces/two/c"]);
    }
}
