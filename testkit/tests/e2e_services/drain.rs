//! Replicas that are about to end, that end, and that die with their host.

use std::thread;

use super::*;

/// Requests of the test that loses none.
const REQUESTS: usize = 10_000;

/// Clients that make them at the same time.
const CLIENTS: usize = 8;

fn state_of(bed: &Overlay, host: usize, address: &str) -> Result<Option<String>> {
    let told = bed.get(host, "/v1/services")?;
    let services = told["networks"][0]["services"].as_array().cloned();
    let services = services.unwrap_or_default();
    let members = services
        .iter()
        .filter_map(|service| service["members"].as_array());
    let mut members = members.flatten();
    let found = members.find(|member| member["address"] == address);
    Ok(found.and_then(|member| member["state"].as_str().map(str::to_owned)))
}

/// Connects until each of so many replicas has answered, and returns one connection with each.
fn talks(from: &Container, to: SocketAddr, replicas: usize) -> Result<BTreeMap<String, Talk>> {
    let mut talks = BTreeMap::new();
    for _ in 0..10 * replicas {
        let talk = from.enter(|| Talk::start(to, WITHIN))??;
        talks.insert(talk.with.clone(), talk);
        if talks.len() == replicas {
            return Ok(talks);
        }
    }
    anyhow::bail!("only {:?} answer", talks.keys())
}

#[test]
fn a_replica_that_is_about_to_end_keeps_its_connections_and_gets_no_others() -> Result<()> {
    let Some(bed) = up("drain", 2, 132, &[])? else {
        return Ok(());
    };
    let [_one, two] = replicas(&bed, |_| ())?;
    let client = bed.container(1, "ov1", 50, &SUBNETS)?;
    balanced(&bed, &[1], 1, 2)?;
    let vip = at([10, 0, 1, 201].into());
    let mut talks = talks(&client, vip, 2)?;
    let disable = |record: &mut EndpointRecord| record.is_service_disabled = true;
    two.enlist(&bed, 1, disable)?;
    balanced(&bed, &[1], 1, 1)?;
    ensure!(state_of(&bed, 1, "10.0.1.12")?.as_deref() == Some("draining"));
    let counts = client.enter(|| count_tcp(vip, 10, WITHIN))??;
    ensure!(counts == [("r11".to_owned(), 10)].into(), "{counts:?}");
    for talk in talks.values_mut() {
        talk.say("still there")?;
    }
    // Enabled again, it is back: what Docker's never is.
    two.enlist(&bed, 1, |_| ())?;
    balanced(&bed, &[1], 1, 2)?;
    let counts = client.enter(|| count_tcp(vip, 10, WITHIN))??;
    ensure!(is_fair(&counts, 2), "{counts:?}");
    // Its last connection ends, and with it the drain, long before its time is over.
    two.enlist(&bed, 1, disable)?;
    balanced(&bed, &[1], 1, 1)?;
    talks.get_mut("r12").context("a connection")?.say("last")?;
    talks.clear();
    let took = until("the drain to end", SOON, || {
        Ok(state_of(&bed, 1, "10.0.1.12")?.as_deref() == Some("drained"))
    })?;
    note(&format!("drained {took:?} after the last connection"));
    // The address is used again, while the record of before is there still.
    let [(_, again), _] = two.records(1)?;
    bed.write_endpoint(2, "ov1", "again", &again)?;
    until("the address to be back", SOON, || {
        let counts = client.enter(|| count_tcp(vip, 10, WITHIN))??;
        Ok(is_fair(&counts, 2))
    })?;
    Ok(())
}

