//! The test service: real servers on loopback, driven by our client, by the requests of Docker's, and our client against a
//! server that answers as Docker's does.
//!
//! Each test has a net of loopback addresses of its own, so that all servers can have the ports of the contract.

mod docker;
mod service;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use testkit::e2e::process::{Process, SOON, Signal, until};

use crate::docker::Docker;
use crate::service::{Net, PROGRAM, Service, failed, start};

/// Wrong arguments, '' for an empty one, and what the fatal line has to say of them.
const WRONG: [(&str, &str); 26] = [
    ("", "command is missing"),
    ("serve", "serve"),
    ("server", "<PORT>"),
    ("server x", "'x'"),
    ("server 65536", "65536"),
    ("server 8000 --bind-addr host", "host"),
    ("client", "command is missing"),
    ("client explode", "explode"),
    ("client ready", "<SERVICE>"),
    ("client ready testdb", "<PORT>"),
    ("client ready testdb 0", "'0'"),
    ("client ready '' 8000", "SERVICE"),
    ("client ready testdb 8000 more", "more"),
    ("client cluster-peers testdb 8000 3", "<RETRIES>"),
    ("client cluster-peers testdb 8000 -1 3", "-1"),
    ("client cluster-peers testdb 8000 3 0", "'0'"),
    ("client join-network testdb 8000", "<NETWORK>"),
    ("client join-network testdb 8000 ''", "NETWORK"),
    ("client network-peers testdb 8000 test 3", "<RETRIES>"),
    ("client network-stats-queue testdb 8000 test eq 3", "eq"),
    ("client write-keys testdb 8000 test t 0 3", "'0'"),
    ("client write-keys testdb 8000 test t 3 0", "'0'"),
    ("client write-unique-keys testdb 8000 test t 3", "<SECONDS>"),
    (
        "client write-wait-leave-join testdb 8000 n t 3 1",
        "<LEAVERS>",
    ),
    ("client --hold 1h ready testdb 8000", "1h"),
    ("client ready testdb 8000 --hosts", "--hosts"),
];

#[test]
fn every_command_does_its_work_on_three_servers() -> Result<()> {
    let service = Service::start()?;
    let ready = service.passes("ready", &[])?;
    ensure!(ready.iter().any(|line| line.contains("got the ips")));
    service.passes("join", &[])?;
    service.passes("cluster-peers", &["3", "10"])?;
    service.passes("join-network", &["test"])?;
    service.passes("network-peers", &["test", "3", "10"])?;
    service.converges("write-keys", &["keys", "3", "20"])?;
    service.fails("write-keys", &["test", "keys", "1", "1"], "already exists")?;
    service.converges("delete-keys", &["keys", "3", "20"])?;
    service.passes("network-stats-queue", &["test", "lt", "1000"])?;
    service.passes("network-stats-queue", &["test", "gt", "0"])?;
    service.fails(
        "network-stats-queue",
        &["test", "gt", "9999"],
        "Expected queue size",
    )?;
    service.fails("network-stats-queue", &["nowhere", "lt", "9"], "qlen: -1")?;
    service.converges("write-unique-keys", &["unique", "2", "1"])?;
    service.converges("write-delete-unique-keys", &["tableBla", "3", "1"])?;
    service.converges("write-delete-leave-join", &["rounds", "3", "1"])?;
    service.converges("write-delete-wait-leave-join", &["later", "2", "1"])?;
    service.converges("write-wait-leave-join", &["some", "3", "1", "2"])?;
    service.converges("write-wait-leave", &["gone", "2", "1"])?;
    service.passes("network-peers", &["test", "1", "10"])?;
    let wrong = service.fails("network-peers", &["test", "3", "2"], "mismatch 3 != 1")?;
    ensure!(
        wrong
            .iter()
            .filter(|line| line.contains("level=warning"))
            .count()
            == 3,
        "{wrong:?}"
    );
    service.passes("leave-network", &["test"])?;
    service.passes("leave", &[])?;
    service.passes("cluster-peers", &["1", "10"])?;
    service.fails("fail", &[], "error error error")?;
    let mut asleep = service.client("debug", &[])?;
    asleep.logged("Starting with arguments", 1)?;
    asleep.signal(Signal::TERM)?;
    asleep.logged("ended by SIGTERM", 1)?;
    ensure!(asleep.exit_code()? == Some(1));
    service.stop()
}

