//! The questions to the agent.

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use diagnostic::{Answer, Client, Method};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::facts::{About, Balanced, Consistency, Repaired, Services};
use crate::gossip::TABLE;

/// The agent of this host.
pub(crate) struct Agent(Client);

impl Agent {
    pub(crate) fn new(client: Client) -> Self {
        Self(client.with_kept_connections())
    }

    pub(crate) async fn about(&self) -> Result<About> {
        self.get("/v1/node").await
    }

    pub(crate) async fn services(&self) -> Result<Services> {
        let answer = self.0.get("/v1/services").await?;
        if answer.status == 404 {
            bail!("the agent has no data path (start it with --data-path on)");
        }
        parsed(&answer)
    }

    pub(crate) async fn balanced(&self, network: &str) -> Result<Balanced> {
        let network = encoded(network);
        self.get(&format!("/v1/services/{network}")).await
    }

    pub(crate) async fn repair(&self, network: &str) -> Result<Repaired> {
        let target = format!("/v1/services/{}/repair", encoded(network));
        let answer = self.0.send(Method::POST, &target, "", Bytes::new()).await?;
        parsed(&answer)
    }

    pub(crate) async fn consistency(&self, network: &str) -> Result<Consistency> {
        let network = encoded(network);
        let target = format!("/v1/networks/{network}/consistency?table={TABLE}");
        self.get(&target).await
    }

    async fn get<T: DeserializeOwned>(&self, target: &str) -> Result<T> {
        parsed(&self.0.get(target).await?)
    }
}

fn encoded(network: &str) -> String {
    utf8_percent_encode(network, NON_ALPHANUMERIC).to_string()
}

fn parsed<T: DeserializeOwned>(answer: &Answer) -> Result<T> {
    if answer.is_success() {
        return serde_json::from_slice(&answer.body).context("the answer is not as expected");
    }
    let problem: Option<Value> = serde_json::from_slice(&answer.body).ok();
    let detail = problem.and_then(|problem| problem["detail"].as_str().map(str::to_owned));
    match detail {
        Some(detail) => bail!(detail),
        None => Err(anyhow!("status {}", answer.status)),
    }
}
