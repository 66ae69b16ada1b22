//! Who lists whom: the commands that look at peers and queues, and those that join and leave.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use diagnostic::logfmt::Logger;
use testkit::e2e::http::encode;
use tokio::time::sleep;

use crate::answer::{is_ok, number_after};
use crate::args::{Patience, Side};
use crate::servers::{Server, all_ok, each};

/// Pause between two questions for peers.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Joins each server to all others.
pub(crate) async fn join(servers: &[Server]) -> Result<()> {
    if servers.len() == 1 {
        return Ok(());
    }
    let all: Vec<IpAddr> = servers.iter().map(|server| server.ip).collect();
    let join = |server: Server| {
        let others = all.iter().filter(|ip| **ip != server.ip);
        let others: Vec<String> = others.map(member).collect();
        let target = format!("/join?members={}", others.join(","));
        async move { server.expect_ok(&target).await }
    };
    each(servers, join).await?;
    Ok(())
}

/// Takes all servers out of the cluster. Docker's servers cannot do that, and Docker's client does not ask them to.
pub(crate) async fn leave(servers: &[Server], log: &Logger) -> Result<()> {
    let leave = |server: Server| async move {
        let text = server.ask("/leave").await?;
        if is_ok(&text) {
            return Ok(None);
        }
        if text.starts_with("not implemented") {
            return Ok(Some(server.ip));
        }
        bail!("{}", server.unexpected("/leave", &text))
    };
    for ip in each(servers, leave).await?.into_iter().flatten() {
        log.warn(&format!(
            "Node {ip} stays in the cluster: it has no way to leave"
        ));
    }
    Ok(())
}

/// Attaches all servers to a network.
pub(crate) async fn join_network(servers: &[Server], network: &str) -> Result<()> {
    all_ok(servers, &format!("/joinnetwork?nid={}", encode(network))).await
}

/// Detaches all servers from a network.
pub(crate) async fn leave_network(servers: &[Server], network: &str) -> Result<()> {
    all_ok(servers, &format!("/leavenetwork?nid={}", encode(network))).await
}

/// Checks until every server lists so many peers.
pub(crate) async fn check(
    servers: &[Server],
    target: &str,
    patience: Patience,
    log: &Logger,
) -> Result<()> {
    let Patience { expected, retries } = patience;
    for retry in 1..=retries {
        let count = |server: Server| {
            let target = target.to_owned();
            async move {
                // One that does not answer may do so the next time; one that answers something else will not.
                let listed = match server.ask(&target).await {
                    Ok(text) => Ok(number_after(&text, "total entries: ")
                        .with_context(|| server.unexpected(&target, &text))?),
                    Err(error) => Err(error),
                };
                Ok((server.ip, listed))
            }
        };
        let mut is_wrong = false;
        for (ip, listed) in each(servers, count).await? {
            let mismatch = match listed {
                Ok(listed) if listed == expected => continue,
                Ok(listed) => anyhow!("Expected peers from {ip} mismatch {expected} != {listed}"),
                Err(error) => error,
            };
            if retry == retries {
                return Err(mismatch);
            }
            log.warn(&format!("{mismatch:#}"));
            is_wrong = true;
        }
        if !is_wrong {
            return Ok(());
        }
        sleep(RETRY_PAUSE).await;
    }
    Ok(())
}

/// Checks that the queue of every server is on a side of a limit.
pub(crate) async fn check_queues(
    servers: &[Server],
    network: &str,
    (side, limit): (Side, u64),
    log: &Logger,
) -> Result<()> {
    let target = format!("/networkstats?nid={}", encode(network));
    let length = |server: Server| {
        let target = target.clone();
        async move { Ok((server.ip, server.number(&target, "qlen: ").await?)) }
    };
    let lengths = each(servers, length).await?;
    let mut sum = 0_u128;
    for (ip, length) in &lengths {
        match side {
            Side::Lt if *length > limit => {
                bail!("Expected queue size from {ip} to be {length} < {limit}")
            }
            Side::Gt if *length < limit => {
                bail!("Expected queue size from {ip} to be {length} > {limit}")
            }
            Side::Lt | Side::Gt => sum += u128::from(*length),
        }
    }
    let average = sum / lengths.len() as u128;
    log.info(&format!(
        "network-stats-queue succeeded with avg queue:{average}"
    ));
    Ok(())
}

/// Writes an address as a member to join.
fn member(ip: &IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}
