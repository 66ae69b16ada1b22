//! The program `ssd` beside an agent that answers as it is told: exit codes, repairs, and what is asked.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};

/// Answers by request, as in `GET /v1/services`: those that are given, one after the other, the last one for ever.
type Answers = BTreeMap<String, Vec<(u16, Value)>>;

/// An agent that answers as it is told.
struct Agent {
    addr: SocketAddr,
    /// What it was asked, in order.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Agent {
    fn start(answers: &[(&str, u16, Value)]) -> Self {
        let mut by_request = Answers::new();
        for (request, status, body) in answers {
            let all = by_request.entry((*request).to_owned()).or_default();
            all.push((*status, body.clone()));
        }
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("a bound listener has one");
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let request = serve(&stream.expect("a connection"), &mut by_request);
                noted.lock().expect("nobody panics").push(request);
            }
        });
        Self { addr, asked }
    }

    fn ssd(&self, args: &[&str]) -> Output {
        ssd(self.addr, args)
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("nobody panics").clone()
    }
}

fn ssd(agent: SocketAddr, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ssd"));
    command.arg("--agent").arg(agent.to_string()).args(args);
    command.output().expect("ssd runs")
}

fn serve(mut stream: &TcpStream, answers: &mut Answers) -> String {
    let mut lines = BufReader::new(stream).lines();
    let line = lines.next().expect("a request").expect("it is text");
    let request = line
        .strip_suffix(" HTTP/1.1")
        .expect("it is HTTP")
        .to_owned();
    // The head ends with an empty line, and no request has a body.
    assert!(lines.any(|line| line.expect("it is text").is_empty()));
    let none = vec![(404, json!({"detail": "there is nothing"}))];
    let all = answers.entry(request.clone()).or_insert(none);
    let (status, body) = match all.len() {
        1 => all[0].clone(),
        _ => all.remove(0),
    };
    let body = body.to_string();
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status} x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .expect("ssd reads the answer");
    request
}

/// A network with one service, whose kernel holds these targets.
fn balanced(network: &str, held: &Value) -> Value {
    let frontend = |targets: &Value| json!({"frontend": "10.0.1.100", "index": 256, "scheduler": "rr", "targets": targets});
    let wanted = json!({"10.0.1.2": 1});
    let operations = u8::from(*held != wanted);
    json!({"wanted": wanted_of(network, &[frontend(&wanted)]), "balancer": "ipvs",
        "held": [frontend(held)], "unreached": [], "plan": [], "operations": operations})
}

fn wanted_of(network: &str, frontends: &[Value]) -> Value {
    let member = json!({"address": "10.0.1.2", "name": "c1", "key": "k1", "node": "n1",
        "state": "active"});
    let service = json!({"id": "i", "name": "s1", "members": [member], "frontends": frontends,
        "refused": []});
    json!({"network": network, "ingress": false, "services": [service]})
}

fn services(networks: &[&str]) -> Value {
    let networks = networks.iter().map(|network| wanted_of(network, &[]));
    json!({"node": "n1", "networks": networks.collect::<Vec<_>>()})
}

fn right() -> Value {
    balanced("a/b", &json!({"10.0.1.2": 1}))
}

fn wrong() -> Value {
    balanced("a/b", &json!({"10.0.1.3": 1}))
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("lines are text")
}

const LIST: &str = "GET /v1/services";
const SHOW: &str = "GET /v1/services/a%2Fb";
const REPAIR: &str = "POST /v1/services/a%2Fb/repair";

const RIGHT: &str = "\
Verifying LB programming for containers on network a/b
Verifying container /c1...
service s1... OK
";

const WRONG: &str = "\
Verifying LB programming for containers on network a/b
Verifying container /c1...
Incorrect LB Programming for service s1
control-plane backend tasks:
10.0.1.2
kernel IPVS backend tasks:
10.0.1.3
";

#[test]
fn what_is_right_ends_with_0_and_what_differs_with_1() {
    for (found, expected, lines) in [(right(), 0, RIGHT), (wrong(), 1, WRONG)] {
        let agent = Agent::start(&[(LIST, 200, services(&["a/b"])), (SHOW, 200, found)]);
        for args in [&[][..], &["a/b"]] {
            let output = agent.ssd(args);
            assert_eq!(text(&output.stdout), lines);
            assert_eq!(code(&output), Some(expected));
        }
    }
}

#[test]
fn what_differs_for_a_moment_is_no_difference() {
    let list = services(&["a/b"]);
    let agent = Agent::start(&[
        (LIST, 200, list),
        (SHOW, 200, wrong()),
        (SHOW, 200, right()),
    ]);
    let output = agent.ssd(&["a/b"]);
    assert_eq!((text(&output.stdout), code(&output)), (RIGHT, Some(0)));
}

