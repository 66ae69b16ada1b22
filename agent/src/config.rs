//! What a node runs with: flags, config file and key file become checked [`Settings`].
//!
//! A flag beats the file. Every refusal says which file, key or flag is meant and what would be right. The file is read
//! anew on each call, so a reload is the same path as a start.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use networkdb::node::NodeConfig;
use networkdb::{Config, Keyring, NetworkId};

use crate::args::{AgentArgs, LogFormat, LogLevel, Preset};
use crate::datapath::Path as DataPath;
use crate::diagnostics::Exposed;
use crate::shown::Shown;

/// The port for gossip unless another is given.
const GOSSIP_PORT: u16 = 7946;

/// Files larger than this are no config or key file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What `networkdb agent` runs with.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) node: NodeConfig,
    pub(crate) networks: Vec<NetworkId>,
    /// The diagnostic server; none when it is off.
    pub(crate) diagnostic: Option<Exposed>,
    /// The data path; none when it is off.
    pub(crate) data_path: Option<DataPath>,
    pub(crate) log_level: LogLevel,
    pub(crate) log_format: LogFormat,
    /// The same for people to read, without secrets.
    pub(crate) shown: Shown,
}

impl Settings {
    /// Reads the files that the flags name and applies defaults.
    pub(crate) fn read(flags: &AgentArgs) -> Result<Self> {
        let file = flags.config.as_deref().map(read_config).transpose()?;
        let args = flags.clone().or(file.unwrap_or_default());
        let keyring = args.key_file.as_deref().map(read_keys).transpose()?;
        let insecure_gossip = args.insecure_gossip.unwrap_or(false);
        let bind_ip = bind_ip(args.bind_addr, keyring.is_some(), insecure_gossip)?;
        let mut protocol = match args.preset.unwrap_or_default() {
            Preset::Default => Config::lan(),
            Preset::Fast => Config::fast(),
            Preset::Wan => Config::wan(),
        };
        protocol.cluster = args.cluster.clone().unwrap_or(protocol.cluster);
        Ok(Self {
            shown: Shown::of(&args),
            data_path: DataPath::read(&args)?,
            diagnostic: Exposed::read(&args)?,
            node: NodeConfig {
                protocol,
                node_id: args.node_id,
                hostname: args.hostname.unwrap_or_else(machine_name),
                bind: (bind_ip, args.bind_port.unwrap_or(GOSSIP_PORT)).into(),
                advertise: args.advertise_addr,
                join: args.join,
                keyring,
                insecure_gossip,
                state_dir: args.state_dir,
            },
            networks: args.network,
            log_level: args.log_level.unwrap_or_default(),
            log_format: args.log_format.unwrap_or_default(),
        })
    }
}

/// Chooses the address for gossip, or refuses one that would send in the open by mistake.
fn bind_ip(wanted: Option<IpAddr>, keys: bool, insecure_gossip: bool) -> Result<IpAddr> {
    let protected = keys || insecure_gossip;
    match wanted {
        None if protected => Ok(Ipv4Addr::UNSPECIFIED.into()),
        None => Ok(Ipv4Addr::LOCALHOST.into()),
        Some(ip) if protected || ip.is_loopback() => Ok(ip),
        Some(ip) => bail!(
            "--bind-addr {ip} is not a loopback address and there are no keys: give --key-file FILE (`networkdb keygen` \
             makes one), or --insecure-gossip to send everything in the open"
        ),
    }
}

/// Reads a config file.
pub(crate) fn read_config(path: &Path) -> Result<AgentArgs> {
    let open = || File::open(path).and_then(read_text);
    let text = open().with_context(|| format!("cannot read config file {}", path.display()))?;
    parse_config(&text).with_context(|| format!("config file {}", path.display()))
}

/// Parses the text of a config file; an error names key, line and column.
fn parse_config(text: &str) -> Result<AgentArgs> {
    // Serde would take a list for the fields in order.
    if !text.trim_start().starts_with('{') {
        bail!("line 1 must begin an object with flag names as keys");
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let args: AgentArgs = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let key = error.path().to_string();
        match key.as_str() {
            // Nothing in the file to point at but the line, which the inner error has.
            "." | "?" => error.into_inner().into(),
            key => anyhow::Error::new(error.into_inner()).context(format!("key \"{key}\"")),
        }
    })?;
    json.end()?;
    Ok(args)
}

/// Reads a key file.
fn read_keys(path: &Path) -> Result<Keyring> {
    let name = format!("key file {}", path.display());
    Keyring::parse(&read_secret(&name, path)?).context(name)
}

