//! What is asked of a diagnostic server, and what its answers mean; Docker's servers and ours are read with the same leniency.

use anyhow::{Result, bail, ensure};
use diagnostic::{Answer, Client};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// What means nothing in a query.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Longest part of an answer that is shown.
const EXCERPT_CHARS_MAX: usize = 300;

/// A diagnostic server.
#[derive(Debug)]
pub(crate) struct Server {
    client: Client,
}

/// A table of a network.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) network: &'a str,
    pub(crate) table: &'a str,
}

/// An entry as servers list it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub(crate) struct Entry {
    #[serde(deserialize_with = "or_default")]
    pub(crate) key: String,
    /// In base64.
    #[serde(deserialize_with = "or_default")]
    pub(crate) value: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) owner: String,
}

/// A node as servers list it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Peer {
    // The name that Docker's servers give this field.
    #[serde(rename = "-=name", deserialize_with = "or_default")]
    pub(crate) name: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) ip: String,
}

#[derive(Deserialize)]
struct Reply<T> {
    message: Option<String>,
    details: Option<Details<T>>,
}

#[derive(Deserialize)]
struct Details<T> {
    entries: Option<Vec<T>>,
    error: Option<String>,
    usage: Option<String>,
}

impl Server {
    /// A server behind a client.
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// Returns the server, `HOST:PORT`.
    pub(crate) fn addr(&self) -> String {
        self.client.addr()
    }

    /// Checks that the server is ready.
    pub(crate) async fn ready(&self) -> Result<()> {
        let text = self.ask("/ready").await?.text();
        ensure!(text.contains("OK"), "the server says {}", excerpt(&text));
        Ok(())
    }

    /// Returns the members of the cluster.
    pub(crate) async fn cluster_peers(&self) -> Result<Vec<Peer>> {
        self.list("/clusterpeers?json").await
    }

    /// Returns the nodes attached to a network.
    pub(crate) async fn network_peers(&self, network: &str) -> Result<Vec<Peer>> {
        let target = format!("/networkpeers?nid={}&json", encoded(network));
        self.list(&target).await
    }

    /// Returns the entries of a table.
    pub(crate) async fn entries(&self, place: Place<'_>) -> Result<Vec<Entry>> {
        self.list(&format!("/gettable?{}&json", place.query()))
            .await
    }

    /// Deletes an entry.
    pub(crate) async fn delete(&self, place: Place<'_>, key: &str) -> Result<()> {
        let (place, key) = (place.query(), encoded(key));
        let target = format!("/deleteentry?{place}&key={key}&json");
        self.list::<Entry>(&target).await?;
        Ok(())
    }

    /// Makes the node join a network.
    pub(crate) async fn join(&self, network: &str) -> Result<()> {
        let target = format!("/joinnetwork?nid={}", encoded(network));
        self.do_it(&target).await
    }

    /// Makes the node leave a network.
    pub(crate) async fn leave(&self, network: &str) -> Result<()> {
        let target = format!("/leavenetwork?nid={}", encoded(network));
        self.do_it(&target).await
    }

    async fn do_it(&self, target: &str) -> Result<()> {
        let text = self.ask(target).await?.text();
        // A refusal may have OK in it, in the name of the network.
        let is_done = text.lines().next().is_some_and(|line| line.trim() == "OK");
        ensure!(is_done, "the server says {}", excerpt(&text));
        Ok(())
    }

    async fn list<T: DeserializeOwned>(&self, target: &str) -> Result<Vec<T>> {
        read(&self.ask(target).await?)
    }

    async fn ask(&self, target: &str) -> Result<Answer> {
        let answer = self.client.get(target).await?;
        accepted(&answer)?;
        Ok(answer)
    }
}

impl Place<'_> {
    fn query(self) -> String {
        let Self { network, table } = self;
        format!("nid={}&tname={}", encoded(network), encoded(table))
    }
}

/// Refuses answers with another status than 200, which is the one of Docker's API.
fn accepted(answer: &Answer) -> Result<()> {
    let status = answer.status;
    ensure!(
        status == 200,
        "the server answers {status}: {}",
        excerpt(&answer.text())
    );
    Ok(())
}

