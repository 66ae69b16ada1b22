//! Servers that answer as Docker's do.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::{Context, Result};

use crate::service::{Net, PORT, SERVERS};

/// Servers that answer as Docker's, with one table between them that is always the same on all.
pub(crate) struct Docker {
    asked: Arc<Mutex<Vec<(Ipv4Addr, String)>>>,
    /// Whether they answer nonsense.
    pub(crate) broken: Arc<Mutex<bool>>,
}

impl Docker {
    pub(crate) fn start(net: &Net) -> Result<Self> {
        let docker = Self {
            asked: Arc::default(),
            broken: Arc::default(),
        };
        let keys: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        for server in 2..2 + SERVERS {
            let ip = net.ip(server);
            let listener = TcpListener::bind((ip, PORT))?;
            let (asked, broken, keys) = (
                Arc::clone(&docker.asked),
                Arc::clone(&docker.broken),
                Arc::clone(&keys),
            );
            let answer = move |target: &str| {
                let mut asked = asked.lock().expect("no holder panics");
                asked.push((ip, target.to_owned()));
                if *broken.lock().expect("no holder panics") {
                    return "nonsense".to_owned();
                }
                docker_answer(target, &mut keys.lock().expect("no holder panics"))
            };
            let answer = Arc::new(answer);
            thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    let answer = Arc::clone(&answer);
                    // A client that is gone has failed its test by itself.
                    thread::spawn(move || drop(serve(stream, &*answer)));
                }
            });
        }
        Ok(docker)
    }

    pub(crate) fn asked(&self) -> Vec<(Ipv4Addr, String)> {
        self.asked.lock().expect("no holder panics").clone()
    }
}

/// Answers requests as Go's server does, which keeps the connection.
fn serve(stream: TcpStream, answer: &impl Fn(&str) -> String) -> Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        for line in (&mut stream).lines() {
            match line? {
                line if line.is_empty() => break,
                line => head.push(line),
            }
        }
        let Some(first) = head.first() else {
            return Ok(());
        };
        let body = answer(first.split(' ').nth(1).context("a target")?);
        let length = body.len();
        let head = "HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT";
        let content = "Content-Type: text/plain; charset=utf-8";
        let reply = format!("{head}\r\nContent-Length: {length}\r\n{content}\r\n\r\n{body}");
        stream.get_mut().write_all(reply.as_bytes())?;
    }
}

fn docker_answer(target: &str, keys: &mut BTreeSet<String>) -> String {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let key = query.split('&').find_map(|part| part.strip_prefix("key="));
    match (path, key) {
        ("/ready", _) => "OK\nOK".into(),
        ("/join" | "/joinnetwork" | "/leavenetwork", _) => "OK".into(),
        ("/watchtable", _) => "OK\n".into(),
        ("/clusterpeers" | "/networkpeers", _) => {
            "OK\ntotal entries: 3\n0) c28245a91a0f -> 10.77.0.1\n1) 28c235f6ca17 -> 10.77.0.2\n2) 493fd2aef9fe -> 10.77.0.3\n".into()
        }
        ("/networkstats", _) => "OK\nentries: 4, qlen: 2\n".into(),
        ("/createentry", Some(key)) if keys.insert(key.into()) => "OK".into(),
        ("/deleteentry", Some(key)) if keys.remove(key) => "OK".into(),
        ("/gettable", _) => {
            let rows = rows(keys, |index, key| format!("{index}) k:`{key}` -> v:`dg==` owner:`c28245a91a0f`\n"));
            format!("OK\ntotal entries: {}\n{rows}", keys.len())
        }
        ("/watchedtableentries", _) => {
            let rows = rows(keys, |index, key| format!("{index}) k:`{key}` -> v:`v`\n"));
            format!("total elements: {}\n{rows}", keys.len())
        }
        ("/createentry" | "/deleteentry", _) => format!("FAIL\nError: {target}"),
        _ => format!("not implemented\nUsage: URL path: {path} no method implemented check /help\n"),
    }
}

fn rows(keys: &BTreeSet<String>, row: impl Fn(usize, &String) -> String) -> String {
    keys.iter()
        .enumerate()
        .map(|(index, key)| row(index, key))
        .collect()
}
