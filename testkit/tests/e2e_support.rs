//! `networkdb support` against real agents, a scripted one and none: what is in the archive, what never is, what is flagged.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use diagnostic::Client;
use flate2::read::GzDecoder;
use hyper::Method;
use prost::Message;
use serde_json::json;
use socket2::{Domain, Socket, Type};
use testkit::e2e::agent::Agent;
use testkit::e2e::http::{self, encode};
use testkit::e2e::process::{SOON, Signal, binary, note, until, write_key_file};

/// A name that would leave its directory if it could.
const NETWORK: &str = "../net 1";

/// Docker's `EndpointRecord`, as far as the tests need it.
#[derive(Clone, Eq, PartialEq, Message)]
struct Endpoint {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "5")]
    endpoint_ip: String,
}

/// How `networkdb support` ended.
#[derive(Debug)]
struct Outcome {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// The files of an archive, without its directory.
type Files = BTreeMap<String, Vec<u8>>;

#[test]
fn the_archive_tells_of_agent_and_host_and_flags_an_overlap() -> Result<()> {
    let agents = with_overlap()?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("case.tar.gz");
    let outcome = support(&agents[0].diagnostic, &path, &[])?;
    ensure!(outcome.code == Some(1), "{outcome:?}");
    let flag = r#"FLAG overlap: network "../net 1": endpoint_table: keys "first", "second" have one endpoint_ip "10.99.7.5""#;
    ensure!(outcome.stdout.contains(flag), "{outcome:?}");
    ensure!(fs::metadata(&path)?.permissions().mode() & 0o777 == 0o600);

    let files = unpack(&path, "case")?;
    let network = "agent/networks/..%2Fnet%201";
    for file in [
        "agent/node.json",
        "agent/members.json",
        "agent/stats.json",
        "agent/config.json",
        &format!("{network}/consistency.json"),
        &format!("{network}/peers.json"),
        &format!("{network}/digest.json"),
        &format!("{network}/tables/endpoint_table.jsonl"),
        &format!("{network}/tables/endpoint_table.digest.json"),
        "host/links.txt",
        "host/fdb.txt",
        "host/nftables.txt",
        "host/ipvs.txt",
        "host/sysctl.txt",
    ] {
        ensure!(files.contains_key(file), "no {file}");
    }
    let text = |file: &str| text(&files, file);
    ensure!(text("summary.txt")? == outcome.stdout_without_end()?);
    ensure!(text("host/uname.txt")?.starts_with("$ uname -a\n"));
    ensure!(text("host/uname.txt")?.ends_with("# exit status 0\n"));
    ensure!(text("agent/log.txt")?.contains("Starting the diagnostic server"));
    ensure!(text("agent/members.json")?.contains("\"n2\""));
    let consistency = text(&format!("{network}/consistency.json"))?;
    ensure!(consistency.contains("\"equal\""), "{consistency}");
    let table = text(&format!("{network}/tables/endpoint_table.jsonl"))?;
    ensure!(table.lines().count() == 2, "{table}");
    ensure!(table.contains(&STANDARD.encode(value("first"))), "{table}");
    let manifest = text("MANIFEST.txt")?;
    for file in files.keys().filter(|file| *file != "MANIFEST.txt") {
        let bytes = files[file].len();
        let mut lines = manifest.lines();
        let line = lines.find(|line| line.split('\t').next() == Some(file));
        let line = line.with_context(|| format!("{file} is not in the manifest"))?;
        ensure!(
            line.split('\t').nth(2) == Some(&bytes.to_string()),
            "{line}"
        );
    }

    let again = support(&agents[0].diagnostic, &path, &[])?;
    ensure!(again.code == Some(1) && again.stderr.contains("exists already"));
    ensure!(unpack(&path, "case")? == files, "and is as it was");
    Ok(())
}

#[test]
fn a_redacted_archive_holds_no_value() -> Result<()> {
    let agents = with_overlap()?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("case.tar.gz");
    let outcome = support(&agents[0].diagnostic, &path, &["--redact"])?;
    ensure!(outcome.code == Some(1), "{outcome:?}");
    let flag = r#"endpoint_table: keys "first", "second" have one endpoint_ip"#;
    ensure!(outcome.stdout.contains(flag), "{outcome:?}");
    let mut secrets = vec![b"10.99.7.5".to_vec(), b"name-of-".to_vec()];
    for key in ["first", "second"] {
        secrets.extend(forms(&value(key)));
    }
    let files = unpack(&path, "case")?;
    holds_none(&files, &secrets)?;
    let entries = text(
        &files,
        "agent/networks/..%2Fnet%201/tables/endpoint_table.jsonl",
    )?;
    ensure!(entries.contains("\"value_bytes\""), "{entries}");
    ensure!(entries.contains("\"version\""), "{entries}");
    Ok(())
}

#[test]
fn an_overlap_and_a_differing_digest_are_both_flagged() -> Result<()> {
    let difference = json!({"table": "t", "key": "k", "here": null, "there": {"time": 1}});
    let entry = |key| json!({"key": key, "owner": "n1", "value": STANDARD.encode(value(key))});
    let answers = BTreeMap::from([
        ("/v1/node".into(), json!({"id": "n1", "in_cluster": true})),
        (
            "/v1/members".into(),
            json!({"members": [{"id": "n1", "state": "alive"}, {"id": "n2", "state": "suspect"}]}),
        ),
        ("/v1/stats".into(), json!({"refused_seal": 7})),
        ("/v1/sync".into(), json!({"networks": []})),
        ("/v1/networks".into(), json!({"networks": ["net1"]})),
        (
            "/v1/networks/net1".into(),
            json!({"digest": "00ff", "entries": 2}),
        ),
        (
            "/v1/networks/net1/peers".into(),
            json!({"peers": [{"id": "n1"}, {"id": "n2"}]}),
        ),
        ("/v1/networks/net1/digest".into(), json!({"digest": "00ff"})),
        (
            "/v1/networks/net1/tables".into(),
            json!({"tables": [{"table": "endpoint_table", "entries": 2}]}),
        ),
        (
            "/v1/networks/net1/tables/endpoint_table/digest".into(),
            json!({"digest": "00ff"}),
        ),
        (
            "/v1/networks/net1/tables/endpoint_table/entries".into(),
            json!({"entries": [entry("a"), entry("b")], "next": null}),
        ),
        (
            "/v1/networks/net1/consistency".into(),
            json!({"is_consistent": false, "peers": [
                {"id": "n2", "addr": "192.0.2.2:7946", "outcome": "differs", "tables": ["t"], "differences": [difference]}
            ]}),
        ),
    ]);
    let addr = scripted(answers)?;
    let dir = tempfile::tempdir()?;
    let outcome = support(&addr, &dir.path().join("case.tar.gz"), &[])?;
    ensure!(outcome.code == Some(1), "{outcome:?}");
    for flag in [
        r#"FLAG overlap: network "net1": endpoint_table: keys "a", "b" have one endpoint_ip"#,
        r#"FLAG differs: network "net1": node "n2" at 192.0.2.2:7946 holds something else: 1 keys in tables "t", first "t"/"k""#,
        r#"FLAG member: "n2" at no known address is suspect"#,
        "FLAG counter: refused_seal is 7",
    ] {
        ensure!(outcome.stdout.contains(flag), "no {flag} in {outcome:?}");
    }
    Ok(())
}

#[test]
fn without_an_agent_the_rest_is_collected() -> Result<()> {
    // Taken, so that nobody else listens there, and nobody does here.
    let taken = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    taken.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    let addr = taken.local_addr()?.as_socket().context("an address")?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("case.tar.gz");
    let outcome = support(&addr, &path, &[])?;
    ensure!(outcome.code == Some(3), "{outcome:?}");
    ensure!(
        outcome.stdout.contains("FLAG agent: does not tell"),
        "{outcome:?}"
    );
    let files = unpack(&path, "case")?;
    ensure!(files.contains_key("host/links.txt"));
    ensure!(!files.keys().any(|file| file.starts_with("agent/")));
    Ok(())
}

#[test]
fn the_archive_may_go_to_stdout_and_the_summary_then_to_stderr() -> Result<()> {
    let agents = with_overlap()?;
    let output = Command::new(binary()?)
        .args(["support", "--output", "-", "--agent"])
        .arg(agents[0].diagnostic.to_string())
        .stdin(Stdio::null())
        .output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(stderr.contains("FLAG overlap: network"), "{stderr}");
    let mut names = Vec::new();
    for entry in tar::Archive::new(GzDecoder::new(&output.stdout[..])).entries()? {
        names.push(entry?.path()?.to_string_lossy().into_owned());
    }
    ensure!(
        names.iter().any(|name| name.ends_with("/summary.txt")),
        "{names:?}"
    );
    Ok(())
}

#[test]
fn no_key_and_no_token_is_in_the_archive() -> Result<()> {
    const TOKEN: &str = "token-of-the-night-shift";
    let dir = tempfile::tempdir()?;
    let [keys, tokens, config, output] =
        ["keys", "tokens", "agent.json", "case.tar.gz"].map(|name| dir.path().join(name));
    write_key_file(&keys)?;
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&tokens)?;
    file.write_all(format!("{TOKEN}\n").as_bytes())?;
    let settings = json!({"key-file": keys, "diagnostic-token-file": tokens, "log-level": "trace"});
    fs::write(&config, settings.to_string())?;
    let [config, tokens] = [&config, &tokens].map(|path| path.to_string_lossy().into_owned());
    let agent = Agent::start("n1", &["--config", &config, "--network", "net1"])?;

