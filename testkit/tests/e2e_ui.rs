//! The operators' page `/ui` in a real browser, on real agents.
//!
//! Without Chromium and chromedriver the tests say loudly that they are skipped; in CI (`CI` is set) they fail. The pictures
//! in `docs/` are made anew by `cargo test -p testkit --test e2e_ui pictures -- --ignored`.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use serde_json::{Value, json};
use testkit::e2e::agent::Agent;
use testkit::e2e::browser::{Browser, keys};
use testkit::e2e::http::{Connection, encode};
use testkit::e2e::process::{SOON, Signal, note, until, write_key_file};

/// Entries of the large table, and how many go in one request.
const ENTRIES: usize = 100_000;
const BATCH: usize = 10_000;

/// Elements that the page may have, whatever the cluster holds.
const ELEMENTS_MAX: u64 = 2_000;

/// The page follows the stream of events.
const IS_LIVE: &str = "document.getElementById('stream').dataset.state === 'live'";

/// Answers instead of the node: a thousand members, and two checks of consistency.
const ANSWERS: &str = "
    const real = window.fetch;
    const states = { 7: 'left', 400: 'suspect', 900: 'down' };
    const members = Array.from({ length: 1000 }, (_, index) => ({
        id: `m${String(index).padStart(3, '0')}`, addr: `192.0.2.1:${index}`, state: states[index] ?? 'alive',
        incarnation: 0, generation: '1', round_trip_ms: 0.5, health_score: null,
    }));
    const here = { time: 7, owner: 'm001', is_deleted: false, version: '0'.repeat(32) };
    const peer = (id, outcome, more) =>
        ({ id, addr: '192.0.2.1:1', outcome, tables: [], differences: [], is_cut: false, ...more });
    const differences = [{ table: 't1', key: '<k>', here, there: null }];
    const check = { network: 'net1', is_consistent: false, digest: 'ab'.repeat(16), peers: [
        peer('m001', 'equal'),
        peer('m002', 'failed', { reason: 'it <b>sleeps</b>' }),
        peer('m003', 'differs', { tables: ['t1'], differences, is_cut: true }),
    ] };
    const checks = [[404, { type: 'urn:networkdb:problem:unknown-path' }], [200, check]];
    const answer = (status, body) => Promise.resolve(new Response(JSON.stringify(body), { status }));
    window.fetch = (target, options) => {
        if (target === '/v1/members') return answer(200, { members });
        if (target.endsWith('/consistency')) return answer(...checks.shift());
        return real(target, options);
    };";

#[test]
fn page_loads_without_an_error_and_asks_nobody_but_its_node() -> Result<()> {
    let Some(mut rig) = Rig::start(1, &["--network", "net1"])? else {
        return Ok(());
    };
    rig.put(0, "table1", &[("key1", "value1")])?;
    rig.open("")?;
    rig.browser
        .until("document.body.innerText.includes('value1')")?;
    rig.browser.open_page(&format!("{}/ui/", rig.origin()))?;
    rig.browser.until(IS_LIVE)?;
    rig.browser
        .until("document.body.innerText.includes('value1')")?;
    rig.has_calm_console()?;
    let mut asked = 0;
    for line in rig.browser.log("performance")? {
        let message = line["message"].as_str().context("a message")?;
        let message: Value = serde_json::from_str(message)?;
        if message["message"]["method"] != "Network.requestWillBeSent" {
            continue;
        }
        let url = message["message"]["params"]["request"]["url"].as_str();
        let url = url.context("an address")?;
        let is_own = url.starts_with(&format!("{}/", rig.origin())) || url.starts_with("data:");
        ensure!(is_own, "the page asked for {url}");
        asked += 1;
    }
    ensure!(asked > 10, "{asked} requests were logged");
    let mut grounds = Vec::new();
    for _ in ["light", "dark"] {
        let ground = "document.getElementById('theme').click(); return getComputedStyle(document.body).backgroundColor";
        grounds.push(rig.browser.run(ground, &[])?);
    }
    ensure!(grounds[0] != grounds[1], "both themes are {}", grounds[0]);
    rig.open("")?;
    let kept = rig
        .browser
        .run("return document.documentElement.dataset.theme", &[])?;
    ensure!(kept == "dark", "the theme is {kept} after a reload");
    Ok(())
}

