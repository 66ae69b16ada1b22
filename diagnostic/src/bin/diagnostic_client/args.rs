//! The flags, as Go's package `flag` reads them: one dash or two, `-flag value` or `-flag=value`, booleans bare or `=true`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::ValueParser;
use clap::error::ErrorKind;
use clap::{ArgAction, CommandFactory, Parser, ValueEnum};
use diagnostic::ClientFiles;

const USAGE: &str =
    "diagnosticClient [-ip HOST] [-port PORT] [-net NID [-t sd|overlay] [-r] [-a]] [-v]
                        [-token-file FILE] [-cacert FILE [-cert FILE -key FILE]]";

const NOTES: &str = "\
Flags take one dash or two and their values after a space or `=`; what follows the first argument that is no flag is not
read. Log lines go to stderr. Exit codes: 0 done, 1 anything else.

-a is refused unless DIND_CLIENT is set in the environment: leaving a network cuts a live daemon's data path.

Examples:
  diagnosticClient -net ljsmtvd6kwa2395kofyf19vvx -t overlay -v
      shows the peers and the entries of a network as this machine's node has them, and names entries without a node
  diagnosticClient -ip 192.0.2.11 -cacert ca.pem -token-file token -net ljsmtvd6kwa2395kofyf19vvx -t sd -r
      offers to delete such entries of service discovery, on a server with TLS and tokens";

/// Asks the diagnostic server of a node about its peers and tables.
#[derive(Debug, Parser)]
#[command(name = "diagnosticClient", override_usage = USAGE, after_help = NOTES)]
#[command(args_override_self = true, disable_help_flag = true)]
pub(crate) struct Args {
    /// Address or name of the server
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    pub(crate) ip: String,
    /// Its port
    #[arg(long, value_name = "PORT", default_value_t = 2000)]
    pub(crate) port: u16,
    /// Network to look at, by its whole id
    #[arg(long = "net", value_name = "NID", default_value = "")]
    #[arg(hide_default_value = true)]
    pub(crate) network: String,
    /// Table to check: service discovery, or the peers of the overlay driver
    #[arg(long = "t", value_name = "sd|overlay", default_value = "")]
    #[arg(hide_default_value = true, hide_possible_values = true)]
    pub(crate) table: Table,
    /// Offer to delete the entries whose owner is not on the network
    #[arg(long = "r", action = ArgAction::Set, value_parser = go_bool())]
    #[arg(
        default_value = "false",
        hide_default_value = true,
        value_name = "BOOL"
    )]
    pub(crate) remediate: bool,
    /// Join the network first and leave it in the end; see below
    #[arg(long = "a", action = ArgAction::Set, value_parser = go_bool())]
    #[arg(
        default_value = "false",
        hide_default_value = true,
        value_name = "BOOL"
    )]
    pub(crate) join: bool,
    /// Log what is read as well
    #[arg(long = "v", action = ArgAction::Set, value_parser = go_bool())]
    #[arg(
        default_value = "false",
        hide_default_value = true,
        value_name = "BOOL"
    )]
    pub(crate) verbose: bool,
    /// File whose first line is the token to bring
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Speak TLS; roots of which the server has to bring a certificate, PEM
    #[arg(long = "cacert", value_name = "FILE")]
    pub(crate) roots: Option<PathBuf>,
    /// Certificate to bring, PEM
    #[arg(long = "cert", value_name = "FILE", requires_all = ["key", "roots"])]
    pub(crate) certificate: Option<PathBuf>,
    /// Private key of that certificate, PEM
    #[arg(long, value_name = "FILE", requires = "certificate")]
    pub(crate) key: Option<PathBuf>,
}

/// A table that can be checked.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Table {
    #[value(name = "", hide = true)]
    None,
    #[value(name = "sd")]
    Endpoints,
    #[value(name = "overlay")]
    Peers,
}

/// Why there is nothing to do: wrong usage, or help was asked for.
#[derive(Debug)]
pub(crate) struct Stop {
    pub(crate) text: String,
    pub(crate) is_failure: bool,
}