    let refused = support(&agent.diagnostic, &dir.path().join("refused.tar.gz"), &[])?;
    ensure!(refused.code == Some(3), "{refused:?}");
    ensure!(refused.stdout.contains("status 401"), "{refused:?}");

    let flags = ["--token-file", &tokens, "--config", &config];
    let outcome = support(&agent.diagnostic, &output, &flags)?;
    ensure!(!outcome.stdout.contains("FLAG unanswered"), "{outcome:?}");
    let files = unpack(&output, "case")?;
    for file in ["agent/config.json", "config-file.json"] {
        let text = text(&files, file)?;
        ensure!(text.contains(&*keys.to_string_lossy()), "{file}: {text}");
    }
    let key = fs::read_to_string(&keys)?;
    let key = key.lines().last().context("a key")?;
    let mut secrets = forms(TOKEN.as_bytes());
    secrets.extend(forms(&STANDARD.decode(key)?));
    secrets.extend(forms(key.as_bytes()));
    holds_none(&files, &secrets)?;
    let said = format!("{}{}", outcome.stdout, outcome.stderr);
    holds_none(
        &BTreeMap::from([("said".into(), said.into_bytes())]),
        &secrets,
    )
}

#[test]
fn log_and_settings_are_told_by_a_server_that_has_moved() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("agent.json");
    fs::write(&config, r#"{"network-diagnostic-port": 0}"#)?;
    let flags = [
        "agent",
        "--bind-port",
        "0",
        "--config",
        &*config.to_string_lossy(),
    ];
    let process = testkit::e2e::process::Process::start(&flags)?;
    let line = "diagnostic server listening on ";
    let first: SocketAddr = process.line(line, 1)?.parse()?;
    ensure!(http::get(first, "/logs")?.body.contains("listening on"));
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    drop(listener);
    let settings =
        json!({"network-diagnostic-port": port, "log-level": "debug", "cluster": "late"});
    fs::write(&config, settings.to_string())?;
    process.signal(Signal::HUP)?;
    let moved: SocketAddr = process.line(line, 2)?.parse()?;
    let logs = http::get(moved, "/logs")?.body;
    ensure!(logs.contains("Disabling the diagnostic server"), "{logs}");
    until("the settings of the reload", SOON, || {
        let shown = http::get(moved, "/config")?.body;
        let shown: serde_json::Value = serde_json::from_str(&shown)?;
        // The cluster of a running node does not change.
        Ok(shown["diagnostic-addr"] == moved.to_string()
            && shown["log-level"] == "debug"
            && shown["cluster"].is_null())
    })?;
    let help = http::get(moved, "/help")?.body;
    ensure!(help.contains("/logs") && help.contains("/config"), "{help}");
    Ok(())
}

