//! Records of `endpoint_table`: which service an endpoint is of, and under which names it is found.

use std::net::IpAddr;

use prost::{Enumeration, Message};

use super::{shown, unusable};

/// Which service an endpoint is of.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EndpointRecord {
    /// Its first name.
    pub name: String,
    /// Name of its service; empty for a container without one.
    pub service_name: String,
    /// Identifier of its service; empty for a container without one.
    pub service_id: String,
    /// Address of the service as a whole, if it has one.
    pub virtual_ip: Option<IpAddr>,
    /// Its own address.
    pub endpoint_ip: IpAddr,
    /// What of the service can be reached from outside.
    pub ingress_ports: Vec<PortConfig>,
    /// Further names of the service.
    pub aliases: Vec<String>,
    /// Further names of the endpoint.
    pub task_aliases: Vec<String>,
    /// It gets no new connections, because it is about to end.
    pub is_service_disabled: bool,
}

/// A port under which a service is reached from outside.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct PortConfig {
    /// Its name, which may be empty.
    pub name: String,
    /// What is spoken.
    pub protocol: Protocol,
    /// The port of the container.
    pub target_port: u16,
    /// The port of every host.
    pub published_port: u16,
}

/// What is spoken on a port. The numbers are those of `agent.proto`.
#[derive(Clone, Copy, Debug, Enumeration, Eq, Ord, PartialEq, PartialOrd)]
pub enum Protocol {
    /// TCP.
    Tcp = 0,
    /// UDP.
    Udp = 1,
    /// SCTP.
    Sctp = 2,
}

/// Why a value is no record that can be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointRecordError {
    /// The bytes are not the message of the table.
    #[error("not a record of this table")]
    Message,
    /// There is no name.
    #[error("the endpoint has no name")]
    NoName,
    /// The endpoint's address is not written as an address.
    #[error("endpoint address {0:?} is not an address, as in 10.0.1.5")]
    Address(String),
    /// The endpoint's address is one that no endpoint can have.
    #[error("endpoint address {0} is {1}")]
    Endpoint(IpAddr, &'static str),
    /// A port is out of range.
    #[error("ingress port {0} is not between 0 and 65535")]
    Port(u32),
    /// A port speaks something that is not known.
    #[error("protocol {0} of an ingress port is none of TCP (0), UDP (1) and SCTP (2)")]
    Protocol(i32),
}

/// `EndpointRecord` of `agent.proto`, as it is written: texts that may be anything.
#[derive(Clone, Eq, PartialEq, Message)]
pub struct EndpointMessage {
    /// The endpoint's first name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Name of its service.
    #[prost(string, tag = "2")]
    pub service_name: String,
    /// Identifier of its service.
    #[prost(string, tag = "3")]
    pub service_id: String,
    /// Address of the service as a whole. Docker writes `<nil>` when there is none.
    #[prost(string, tag = "4")]
    pub virtual_ip: String,
    /// The endpoint's own address, without the length of a prefix.
    #[prost(string, tag = "5")]
    pub endpoint_ip: String,
    /// What of the service can be reached from outside.
    #[prost(message, repeated, tag = "6")]
    pub ingress_ports: Vec<PortMessage>,
    /// Further names of the service.
    #[prost(string, repeated, tag = "7")]
    pub aliases: Vec<String>,
    /// Further names of the endpoint.
    #[prost(string, repeated, tag = "8")]
    pub task_aliases: Vec<String>,
    /// It gets no new connections.
    #[prost(bool, tag = "9")]
    pub service_disabled: bool,
}

/// `PortConfig` of `agent.proto`, as it is written.
#[derive(Clone, Eq, PartialEq, Message)]
pub struct PortMessage {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// What is spoken.
    #[prost(enumeration = "Protocol", tag = "2")]
    pub protocol: i32,
    /// The port of the container.
    #[prost(uint32, tag = "3")]
    pub target_port: u32,
    /// The port of every host.
    #[prost(uint32, tag = "4")]
    pub published_port: u32,
}

impl EndpointRecord {
    /// Reads a value of [`super::ENDPOINT_TABLE`]. A virtual address that is none, such as Docker's `<nil>`, is left out, and
    /// IPv4 addresses in the form of IPv6 become plain ones.
    pub fn decode(value: &[u8]) -> Result<Self, EndpointRecordError> {
        let message = EndpointMessage::decode(value).map_err(|_| EndpointRecordError::Message)?;
        if message.name.is_empty() {
            return Err(EndpointRecordError::NoName);
        }
        let text = &message.endpoint_ip;
        let endpoint_ip = address(text).ok_or_else(|| EndpointRecordError::Address(shown(text)))?;
        if let Some(what) = unusable(endpoint_ip) {
            return Err(EndpointRecordError::Endpoint(endpoint_ip, what));
        }
        let virtual_ip = address(&message.virtual_ip).filter(|ip| unusable(*ip).is_none());
        let ports = message.ingress_ports.into_iter();
        Ok(Self {
            name: message.name,
            service_name: message.service_name,
            service_id: message.service_id,
            virtual_ip,
            endpoint_ip,
            ingress_ports: ports.map(PortConfig::read).collect::<Result<_, _>>()?,
            aliases: message.aliases,
            task_aliases: message.task_aliases,
            is_service_disabled: message.service_disabled,
        })
    }

