//! Flags by which programs are told how to ask an agent, the same for all of them.

use std::path::PathBuf;
use std::str::FromStr;

use crate::{Client, ClientFileError, ClientFiles};

/// How an agent is asked.
#[derive(Clone, Debug, clap::Args)]
pub struct ServerArgs {
    /// Diagnostic server of the agent
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:2000")]
    pub agent: ServerAddr,
    /// File with tokens of which the first is brought with every request, as --diagnostic-token-file of the agent
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Roots of the agent's certificate, PEM; the agent is then asked in TLS
    #[arg(long, value_name = "FILE")]
    pub cacert: Option<PathBuf>,
    /// Certificate to bring, PEM
    #[arg(long, value_name = "FILE", requires_all = ["key", "cacert"])]
    pub cert: Option<PathBuf>,
    /// Private key of that certificate, PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
}

/// Where a server is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServerAddr {
    /// Address or name, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl ServerArgs {
    /// Makes the client of the agent. Reads the files, sends nothing.
    pub fn client(&self) -> Result<Client, ClientFileError> {
        let mut client = Client::new(&self.agent.host, self.agent.port);
        if let Some(path) = &self.token_file {
            client = client.with_token_file(path)?;
        }
        if let Some(roots) = &self.cacert {
            let identity = self.cert.clone().zip(self.key.clone());
            let roots = roots.clone();
            client = client.with_tls(&ClientFiles { roots, identity })?;
        }
        Ok(client)
    }

    /// Returns where the agent is, for messages.
    #[must_use]
    pub fn addr(&self) -> String {
        format!("{}:{}", self.agent.host, self.agent.port)
    }
}

impl FromStr for ServerAddr {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(addr) = text.parse::<std::net::SocketAddr>() {
            return Ok(Self {
                host: addr.ip().to_string(),
                port: addr.port(),
            });
        }
        let (host, port) = text.rsplit_once(':').ok_or("it has no port")?;
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if host.is_empty() || !host.bytes().all(is_name) {
            return Err("it must be IP:PORT, of IPv6 [IP]:PORT");
        }
        let port = port.parse().map_err(|_| "the port must be 1 to 65535")?;
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_addresses_or_names_with_a_port() {
        for (text, host, port) in [
            ("192.0.2.1:2000", "192.0.2.1", 2000),
            ("[::1]:1", "::1", 1),
            ("node-1.example:80", "node-1.example", 80),
        ] {
            let addr: ServerAddr = text.parse().unwrap();
            assert_eq!((addr.host.as_str(), addr.port), (host, port));
        }
        for text in ["", "host", ":1", "::1", "a b:1", "host:70000", "http://x:1"] {
            assert!(text.parse::<ServerAddr>().is_err(), "{text}");
        }
    }
}