#[test]
fn links_fdb_and_overlaps_of_namespaces_are_in_the_archive() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        if std::env::var_os("CI").is_some() {
            bail!("network namespaces need root, and CI has to run this test");
        }
        note("SKIPPED: network namespaces need root");
        return Ok(());
    }
    let (one, two) = (Namespace::add("a")?, Namespace::add("b")?);
    for namespace in [&one, &two] {
        namespace.ip("link add br-support type bridge")?;
        namespace.ip("addr add 10.213.77.1/24 dev br-support")?;
        namespace.ip("link set br-support up")?;
    }
    one.ip("link add vx-support type vxlan id 4242 dstport 4789 nolearning")?;
    one.ip("link set vx-support master br-support")?;
    run(
        "bridge",
        &[
            "-n",
            &one.0,
            "fdb",
            "append",
            "02:42:0a:d5:4d:09",
            "dev",
            "vx-support",
            "dst",
            "192.0.2.77",
        ],
    )?;
    let has_key = one.ip(&format!(
        "xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x301 mode transport \
         aead rfc4106(gcm(aes)) 0x{KEY_OF_IPSEC} 64"
    ));
    if let Err(error) = has_key {
        note(&format!(
            "no IPsec in this kernel, its keys are left to the unit tests: {error:#}"
        ));
    }

    let dir = tempfile::tempdir()?;
    let path = dir.path().join("case.tar.gz");
    let addr = SocketAddr::from(([127, 0, 0, 1], 1));
    let outcome = support(&addr, &path, &[])?;
    let flag = "FLAG overlap: address 10.213.77.1 is on 2 interfaces: \"br-support\" in namespace";
    ensure!(outcome.stdout.contains(flag), "{outcome:?}");
    let files = unpack(&path, "case")?;
    let told = |file: &str| text(&files, &format!("namespaces/netns/{}/{file}", one.0));
    let links = told("links.txt")?;
    ensure!(
        links.starts_with("$ nsenter --net=/var/run/netns/"),
        "{links}"
    );
    ensure!(
        links.contains("vx-support") && links.contains("id 4242"),
        "{links}"
    );
    let fdb = told("fdb.txt")?;
    ensure!(
        fdb.contains("02:42:0a:d5:4d:09") && fdb.contains("192.0.2.77"),
        "{fdb}"
    );
    ensure!(!told("addresses.txt")?.contains("vx-host"));
    holds_none(&files, &[KEY_OF_IPSEC.into()])
}