impl Args {
    /// Reads the arguments, the program's name first.
    pub(crate) fn read(args: impl Iterator<Item = OsString>) -> Result<Self, Stop> {
        let args: Result<Vec<String>, OsString> =
            args.skip(1).map(|arg| arg.into_string()).collect();
        let args = args.map_err(|arg| wrong(format!("an argument is no UTF-8: {arg:?}")))?;
        let args = Self::try_parse_from(translate(args)?).map_err(|error| told(&error))?;
        if args.table != Table::None && args.network.is_empty() {
            return Err(wrong("-t needs -net".into()));
        }
        Ok(args)
    }

    /// Returns the files of TLS, none when it is not to be spoken.
    pub(crate) fn tls(&self) -> Option<ClientFiles> {
        let roots = self.roots.clone()?;
        let identity = self.certificate.clone().zip(self.key.clone());
        Some(ClientFiles { roots, identity })
    }
}

/// Writes flags of Go as flags of clap: two dashes, and each value behind a `=`.
fn translate(args: Vec<String>) -> Result<Vec<String>, Stop> {
    let command = Args::command();
    let mut translated = vec![command.get_name().to_owned()];
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let Some(flag) = arg.strip_prefix('-').filter(|flag| !flag.is_empty()) else {
            break;
        };
        if flag == "-" {
            break;
        }
        let flag = flag.strip_prefix('-').unwrap_or(flag);
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        if name.is_empty() || name.starts_with('-') {
            return Err(wrong(format!("bad flag syntax: {arg}")));
        }
        if ["h", "help"].contains(&name) {
            return Err(Stop {
                text: Args::command().render_help().to_string(),
                is_failure: false,
            });
        }
        let mut flags = command.get_arguments();
        let Some(known) = flags.find(|known| known.get_long() == Some(name)) else {
            return Err(wrong(format!("there is no flag -{name}")));
        };
        let is_bool = matches!(known.get_value_names(), Some([name]) if name == "BOOL");
        let value = match value {
            Some(value) => value,
            None if is_bool => "true".into(),
            None => {
                let next = args.next();
                next.ok_or_else(|| wrong(format!("-{name} needs a value")))?
            }
        };
        translated.push(format!("--{name}={value}"));
    }
    Ok(translated)
}

/// Tells what is wrong.
fn wrong(message: String) -> Stop {
    told(&Args::command().error(ErrorKind::InvalidValue, message))
}

/// Tells what is wrong, with the usage, which clap leaves out of some errors.
fn told(error: &clap::Error) -> Stop {
    let text = error.render().to_string();
    let message = text.split("\n\n").next().unwrap_or_default().trim_end();
    let usage = Args::command().render_usage();
    Stop {
        text: format!("{message}\n\n{usage}\n\nMore with -h.\n"),
        is_failure: true,
    }
}

