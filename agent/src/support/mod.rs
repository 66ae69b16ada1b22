//! `networkdb support`: one archive with what somebody who looks for a fault needs, and a summary of what looks wrong.
//!
//! The agent is asked over HTTP (`collect`), the system by commands (`command`, `host`). Every text passes `scrub` on its
//! way into the `archive`, so that no key is in it. What was learned (`facts`) is judged without I/O (`summary`, `overlap`).

mod archive;
mod collect;
mod command;
mod datapath;
mod facts;
mod host;
mod names;
mod overlap;
mod records;
mod scrub;
mod services;
mod summary;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};

use crate::args::SupportArgs;
use crate::config::{machine_name, read_config};
use crate::say;
use crate::shown::Shown;
use crate::signals::Signals;
use archive::{Archive, Piece};
use collect::Collector;
use command::{End, Said, Spec};
use facts::Facts;
use scrub::Scrubber;
use summary::Verdict;

/// Commands that run at the same time.
const COMMANDS: usize = 4;

/// How long the namespaces may take; those whose turn has not come by then are left out.
const NAMESPACES_WAIT: Duration = Duration::from_secs(300);

/// Collects, and says what it found.
pub(crate) async fn run(args: &SupportArgs) -> Result<ExitCode> {
    let mut signals = Signals::listen()?;
    tokio::select! {
        ended = collect(args) => ended,
        // What has been written of the archive goes with it.
        () = signals.stop() => bail!("stopped by a signal, no archive was written"),
    }
}

async fn collect(args: &SupportArgs) -> Result<ExitCode> {
    let client = args.server.client()?;
    let (host, time) = (machine_name(), wall());
    let stamp = stamp(time);
    let name = format!("networkdb-support-{}-{stamp}", names::file(&host));
    let output = args.output.clone();
    let output = output.unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
    let mut archive = Archive::create(&output, &top(&output, &name), time, scrubber(args)?)?;
    let mut facts = Facts::default();

    hint(&format!("asking the agent at {}", client.addr()));
    Collector::new(&client, &mut archive, &mut facts, args.redact)
        .run()
        .await?;
    if let Some(path) = &args.config {
        add_config(path, &mut archive, &mut facts)?;
    }
    add_system(&mut archive, &mut facts).await?;
    if archive.left_out() > 0 {
        let count = archive.left_out();
        facts
            .cut
            .push(format!("the archive is full, {count} files are left out"));
    }

    let findings = summary::findings(&facts, args.redact);
    let head = format!(
        "networkdb support {}, {} at {stamp}, agent {}\n",
        env!("CARGO_PKG_VERSION"),
        names::shown(&host),
        client.addr()
    );
    let text = summary::render(&head, &facts, &findings, args.redact);
    archive.add(&piece("summary.txt", "networkdb support", text.clone()))?;
    let is_stdout = output == Path::new("-");
    let files = archive.finish()?;
    let end = format!("{} files in {}", files, output.display());
    for line in text.lines().chain([end.as_str()]) {
        // Stdout may be the archive.
        if is_stdout { hint(line) } else { say(line) }
    }
    Ok(match summary::verdict(&findings) {
        Verdict::Fine => ExitCode::SUCCESS,
        Verdict::Flagged => ExitCode::from(1),
        Verdict::Unchecked => ExitCode::from(3),
    })
}

/// Makes what removes keys; the tokens of our own file are known.
fn scrubber(args: &SupportArgs) -> Result<Scrubber> {
    let mut scrubber = Scrubber::default();
    if let Some(path) = &args.server.token_file {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("token file {}", path.display()))?;
        let tokens = text.lines().map(str::trim);
        for token in tokens.filter(|line| !line.starts_with('#')) {
            scrubber.remove(token);
        }
    }
    Ok(scrubber)
}

/// Returns the directory in the archive: its name without what says that it is one.
fn top(output: &Path, name: &str) -> String {
    let file = output.file_name().unwrap_or_default().to_string_lossy();
    let bare = file
        .strip_suffix(".tar.gz")
        .or_else(|| file.strip_suffix(".tgz"));
    match bare.unwrap_or(&file) {
        "" | "-" => name.to_owned(),
        bare => names::file(bare),
    }
}

/// Adds the settings of the config file. A file that is none is not quoted: what is in it may be a secret.
fn add_config(path: &Path, archive: &mut Archive, facts: &mut Facts) -> Result<()> {
    let text = match read_config(path) {
        Ok(args) => Shown::of(&args).json(),
        Err(_) => {
            let text = format!("{} cannot be read as a config file", path.display());
            facts.cut.push(text.clone());
            text + ", `networkdb agent --config FILE` says why\n"
        }
    };
    archive.add(&piece(
        "config-file.json",
        &path.display().to_string(),
        text,
    ))
}