/// 20 bytes, in hex.
const KEY_OF_IPSEC: &str = "5ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2";

/// A network namespace that goes with its handle.
struct Namespace(String);

impl Namespace {
    fn add(name: &str) -> Result<Self> {
        let name = format!("ndb-support-{}-{name}", std::process::id());
        run("ip", &["netns", "add", &name])?;
        Ok(Self(name))
    }

    fn ip(&self, words: &str) -> Result<()> {
        let words: Vec<_> = words.split_whitespace().collect();
        run("ip", &[&["-n", &self.0], &words[..]].concat())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A failure would hide the one that the test is about.
        drop(run("ip", &["netns", "delete", &self.0]));
    }
}

impl Outcome {
    /// Returns the summary without the line that says where the archive is.
    fn stdout_without_end(&self) -> Result<String> {
        let lines: Vec<_> = self.stdout.lines().collect();
        let (_, summary) = lines.split_last().context("lines")?;
        Ok(summary.join("\n") + "\n")
    }
}

/// Starts two agents on a network with two endpoints that have one address.
fn with_overlap() -> Result<Vec<Agent>> {
    let agents = Agent::start_chain::<&str>(2, &[])?;
    for agent in &agents {
        agent.join_network(NETWORK)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    for (agent, key) in agents.iter().zip(["first", "second"]) {
        let client = Client::new("127.0.0.1", agent.diagnostic.port());
        let network = encode(NETWORK);
        let target = format!("/v1/networks/{network}/tables/endpoint_table/entries/{key}");
        let body = Bytes::from(value(key));
        let put = client.send(Method::PUT, &target, "application/octet-stream", body);
        let answer = runtime.block_on(put)?;
        ensure!(answer.status == 201, "{answer:?}");
    }
    for agent in &agents {
        let target = format!("/networkstats?nid={}", encode(NETWORK));
        until("both entries everywhere", SOON, || {
            Ok(agent.get(&target)?.contains("entries: 2"))
        })?;
    }
    Ok(agents)
}

/// Returns an endpoint with the address that all have.
fn value(key: &str) -> Vec<u8> {
    let record = Endpoint {
        name: format!("name-of-{key}"),
        endpoint_ip: "10.99.7.5".into(),
    };
    record.encode_to_vec()
}

/// Answers each path with its JSON, from a thread that ends with the test.
fn scripted(answers: BTreeMap<String, serde_json::Value>) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that goes away is none that the test waits for.
            drop(answer(stream, &answers));
        }
    });
    Ok(addr)
}

