//! A real browser without a window: Chromium, driven by chromedriver over the WebDriver protocol (W3C), which is JSON over
//! HTTP/1.1 and needs no library.

use std::io::Write;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::http::Connection;
use super::process::{self, Process};

/// How long a page may keep a script waiting; less than the connection to the driver waits.
const SCRIPT_MS: u64 = 15_000;

/// How long a page may take until it shows what it should, with room for a busy machine.
const SHOWN_WITHIN: Duration = Duration::from_secs(60);

/// What chromedriver says before its port.
const STARTED: &str = "ChromeDriver was started successfully on port ";

/// The keys that have no letter, as WebDriver names them.
pub mod keys {
    /// Moves the focus.
    pub const TAB: &str = "\u{e004}";
    /// Follows a link or presses a button.
    pub const ENTER: &str = "\u{e007}";
    /// Closes.
    pub const ESCAPE: &str = "\u{e00c}";
}

/// A running browser with one page; it ends with its handle.
#[derive(Debug)]
pub struct Browser {
    /// Killed with the handle.
    _driver: Process,
    connection: Connection,
    session: String,
    /// The process of the browser, in case the driver does not end it.
    pid: Option<Pid>,
}

impl Browser {
    /// Starts a browser. Says loudly why there is none when the programs are missing; in CI that is an error.
    pub fn start() -> Result<Option<Self>> {
        for program in ["chromedriver", "chromium"] {
            let version = Command::new(program).arg("--version").output();
            if version.is_ok_and(|output| output.status.success()) {
                continue;
            }
            ensure!(
                std::env::var_os("CI").is_none(),
                "{program} is missing, and in CI nothing is skipped"
            );
            let text = format!(
                "SKIPPED: {program} is missing, so that nothing is tested in a browser (Debian: apt-get install \
                 chromium chromium-driver)"
            );
            // Past the capture of the test harness; without a terminal there is nobody to tell.
            drop(writeln!(std::io::stderr(), "{text}"));
            return Ok(None);
        }
        Self::open().map(Some)
    }

    fn open() -> Result<Self> {
        let driver = Process::start_program(Path::new("chromedriver"), &["--port=0"])?;
        let port = driver.line(STARTED, 1)?;
        let port: u16 = port.trim_end_matches('.').parse()?;
        let addr = (Ipv4Addr::LOCALHOST, port).into();
        let connection = Connection::open_within(addr, SHOWN_WITHIN)?;
        // From here on the handle ends the driver, whatever happens.
        let mut browser = Self {
            _driver: driver,
            connection,
            session: String::new(),
            pid: None,
        };
        let capabilities = json!({
            "browserName": "chrome",
            "timeouts": {"script": SCRIPT_MS, "pageLoad": SCRIPT_MS},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            "goog:chromeOptions": {"args": [
                "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900",
                "--no-first-run", "--disable-background-networking", "--disable-extensions",
            ]},
        });
        let body = json!({"capabilities": {"alwaysMatch": capabilities}});
        let session = browser.ask("POST", "/session", &body)?;
        let id = session["sessionId"].as_str().context("a session id")?;
        browser.session = format!("/session/{id}");
        let pid = session["capabilities"]["goog:processID"].as_i64();
        browser.pid = pid.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        Ok(browser)
    }

    /// Opens an address and waits until it is loaded.
    pub fn open_page(&mut self, url: &str) -> Result<()> {
        self.command("/url", &json!({"url": url})).map(drop)
    }

    /// Runs a script as the body of a function and returns what it returns.
    pub fn run(&mut self, script: &str, args: &[Value]) -> Result<Value> {
        self.command("/execute/sync", &json!({"script": script, "args": args}))
    }

    /// Runs a script and waits for the promise that it returns.
    pub fn run_async(&mut self, script: &str, args: &[Value]) -> Result<Value> {
        let script = format!(
            "const done = arguments[arguments.length - 1];
             (async (...arguments_) => {{ {script} }})(...[...arguments].slice(0, -1))
                 .then((value) => done({{ value }}), (error) => done({{ error: String(error) }}));"
        );
        let body = json!({"script": script, "args": args});
        let mut told = self.command("/execute/async", &body)?;
        ensure!(told["error"].is_null(), "the script: {}", told["error"]);
        Ok(told["value"].take())
    }