#[test]
fn write_through_another_node_appears() -> Result<()> {
    let Some(mut rig) = Rig::start(3, &["--network", "net1"])? else {
        return Ok(());
    };
    rig.put(0, "table1", &[("before", "v")])?;
    rig.open("#/n/net1/t/table1")?;
    rig.browser
        .until("document.getElementById('entries-table').innerText.includes('before')")?;
    let mut took = Vec::new();
    for index in 0..5 {
        let key = format!("written-{index}");
        rig.browser.run(
            "window.seen = {};
             const places = { event: 'events-list', entry: 'entries-table' };
             for (const [what, id] of Object.entries(places)) {
                 const place = document.getElementById(id);
                 window.seen[what] = new Promise((resolve) => {
                     new MutationObserver((_, watcher) => {
                         if (!place.textContent.includes(arguments[0])) return;
                         watcher.disconnect();
                         resolve(Date.now());
                     }).observe(place, { subtree: true, childList: true, characterData: true });
                 });
             }",
            &[json!(key)],
        )?;
        let before = wall_ms()?;
        rig.put(2, "table1", &[(&key, "v")])?;
        let seen = rig.browser.run_async(
            "return [await window.seen.event, await window.seen.entry]",
            &[],
        )?;
        let after = |index: usize| seen[index].as_u64().map(|at| at.saturating_sub(before));
        took.push((after(0).context("a time")?, after(1).context("a time")?));
    }
    note(&format!(
        "milliseconds from a write on another node to the page's events and entries: {took:?}"
    ));
    rig.browser.run(
        "document.querySelector('#networks-table button').click()",
        &[],
    )?;
    rig.browser
        .until("document.querySelector('#networks-table button').innerText === 'all agree'")?;
    rig.browser
        .until("document.querySelectorAll('#check [data-state=good]').length === 2")?;
    rig.has_calm_console()
}

#[test]
fn killed_node_turns_red() -> Result<()> {
    let Some(mut rig) = Rig::start(3, &["--preset", "fast"])? else {
        return Ok(());
    };
    rig.open("")?;
    rig.browser
        .until("document.querySelectorAll('#members tr[data-state=alive]').length === 3")?;
    let colour = "return getComputedStyle(document.querySelector(arguments[0])).color";
    let alive = rig.browser.run(colour, &[json!("#members td.state")])?;
    // It holds one sentence, and another may follow soon.
    rig.browser.run(
        "window.said = '';
         const place = document.getElementById('said');
         new MutationObserver(() => { window.said += place.textContent + '\\n'; })
             .observe(place, { childList: true, characterData: true, subtree: true });",
        &[],
    )?;
    rig.agents[2].process.signal(Signal::KILL)?;
    let (first, browser) = (&rig.agents[0], &mut rig.browser);
    let (known, shown) = thread::scope(|scope| {
        let known = scope.spawn(|| {
            until("the failure to be known", SOON, || {
                Ok(ask(first, "GET", "/v1/members", "")?["members"][2]["state"] == "down")
            })?;
            wall_ms()
        });
        let shown = browser.until(
            "[...document.querySelectorAll('#members tr[data-state=down]')].some((row) =>
                 row.innerText.includes('n3') && row.innerText.includes('down'))",
        );
        (known.join().expect("the thread returns its errors"), shown)
    });
    let late = shown?.saturating_sub(known?);
    note(&format!(
        "the page is red {late} ms after the node knows of the failure"
    ));
    let down = rig
        .browser
        .run(colour, &[json!("#members tr[data-state=down] td.state")])?;
    ensure!(alive != down, "both are {down}");
    rig.browser
        .until("document.getElementById('events-list').innerText.includes('is down')")?;
    rig.browser.until("window.said.includes('n3 is down')")?;
    rig.has_calm_console()
}