#[test]
fn a_drain_is_over_when_its_time_is() -> Result<()> {
    let Some(bed) = up("bound", 2, 133, &["--drain-time", "2"])? else {
        return Ok(());
    };
    let [_one, two] = replicas(&bed, |_| ())?;
    let client = bed.container(1, "ov1", 50, &SUBNETS)?;
    balanced(&bed, &[1], 1, 2)?;
    let vip = at([10, 0, 1, 201].into());
    let mut talks = talks(&client, vip, 2)?;
    two.enlist(&bed, 1, |record| record.is_service_disabled = true)?;
    until("the drain to end", SOON, || {
        Ok(state_of(&bed, 1, "10.0.1.12")?.as_deref() == Some("drained"))
    })?;
    let mut gone = talks.remove("r12").context("a connection")?;
    until("its connection to end", SOON, || Ok(gone.say("?").is_err()))?;
    talks
        .get_mut("r11")
        .context("a connection")?
        .say("still there")?;
    Ok(())
}

#[test]
fn datagrams_find_another_replica_when_theirs_is_gone() -> Result<()> {
    let Some(bed) = up("udp", 2, 134, &[])? else {
        return Ok(());
    };
    let [one, two] = replicas(&bed, |_| ())?;
    let client = bed.container(1, "ov1", 50, &SUBNETS)?;
    balanced(&bed, &[1], 1, 2)?;
    let vip = at([10, 0, 1, 201].into());
    // One flow that goes on, as that of a resolver.
    let socket = client.enter(|| std::net::UdpSocket::bind("0.0.0.0:0"))??;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let ask = || -> Result<String> {
        socket.send_to(b"who", vip)?;
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    let mut first = String::new();
    until("an answer", SOON, || {
        first = ask().unwrap_or_default();
        Ok(!first.is_empty())
    })?;
    let (gone, other) = if first == "r11" {
        (&one, "r12")
    } else {
        (&two, "r11")
    };
    for (key, _) in gone.records(1)? {
        bed.delete_endpoint(gone.host, "ov1", &key)?;
    }
    let took = until("another replica to answer", SOON, || {
        Ok(ask().is_ok_and(|name| name == other))
    })?;
    note(&format!("the flow moved after {took:?}"));
    Ok(())
}

/// Makes requests from a namespace until told to stop; returns how many, and when each that failed began.
fn requests(
    connect: impl Fn() -> Result<Talk>,
    is_over: impl Fn() -> bool,
) -> (usize, Vec<(std::time::Instant, String)>) {
    let (mut made, mut failed) = (0, Vec::new());
    while !is_over() {
        let began = now();
        made += 1;
        if let Err(error) = connect() {
            failed.push((began, format!("{error:#}")));
        }
    }
    (made, failed)
}

fn publish(record: &mut EndpointRecord) {
    record.ingress_ports = vec![published(Protocol::Tcp, 8_080)];
}

#[test]
fn no_request_is_lost_while_a_replica_is_drained_and_stopped() -> Result<()> {
    let Some(bed) = up("none", 3, 135, &[])? else {
        return Ok(());
    };
    let replicas = replicas::<3>(&bed, publish)?;
    balanced(&bed, &[1, 2, 3], 1, 3)?;
    let vip = at([10, 0, 1, 201].into());
    let outside = SocketAddr::from((bed.hosts.address(2)?, 8_080));
    let client = &replicas[0].container;
    // The first answers tell that all hosts know the way back.
    until("all to be known everywhere", SOON, || {
        let inside = client.enter(|| count_tcp(vip, 3, WITHIN))?;
        let outside = bed.hosts.enter(1, || count_tcp(outside, 3, WITHIN))?;
        Ok(inside.is_ok() && outside.is_ok())
    })?;
    let made = std::sync::atomic::AtomicUsize::new(0);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    let is_over = || made.fetch_add(1, relaxed) >= REQUESTS && stop.load(relaxed);
    let failed = thread::scope(|scope| -> Result<Vec<_>> {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (is_over, bed) = (&is_over, &bed);
                let from = &replicas[number / 2 % 3].container;
                scope.spawn(move || match number % 2 {
                    0 => from.enter(|| requests(|| Talk::start(vip, WITHIN), is_over)),
                    _ => bed
                        .hosts
                        .enter(1, || requests(|| Talk::start(outside, WITHIN), is_over)),
                })
            })
            .collect();
        let last = &replicas[2];
        last.enlist(&bed, 1, |record| {
            publish(record);
            record.is_service_disabled = true;
        })?;
        // What is on the way when it is disabled is answered still: it ends when nobody asks it any more.
        for host in 1..=3 {
            until("the drain to end", SOON, || {
                Ok(state_of(&bed, host, "10.0.1.13")?.as_deref() == Some("drained"))
            })?;
        }
        for (key, _) in last.records(1)? {
            bed.delete_endpoint(3, "ov1", &key)?;
        }
        balanced(&bed, &[1, 2, 3], 1, 2)?;
        stop.store(true, relaxed);
        let mut failed = Vec::new();
        for client in clients {
            failed.extend(client.join().ok().context("a client panicked")??.1);
        }
        Ok(failed)
    })?;
    let made = made.load(relaxed);
    note(&format!("{made} requests, {} lost", failed.len()));
    let first: Vec<_> = failed.iter().take(5).collect();
    ensure!(failed.is_empty(), "{first:?}");
    Ok(())
}