#[test]
fn a_repair_is_told_and_checked() {
    let done = json!({"done": ["set service 10.0.1.100 rr 10.0.1.2=1"], "operations": 1});
    let agent = Agent::start(&[
        (LIST, 200, services(&["a/b"])),
        (SHOW, 200, wrong()),
        (SHOW, 200, wrong()),
        (SHOW, 200, wrong()),
        (SHOW, 200, right()),
        (REPAIR, 200, done),
    ]);
    let output = agent.ssd(&["--repair", "a/b"]);
    let repaired = "repaired: set service 10.0.1.100 rr 10.0.1.2=1\n";
    assert_eq!(text(&output.stdout), format!("{WRONG}{repaired}{RIGHT}"));
    assert_eq!(code(&output), Some(0));
}

#[test]
fn a_repair_that_is_refused_leaves_what_differs() {
    let agent = Agent::start(&[
        (LIST, 200, services(&["a/b"])),
        (SHOW, 200, wrong()),
        (REPAIR, 500, json!({"detail": "not permitted"})),
    ]);
    let output = agent.ssd(&["--repair", "a/b"]);
    let said = "ssd: network a/b: repair: not permitted\n";
    assert_eq!(text(&output.stderr), said);
    assert_eq!(code(&output), Some(1));
}

#[test]
fn what_is_right_is_not_repaired() {
    let agent = Agent::start(&[(LIST, 200, services(&["a/b"])), (SHOW, 200, right())]);
    assert_eq!(code(&agent.ssd(&["--repair"])), Some(0));
    let asked = agent.asked();
    assert!(asked.iter().all(|it| it.starts_with("GET ")), "{asked:?}");
}

/// Bug (e) of the original: a traceback when the kernel cannot be asked.
#[test]
fn what_cannot_be_checked_ends_with_3_and_a_reason() {
    let problem = json!({"detail": "read the services: not permitted"});
    let agent = Agent::start(&[
        (LIST, 200, services(&["a/b", "c"])),
        (SHOW, 200, right()),
        ("GET /v1/services/c", 500, problem),
    ]);
    let output = agent.ssd(&[]);
    assert_eq!(text(&output.stdout), RIGHT);
    let reason = "ssd: network c: read the services: not permitted\n";
    assert_eq!(text(&output.stderr), reason);
    assert_eq!(code(&output), Some(3));

    let output = agent.ssd(&["ov2", "gossip-consistency"]);
    assert!(text(&output.stderr).ends_with(": there is nothing\n"));
    assert_eq!(code(&output), Some(3));

    let without = Agent::start(&[]);
    let output = without.ssd(&["a/b"]);
    assert!(text(&output.stderr).contains("the agent has no data path"));
    assert_eq!(code(&output), Some(3));

    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    let output = ssd(nobody, &["a/b"]);
    assert!(text(&output.stderr).starts_with("ssd: agent at 127.0.0.1:1: "));
    assert_eq!(code(&output), Some(3));
}

#[test]
fn wrong_usage_ends_with_2() {
    let agent = Agent::start(&[]);
    for args in [
        &["a", "b"][..],
        &["gossip-consistency"],
        &["a", "gossip-consistency", "--repair"],
        &["--cert", "file"],
    ] {
        assert_eq!(code(&agent.ssd(args)), Some(2), "{args:?}");
    }
    let help = agent.ssd(&["--help"]);
    assert!(text(&help.stdout).contains("SHA-256"));
    assert_eq!(code(&help), Some(0));
}

#[test]
fn json_is_one_document_with_the_same_facts() {
    let agent = Agent::start(&[
        (LIST, 200, services(&["a/b", "c"])),
        (SHOW, 200, wrong()),
        ("GET /v1/services/c", 409, json!({"detail": "not balanced"})),
    ]);
    let output = agent.ssd(&["--json"]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&told["node"], &told["ok"]), (&json!("n1"), &json!(false)));
    let (first, second) = (&told["networks"][0], &told["networks"][1]);
    assert_eq!(first["containers"], json!(["c1"]));
    let frontend = &first["services"][0]["frontends"][0];
    assert_eq!(frontend["expected"], json!({"10.0.1.2": 1}));
    assert_eq!(frontend["actual"], json!({"10.0.1.3": 1}));
    assert_eq!(*second, json!({"network": "c", "error": "not balanced"}));
    assert_eq!(code(&output), Some(3));
}

#[test]
fn nodes_are_compared_through_the_agent() {
    let peer = json!({"id": "n2", "addr": "x", "outcome": "equal", "hash": "aa", "tables": [],
        "differences": [], "is_cut": false});
    let found = json!({"network": "ov2", "is_consistent": true, "digest": "00", "hash": "aa",
        "peers": [peer]});
    let asked = "GET /v1/networks/ov2/consistency?table=endpoint_table";
    let agent = Agent::start(&[
        ("GET /v1/node", 200, json!({"id": "n1"})),
        (asked, 200, found),
    ]);
    let output = agent.ssd(&["ov2", "gossip-consistency"]);
    let lines = "Node id: n1 gossip hash aa\n\nNode id: n2 gossip hash aa\n";
    assert_eq!((text(&output.stdout), code(&output)), (lines, Some(0)));
    let output = agent.ssd(&["ov2", "gossip-consistency", "--json"]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["ok"], true);
    assert_eq!(told["nodes"][1]["hash"], "aa");
}