/// Reads what Go's `strconv.ParseBool` reads.
fn go_bool() -> ValueParser {
    ValueParser::from(|text: &str| match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("neither true nor false"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &[&str]) -> Result<Args, Stop> {
        let args = std::iter::once("diagnosticClient").chain(args.iter().copied());
        Args::read(args.map(OsString::from))
    }

    #[test]
    fn flags_are_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn defaults_are_those_of_docker() {
        let args = read(&[]).unwrap();
        assert_eq!((args.ip.as_str(), args.port), ("127.0.0.1", 2000));
        assert_eq!((args.network.as_str(), args.table), ("", Table::None));
        assert!(!args.remediate && !args.join && !args.verbose);
        assert_eq!(args.tls(), None);
    }

    #[test]
    fn values_come_after_a_space_or_an_equals_sign_and_the_last_one_counts() {
        for line in [
            "-ip 192.0.2.1 -port 3000 -net n -t sd",
            "--ip 192.0.2.1 --port 3000 --net n --t sd",
            "-ip=192.0.2.1 --port=3000 -net=n --t=sd",
            "-port 1 -port 3000 -t overlay -t sd -net m -net n -ip 192.0.2.1",
        ] {
            let args: Vec<&str> = line.split(' ').collect();
            let args = read(&args).unwrap();
            assert_eq!((args.ip.as_str(), args.port), ("192.0.2.1", 3000), "{line}");
            assert_eq!((args.network.as_str(), args.table), ("n", Table::Endpoints));
        }
        assert_eq!(read(&["-net", "-v"]).unwrap().network, "-v");
        assert_eq!(read(&["-net", "--"]).unwrap().network, "--");
        assert_eq!(read(&["-net=a=b"]).unwrap().network, "a=b");
        assert_eq!(read(&["-t", "", "-net", ""]).unwrap().table, Table::None);
    }

    #[test]
    fn booleans_are_bare_or_what_go_takes() {
        for (arg, is_set) in [
            ("-v", true),
            ("--v", true),
            ("-v=1", true),
            ("-v=t", true),
            ("-v=T", true),
            ("-v=TRUE", true),
            ("-v=true", true),
            ("--v=True", true),
            ("-v=0", false),
            ("-v=f", false),
            ("-v=F", false),
            ("-v=false", false),
            ("-v=FALSE", false),
            ("-v=False", false),
        ] {
            assert_eq!(read(&[arg]).unwrap().verbose, is_set, "{arg}");
        }
        assert!(!read(&["-v", "-v=false"]).unwrap().verbose);
        let args = read(&["-a", "-r"]).unwrap();
        assert!(args.join && args.remediate);
    }

    #[test]
    fn flags_end_at_the_first_other_argument() {
        for end in ["--", "-", "other", "false", ""] {
            let args = read(&["-v", end, "-r", "-nonsense"]).unwrap();
            assert!(args.verbose && !args.remediate, "{end}");
        }
    }

    #[test]
    fn wrong_usage_is_told_with_the_usage() {
        for (args, word) in [
            (&["-x"][..], "-x"),
            (&["---v"], "---v"),
            (&["-=1"], "-=1"),
            (&["-v=yes"], "yes"),
            (&["-v="], "--v"),
            (&["-port", "x"], "x"),
            (&["-port", "65536"], "65536"),
            (&["-port"], "-port"),
            (&["-net", "n", "-t", "nodes"], "nodes"),
            (&["-t", "sd"], "-net"),
            (&["-cacert", "a", "-cert", "a"], "--key"),
            (&["-cacert", "a", "-key", "a"], "--cert"),
            (&["-cert", "a", "-key", "b"], "--cacert"),
        ] {
            let Stop { text, is_failure } = read(args).unwrap_err();
            assert!(is_failure, "{args:?}");
            let (message, _) = text.split_once("Usage: diagnosticClient").expect("a usage");
            assert!(message.contains(word), "{args:?}: {message}");
        }
    }

    #[test]
    fn help_names_every_flag() {
        for arg in ["-h", "--h", "-help", "--help", "-h=1"] {
            let Stop { text, is_failure } = read(&["-v", arg, "-x"]).unwrap_err();
            assert!(!is_failure);
            for flag in Args::command()
                .get_arguments()
                .filter_map(|it| it.get_long())
            {
                assert!(text.contains(&format!("--{flag}")), "{flag}");
                assert!(
                    text.contains(&format!("-{flag} ")) || text.contains(&format!("-{flag}]")),
                    "{flag}"
                );
            }
        }
    }

    #[test]
    fn files_of_tls_go_together() {
        let args = read(&["-cacert", "a", "-cert", "b", "-key=c"]).unwrap();
        let files = args.tls().unwrap();
        assert_eq!(files.roots, PathBuf::from("a"));
        assert_eq!(files.identity, Some(("b".into(), "c".into())));
        let args = read(&["-cacert=a", "-token-file", "t"]).unwrap();
        assert_eq!(args.tls().unwrap().identity, None);
        assert_eq!(args.token_file, Some("t".into()));
    }
}
