//! What others do to services, what agents find when they start again, and who has the balancer's address.

use super::*;

/// Two replicas on two hosts and a client on the first.
fn bed_of_two(
    name: &str,
    subnet: u8,
    args: &[&str],
) -> Result<Option<(Overlay, [Replica; 2], Container)>> {
    let Some(bed) = up(name, 2, subnet, args)? else {
        return Ok(None);
    };
    let replicas = replicas(&bed, |record| {
        record.ingress_ports = vec![published(Protocol::Udp, 8_080)];
    })?;
    let client = bed.container(1, "ov1", 50, &SUBNETS)?;
    balanced(&bed, &[1, 2], 1, 2)?;
    // What is repaired before all records are known is not counted.
    until("all records to be known", SOON, || {
        let told = bed.get(1, "/v1/services")?;
        Ok(told["networks"][0]["settling"] == false)
    })?;
    let vip = at([10, 0, 1, 201].into());
    until("all to be known everywhere", SOON, || {
        Ok(client.enter(|| count_tcp(vip, 2, WITHIN))?.is_ok())
    })?;
    Ok(Some((bed, replicas, client)))
}

fn differs(bed: &Overlay) -> Result<u64> {
    let told = bed.get(1, "/v1/services/ov1")?;
    told["operations"]
        .as_u64()
        .context("a number of operations")
}

/// How many changes of others have been set right.
fn drift(bed: &Overlay) -> Result<u64> {
    let told = bed.get(1, "/v1/services")?;
    told["networks"][0]["drift"].as_u64().context("a count")
}

#[test]
fn what_others_change_is_found_and_repaired() -> Result<()> {
    let Some((bed, _replicas, client)) = bed_of_two("meddle", 141, &[])? else {
        return Ok(());
    };
    let vip = at([10, 0, 1, 201].into());
    let services = "inet networkdb-services";
    for line in [
        format!("nft delete table {services}"),
        format!("nft delete element {services} vips4 {{ 10.0.1.201 }}"),
        format!("nft flush chain {services} choose"),
        // A wrong member, and as many as before.
        format!("nft -f {}", wrong_member(&bed)?.display()),
        "nft delete table inet networkdb-sources".to_owned(),
        "nft delete element inet networkdb-sources frontends4 { 10.0.1.201 }".to_owned(),
        "nft delete element inet networkdb-sources sources4 { 10.0.1.0/24 }".to_owned(),
        "ip link del uplink".to_owned(),
    ] {
        bed.look_at_services(1, "ov1")?;
        let before = drift(&bed)?;
        bed.meddle(1, "ov1", &line)?;
        // Unless the agent has looked by itself in the meantime.
        let is_found = differs(&bed)? > 0 || drift(&bed)? > before;
        ensure!(is_found, "not found: {line}");
        bed.look_at_services(1, "ov1").context(line.clone())?;
        ensure!(differs(&bed)? == 0, "not repaired: {line}");
        let counts = client.enter(|| count_tcp(vip, 10, WITHIN))??;
        ensure!(is_fair(&counts, 2), "{line}: {counts:?}");
    }
    // On the host itself.
    bed.look_at_services(1, "ov1")?;
    let before = drift(&bed)?;
    let output = bed
        .on(1)?
        .args(["nft", "delete", "table", "inet", "networkdb-ingress"])
        .output()?;
    ensure!(output.status.success(), "{output:?}");
    let is_found = differs(&bed)? > 0 || drift(&bed)? > before;
    ensure!(is_found, "the rules of the host are not missed");
    bed.look_at_services(1, "ov1")?;
    let published = SocketAddr::from((bed.hosts.address(1)?, 8_080));
    bed.hosts.enter(2, || count_udp(published, 4, WITHIN))??;
    // The kernel tells of addresses by itself.
    bed.meddle(1, "ov1", "ip addr del 10.0.1.201/32 dev br4097")?;
    until("the address to be back", SOON, || Ok(differs(&bed)? == 0))?;
    client.enter(|| count_tcp(vip, 2, WITHIN))??;
    Ok(())
}