/// Returns the entries in an answer.
fn read<T: DeserializeOwned>(answer: &Answer) -> Result<Vec<T>> {
    // Go reads bytes that are no UTF-8 as U+FFFD, and so does this.
    let text = String::from_utf8_lossy(&answer.body);
    let reply: Result<Option<Reply<T>>, _> = serde_json::from_str(&text);
    let reply = reply.map_err(|error| {
        let text = excerpt(&text);
        anyhow::anyhow!("the answer is not the JSON expected ({error}): {text}")
    })?;
    let Some(Reply { message, details }) = reply else {
        return Ok(Vec::new());
    };
    let message = message.unwrap_or_else(|| "OK".into());
    if message == "OK" {
        return Ok(details.and_then(|it| it.entries).unwrap_or_default());
    }
    let said = details.and_then(|it| it.error.or(it.usage));
    match said {
        Some(said) => bail!("the server says {}: {}", excerpt(&message), excerpt(&said)),
        None => bail!("the server says {}", excerpt(&message)),
    }
}

/// Writes text as a value in a query.
fn encoded(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// Returns the beginning of a text.
fn excerpt(text: &str) -> String {
    let text = text.trim();
    match text.char_indices().nth(EXCERPT_CHARS_MAX) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None if text.is_empty() => "nothing".into(),
        None => text.to_owned(),
    }
}

/// Reads `null` as nothing.
fn or_default<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(body: &str) -> Answer {
        Answer {
            status: 200,
            content_type: String::new(),
            body: body.as_bytes().to_vec().into(),
        }
    }

    #[test]
    fn answers_are_read_with_what_is_in_them() {
        let entry = |key: &str, value: &str, owner: &str| Entry {
            key: key.into(),
            value: value.into(),
            owner: owner.into(),
        };
        for (body, expected) in [
            (
                r#"{"message":"OK","details":{"size":0,"entries":null}}"#,
                vec![],
            ),
            (r#"{"message":"OK","details":null}"#, vec![]),
            (r#"{"message":"OK"}"#, vec![]),
            ("null", vec![]),
            (
                r#"{"details":{"size":"x","entries":[{"key":"k","value":"v","owner":"o","more":{}}]},"x":[1]}"#,
                vec![entry("k", "v", "o")],
            ),
            (
                r#"{"message":"OK","details":{"entries":[{"key":null},{}]}}"#,
                vec![entry("", "", ""), entry("", "", "")],
            ),
        ] {
            assert_eq!(read::<Entry>(&answer(body)).unwrap(), expected, "{body}");
        }
    }

    #[test]
    fn refusals_are_told_in_the_words_of_the_server() {
        for (body, expected) in [
            (
                r#"{"message":"FAIL","details":{"error":"no such network"}}"#,
                "the server says FAIL: no such network",
            ),
            (
                r#"{"message":"missing parameter","details":{"usage":"/x?nid=test"}}"#,
                "the server says missing parameter: /x?nid=test",
            ),
            (r#"{"message":"FAIL"}"#, "the server says FAIL"),
            (
                "<html>",
                "the answer is not the JSON expected (expected value at line 1 column 1): <html>",
            ),
            (
                "",
                "the answer is not the JSON expected (EOF while parsing a value at line 1 column 0): nothing",
            ),
            (
                r#"{"message":1}"#,
                "the answer is not the JSON expected (invalid type: integer `1`, expected a string at line 1 column 12): \
                 {\"message\":1}",
            ),
        ] {
            let error = read::<Entry>(&answer(body)).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
        let mut answer = answer("a token is needed\n");
        answer.status = 401;
        let error = accepted(&answer).unwrap_err().to_string();
        assert_eq!(error, "the server answers 401: a token is needed");
    }

    #[test]
    fn names_are_values_of_a_query() {
        assert_eq!(encoded("az-AZ_09.~"), "az-AZ_09.~");
        assert_eq!(
            encoded("a b&c=d;é%/?#+\n"),
            "a%20b%26c%3Dd%3B%C3%A9%25%2F%3F%23%2B%0A"
        );
    }

    #[test]
    fn long_answers_are_cut() {
        let text = "é".repeat(301);
        assert_eq!(excerpt(&text), "é".repeat(300) + "...");
    }
}