#[test]
fn a_host_that_dies_takes_only_its_own_connections_with_it() -> Result<()> {
    let Some(mut bed) = up("dies", 3, 136, &["--preset", "fast"])? else {
        return Ok(());
    };
    let mut replicas = Vec::from(replicas::<3>(&bed, |_| ())?);
    let client = bed.container(1, "ov1", 50, &SUBNETS)?;
    balanced(&bed, &[1, 2, 3], 1, 3)?;
    let vip = at([10, 0, 1, 201].into());
    let mut talks = talks(&client, vip, 3)?;
    let [is_settled, is_over] = [false; 2].map(std::sync::atomic::AtomicBool::new);
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    let (failed, down, settled) = thread::scope(|scope| -> Result<_> {
        let asking = scope.spawn(|| {
            // As long as some have to fail none takes long; afterwards a busy machine may.
            let within = || match is_settled.load(relaxed) {
                true => WITHIN,
                false => Duration::from_millis(200),
            };
            let connect = || Talk::start(vip, within());
            client.enter(|| requests(connect, || is_over.load(relaxed)))
        });
        let died = now();
        // The host is gone with all that it does: its agent, and its containers.
        replicas.truncate(2);
        bed.end(3, Signal::KILL)?;
        until("the host to be found dead", SOON, || {
            let members = bed.get(1, "/v1/members")?;
            let members = members["members"].as_array().cloned().unwrap_or_default();
            Ok(!members.iter().any(|member| {
                member["id"] == "n3"
                    && ["alive", "suspect"].contains(&member["state"].as_str().unwrap_or_default())
            }))
        })?;
        let down = now();
        note(&format!("found dead after {:?}", died.elapsed()));
        balanced(&bed, &[1, 2], 1, 2)?;
        is_settled.store(true, relaxed);
        let settled = now();
        client.enter(|| count_tcp(vip, 200, WITHIN))??;
        is_over.store(true, relaxed);
        let (_, failed) = asking.join().ok().context("the client panicked")??;
        Ok((failed, down, settled))
    })?;
    let late = failed
        .iter()
        .map(|(began, _)| began.saturating_duration_since(down))
        .max();
    note(&format!(
        "{} new connections failed, the last began {:?} after the host was found dead",
        failed.len(),
        late.unwrap_or_default()
    ));
    let after: Vec<_> = failed
        .iter()
        .filter(|(began, _)| *began > settled)
        .collect();
    ensure!(after.is_empty(), "{after:?}");
    for name in ["r11", "r12"] {
        talks
            .get_mut(name)
            .context("a connection")?
            .say("still there")?;
    }
    Ok(())
}