/// Writes a script that puts another address in the place of a replica's.
fn wrong_member(bed: &Overlay) -> Result<std::path::PathBuf> {
    let rules = bed.meddle(1, "ov1", "nft list table inet networkdb-services")?;
    let told = bed.get(1, "/v1/services/ov1")?;
    let held = told["held"].as_array().cloned().unwrap_or_default();
    let vip = held.iter().find(|one| one["frontend"] == "10.0.1.201");
    let index = vip
        .and_then(|one| one["index"].as_u64())
        .context("an index")?;
    ensure!(rules.contains(&format!("chain s{index} ")), "{rules}");
    let path = std::env::temp_dir().join(format!("wrong-{}.nft", std::process::id()));
    let chain = format!("inet networkdb-services s{index}");
    std::fs::write(
        &path,
        format!(
            "flush chain {chain}\nadd rule {chain} dnat ip to numgen inc mod 2 \
             map {{ 0 : 10.0.1.11, 1 : 10.0.1.99 }} comment \"rr\"\n"
        ),
    )?;
    Ok(path)
}

#[test]
fn an_agent_that_starts_again_breaks_no_connection_and_changes_nothing() -> Result<()> {
    let Some((mut bed, _replicas, client)) = bed_of_two("again", 142, &[])? else {
        return Ok(());
    };
    let vip = at([10, 0, 1, 201].into());
    let mut talks = Vec::new();
    for _ in 0..4 {
        talks.push(client.enter(|| Talk::start(vip, WITHIN))??);
    }
    let rules = |bed: &Overlay| bed.meddle(1, "ov1", "nft -a list ruleset");
    let before = rules(&bed)?;
    bed.end(1, Signal::KILL)?;
    for talk in &mut talks {
        talk.say("without an agent")?;
    }
    client.enter(|| count_tcp(vip, 4, WITHIN))??;
    bed.start(1)?;
    balanced(&bed, &[1], 1, 2)?;
    until("the network to be settled", SOON, || {
        Ok(bed.report(1, "ov1")?["state"] == "synced")
    })?;
    bed.look_at_services(1, "ov1")?;
    let after = rules(&bed)?;
    let lost = before.lines().filter(|line| !after.contains(line));
    let lost: Vec<&str> = lost.collect();
    ensure!(before == after, "changed, of before: {lost:#?}");
    for talk in &mut talks {
        talk.say("with another agent")?;
    }
    // A balancer that is switched off takes what was there with it.
    bed.end(1, Signal::TERM)?;
    bed.start_with(1, &["--load-balancer", "off"])?;
    until("the tables to be gone", SOON, || {
        let addresses = bed.meddle(1, "ov1", "ip -o addr")?;
        Ok(!rules(&bed)?.contains("networkdb") && !addresses.contains("/32"))
    })?;
    let told = bed.send(1, "GET", "/v1/services/ov1", "")?;
    ensure!(
        told.status == 409 && told.body.contains("--load-balancer off"),
        "{}",
        told.body
    );
    Ok(())
}

#[test]
fn a_balancer_whose_address_is_taken_has_another() -> Result<()> {
    let Some((bed, _replicas, client)) = bed_of_two("address", 143, &[])? else {
        return Ok(());
    };
    let source = |bed: &Overlay| -> Result<String> {
        let told = bed.get(1, "/v1/services")?;
        let source = told["networks"][0]["sources"][0].as_str();
        Ok(source.context("a source")?.to_owned())
    };
    let before = source(&bed)?;
    let last: u8 = before.rsplit('.').next().context("a last byte")?.parse()?;
    let _container = bed.container(2, "ov1", last, &["10.0.1.0/24"])?;
    until("another address", SOON, || Ok(source(&bed)? != before))?;
    balanced(&bed, &[1], 1, 2)?;
    let vip = at([10, 0, 1, 201].into());
    until("the new address to be known everywhere", SOON, || {
        let counts = client.enter(|| count_tcp(vip, 4, WITHIN))?;
        Ok(counts.is_ok_and(|counts| counts.len() == 2))
    })?;
    Ok(())
}
