//! A node of the cluster under test, with a diagnostic server that everybody may ask.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, anyhow, ensure};
use diagnostic::logfmt::Logger;
use diagnostic::{Access, Server};
use networkdb::node::{NetworkDb, NodeConfig};
use nix::net::if_::InterfaceFlags;
use testkit::service;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::args::ServerArgs;
use crate::log;

/// Names the node.
const TASK_ID: &str = "TASK_ID";

/// The interface that containers of a service reach each other by.
const INTERFACE: &str = "eth0";

/// Runs a node until SIGTERM or Ctrl-C.
pub(crate) async fn run(args: ServerArgs, log: Logger) -> Result<()> {
    log::start(log);
    let task = std::env::var(TASK_ID).ok().filter(|task| !task.is_empty());
    let task = task
        .with_context(|| format!("{TASK_ID} is not set in the environment: it names the node"))?;
    info!("[SERVER] Starting node {task} on port {}", args.port);
    let ip = match args.bind_addr {
        Some(ip) => ip,
        None => interface_addr(INTERFACE)?.into(),
    };
    info!("{task} uses IP {ip}");
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen to signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen to signals")?;
    let server = Server::bind(diagnostic_addr(ip, args.port)).await?;
    let server = server.with_access(Access::open());
    let config = NodeConfig {
        hostname: task,
        bind: SocketAddr::new(ip, args.bind_port),
        insecure_gossip: true,
        state_dir: args.state_dir,
        ..NodeConfig::default()
    };
    // The text says everything that the sources would say again.
    let db = NetworkDb::start(config)
        .await
        .map_err(|error| anyhow!("{error}"))?;
    service::mount(server.routes(), &db)?;
    warn!(
        "gossip is not encrypted, and the diagnostic server lets everybody read and change the cluster who reaches port {}: \
         this server is for tests",
        server.local_addr().port()
    );
    say(&format!("gossip listening on {}", db.gossip_addr()));
    say(&format!(
        "diagnostic server listening on {}",
        server.local_addr()
    ));
    let running = server.serve(db.clone());
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        reason = db.stopped() => return reason.map_or(Ok(()), |reason| Err(reason.into())),
    }
    info!("leaving the cluster");
    tokio::join!(db.close(), running.stop());
    Ok(())
}

/// Returns where the diagnostic server listens: everywhere, unless the node is one of several on this machine.
fn diagnostic_addr(ip: IpAddr, port: u16) -> SocketAddr {
    let ip = match ip {
        ip if ip.is_loopback() => ip,
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(ip, port)
}

/// Returns the first IPv4 address of an interface that is up.
fn interface_addr(name: &str) -> Result<Ipv4Addr> {
    let interfaces = nix::ifaddrs::getifaddrs().context("cannot list the interfaces")?;
    let all: Vec<_> = interfaces.filter(|it| it.interface_name == name).collect();
    ensure!(
        !all.is_empty(),
        "there is no interface {name}, give --bind-addr"
    );
    let is_up = all
        .iter()
        .any(|it| it.flags.contains(InterfaceFlags::IFF_UP));
    ensure!(is_up, "the interface {name} is down");
    let addrs = all
        .iter()
        .filter_map(|it| it.address.as_ref()?.as_sockaddr_in().map(|it| it.ip()));
    let mut addrs = addrs.filter(|addr| !addr.is_loopback());
    addrs
        .next()
        .with_context(|| format!("the interface {name} has no IPv4 address, give --bind-addr"))
}

/// Prints a line on stdout.
fn say(line: &str) {
    // The reader may be gone; a node works on without one.
    drop(writeln!(std::io::stdout(), "{line}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_keeps_the_diagnostic_server_from_listening_everywhere() {
        for (ip, addr) in [
            ("127.0.0.3", "127.0.0.3:8000"),
            ("::1", "[::1]:8000"),
            ("192.0.2.1", "0.0.0.0:8000"),
            ("2001:db8::1", "[::]:8000"),
        ] {
            let addr: SocketAddr = addr.parse().unwrap();
            assert_eq!(diagnostic_addr(ip.parse().unwrap(), 8000), addr);
        }
    }

    #[test]
    fn an_interface_that_is_not_there_is_told() {
        let error = interface_addr("no-such-one").unwrap_err();
        assert!(error.to_string().contains("no-such-one"), "{error}");
    }
}
