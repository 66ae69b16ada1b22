//! How commands ask the agent of a host.

use anyhow::{Result, anyhow};
use diagnostic::{Client, ClientFiles};

use crate::args::ServerArgs;

impl ServerArgs {
    /// Makes the client of the agent.
    pub(crate) fn client(&self) -> Result<Client> {
        let mut client = Client::new(&self.agent.host, self.agent.port);
        if let Some(path) = &self.token_file {
            // The text says everything that the source would say again.
            client = client
                .with_token_file(path)
                .map_err(|error| anyhow!("{error}"))?;
        }
        if let Some(roots) = &self.cacert {
            let identity = self.cert.clone().zip(self.key.clone());
            let roots = roots.clone();
            let files = ClientFiles { roots, identity };
            client = client
                .with_tls(&files)
                .map_err(|error| anyhow!("{error}"))?;
        }
        Ok(client)
    }

    /// Returns where the agent is, for messages.
    pub(crate) fn addr(&self) -> String {
        format!("{}:{}", self.agent.host, self.agent.port)
    }
}