/// Adds what the commands say, on the machine and in its namespaces.
async fn add_system(archive: &mut Archive, facts: &mut Facts) -> Result<()> {
    hint("asking the system");
    facts.host.is_limited = !host::is_root();
    let specs = [host::of_machine(), host::of_namespace()].concat();
    add_commands("host", None, &specs, archive, facts).await?;
    let namespaces = host::namespaces();
    facts.host.namespaces = namespaces.found.len() + namespaces.left_out;
    let start = now();
    let mut left_out = namespaces.left_out;
    for namespace in &namespaces.found {
        if start.elapsed() > NAMESPACES_WAIT {
            left_out += 1;
            continue;
        }
        hint(&format!(
            "asking in namespace {}",
            names::shown(&namespace.name)
        ));
        let Some(prefix) = namespace.prefix() else {
            facts.host.missing.insert("nsenter".into());
            continue;
        };
        let specs = host::of_namespace();
        let specs: Vec<_> = specs.iter().map(|spec| spec.behind(&prefix)).collect();
        let name = Some(namespace.name.as_str());
        add_commands(&namespace.dir, name, &specs, archive, facts).await?;
    }
    if left_out > 0 {
        facts
            .cut
            .push(format!("{left_out} network namespaces are left out"));
    }
    Ok(())
}

/// Runs commands, a few at a time, and adds what they say.
async fn add_commands(
    dir: &str,
    namespace: Option<&str>,
    specs: &[Spec],
    archive: &mut Archive,
    facts: &mut Facts,
) -> Result<()> {
    for some in specs.chunks(COMMANDS) {
        let mut running = tokio::task::JoinSet::new();
        for (index, spec) in some.iter().cloned().enumerate() {
            running.spawn(async move { (index, spec.run(command::WAIT).await) });
        }
        let mut said = running.join_all().await;
        said.sort_by_key(|(index, _)| *index);
        for (spec, (_, said)) in some.iter().zip(said) {
            learn(spec, &said, namespace, facts);
            archive.add(&Piece {
                path: format!("{dir}/{}.txt", spec.name),
                source: spec.line(),
                text: said.text,
                taken: said.taken,
            })?;
        }
    }
    Ok(())
}

/// Keeps what the summary needs to know of a command.
fn learn(spec: &Spec, said: &Said, namespace: Option<&str>, facts: &mut Facts) {
    match said.end {
        End::Done if spec.name == host::ADDRESSES => {
            let addresses = facts::addresses(namespace, &said.stdout);
            facts.host.addresses.extend(addresses);
        }
        End::Done => {}
        End::Missing | End::Failed if spec.is_optional => {}
        End::Missing => {
            facts.host.missing.insert(spec.program().to_owned());
        }
        End::Failed => facts.host.failed.push(spec.line()),
        End::Hung => facts.host.hung.push(spec.line()),
    }
}

fn piece(path: &str, source: &str, text: String) -> Piece {
    Piece {
        path: path.to_owned(),
        source: source.to_owned(),
        text,
        taken: Duration::ZERO,
    }
}

/// Writes a time as `20260102T030405Z`.
fn stamp(seconds: u64) -> String {
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let (hour, minute, second) = (time / 3_600, time / 60 % 60, time % 60);
    // Eras of 400 years that begin in March, so that the day that may be missing is the last of a year.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

/// Says on stderr what is going on.
fn hint(line: &str) {
    // Whoever wants the archive may not care for it.
    drop(writeln!(std::io::stderr(), "{line}"));
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long commands of the system take is measured with the real clock"
)]
fn now() -> Instant {
    Instant::now()
}

/// Returns the seconds since the epoch.
#[expect(
    clippy::disallowed_methods,
    reason = "the archive says when it was made"
)]
fn wall() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_utc() {
        for (seconds, text) in [
            (0, "19700101T000000Z"),
            (951_782_400, "20000229T000000Z"),
            (1_709_251_199, "20240229T235959Z"),
            (1_767_323_045, "20260102T030405Z"),
        ] {
            assert_eq!(stamp(seconds), text);
        }
    }

    #[test]
    fn the_directory_is_the_name_of_the_archive() {
        for (output, name) in [
            ("/tmp/x.tar.gz", "x"),
            ("x.tgz", "x"),
            ("x", "x"),
            ("-", "name"),
            (".tar.gz", "name"),
            ("a b.tar.gz", "a%20b"),
        ] {
            assert_eq!(top(Path::new(output), "name"), name);
        }
    }

    #[test]
    fn a_config_file_that_is_none_is_not_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, r#"{"token": "hunter2-hunter2"}"#).unwrap();
        let output = dir.path().join("x.tar.gz");
        let mut archive = Archive::create(&output, "x", 0, Scrubber::default()).unwrap();
        let mut facts = Facts::default();
        add_config(&path, &mut archive, &mut facts).unwrap();
        assert_eq!(facts.cut.len(), 1);
        assert!(!facts.cut[0].contains("hunter2"));
    }
}