#[test]
fn hostile_names_are_text() -> Result<()> {
    let script = "<script>alert(1)</script>";
    let Some(browser) = Browser::start()? else {
        return Ok(());
    };
    let agent = Agent::start(
        "<img src=x onerror=alert(2)>",
        &[
            "--hostname",
            "<script>alert(3)</script>",
            "--cluster",
            "\"><svg onload=alert(4)>",
        ],
    )?;
    let network = "<iframe srcdoc='<script>alert(5)</script>'>";
    let long = "\u{202e}\u{1}'\"</td>&amp;".to_owned() + &"x".repeat(200);
    agent.join_network(network)?;
    for table in [script, "{{constructor}}"] {
        let writes = json!({"writes": [
            {"op": "put", "key": script, "value": "PGltZyBzcmM9eCBvbmVycm9yPWFsZXJ0KDYpPg=="},
            {"op": "put", "key": long, "value": "AAEC"},
            {"op": "put", "key": "..", "value": ""},
        ]});
        let target = format!(
            "/v1/networks/{}/tables/{}/batch",
            encode(network),
            encode(table)
        );
        ensure!(ask(&agent, "POST", &target, &writes.to_string())?["accepted"] == 3);
    }
    let mut rig = Rig {
        agents: vec![agent],
        browser,
    };
    let place = format!("#/n/{}/t/{}", encode(network), encode(script));
    rig.open(&place)?;
    let is_text = |text: &str| format!("document.body.innerText.includes({})", json!(text));
    for text in [
        script,
        network,
        "<img src=x onerror=alert(2)>",
        "<script>alert(3)</script>",
        "\"><svg onload=alert(4)>",
    ] {
        rig.browser.until(&is_text(text))?;
    }
    rig.browser
        .until(&is_text("\\u202e\\u0001'\"</td>&amp;xxx"))?;
    for key in [script, &long, ".."] {
        rig.put_at(network, script, key, "changed")?;
        rig.browser.until(&format!(
            "document.getElementById('events-list').textContent.includes({})",
            json!(
                key.replace('\u{202e}', "\\u202e")
                    .replace('\u{1}', "\\u0001")
            )
        ))?;
        rig.go(&format!("{place}/e/{}", encode(key)))?;
        rig.browser
            .until("document.getElementById('entry').innerText.includes('changed')")?;
    }
    let found = rig.browser.run(
        "return [document.querySelector('script:not([src])') === null,
                 document.querySelectorAll('img, iframe, main svg:not([role=img])').length,
                 document.documentElement.scrollWidth <= window.innerWidth,
                 document.querySelectorAll('[onload], [onerror], [style]').length]",
        &[],
    )?;
    ensure!(found == json!([true, 0, true, 0]), "{found}");
    rig.has_calm_console()
}

#[test]
fn token_is_asked_for_and_sent() -> Result<()> {
    let Some(browser) = Browser::start()? else {
        return Ok(());
    };
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("tokens");
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    file.write_all(b"correct-horse-battery\n")?;
    let path = path.to_str().context("a path in UTF-8")?;
    let agent = Agent::start("n1", &["--diagnostic-token-file", path])?;
    let mut rig = Rig {
        agents: vec![agent],
        browser,
    };
    rig.browser.open_page(&format!("{}/ui", rig.origin()))?;
    rig.browser.until("document.activeElement.id === 'token'")?;
    rig.browser
        .until("document.getElementById('content').hidden")?;
    rig.browser
        .keys(&format!("wrong-horse-battery{}", keys::ENTER))?;
    rig.browser
        .until("document.getElementById('ask-error').innerText.includes('does not take')")?;
    rig.browser
        .run("document.getElementById('token').select()", &[])?;
    rig.browser
        .keys(&format!("correct-horse-battery{}", keys::ENTER))?;
    rig.browser.until(IS_LIVE)?;
    rig.browser
        .until("document.getElementById('members').innerText.includes('n1')")?;
    let kept = rig.browser.run(
        "return [sessionStorage.length, localStorage.length, document.cookie, location.href.includes('horse')]",
        &[],
    )?;
    ensure!(kept == json!([1, 0, "", false]), "{kept}");
    // The tab keeps it.
    rig.open("")?;
    rig.browser.until("document.getElementById('ask').hidden")?;
    rig.browser
        .run("document.getElementById('forget').click()", &[])?;
    rig.browser
        .until("document.activeElement.id === 'token'")
        .map(drop)
}