#[test]
fn what_does_not_converge_is_told_with_servers_and_keys() -> Result<()> {
    let service = Service::attached()?;
    let addr = service.addr(2);
    ask(
        addr,
        "/createentry?unsafe&nid=test&tname=t&value=v&key=stray",
    )?;
    let timeout = ["test", "t", "1", "2", "--timeout", "5s"];
    let told = service.fails("write-keys", &timeout, "not converged within 5s")?;
    let fatal = told.last().context("a fatal line")?;
    let ip = service.ip(2);
    ensure!(
        fatal.contains(&format!("Node {ip} has 3 entries")),
        "{fatal}"
    );
    ensure!(
        fatal.contains("expected 2") && fatal.contains("has besides stray"),
        "{fatal}"
    );
    let progress = told
        .iter()
        .filter(|line| line.contains("level=info") && line.contains("expected 2"));
    ensure!(
        progress.count() >= 2,
        "the first look and a second later: {told:?}"
    );
    service.stop()
}

#[test]
fn what_diverges_again_fails() -> Result<()> {
    let service = Service::attached()?;
    let run = service.client("write-keys", &["test", "t", "3", "2", "--hold", "20s"])?;
    run.logged("converged in", 1)?;
    ask(
        service.addr(3),
        "/createentry?unsafe&nid=test&tname=t&value=v&key=stray",
    )?;
    let told = failed(run)?;
    ensure!(
        told.contains("diverged") && told.contains("stray"),
        "{told}"
    );
    service.stop()
}

#[test]
fn a_server_that_is_gone_half_way_ends_the_run() -> Result<()> {
    let service = Service::attached()?;
    let run = service.client("write-unique-keys", &["test", "t", "3", "60"])?;
    run.logged("keys so far", 1)?;
    service.servers[1].signal(Signal::KILL)?;
    let told = failed(run)?;
    ensure!(told.contains(&service.ip(3).to_string()), "{told}");
    Ok(())
}

#[test]
fn the_requests_of_dockers_client_are_answered_as_it_reads_them() -> Result<()> {
    let service = Service::start()?;
    let is_ok = |body: &str| body.contains("OK");
    for server in [2, 3, 4] {
        let addr = service.addr(server);
        until("ready", SOON, || {
            Ok(ask(addr, "/ready").is_ok_and(|body| is_ok(&body)))
        })?;
        ensure!(ask(addr, "/myip")? == format!("{}\n", service.ip(server)));
    }
    let [first, second, third] = [2, 3, 4].map(|server| service.addr(server));
    let join = format!("/join?members={},{}", third.ip(), first.ip());
    ensure!(is_ok(&ask(second, &join)?));
    for addr in [first, second, third] {
        shows(addr, "/clusterpeers", "total entries: ", 3)?;
        ensure!(is_ok(&ask(addr, "/joinnetwork?nid=test")?));
    }
    for addr in [first, second, third] {
        shows(addr, "/networkpeers?nid=test", "total entries: ", 3)?;
        ensure!(is_ok(&ask(addr, "/watchtable?nid=test&tname=tableBla")?));
        ensure!(is_ok(&ask(addr, "/watchtable?nid=test&tname=tableBla")?));
    }
    let (table, watched) = (
        "/gettable?nid=test&tname=tableBla",
        "/watchedtableentries?nid=test&tname=tableBla",
    );
    for number in 0..5 {
        let create = "/createentry?unsafe&nid=test&tname=tableBla&value=v&key=key-1-";
        ensure!(is_ok(&ask(second, &format!("{create}{number}"))?));
    }
    for addr in [first, second, third] {
        shows(addr, table, "total entries: ", 5)?;
        shows(addr, watched, "total elements: ", 5)?;
        let stats = ask(addr, "/networkstats?nid=test")?;
        ensure!(number(&stats, "qlen: ").is_some(), "{stats}");
    }
    ensure!(ask(first, watched)?.starts_with("total elements: 5\n0) k:`key-1-0` -> v:`v`\n"));
    for number in 0..5 {
        let delete = "/deleteentry?nid=test&tname=tableBla&key=key-1-";
        ensure!(is_ok(&ask(second, &format!("{delete}{number}"))?));
    }
    for addr in [first, second, third] {
        shows(addr, table, "total entries: ", 0)?;
        shows(addr, watched, "total elements: ", 0)?;
        ensure!(is_ok(&ask(addr, "/leavenetwork?nid=test")?));
    }
    service.stop()
}

