//! `networkdb datapath`: asks the agent of this host about its data path, or removes what agents left behind.

use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use diagnostic::{Answer, Client, Method};
use networkdb::NetworkId;
use overlay_sync::kernel::Kernel as _;
use overlay_sync::kernel::balancer::{Balancer as _, KernelBalancer, Kind};
use overlay_sync::kernel::check::check;
use overlay_sync::kernel::netlink::NetlinkKernel;
use overlay_sync::plan::Op;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use crate::args::{AskArgs, CleanupArgs, DatapathAction};
use crate::say;

/// Exit code for what could not be asked.
const UNASKED: u8 = 3;

/// What was asked of a network.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Question {
    Plan,
    Verify,
    Repair,
}

/// Runs the command.
pub(crate) async fn run(action: &DatapathAction) -> Result<ExitCode> {
    match action {
        DatapathAction::Plan(args) => ask(args, Question::Plan).await,
        DatapathAction::Verify(args) => ask(args, Question::Verify).await,
        DatapathAction::Repair(args) => ask(args, Question::Repair).await,
        DatapathAction::Cleanup(args) => cleanup(args),
    }
}

async fn ask(args: &AskArgs, question: Question) -> Result<ExitCode> {
    let asked = async {
        let client = args.server.client()?.with_kept_connections();
        let about = value(client.get("/v1/datapath").await?)
            .context("the agent has no data path (start it with --data-path on)")?;
        let mut networks = names(&about);
        if let Some(only) = &args.network {
            networks = vec![only.to_string()];
        }
        answers(&client, question, &networks, &about).await
    };
    let answered = match asked.await {
        Ok(answered) => answered,
        Err(error) => {
            crate::complain(&format!("agent at {}: {error:#}", args.server.addr()));
            return Ok(ExitCode::from(UNASKED));
        }
    };
    if args.json {
        say(&serde_json::to_string_pretty(&answered.json).context("answers are JSON")?);
    } else {
        answered.lines.iter().for_each(|line| say(line));
    }
    Ok(ExitCode::from(answered.code(question)))
}

/// What the agent said of all networks.
#[derive(Debug, Default)]
struct Answered {
    json: Vec<Value>,
    lines: Vec<String>,
    differ: usize,
    failed: usize,
    unasked: usize,
}

impl Answered {
    fn code(&self, question: Question) -> u8 {
        match question {
            _ if self.unasked > 0 => UNASKED,
            Question::Plan => 0,
            Question::Verify => u8::from(self.differ > 0),
            Question::Repair => u8::from(self.failed > 0),
        }
    }
}

async fn answers(
    client: &Client,
    question: Question,
    networks: &[String],
    about: &Value,
) -> Result<Answered> {
    let mut all = Answered::default();
    for network in networks {
        let encoded = utf8_percent_encode(network, NON_ALPHANUMERIC);
        let base = format!("/v1/datapath/{encoded}");
        let answer = match question {
            Question::Plan | Question::Verify => client.get(&format!("{base}/plan")).await?,
            Question::Repair => {
                let target = format!("{base}/repair");
                client.send(Method::POST, &target, "", Bytes::new()).await?
            }
        };
        let is_kernel = answer.status == 500;
        match value(answer) {
            Ok(answer) => all.take(network, question, &answer),
            Err(error) => {
                if question == Question::Repair && is_kernel {
                    all.failed += 1;
                } else if is_refused(about, network) {
                    all.differ += 1;
                } else {
                    all.unasked += 1;
                }
                all.lines.push(format!("network {network}: {error:#}"));
                all.json
                    .push(json!({"network": network, "error": format!("{error:#}")}));
            }
        }
    }
    if networks.is_empty() {
        all.lines
            .push("this node is attached to no network".to_owned());
    }
    Ok(all)
}

impl Answered {
    fn take(&mut self, network: &str, question: Question, answer: &Value) {
        let operations = answer["operations"].as_u64().unwrap_or_default();
        let list = match question {
            Question::Plan | Question::Verify => &answer["plan"],
            Question::Repair => &answer["done"],
        };
        let what = match (question, operations) {
            (_, 0) => "OK".to_owned(),
            (Question::Repair, count) => format!("{count} changes made"),
            (_, count) => format!("{count} changes needed"),
        };
        self.differ += usize::from(operations > 0);
        self.lines.push(format!("network {network}: {what}"));
        let listed = list.as_array().into_iter().flatten();
        let listed: Vec<&str> = listed.filter_map(Value::as_str).collect();
        self.lines
            .extend(listed.iter().map(|line| format!("  {line}")));
        let more = usize::try_from(operations).unwrap_or(usize::MAX) - listed.len();
        if more > 0 {
            self.lines.push(format!("  and {more} more"));
        }
        let mut told = answer.clone();
        told["network"] = network.into();
        self.json.push(told);
    }
}

/// Networks with a data path, or one that was refused.
fn names(about: &Value) -> Vec<String> {
    let networks = about["networks"].as_array().into_iter().flatten();
    let wanted = networks.filter(|network| network["state"] != "unconfigured");
    let names = wanted.filter_map(|network| network["network"].as_str());
    names.map(str::to_owned).collect()
}

fn is_refused(about: &Value, name: &str) -> bool {
    let mut networks = about["networks"].as_array().into_iter().flatten();
    networks.any(|network| network["network"] == name && network["state"] == "refused")
}

fn value(answer: Answer) -> Result<Value> {
    let parsed: Option<Value> = serde_json::from_slice(&answer.body).ok();
    if answer.is_success() {
        return parsed.ok_or_else(|| anyhow!("the answer is not JSON"));
    }
    let detail = parsed.and_then(|problem| problem["detail"].as_str().map(str::to_owned));
    bail!(
        "{}",
        detail.unwrap_or_else(|| format!("status {}", answer.status))
    )
}

fn cleanup(args: &CleanupArgs) -> Result<ExitCode> {
    check(&args.data_path_dir)?;
    let mut kernel = NetlinkKernel::new(&args.data_path_dir)?;
    let mut balancer = KernelBalancer::new(&args.data_path_dir, Kind::Nftables)?;
    let mut found = kernel.networks()?;
    if let Some(only) = &args.network {
        found.retain(|network: &NetworkId| network == only);
    }
    let mut code = ExitCode::SUCCESS;
    for network in found {
        if args.dry_run {
            say(&format!("network {network}: would be removed"));
            continue;
        }
        // What it has on the host, such as rules for published ports, goes first.
        if let Err(error) = balancer.clear(&network) {
            crate::complain(&format!("network {network}: {error}"));
            code = ExitCode::FAILURE;
        }
        match kernel.apply(&network, &[Op::RemoveNamespace]).pop() {
            None => say(&format!("network {network}: removed")),
            Some(failure) => {
                crate::complain(&format!("network {network}: {}", failure.error));
                code = ExitCode::FAILURE;
            }
        }
    }
    // What belongs to no network any more.
    if args.network.is_none()
        && !args.dry_run
        && let Err(error) = balancer.clear_host()
    {
        crate::complain(&error.to_string());
        code = ExitCode::FAILURE;
    }
    Ok(code)
}