#[test]
fn large_table_stays_usable() -> Result<()> {
    let Some(mut rig) = Rig::start(1, &["--network", "net1"])? else {
        return Ok(());
    };
    rig.open("#/n/net1/t/large")?;
    for batch in 0..ENTRIES / BATCH {
        let writes: Vec<Value> = (batch * BATCH..(batch + 1) * BATCH)
            .map(|index| json!({"op": "create", "key": format!("key-{index:05}"), "value": "dmFsdWU="}))
            .collect();
        let body = json!({"writes": writes}).to_string();
        let done = ask(
            &rig.agents[0],
            "POST",
            "/v1/networks/net1/tables/large/batch",
            &body,
        )?;
        ensure!(done["accepted"] == BATCH);
    }
    rig.browser
        .until("document.getElementById('entries').innerText.includes('of 100,000')")?;
    rig.browser
        .until("document.querySelectorAll('#events-list li').length === 200")?;
    rig.browser.keys("/")?;
    rig.browser
        .until("document.activeElement.id === 'search'")?;
    let before = wall_ms()?;
    rig.browser.keys("key-0777")?;
    let rows = "[...document.querySelectorAll('#entries tbody tr')].map((row) => row.cells[0].textContent)";
    let found = rig.browser.until(&format!(
        "((rows) => rows.length === 10 && rows.every((key) => key.startsWith('key-0777')))({rows})"
    ))?;
    note(&format!(
        "{} ms from the first letter of a prefix to its 10 of {ENTRIES} entries on the page",
        found.saturating_sub(before)
    ));
    let elements = rig
        .browser
        .run("return document.querySelectorAll('*').length", &[])?;
    let elements = elements.as_u64().context("a number")?;
    note(&format!(
        "{elements} elements on a page beside {ENTRIES} entries"
    ));
    ensure!(elements < ELEMENTS_MAX, "{elements} elements");
    rig.go("#/n/net1/t/large")?;
    rig.browser.until(&format!(
        "({rows}).includes('key-00000') && ({rows}).length === 50"
    ))?;
    rig.browser
        .run("document.getElementById('page-next').click()", &[])?;
    rig.browser.until(&format!("({rows})[0] === 'key-00050'"))?;
    // Back is the page before, and a reload stays where it is.
    rig.browser
        .run("window.isOld = true; location.reload()", &[])?;
    rig.browser
        .until(&format!("!window.isOld && ({rows})[0] === 'key-00050'"))?;
    rig.browser.run("history.back()", &[])?;
    rig.browser.until(&format!("({rows})[0] === 'key-00000'"))?;
    rig.has_calm_console()
}

#[test]
fn keyboard_reaches_an_entry_and_comes_back() -> Result<()> {
    let Some(mut rig) = Rig::start(1, &["--network", "net1"])? else {
        return Ok(());
    };
    rig.put(0, "table1", &[("first", "one"), ("second", "two")])?;
    rig.open("")?;
    rig.browser
        .until("document.querySelectorAll('#entries tbody a').length === 2")?;
    rig.browser.keys(keys::TAB)?;
    rig.browser.until("document.activeElement.id === 'skip'")?;
    rig.browser.keys(keys::ENTER)?;
    rig.browser.until("document.activeElement.id === 'main'")?;
    let focus = "return [document.activeElement.innerText, getComputedStyle(document.activeElement).outlineStyle]";
    let mut steps = 0;
    loop {
        rig.browser.keys(keys::TAB)?;
        let focused = rig.browser.run(focus, &[])?;
        ensure!(focused[1] != "none", "the focus on {focused} is not seen");
        if focused[0] == "second" {
            break;
        }
        steps += 1;
        ensure!(steps < 40, "40 steps do not lead to an entry");
    }
    rig.browser.keys(keys::ENTER)?;
    rig.browser
        .until("document.getElementById('entry').innerText.includes('two')")?;
    let text = rig
        .browser
        .run("return document.getElementById('entry').innerText", &[])?;
    for part in ["second", "n1", "Lamport time", "Version", "74 77 6f"] {
        ensure!(
            text.as_str().is_some_and(|text| text.contains(part)),
            "{part}: {text}"
        );
    }
    rig.browser.keys(keys::ESCAPE)?;
    rig.browser
        .until("document.getElementById('entry').hidden")?;
    rig.browser
        .until("document.activeElement.innerText === 'second'")?;
    rig.has_calm_console()
}

