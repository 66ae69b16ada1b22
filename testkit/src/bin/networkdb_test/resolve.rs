//! Which servers a service has.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tokio::net::lookup_host;

/// Returns the addresses of the name `tasks.SERVICE`, sorted, at least one; those of a file go before the system's.
pub(crate) async fn resolve(service: &str, hosts: Option<&Path>) -> Result<Vec<IpAddr>> {
    let name = format!("tasks.{service}");
    if let Some(path) = hosts {
        let text = std::fs::read_to_string(path);
        let text = text.with_context(|| format!("cannot read {}", path.display()))?;
        let addrs = in_hosts(&text, &name);
        if !addrs.is_empty() {
            return Ok(addrs.into_iter().collect());
        }
    }
    let cannot = || format!("Cannot resolve any IP for the service {name}");
    let addrs = lookup_host((name.as_str(), 0)).await.with_context(cannot)?;
    // A name is answered once for each kind of socket and each line of a hosts file.
    let addrs: BTreeSet<IpAddr> = addrs.map(|addr| addr.ip()).collect();
    ensure!(!addrs.is_empty(), cannot());
    Ok(addrs.into_iter().collect())
}

/// Returns what a hosts file says of a name.
fn in_hosts(text: &str, name: &str) -> BTreeSet<IpAddr> {
    let mut addrs = BTreeSet::new();
    for line in text.lines() {
        let mut words = line
            .split('#')
            .next()
            .unwrap_or_default()
            .split_whitespace();
        let addr = words.next().and_then(|addr| addr.parse::<IpAddr>().ok());
        if words.any(|word| word.eq_ignore_ascii_case(name)) {
            addrs.extend(addr);
        }
    }
    addrs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_files_name_each_server_on_a_line() {
        let text = "\
            # the cluster\n\
            127.0.0.3 tasks.testdb other # third\n\
            127.0.0.2\ttasks.testdb\n\
            127.0.0.2 TASKS.testdb\n\
            127.0.0.9 tasks.testdb2 testdb\n\
            127.0.0.8 # tasks.testdb\n\
            nonsense tasks.testdb\n";
        let addrs: Vec<String> = in_hosts(text, "tasks.testdb")
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(addrs, ["127.0.0.2", "127.0.0.3"]);
    }
}
