//! What others do to our devices and rows, and what the commands say and do about it.

use super::*;

/// A network's device names and rows on host 1, with one remote container.
fn meddled(name: &str, subnet: u8) -> Result<Option<(Overlay, [Container; 2], Echo)>> {
    let Some(bed) = up(name, 2, subnet)? else {
        return Ok(None);
    };
    let containers = [
        bed.container(1, "ov1", 11, &SUBNETS)?,
        bed.container(2, "ov1", 12, &SUBNETS)?,
    ];
    let echo = Echo::start(&containers[1], 0)?;
    // What is repaired before all records are known is not counted.
    until("the network to be settled", SOON, || {
        Ok(bed.report(1, "ov1")?["state"] == "synced")
    })?;
    reaches(&containers[0], containers[1].ip(0)?)?;
    Ok(Some((bed, containers, echo)))
}

fn drift(bed: &Overlay) -> Result<u64> {
    let report = bed.report(1, "ov1")?;
    let drift = &report["counts"]["drift"];
    let kinds = ["fdb", "neighbours", "devices"];
    Ok(kinds.iter().filter_map(|kind| drift[kind].as_u64()).sum())
}

#[test]
fn what_others_change_is_repaired_and_counted() -> Result<()> {
    let Some((bed, [from, to], _echo)) = meddled("sabotage", 121)? else {
        return Ok(());
    };
    let mac = &to.mac;
    let vxlan = "vxlan4097";
    for line in [
        format!("bridge fdb del {mac} dev {vxlan}"),
        format!("ip neigh del {} dev {vxlan}", to.ip(0)?),
        format!("bridge fdb replace {mac} dev {vxlan} dst 10.77.121.99 self permanent"),
        format!(
            "ip neigh replace {} lladdr 02:00:00:00:00:99 dev {vxlan}",
            to.ip(0)?
        ),
        format!("ip link set {vxlan} down"),
        format!("ip link set {vxlan} nomaster"),
        format!("ip link set {vxlan} mtu 1300"),
        format!("ip link del {vxlan}"),
    ] {
        let before = drift(&bed)?;
        bed.meddle(1, "ov1", &line)?;
        let took = until("the repair", SOON, || {
            Ok(bed.differs(1, "ov1")? == 0 && drift(&bed)? > before)
        })?;
        note(&format!("repaired after {took:?}: {line}"));
        reaches(&from, to.ip(0)?)?;
    }
    Ok(())
}

#[test]
fn a_learned_row_gives_way_to_a_record() -> Result<()> {
    let Some((bed, _containers, _echo)) = meddled("learned", 122)? else {
        return Ok(());
    };
    let line = "bridge fdb add 02:42:0a:00:00:63 dev vxlan4097 dst 10.77.122.9 self dynamic";
    bed.meddle(1, "ov1", line)?;
    let container = bed.container(2, "ov1", 99, &SUBNETS)?;
    until("the record's row", SOON, || {
        let rows = bed.meddle(1, "ov1", "bridge fdb show dev vxlan4097")?;
        let mut rows = rows.lines().filter(|row| row.starts_with(&container.mac));
        Ok(rows.any(|row| row.contains("dst 10.77.122.3") && row.contains("permanent")))
    })?;
    Ok(())
}

#[test]
fn rows_and_devices_of_others_are_left_alone() -> Result<()> {
    let Some((mut bed, _containers, _echo)) = meddled("others", 123)? else {
        return Ok(());
    };
    let row = "02:00:00:00:77:77";
    bed.meddle(
        1,
        "ov1",
        &format!("bridge fdb add {row} dev vxlan4097 dst 10.77.123.3 self permanent"),
    )?;
    bed.meddle(
        1,
        "ov1",
        "ip neigh add 10.0.1.77 lladdr 02:00:00:00:77:77 dev vxlan4097 nud permanent",
    )?;
    bed.meddle(1, "ov1", "ip link add foreign type bridge")?;
    let reply = bed.send(1, "POST", "/v1/datapath/ov1/repair", "")?;
    ensure!(
        reply.status == 200 && reply.body.contains("\"operations\":0"),
        "{}",
        reply.body
    );
    bed.end(1, Signal::KILL)?;
    bed.start(1)?;
    until("the restarted agent to know all records", SOON, || {
        Ok(bed.report(1, "ov1")?["state"] == "synced")
    })?;
    let rows = bed.meddle(1, "ov1", "bridge fdb show dev vxlan4097")?;
    ensure!(rows.contains(row), "{rows}");
    let neighbours = bed.meddle(1, "ov1", "ip neigh show 10.0.1.77")?;
    ensure!(neighbours.contains(row), "{neighbours}");
    bed.meddle(1, "ov1", "ip link show foreign")?;
    Ok(())
}

#[test]
fn the_command_plans_verifies_repairs_and_cleans_up() -> Result<()> {
    let Some((mut bed, _containers, _echo)) = meddled("command", 125)? else {
        return Ok(());
    };
    // The agents of the bed have a mount namespace of their own.
    let warning = "in the mount namespace of this process alone";
    bed.agent(1)?.logged(warning, 1)?;
    let run = |bed: &Overlay, args: &[&str]| -> Result<(Option<i32>, String)> {
        let mut command = bed.on(1)?;
        command.arg(binary()?).arg("datapath").args(args);
        let output = command.output()?;
        let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.push_str(&String::from_utf8_lossy(&output.stderr));
        Ok((output.status.code(), said))
    };
    ensure!(run(&bed, &["verify"])? == (Some(0), "network ov1: OK\n".to_owned()));
    // Nobody repairs what a stopped agent does not see.
    bed.agent(1)?.signal(Signal::STOP)?;
    bed.meddle(1, "ov1", "ip neigh flush dev vxlan4097 nud permanent")?;
    bed.agent(1)?.signal(Signal::CONT)?;
    let (code, said) = run(&bed, &["repair"])?;
    ensure!(code == Some(0), "{said}");
    let (code, said) = run(&bed, &["plan", "--json"])?;
    ensure!(
        code == Some(0) && said.contains("\"operations\": 0"),
        "{said}"
    );
    let (code, said) = run(&bed, &["verify", "--network", "nosuch"])?;
    ensure!(code == Some(3) && said.contains("not attached"), "{said}");
    let (code, said) = run(&bed, &["verify", "--agent", "127.0.0.1:9"])?;
    ensure!(code == Some(3) && said.contains("127.0.0.1:9"), "{said}");
    bed.end(1, Signal::TERM)?;
    let namespace = bed.namespace(1, "ov1")?;
    let dir = namespace.parent().context("a directory")?;
    let dir = dir.to_string_lossy();
    let dir = dir
        .split_once("/root")
        .context("behind a process")?
        .1
        .to_owned();
    let cleanup = ["cleanup", "--data-path-dir", dir.as_str()];
    let (code, said) = run(&bed, &[&cleanup[..], &["--dry-run"]].concat())?;
    ensure!(
        (code, said.as_str()) == (Some(0), "network ov1: would be removed\n"),
        "{said}"
    );
    let (code, said) = run(&bed, &cleanup)?;
    ensure!(
        (code, said.as_str()) == (Some(0), "network ov1: removed\n"),
        "{said}"
    );
    ensure!(bed.namespace(1, "ov1").is_err());
    ensure!(run(&bed, &cleanup)? == (Some(0), String::new()));
    Ok(())
}