fn answer(stream: TcpStream, answers: &BTreeMap<String, serde_json::Value>) -> Result<()> {
    let mut reader = BufReader::new(stream);
    let (mut first, mut line) = (String::new(), String::new());
    reader.read_line(&mut first)?;
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let target = first.split(' ').nth(1).context("a target")?;
    let path = target.split('?').next().unwrap_or_default();
    let body = answers.get(path).map(ToString::to_string);
    let body = body.unwrap_or_else(|| "not implemented".into());
    let length = body.len();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    Ok(reader.get_mut().write_all((head + &body).as_bytes())?)
}

fn support(agent: &SocketAddr, output: &Path, flags: &[&str]) -> Result<Outcome> {
    let output = Command::new(binary()?)
        .args(["support", "--agent", &agent.to_string(), "-o"])
        .arg(output)
        .args(flags)
        .stdin(Stdio::null())
        .output()?;
    Ok(Outcome {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout)?,
        stderr: String::from_utf8(output.stderr)?,
    })
}

/// Reads an archive, and checks that all of it is in one directory.
fn unpack(path: &Path, top: &str) -> Result<Files> {
    let mut files = Files::new();
    for entry in tar::Archive::new(GzDecoder::new(File::open(path)?)).entries()? {
        let mut entry = entry?;
        let name = entry.path()?.to_string_lossy().into_owned();
        let below = name
            .strip_prefix(top)
            .and_then(|name| name.strip_prefix('/'));
        let below = below.with_context(|| format!("{name} is not in {top}"))?;
        ensure!(!name.split('/').any(|part| part == ".."), "{name}");
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        ensure!(
            files.insert(below.to_owned(), bytes).is_none(),
            "{name} twice"
        );
    }
    Ok(files)
}

fn text(files: &Files, file: &str) -> Result<String> {
    let bytes = files.get(file).with_context(|| format!("no {file}"))?;
    Ok(String::from_utf8(bytes.clone())?)
}

/// Returns bytes as they are, in hex and in base64.
fn forms(bytes: &[u8]) -> Vec<Vec<u8>> {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let base64 = STANDARD.encode(bytes);
    vec![
        bytes.to_vec(),
        hex.to_uppercase().into_bytes(),
        hex.into_bytes(),
        base64.trim_end_matches('=').into(),
    ]
}

/// Checks that no file, its name included, holds one of these.
fn holds_none(files: &Files, secrets: &[Vec<u8>]) -> Result<()> {
    for (file, bytes) in files {
        for secret in secrets {
            let holds = |bytes: &[u8]| bytes.windows(secret.len()).any(|at| at == secret);
            let shown = String::from_utf8_lossy(secret);
            ensure!(
                !holds(bytes) && !holds(file.as_bytes()),
                "{shown} is in {file}"
            );
        }
    }
    Ok(())
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let output = Command::new(program).args(args).output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {args:?}: {stderr}");
    Ok(())
}