/// Reads a file of secrets; refuses one that others may read.
pub(crate) fn read_secret(name: &str, path: &Path) -> Result<String> {
    let file = File::open(path).with_context(|| format!("cannot read {name}"))?;
    let metadata = file
        .metadata()
        .with_context(|| format!("cannot read {name}"))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let path = path.display();
        bail!("{name} is open to others (mode {mode:04o}): run `chmod 600 {path}`");
    }
    read_text(file).with_context(|| format!("cannot read {name}"))
}

/// Reads a small text file to its end.
fn read_text(file: File) -> std::io::Result<String> {
    let mut text = String::new();
    let bytes = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if u64::try_from(bytes).is_ok_and(|bytes| bytes <= FILE_BYTES_MAX) {
        Ok(text)
    } else {
        Err(std::io::Error::other("larger than 1 MiB"))
    }
}

/// Returns the machine's name as the kernel knows it.
pub(crate) fn machine_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "localhost".into(),
        name => name.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use std::net::SocketAddr;

    use super::*;

    #[test]
    fn without_keys_only_loopback_is_bound() {
        let any: IpAddr = Ipv4Addr::UNSPECIFIED.into();
        let outside: IpAddr = "192.0.2.1".parse().unwrap();
        assert_eq!(
            bind_ip(None, false, false).unwrap(),
            IpAddr::from([127, 0, 0, 1])
        );
        assert_eq!(bind_ip(None, true, false).unwrap(), any);
        assert_eq!(bind_ip(None, false, true).unwrap(), any);
        assert_eq!(bind_ip(Some(outside), true, false).unwrap(), outside);
        for ip in [any, outside] {
            let error = bind_ip(Some(ip), false, false).unwrap_err().to_string();
            assert!(error.contains(&ip.to_string()), "{error}");
            assert!(error.contains("--key-file"), "{error}");
            assert!(error.contains("--insecure-gossip"), "{error}");
        }
    }

    #[test]
    fn config_errors_name_key_and_place() {
        let error = |text| format!("{:#}", parse_config(text).unwrap_err());
        let unknown = error("{\n \"bind-prot\": 1\n}");
        assert!(
            unknown.contains("`bind-prot`, expected one of `state-dir`, `node-id`"),
            "{unknown}"
        );
        assert!(unknown.contains("line 2"), "{unknown}");
        let value = error("{\"cluster\": \"a\",\n \"bind-port\": 70000}");
        assert!(
            value.contains("key \"bind-port\"") && value.contains("line 2"),
            "{value}"
        );
        let list = error(r#"{"join": 3}"#);
        assert!(list.contains("a string or a list of strings"), "{list}");
        assert!(error("[]").contains("line 1 must begin an object"));
        assert!(error("{} x").contains("trailing characters"));
        assert!(error("{\"bind-port\": }").contains("line 1"));
        assert!(error(r#"{"network": ""}"#).contains("network id is empty"));
    }

    #[test]
    fn flag_beats_the_file_and_the_file_beats_the_default() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(br#"{"cluster": "blue", "bind-port": 1, "network-diagnostic-port": 9}"#)
            .unwrap();
        let flags = AgentArgs {
            config: Some(file.path().into()),
            bind_port: Some(2),
            ..AgentArgs::default()
        };
        let settings = Settings::read(&flags).unwrap();
        assert_eq!(settings.node.protocol.cluster, "blue");
        assert_eq!(settings.node.bind, SocketAddr::from(([127, 0, 0, 1], 2)));
        let exposed = settings.diagnostic.expect("a port was given");
        assert_eq!(exposed.addr, SocketAddr::from(([127, 0, 0, 1], 9)));
        assert_eq!(settings.log_level, LogLevel::Info);
    }

    #[test]
    fn key_file_open_to_others_is_refused() {
        // A named temporary file has mode 0600.
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "# test\nAAAAAAAAAAAAAAAAAAAAAA==").unwrap();
        assert!(read_keys(file.path()).is_ok());
        let mode = std::fs::Permissions::from_mode(0o640);
        file.as_file().set_permissions(mode).unwrap();
        let error = format!("{:#}", read_keys(file.path()).unwrap_err());
        assert!(
            error.contains("mode 0640") && error.contains("chmod 600"),
            "{error}"
        );
    }

    #[test]
    fn missing_and_malformed_key_files_are_named() {
        let error = format!(
            "{:#}",
            read_keys(Path::new("/nonexistent/keys")).unwrap_err()
        );
        assert!(error.contains("/nonexistent/keys"), "{error}");
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "short").unwrap();
        let error = format!("{:#}", read_keys(file.path()).unwrap_err());
        assert!(error.contains("line 1"), "{error}");
    }
}