    /// Writes it as a value of [`super::ENDPOINT_TABLE`].
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let virtual_ip = self.virtual_ip.map(|ip| ip.to_string());
        let message = EndpointMessage {
            name: self.name.clone(),
            service_name: self.service_name.clone(),
            service_id: self.service_id.clone(),
            virtual_ip: virtual_ip.unwrap_or_default(),
            endpoint_ip: self.endpoint_ip.to_string(),
            ingress_ports: self.ingress_ports.iter().map(PortConfig::message).collect(),
            aliases: self.aliases.clone(),
            task_aliases: self.task_aliases.clone(),
            service_disabled: self.is_service_disabled,
        };
        message.encode_to_vec()
    }
}

impl PortConfig {
    fn read(message: PortMessage) -> Result<Self, EndpointRecordError> {
        let port = |number| u16::try_from(number).map_err(|_| EndpointRecordError::Port(number));
        let protocol = Protocol::try_from(message.protocol);
        Ok(Self {
            protocol: protocol.map_err(|_| EndpointRecordError::Protocol(message.protocol))?,
            target_port: port(message.target_port)?,
            published_port: port(message.published_port)?,
            name: message.name,
        })
    }

    fn message(&self) -> PortMessage {
        PortMessage {
            name: self.name.clone(),
            protocol: self.protocol.into(),
            target_port: self.target_port.into(),
            published_port: self.published_port.into(),
        }
    }
}

fn address(text: &str) -> Option<IpAddr> {
    let ip: IpAddr = text.parse().ok()?;
    Some(ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message() -> EndpointMessage {
        EndpointMessage {
            name: "web.1".into(),
            service_name: "web".into(),
            service_id: "s1".into(),
            virtual_ip: "10.0.1.2".into(),
            endpoint_ip: "10.0.1.5".into(),
            ingress_ports: vec![PortMessage {
                name: "http".into(),
                protocol: 1,
                target_port: 80,
                published_port: 8_080,
            }],
            aliases: vec!["www".into()],
            task_aliases: vec!["a1b2".into()],
            service_disabled: true,
        }
    }

    fn refused(change: impl FnOnce(&mut EndpointMessage)) -> String {
        let mut message = message();
        change(&mut message);
        let refused = EndpointRecord::decode(&message.encode_to_vec()).unwrap_err();
        refused.to_string()
    }

    #[test]
    fn every_field_has_its_number() {
        let bytes = b"\x0a\x05web.1\x12\x03web\x1a\x02s1\x22\x0810.0.1.2\x2a\x0810.0.1.5\
            \x32\x0d\x0a\x04http\x10\x01\x18\x50\x20\x90\x3f\x3a\x03www\x42\x04a1b2\x48\x01";
        let record = EndpointRecord::decode(bytes).unwrap();
        assert_eq!(message().encode_to_vec(), bytes);
        assert_eq!(record.encode(), bytes);
        assert_eq!(record.virtual_ip, Some("10.0.1.2".parse().unwrap()));
        assert_eq!(record.ingress_ports[0].protocol, Protocol::Udp);
        assert!(record.is_service_disabled);
    }

    #[test]
    fn a_virtual_address_that_is_none_is_left_out() {
        for text in ["", "<nil>", "10.0.1.2/24", "0.0.0.0", "224.0.0.1", "vip"] {
            let mut message = message();
            message.virtual_ip = text.into();
            let record = EndpointRecord::decode(&message.encode_to_vec()).unwrap();
            assert_eq!(record.virtual_ip, None, "{text}");
            assert_eq!(EndpointRecord::decode(&record.encode()), Ok(record));
        }
    }

    #[test]
    fn every_part_that_cannot_be_used_is_named() {
        let error = refused(|message| message.name.clear());
        assert_eq!(error, "the endpoint has no name");
        let error = refused(|message| message.endpoint_ip = "10.0.1.5/24\n".into());
        assert_eq!(
            error,
            "endpoint address \"10.0.1.5/24\\n\" is not an address, as in 10.0.1.5"
        );
        let error = refused(|message| message.endpoint_ip = "x".repeat(9_999));
        assert!(error.len() < 200, "{error}");
        let error = refused(|message| message.endpoint_ip = "127.0.0.1".into());
        assert_eq!(error, "endpoint address 127.0.0.1 is a loopback address");
        let error = refused(|message| message.ingress_ports[0].target_port = 65_536);
        assert_eq!(error, "ingress port 65536 is not between 0 and 65535");
        let error = refused(|message| message.ingress_ports[0].protocol = -1);
        assert_eq!(
            error,
            "protocol -1 of an ingress port is none of TCP (0), UDP (1) and SCTP (2)"
        );
        let error = EndpointRecord::decode(b"\x0a\xff");
        assert_eq!(error, Err(EndpointRecordError::Message));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_refused(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            at in any::<prop::sample::Index>(),
            flipped in any::<u8>(),
        ) {
            let mut near = message().encode_to_vec();
            let at = at.index(near.len());
            near[at] ^= flipped;
            for bytes in [bytes, near] {
                if let Ok(record) = EndpointRecord::decode(&bytes) {
                    prop_assert_eq!(EndpointRecord::decode(&record.encode()), Ok(record));
                }
            }
        }
    }
}