#[test]
fn a_client_against_servers_that_answer_as_dockers_do() -> Result<()> {
    let net = Net::new();
    let docker = Docker::start(&net)?;
    let service = Service::of(net, Vec::new())?;
    service.passes("ready", &[])?;
    service.passes("join", &[])?;
    service.passes("cluster-peers", &["3", "2"])?;
    service.passes("join-network", &["test"])?;
    service.passes("network-peers", &["test", "3", "2"])?;
    service.passes("network-stats-queue", &["test", "lt", "2"])?;
    service.converges("write-keys", &["keys", "3", "2"])?;
    service.converges("delete-keys", &["keys", "3", "2"])?;
    service.converges("write-delete-unique-keys", &["tableBla", "1", "1"])?;
    let told = service.passes("leave", &[])?;
    ensure!(
        told.iter()
            .filter(|line| line.contains("stays in the cluster"))
            .count()
            == 3
    );
    service.passes("leave-network", &["test"])?;
    // As Docker's own client asks, to the byte; only the keys that are written for a while are as many as time allows.
    let asked = docker.asked();
    let first = service.ip(2);
    let of_first: Vec<&str> = asked
        .iter()
        .filter(|(ip, _)| *ip == first)
        .map(|(_, target)| target.as_str())
        .collect();
    let (others, place) = (
        format!("/join?members={},{}", service.ip(3), service.ip(4)),
        "nid=test&tname=keys",
    );
    let expected = [
        "/ready".to_owned(),
        others,
        "/clusterpeers".into(),
        "/joinnetwork?nid=test".into(),
        "/networkpeers?nid=test".into(),
        "/networkstats?nid=test".into(),
        format!("/watchtable?{place}"),
        format!("/createentry?unsafe&{place}&value=v&key=key-0-0"),
        format!("/createentry?unsafe&{place}&value=v&key=key-0-1"),
        format!("/gettable?{place}"),
    ];
    ensure!(of_first[..expected.len()] == expected, "{of_first:#?}");
    for target in [
        format!("/deleteentry?{place}&key=key-0-1"),
        "/watchedtableentries?nid=test&tname=tableBla".into(),
        "/leave".into(),
        "/leavenetwork?nid=test".into(),
    ] {
        ensure!(
            of_first.contains(&target.as_str()),
            "{target} in {of_first:#?}"
        );
    }
    Ok(())
}

#[test]
fn an_answer_without_a_number_is_fatal() -> Result<()> {
    let net = Net::new();
    let docker = Docker::start(&net)?;
    let service = Service::of(net, Vec::new())?;
    *docker.broken.lock().expect("no holder panics") = true;
    for (command, args) in [
        ("cluster-peers", &["3", "9"][..]),
        ("network-peers", &["test", "3", "9"]),
        ("join", &[]),
        ("join-network", &["test"]),
        ("leave", &[]),
        ("write-keys", &["test", "t", "1", "1"]),
    ] {
        let told = service.fails(command, args, "the server answers nonsense")?;
        let fatal = told.last().context("a fatal line")?;
        ensure!(
            (2..=4).any(|server| fatal.contains(&service.ip(server).to_string())),
            "{fatal}"
        );
    }
    service.fails("ready", &["--timeout", "5s"], "the server answers nonsense")?;
    Ok(())
}

#[test]
fn wrong_usage_is_fatal_and_shows_the_usage() -> Result<()> {
    for (line, word) in WRONG {
        let words = line.split_whitespace();
        let args = words.map(|word| if word == "''" { "" } else { word });
        let output = Command::new(PROGRAM).args(args).output()?;
        let told = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(1), "{line}: {told}");
        let fatal = told.lines().next().context("a fatal line")?;
        ensure!(
            fatal.contains("level=fatal") && fatal.contains(word),
            "{line}: {told}"
        );
        ensure!(told.contains("Usage: networkdb-test"), "{line}: {told}");
    }
    Ok(())
}

#[test]
fn help_is_no_failure() -> Result<()> {
    for args in [
        &["--help"][..],
        &["server", "--help"],
        &["client", "--help"],
        &["client", "write-keys", "-h"],
    ] {
        let output = Command::new(PROGRAM).args(args).output()?;
        ensure!(output.status.code() == Some(0), "{args:?}");
        ensure!(
            String::from_utf8(output.stdout)?.contains("Usage: networkdb-test"),
            "{args:?}"
        );
    }
    Ok(())
}

