//! What clients are told when something is refused: every error of the database in Docker's words.
//!
//! The database has its own words, which are for embedding programs; the ones here are compared by scripts.

use std::fmt::{self, Write};

use networkdb::node::{JoinError, ReadError};
use networkdb::{NetworkError, WriteError};

use crate::entries::Place;

/// Why a request failed, as the text after `Error: `.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failure(String);

impl Failure {
    /// Makes a failure of its text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns what a refused create answers.
    pub(crate) fn create(error: &WriteError) -> Self {
        Self(
            if let WriteError::Exists {
                network,
                table,
                key,
            } = error
            {
                format!(
                    "cannot create entry in table {table} with network id {network} and key {key}, already exists"
                )
            } else {
                write_refused(error)
            },
        )
    }

    /// Returns what a refused update answers.
    pub(crate) fn update(error: &WriteError) -> Self {
        Self(
            if let WriteError::Missing {
                network,
                table,
                key,
            } = error
            {
                format!(
                    "cannot update entry as the entry in table {table} with network id {network} and key {key} does not exist"
                )
            } else {
                write_refused(error)
            },
        )
    }

    /// Returns what a refused delete answers.
    pub(crate) fn delete(error: &WriteError) -> Self {
        Self(
            if let WriteError::Missing {
                network,
                table,
                key,
            } = error
            {
                format!(
                    "cannot delete entry {table} with network id {network} and key {key} does not exist or is already being deleted"
                )
            } else {
                write_refused(error)
            },
        )
    }

    /// Returns what a get of something that is not visible answers.
    pub(crate) fn read(place: &Place, error: ReadError) -> Self {
        let Place {
            network,
            table,
            key,
        } = place;
        Self(match error {
            ReadError::Absent => format!(
                "could not get entry in table {table} with network id {network} and key {key}"
            ),
            ReadError::Deleted => format!(
                "entry in table {table} network id {network} and key {key} deleted and pending garbage collection"
            ),
            ReadError::Hidden => format!(
                "entry in table {table} network id {network} and key {key} is owned by a failed node and hidden until it returns"
            ),
            other => other.to_string(),
        })
    }

    /// Returns what a refused attach or detach answers.
    pub(crate) fn network(error: &NetworkError) -> Self {
        Self(match error {
            NetworkError::AlreadyAttached { network } => {
                format!("networkdb: network {network} is already joined")
            }
            NetworkError::Unknown { network } => {
                format!("could not find network {network} while trying to leave")
            }
            NetworkError::Full { .. } | NetworkError::Closed => error.to_string(),
            other => other.to_string(),
        })
    }

    /// Returns what a join of the cluster answers when no member did, with one line for each of them.
    pub(crate) fn join(error: &JoinError) -> Self {
        let count = error.failures.len();
        let noun = if count == 1 { "error" } else { "errors" };
        let mut text = format!(
            "/join error in the DB join could not join node to memberlist: {count} {noun} occurred:\n"
        );
        for failure in &error.failures {
            let reason = &failure.reason;
            match failure.addr {
                Some(addr) => writeln!(text, "\t* failed to join {addr}: {reason}"),
                None => writeln!(text, "\t* failed to resolve {}: {reason}", failure.member),
            }
            .expect("a string takes every write");
        }
        text.push('\n');
        Self(text)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns the refusals that are the same for every write.
fn write_refused(error: &WriteError) -> String {
    if let WriteError::NotAttached { network } = error {
        let nid = query_escaped(network.as_str());
        return format!(
            "network {network} is not joined on this node, join it first with /joinnetwork?nid={nid}"
        );
    }
    error.to_string()
}

/// Escapes a name so that the printed command works for every network.
fn query_escaped(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            write!(escaped, "%{byte:02X}").expect("a string takes every write");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use networkdb::node::JoinFailure;
    use networkdb::{Key, NetworkId, TableName};

    use super::*;

    #[test]
    fn hidden_entry_is_told_from_a_deleted_and_an_absent_one() {
        let place = Place {
            network: NetworkId::new("N").unwrap(),
            table: TableName::new("T").unwrap(),
            key: Key::new("K").unwrap(),
        };
        assert_eq!(
            Failure::read(&place, ReadError::Hidden).to_string(),
            "entry in table T network id N and key K is owned by a failed node and hidden until it returns"
        );
    }

    #[test]
    fn write_to_a_network_that_is_not_joined_says_how_to_join() {
        let network = NetworkId::new("a b&c").unwrap();
        let error = WriteError::NotAttached { network };
        let expected = "network a b&c is not joined on this node, join it first with /joinnetwork?nid=a%20b%26c";
        for failure in [
            Failure::create(&error),
            Failure::update(&error),
            Failure::delete(&error),
        ] {
            assert_eq!(failure.to_string(), expected);
        }
    }

    #[test]
    fn too_large_value_is_refused_with_both_sizes() {
        let error = WriteError::ValueTooLarge {
            bytes: 65_537,
            bytes_max: 65_536,
        };
        let text = Failure::create(&error).to_string();
        assert!(text.contains("65537") && text.contains("65536"), "{text}");
    }

    #[test]
    fn failed_join_lists_every_member() {
        let failures = vec![
            JoinFailure {
                member: "10.0.0.1".into(),
                addr: Some(([10, 0, 0, 1], 7946).into()),
                reason: "no answer".into(),
            },
            JoinFailure {
                member: "nowhere".into(),
                addr: None,
                reason: "unknown name".into(),
            },
        ];
        assert_eq!(
            Failure::join(&JoinError { failures }).to_string(),
            "/join error in the DB join could not join node to memberlist: 2 errors occurred:\n\
             \t* failed to join 10.0.0.1:7946: no answer\n\
             \t* failed to resolve nowhere: unknown name\n\n"
        );
    }
}