#[test]
fn node_that_goes_and_comes_back_is_told_apart_from_one_that_is_there() -> Result<()> {
    let Some(mut rig) = Rig::start(1, &["--network", "net1"])? else {
        return Ok(());
    };
    rig.open("")?;
    rig.browser.until(IS_LIVE)?;
    rig.agents[0].process.signal(Signal::KILL)?;
    rig.browser
        .until("document.getElementById('banner').innerText.includes('does not answer')")?;
    rig.browser
        .until("document.getElementById('members').innerText.includes('n1')")?;
    let port = rig.agents[0].diagnostic.port().to_string();
    rig.agents.clear();
    rig.agents.push(Agent::start(
        "n1",
        &["--network", "net2", "--network-diagnostic-port", &port],
    )?);
    rig.browser
        .until("document.getElementById('banner').hidden")?;
    rig.browser.until(IS_LIVE)?;
    rig.browser
        .until("document.getElementById('networks').innerText.includes('net2')")
        .map(drop)
}

#[test]
fn thousand_members_and_the_outcome_of_a_check_are_shown() -> Result<()> {
    let Some(mut rig) = Rig::start(1, &["--network", "net1"])? else {
        return Ok(());
    };
    rig.open("")?;
    rig.browser.run(ANSWERS, &[])?;
    rig.browser
        .until("document.getElementById('members-note').innerText === '1 to 50 of 1,000'")?;
    let ids = "[...document.querySelectorAll('#members tbody tr')].map((row) => row.cells[1].innerText).join()";
    rig.browser
        .until(&format!("{ids}.startsWith('m900,m400,m000,m001')"))?;
    rig.browser
        .run("document.getElementById('members-on').click()", &[])?;
    rig.browser
        .until(&format!("{ids}.startsWith('m049,m050')"))?;
    rig.browser.run(
        "document.querySelector('#members-counts [data-state=down]').click()",
        &[],
    )?;
    rig.browser.until(&format!("{ids} === 'm900'"))?;
    rig.browser
        .until("document.querySelector('#networks-table button') !== null")?;
    let check = "document.querySelector('#networks-table button').click()";
    rig.browser.run(check, &[])?;
    let said = "document.getElementById('check').innerText";
    rig.browser
        .until(&format!("{said}.includes('cannot check')"))?;
    rig.browser.run(check, &[])?;
    for part in [
        "agrees",
        "differs",
        "t1 / <k>",
        "it <b>sleeps</b>",
        "there nothing",
        "more than these",
    ] {
        rig.browser
            .until(&format!("{said}.includes({})", json!(part)))?;
    }
    rig.browser
        .until("document.querySelector('#networks-table button').innerText === '1 of 3 differ'")?;
    let elements = rig
        .browser
        .run("return document.querySelectorAll('*').length", &[])?;
    ensure!(
        elements.as_u64() < Some(ELEMENTS_MAX),
        "{elements} elements"
    );
    rig.has_calm_console()
}

