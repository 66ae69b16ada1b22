//! What the agent tells about itself over HTTP, beside its data: the settings it runs with, and its last log lines.
//!
//! Nothing here can hold a secret: the settings are a struct of their own, made of names, addresses and the paths of files,
//! and whoever adds a field has to say what goes into it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use diagnostic::{Reply, Route, Routes};
use networkdb::NetworkId;
use overlay_sync::NetworkConfig;
use serde::Serialize;

use crate::args::{AgentArgs, Compat, LoadBalancer, LogFormat, LogLevel, Preset, Switch};
use crate::recent::Recent;

/// The path of the last log lines.
pub(crate) const LOGS: &str = "/logs";

/// The path of the settings.
pub(crate) const CONFIG: &str = "/config";

/// The settings of an agent, files by path only.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Shown {
    config: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    node_id: Option<String>,
    hostname: Option<String>,
    cluster: Option<String>,
    bind_addr: Option<IpAddr>,
    bind_port: Option<u16>,
    advertise_addr: Option<IpAddr>,
    join: Vec<String>,
    network: Vec<NetworkId>,
    insecure_gossip: bool,
    preset: Preset,
    log_format: LogFormat,
    key_file: Option<PathBuf>,
    log_level: LogLevel,
    data_path: Switch,
    data_path_addr: Option<IpAddr>,
    data_path_port: Option<NonZeroU16>,
    data_path_hold: Option<u32>,
    data_path_dir: Option<PathBuf>,
    data_path_probe: Option<Switch>,
    load_balancer: LoadBalancer,
    drain_time: Option<u32>,
    compat: Option<Compat>,
    overlay_networks: BTreeMap<NetworkId, NetworkConfig>,
    #[serde(flatten)]
    diagnostic: ShownDiagnostic,
}

/// The settings of its diagnostic server.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct ShownDiagnostic {
    diagnostic_addr: Option<SocketAddr>,
    diagnostic_token_file: Option<PathBuf>,
    diagnostic_tls_cert: Option<PathBuf>,
    diagnostic_tls_key: Option<PathBuf>,
    diagnostic_tls_client_ca: Option<PathBuf>,
    diagnostic_host: Vec<String>,
    diagnostic_read_only: bool,
    diagnostic_insecure: bool,
}

/// What every diagnostic server of this agent tells, wherever it moves; clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    config: Arc<Mutex<Shown>>,
    recent: Arc<Recent>,
}

impl Shown {
    /// Takes what flags and file say, defaults filled in.
    pub(crate) fn of(args: &AgentArgs) -> Self {
        Self {
            config: args.config.clone(),
            state_dir: args.state_dir.clone(),
            node_id: args.node_id.as_ref().map(ToString::to_string),
            hostname: args.hostname.clone(),
            cluster: args.cluster.clone(),
            bind_addr: args.bind_addr,
            bind_port: args.bind_port,
            advertise_addr: args.advertise_addr,
            join: args.join.clone(),
            network: args.network.clone(),
            insecure_gossip: args.insecure_gossip.unwrap_or(false),
            preset: args.preset.unwrap_or_default(),
            log_format: args.log_format.unwrap_or_default(),
            key_file: args.key_file.clone(),
            log_level: args.log_level.unwrap_or_default(),
            data_path: args.data_path.unwrap_or_default(),
            data_path_addr: args.data_path_addr,
            data_path_port: args.data_path_port,
            data_path_hold: args.data_path_hold,
            data_path_dir: args.data_path_dir.clone(),
            data_path_probe: args.data_path_probe,
            load_balancer: args.load_balancer.unwrap_or_default(),
            drain_time: args.drain_time,
            compat: args.compat,
            overlay_networks: args.overlay_networks.clone(),
            diagnostic: ShownDiagnostic {
                diagnostic_addr: args.diagnostic_addr(),
                diagnostic_token_file: args.diagnostic_token_file.clone(),
                diagnostic_tls_cert: args.diagnostic_tls_cert.clone(),
                diagnostic_tls_key: args.diagnostic_tls_key.clone(),
                diagnostic_tls_client_ca: args.diagnostic_tls_client_ca.clone(),
                diagnostic_host: args.diagnostic_host.clone(),
                diagnostic_read_only: args.diagnostic_read_only.unwrap_or(false),
                diagnostic_insecure: args.diagnostic_insecure.unwrap_or(false),
            },
        }
    }

    /// Returns it as indented JSON.
    pub(crate) fn json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }
}

impl Told {
    /// Tells these settings and these lines.
    pub(crate) fn new(config: Shown, recent: &Arc<Recent>) -> Self {
        Self {
            config: Arc::new(Mutex::new(config)),
            recent: Arc::clone(recent),
        }
    }

    /// Notes the log level of a reload.
    pub(crate) fn log_level_is(&self, now: &Shown) {
        self.change(|config| config.log_level = now.log_level);
    }

    /// Notes the diagnostic server of a reload.
    pub(crate) fn diagnostic_is(&self, now: &Shown) {
        self.change(|config| config.diagnostic = now.diagnostic.clone());
    }

    /// Notes the layouts of networks of a reload.
    pub(crate) fn overlay_networks_are(&self, now: &Shown) {
        self.change(|config| config.overlay_networks.clone_from(&now.overlay_networks));
    }

    /// Notes where the keys of a reload are from.
    pub(crate) fn keys_are(&self, now: &Shown) {
        self.change(|config| config.key_file.clone_from(&now.key_file));
    }

    /// Mounts the paths.
    pub(crate) fn mount(&self, routes: &Routes) -> Result<()> {
        let recent = Arc::clone(&self.recent);
        let logs = Route::new(LOGS, move |_| {
            std::future::ready(Ok(Reply::text(recent.text())))
        });
        let config = Arc::clone(&self.config);
        let config = Route::new(CONFIG, move |_| {
            let config = config.lock().expect("nothing panics while it is held");
            std::future::ready(Ok(Reply::text(config.json())))
        });
        routes.register(logs.text_only())?;
        routes.register(config.text_only())?;
        Ok(())
    }

    fn change(&self, change: impl FnOnce(&mut Shown)) {
        change(&mut self.config.lock().expect("nothing panics while it is held"));
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::args::Args;

    #[test]
    fn every_flag_of_the_agent_is_shown_under_its_name() {
        let shown = serde_json::to_value(Shown::of(&AgentArgs::default())).unwrap();
        let mut command = Args::command();
        let agent = command.find_subcommand_mut("agent").unwrap();
        for flag in agent.get_arguments().filter_map(|arg| arg.get_long()) {
            // The port is shown with its address.
            if !["network-diagnostic-port", "help"].contains(&flag) {
                assert!(shown.get(flag).is_some(), "{flag}");
            }
        }
    }
}