#[test]
fn a_service_that_cannot_be_used_is_fatal() -> Result<()> {
    let net = Net::new();
    let service = Service::of(net, Vec::new())?;
    service.fails("join", &[], "Connection refused")?;
    service.fails("write-keys", &["test", "t", "4", "1"], "only 3 servers")?;
    service.fails(
        "write-wait-leave-join",
        &["test", "t", "1", "1", "4"],
        "only 3",
    )?;
    service.fails("ready", &["--timeout", "200ms"], "not ready within 200ms")?;
    let unknown = [
        "client",
        "ready",
        "no.such.service.invalid",
        "8000",
        "--timeout",
        "100ms",
    ];
    let told = failed(start(&unknown)?)?;
    ensure!(
        told.contains("Cannot resolve any IP for the service tasks.no.such.service.invalid"),
        "{told}"
    );
    let missing = [
        "client",
        "join",
        "testdb",
        "8000",
        "--hosts",
        "/no/such/file",
    ];
    let told = failed(start(&missing)?)?;
    ensure!(told.contains("/no/such/file"), "{told}");
    Ok(())
}

#[test]
fn a_server_needs_a_name_and_its_addresses() -> Result<()> {
    let net = Net::new();
    let ip = net.ip(2).to_string();
    let told = failed(start(&["server", "8000", "--bind-addr", &ip])?)?;
    ensure!(told.contains("TASK_ID"), "{told}");
    let server = |args: &[&str]| {
        let mut command = Command::new(PROGRAM);
        command.arg("server").args(args).env("TASK_ID", "task");
        Process::start_command(command)
    };
    let told = failed(server(&[
        "0",
        "--bind-addr",
        "198.51.100.1",
        "--bind-port",
        "0",
    ])?)?;
    ensure!(told.contains("198.51.100.1"), "{told}");
    let taken = TcpListener::bind((net.ip(2), 0))?.local_addr()?;
    let holder = TcpListener::bind(taken)?;
    let told = failed(server(&[&taken.port().to_string(), "--bind-addr", &ip])?)?;
    ensure!(told.contains(&taken.to_string()), "{told}");
    drop(holder);
    Ok(())
}

#[test]
fn a_server_says_where_it_is_and_that_it_is_open_and_leaves_when_told() -> Result<()> {
    let mut service = Service::attached()?;
    let server = &service.servers[0];
    ensure!(server.line("gossip listening on ", 1)? == format!("{}:7946", service.ip(2)));
    ensure!(server.line("diagnostic server listening on ", 1)? == service.addr(2).to_string());
    server.logged("lets everybody read and change the cluster", 1)?;
    server.logged("hostname=task-2", 1)?;
    // Any name in `Host` will do, and no token is needed.
    let named =
        "GET /clusterpeers HTTP/1.1\r\nHost: tasks.testdb:8000\r\nConnection: close\r\n\r\n";
    let answer = exchange(service.addr(2), named)?;
    let id = answer
        .lines()
        .find_map(|line| line.split_once(") ")?.1.split_once(" -> "));
    let (id, _) = id.context("a node")?;
    ensure!(
        id.len() == 12 && id.chars().all(|c| c.is_ascii_hexdigit()),
        "{id}"
    );
    server.signal(Signal::TERM)?;
    ensure!(service.servers[0].exit_code()? == Some(0));
    service.servers.remove(0);
    shows(service.addr(3), "/clusterpeers", "total entries: ", 2)?;
    Ok(())
}

/// Asks as Go's `http.Get` does, and returns the body.
fn ask(addr: SocketAddr, target: &str) -> Result<String> {
    exchange(
        addr,
        &format!(
            "GET {target} HTTP/1.1\r\nHost: {addr}\r\nUser-Agent: Go-http-client/1.1\r\nAccept-Encoding: gzip\r\n\r\n"
        ),
    )
}

/// Sends a request and reads an answer with a length.
fn exchange(addr: SocketAddr, request: &str) -> Result<String> {
    let mut stream = TcpStream::connect(addr).with_context(|| format!("connect to {addr}"))?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(request.as_bytes())?;
    let mut stream = BufReader::new(stream);
    let mut length = 0;
    for line in (&mut stream).lines() {
        let line = line?.to_ascii_lowercase();
        if let Some(bytes) = line.strip_prefix("content-length: ") {
            length = bytes.parse()?;
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(String::from_utf8(body)?)
}

/// Waits until an answer has a number behind some words.
fn shows(addr: SocketAddr, target: &str, words: &str, expected: u64) -> Result<()> {
    until(&format!("{expected} at {addr}{target}"), SOON, || {
        Ok(number(&ask(addr, target)?, words) == Some(expected))
    })?;
    Ok(())
}

/// Reads the number behind some words, as the expressions of Docker's client do.
fn number(text: &str, words: &str) -> Option<u64> {
    let (_, rest) = text.split_once(words)?;
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    rest[..end].parse().ok()
}