#[test]
fn values_are_shown_as_what_they_are() -> Result<()> {
    let Some(mut rig) = Rig::start(1, &[])? else {
        return Ok(());
    };
    rig.open("")?;
    let tried = rig.browser.run_async(
        "const { preview, recordOf, hexDump, sizeOf } = await import('/ui/value.js');
         const { EventReader } = await import('/ui/api.js');
         const base64 = (bytes) => btoa(String.fromCharCode(...bytes));
         const field = (number, bytes) => [number * 8 + 2, bytes.length, ...bytes];
         const ascii = (text) => [...text].map((letter) => letter.charCodeAt(0));
         const peer = [...field(1, ascii('10.0.0.3/24')), ...field(2, ascii('02:42')), ...field(3, ascii('192.0.2.1'))];
         const port = [...field(1, ascii('web')), 16, 1, 24, 80, 32, 144, 63];
         const endpoint = [...field(5, ascii('10.0.0.4')), ...field(6, port), ...field(8, ascii('web.1')), 72, 1];
         const read = (table, bytes) => recordOf(table, Uint8Array.from(bytes));
         let panics = 0;
         for (let round = 0; round < 2000; round += 1) {
             const bytes = Uint8Array.from({ length: round % 40 }, () => Math.random() * 256);
             try { recordOf('endpoint_table', bytes); preview('endpoint_table', base64(bytes)); hexDump(bytes); } catch { panics += 1; }
         }
         const told = [];
         const reader = new EventReader((...event) => told.push(event));
         for (const letter of ': hi\\r\\n\\nevent: a\\ndata: {}\\nid: 7\\n\\ndata:1\\ndata: 2\\r\\n\\nid:\\nevent: b\\ndata: x\\n\\n') reader.read(letter);
         return {
             peer: preview('overlay_peer_table', base64(peer)),
             endpoint: read('endpoint_table', endpoint),
             cut: read('endpoint_table', endpoint.slice(0, -1)),
             wrong: read('overlay_peer_table', [8, 1]),
             other: read('table1', peer),
             text: preview('table1', btoa('plain')),
             bytes: preview('table1', base64([0, 255])),
             sizes: ['', 'YQ==', 'YWI=', 'YWJj'].map(sizeOf),
             long: preview('table1', btoa('x'.repeat(100000))).length,
             told, panics,
         };",
        &[],
    )?;
    let wanted = json!({
        "peer": "endpoint IP 10.0.0.3/24, endpoint MAC 02:42, tunnel endpoint IP 192.0.2.1",
        "endpoint": [
            ["endpoint IP", "10.0.0.4"],
            ["ingress port", [["name", "web"], ["protocol", "UDP"], ["target port", "80"], ["published port", "8080"]]],
            ["task alias", "web.1"],
            ["service disabled", "yes"],
        ],
        "cut": null, "wrong": null, "other": null,
        "text": "plain", "bytes": "00 ff", "sizes": [0, 1, 2, 3], "long": 120,
        "told": [["a", "{}", "7"], ["", "1\n2", null], ["b", "x", ""]],
        "panics": 0,
    });
    ensure!(tried == wanted, "{tried:#}\nis not\n{wanted:#}");
    rig.has_calm_console()
}

#[test]
#[ignore = "takes pictures for the documentation, which takes a minute"]
fn pictures() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let key = dir.path().join("key");
    write_key_file(&key)?;
    let key = key.to_str().context("a path in UTF-8")?;
    let args = [
        "--key-file",
        key,
        "--hostname",
        "host-1.example",
        "--cluster",
        "production",
    ];
    let Some(mut rig) = Rig::start(4, &args)? else {
        return Ok(());
    };
    for agent in &rig.agents {
        for network in ["backend", "frontend", "ingress"] {
            agent.join_network(network)?;
        }
    }
    rig.open("#/n/ingress/t/endpoint_table")?;
    for round in 0..64 {
        for task in 0..(round * round) % 7 + 1 {
            rig.write_task(round, task)?;
        }
        if round == 40 {
            rig.agents[3].process.signal(Signal::KILL)?;
        }
        // A sample a second.
        let samples = "document.querySelector('.spark .line').getAttribute('d')?.split('L').length";
        rig.browser.until(&format!("{samples} > {round}"))?;
    }
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    rig.browser.emulate((1_280, 840), "light")?;
    rig.browser.screenshot(&docs.join("ui.png"))?;
    rig.browser.emulate((1_280, 840), "dark")?;
    rig.go("#/n/ingress/t/endpoint_table/e/ep-0001")?;
    rig.browser
        .until("document.getElementById('entry').innerText.includes('service name')")?;
    rig.browser.screenshot(&docs.join("ui-dark.png"))
}

/// Agents in a chain, and a browser for the first of them.
struct Rig {
    agents: Vec<Agent>,
    browser: Browser,
}

