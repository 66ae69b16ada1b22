//! The servers under test: one request to one of them, or to all at once.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use diagnostic::Client;
use diagnostic::logfmt::Logger;
use testkit::e2e::process::now;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval_at, timeout};

use crate::answer::{excerpt, is_ok, number_after};

/// How often is told what is waited for.
const PROGRESS_PERIOD: Duration = Duration::from_secs(1);

/// A server under test. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    /// Its address, which names it.
    pub(crate) ip: IpAddr,
    client: Client,
    patience: Duration,
}

impl Server {
    /// A server that is given some time for each answer.
    pub(crate) fn new(ip: IpAddr, port: u16, patience: Duration) -> Self {
        Self {
            ip,
            client: Client::new(&ip.to_string(), port).with_kept_connections(),
            patience,
        }
    }

    /// Asks for something and returns the answer.
    pub(crate) async fn ask(&self, target: &str) -> Result<String> {
        let who = || format!("[{}] {target}", self.client.addr());
        let answer = timeout(self.patience, self.client.get(target)).await;
        let answer = answer
            .map_err(|_| anyhow::anyhow!("no answer within {:?}", self.patience))
            .and_then(|answer| Ok(answer?))
            .with_context(who)?;
        let text = answer.text();
        let status = answer.status;
        ensure!(
            status == 200,
            "{}: the server answers {status}: {}",
            who(),
            excerpt(&text)
        );
        Ok(text)
    }

    /// Asks for something that has to be answered by OK.
    pub(crate) async fn expect_ok(&self, target: &str) -> Result<()> {
        let text = self.ask(target).await?;
        ensure!(is_ok(&text), "{}", self.unexpected(target, &text));
        Ok(())
    }

    /// Asks for a number, which follows some words in the answer.
    pub(crate) async fn number(&self, target: &str, words: &str) -> Result<u64> {
        let text = self.ask(target).await?;
        number_after(&text, words).with_context(|| self.unexpected(target, &text))
    }

    /// Describes an answer that is of no use.
    pub(crate) fn unexpected(&self, target: &str, text: &str) -> String {
        let addr = self.client.addr();
        format!("[{addr}] {target}: the server answers {}", excerpt(text))
    }
}

/// Does something with all servers at once and returns what came of each, in their order, or the first failure.
pub(crate) async fn each<T, F>(servers: &[Server], ask: impl Fn(Server) -> F) -> Result<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    join(servers.iter().cloned().map(ask)).await
}

/// Waits for all of some futures and returns their results in their order, or the first failure.
pub(crate) async fn join<T, F>(futures: impl IntoIterator<Item = F>) -> Result<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for (index, future) in futures.into_iter().enumerate() {
        tasks.spawn(async move { (index, future.await) });
    }
    let mut results = Vec::new();
    while let Some(task) = tasks.join_next().await {
        let (index, result) = task.context("a task has ended badly")?;
        results.push((index, result?));
    }
    results.sort_by_key(|(index, _)| *index);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

/// Asks all servers for something that has to be answered by OK.
pub(crate) async fn all_ok(servers: &[Server], target: &str) -> Result<()> {
    let ask = |server: Server| {
        let target = target.to_owned();
        async move { server.expect_ok(&target).await }
    };
    each(servers, ask).await?;
    Ok(())
}

/// Waits for a future and tells every second what is waited for.
pub(crate) async fn telling<T>(
    log: &Logger,
    future: impl Future<Output = T>,
    tell: impl Fn() -> String,
) -> T {
    let first = Instant::from_std(now()) + PROGRESS_PERIOD;
    let mut ticks = interval_at(first, PROGRESS_PERIOD);
    let mut future = std::pin::pin!(future);
    loop {
        tokio::select! {
            result = &mut future => return result,
            _ = ticks.tick() => log.info(&tell()),
        }
    }
}