    /// Waits until an expression is true of the page, looking again at each change of it; returns the page's clock then.
    ///
    /// A page that is on its way may not have yet what the expression asks for, or may take the script with it when the next
    /// one comes: neither ends the wait.
    pub fn until(&mut self, expression: &str) -> Result<u64> {
        let script = format!(
            "return new Promise((resolve) => {{
                 const holds = () => {{ try {{ return ({expression}); }} catch {{ return false; }} }};
                 const look = () => {{
                     if (!holds()) return false;
                     watcher.disconnect();
                     resolve(Date.now());
                     return true;
                 }};
                 const watcher = new MutationObserver(look);
                 if (!look()) {{
                     watcher.observe(document, {{
                         subtree: true, childList: true, characterData: true, attributes: true,
                     }});
                 }}
             }});"
        );
        let (mut seen, mut failed) = (Value::Null, None);
        let waited = process::until(expression, SHOWN_WITHIN, || {
            match self.run_async(&script, &[]) {
                Ok(milliseconds) => seen = milliseconds,
                Err(error) => failed = Some(error),
            }
            Ok(seen.is_u64())
        });
        if let Err(waited) = waited {
            let why = format!(
                "try {{ return String({expression}); }} catch (error) {{ return String(error); }}"
            );
            // A browser that is gone tells neither, and that it is gone is the error that counts.
            let why = self.run(&why, &[]).unwrap_or_default();
            let page = self.run("return document.body.innerText", &[]);
            let page = page.unwrap_or_default();
            let error = failed.unwrap_or(waited);
            return Err(error.context(format!(
                "waiting for {expression}, which is {why}; the page says {page}"
            )));
        }
        seen.as_u64().context("milliseconds")
    }

    /// Types into what has the focus.
    pub fn keys(&mut self, text: &str) -> Result<()> {
        let actions = text.chars().flat_map(|key| {
            ["keyDown", "keyUp"].map(|kind| json!({"type": kind, "value": key.to_string()}))
        });
        let actions: Vec<Value> = actions.collect();
        let body = json!({"actions": [{"type": "key", "id": "keyboard", "actions": actions}]});
        self.command("/actions", &body).map(drop)
    }

    /// Takes the lines of a log since it was taken last: `browser` is the console, `performance` what was loaded.
    pub fn log(&mut self, kind: &str) -> Result<Vec<Value>> {
        let lines = self.command("/se/log", &json!({"type": kind}))?;
        Ok(serde_json::from_value(lines)?)
    }

    /// Gives the page a width and height, in CSS pixels, and `light` or `dark` as what its reader prefers.
    pub fn emulate(&mut self, (width, height): (u32, u32), scheme: &str) -> Result<()> {
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.devtools("Emulation.setDeviceMetricsOverride", &size)?;
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", &features)
    }

    /// Writes what is seen as a PNG file.
    pub fn screenshot(&mut self, path: &Path) -> Result<()> {
        let target = format!("{}/screenshot", self.session);
        let picture = self.ask("GET", &target, &Value::Null)?;
        let picture = picture.as_str().context("base64")?;
        Ok(std::fs::write(path, STANDARD.decode(picture)?)?)
    }

    fn devtools(&mut self, command: &str, params: &Value) -> Result<()> {
        let body = json!({"cmd": command, "params": params});
        self.command("/goog/cdp/execute", &body).map(drop)
    }

    fn command(&mut self, path: &str, body: &Value) -> Result<Value> {
        let target = format!("{}{path}", self.session);
        self.ask("POST", &target, body)
    }

    fn ask(&mut self, method: &str, target: &str, body: &Value) -> Result<Value> {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let reply = self.connection.send(method, target, &body)?;
        let mut told: Value = serde_json::from_str(&reply.body)?;
        ensure!(
            reply.status == 200,
            "{target}: {}",
            told["value"]["message"]
        );
        Ok(told["value"].take())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let session = std::mem::take(&mut self.session);
        let is_ended = self.ask("DELETE", &session, &Value::Null).is_ok();
        if let Some(pid) = self.pid.filter(|_| !is_ended) {
            // Fails when it has ended all the same.
            kill_process(pid, Signal::KILL).ok();
        }
    }
}