impl Rig {
    /// Starts both, or nothing when there is no browser.
    fn start(count: usize, args: &[&str]) -> Result<Option<Self>> {
        let Some(browser) = Browser::start()? else {
            return Ok(None);
        };
        let agents = Agent::start_chain(count, args)?;
        if args.contains(&"net1") {
            for agent in &agents {
                agent.wait_attached("net1")?;
            }
        }
        Ok(Some(Self { agents, browser }))
    }

    fn origin(&self) -> String {
        format!("http://{}", self.agents[0].diagnostic)
    }

    /// Opens the page anew, and waits until it is told what happens.
    fn open(&mut self, hash: &str) -> Result<()> {
        self.browser.open_page("about:blank")?;
        self.browser
            .open_page(&format!("{}/ui{hash}", self.origin()))?;
        self.browser.until(IS_LIVE).map(drop)
    }

    /// Goes to another place of the page.
    fn go(&mut self, hash: &str) -> Result<()> {
        self.browser
            .run("location.hash = arguments[0]", &[json!(hash)])
            .map(drop)
    }

    /// Writes texts to a table of `net1` through one of the agents.
    fn put(&self, agent: usize, table: &str, entries: &[(&str, &str)]) -> Result<()> {
        for (key, value) in entries {
            self.agents[agent].create(("net1", table), key, value)?;
        }
        Ok(())
    }

    /// Changes an entry through the first agent.
    fn put_at(&self, network: &str, table: &str, key: &str, value: &str) -> Result<()> {
        self.agents[0].update((network, table), key, value)
    }

    /// Writes what Docker would write of a task, through one of the agents that is there.
    fn write_task(&self, round: usize, task: usize) -> Result<()> {
        let agent = &self.agents[(round + task) % if round < 40 { 4 } else { 3 }];
        let id = if round < 40 { round } else { round * 3 + task };
        let field = |number: u8, text: &str| {
            let length = u8::try_from(text.len()).expect("short");
            [&[number << 3 | 2, length], text.as_bytes()].concat()
        };
        let (name, ip) = (
            format!("web.{id}.{task}"),
            format!("10.0.{task}.{}", id % 250),
        );
        let port = "\n\u{4}http\u{10}\u{0}\u{18}\u{50}\u{20}\u{50}";
        let endpoint = [
            field(1, &name),
            field(2, "web"),
            field(3, "u4wtq0rk9y"),
            field(4, "10.0.0.2"),
            field(5, &ip),
            field(6, port),
            field(7, "web"),
        ];
        let peer = [
            field(1, &format!("{ip}/24")),
            field(2, "02:42:0a:00:00:03"),
            field(3, "192.0.2.11"),
        ];
        let key = format!("ep-{:04x}", id % 120);
        for (network, table, value) in [
            ("ingress", "endpoint_table", endpoint.concat()),
            ("ingress", "overlay_peer_table", peer.concat()),
            ("backend", "leases", ip.clone().into_bytes()),
            (
                "frontend",
                "routes",
                format!("{name} via {ip}").into_bytes(),
            ),
        ] {
            let value = base64::engine::general_purpose::STANDARD.encode(value);
            let body = json!({"writes": [{"op": "put", "key": key, "value": value}]}).to_string();
            let target = format!("/v1/networks/{network}/tables/{table}/batch");
            ask(agent, "POST", &target, &body)?;
        }
        Ok(())
    }

    /// Fails when the page has complained about anything.
    fn has_calm_console(&mut self) -> Result<()> {
        let lines = self.browser.log("browser")?;
        ensure!(lines.is_empty(), "the console says {lines:?}");
        Ok(())
    }
}

/// Asks an agent for JSON.
fn ask(agent: &Agent, method: &str, target: &str, body: &str) -> Result<Value> {
    let reply = Connection::open(agent.diagnostic)?.send(method, target, body)?;
    ensure!(reply.status < 300, "{target}: {}", reply.body);
    Ok(serde_json::from_str(&reply.body)?)
}

/// Reads the clock that the page reads, too.
#[expect(
    clippy::disallowed_methods,
    reason = "compared with the clock of the browser"
)]
fn wall_ms() -> Result<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(u64::try_from(since.as_millis())?)
}
