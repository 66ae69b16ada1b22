//! The records in Docker's tables, and how Docker's client prints them.

use std::fmt;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message;

/// A value of `endpoint_table`: a container under the names of its service.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct EndpointRecord {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    service_name: String,
    #[prost(string, tag = "3")]
    service_id: String,
    #[prost(string, tag = "4")]
    virtual_ip: String,
    #[prost(string, tag = "5")]
    endpoint_ip: String,
    #[prost(message, repeated, tag = "6")]
    ingress_ports: Vec<PortConfig>,
    #[prost(string, repeated, tag = "7")]
    aliases: Vec<String>,
    #[prost(string, repeated, tag = "8")]
    task_aliases: Vec<String>,
    #[prost(bool, tag = "9")]
    service_disabled: bool,
}

/// A port that a service publishes.
#[derive(Clone, PartialEq, Message)]
struct PortConfig {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(enumeration = "Protocol", tag = "2")]
    protocol: i32,
    #[prost(uint32, tag = "3")]
    target_port: u32,
    #[prost(uint32, tag = "4")]
    published_port: u32,
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, prost::Enumeration)]
#[repr(i32)]
enum Protocol {
    Tcp = 0,
    Udp = 1,
    Sctp = 2,
}

/// A value of `overlay_peer_table`: the host behind which a container is.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PeerRecord {
    #[prost(string, tag = "1")]
    endpoint_ip: String,
    #[prost(string, tag = "2")]
    endpoint_mac: String,
    #[prost(string, tag = "3")]
    tunnel_endpoint_ip: String,
}

/// Reads the value of an entry as servers send it.
pub(crate) fn decode<T: Message + Default>(value: &str) -> Result<T> {
    let bytes = STANDARD.decode(value).context("base64")?;
    T::decode(bytes.as_slice()).context("protobuf")
}

impl fmt::Display for EndpointRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{{Name:{} ServiceName:{} ServiceID:{} VirtualIP:{} EndpointIP:{} IngressPorts:{} Aliases:{} TaskAliases:{} \
             ServiceDisabled:{}}}",
            self.name,
            self.service_name,
            self.service_id,
            address(&self.virtual_ip),
            address(&self.endpoint_ip),
            list(&self.ingress_ports),
            list(&self.aliases),
            list(&self.task_aliases),
            self.service_disabled,
        )
    }
}

// A pointer in a list, for which Docker's code has a form of its own.
impl fmt::Display for PortConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "&PortConfig{{Name:{},Protocol:", self.name)?;
        match Protocol::try_from(self.protocol) {
            Ok(Protocol::Tcp) => f.write_str("TCP")?,
            Ok(Protocol::Udp) => f.write_str("UDP")?,
            Ok(Protocol::Sctp) => f.write_str("SCTP")?,
            Err(_) => write!(f, "{}", self.protocol)?,
        }
        let (target, published) = (self.target_port, self.published_port);
        write!(f, ",TargetPort:{target},PublishedPort:{published},}}")
    }
}

impl fmt::Display for PeerRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{{EndpointIP:{} EndpointMAC:{} TunnelEndpointIP:{}}}",
            address(&self.endpoint_ip),
            address(&self.endpoint_mac),
            address(&self.tunnel_endpoint_ip),
        )
    }
}

/// Returns an address, or what Go prints when there is none.
pub(crate) fn address(text: &str) -> &str {
    if text.is_empty() { "<nil>" } else { text }
}

/// Writes a list as Go does.
pub(crate) fn list(items: &[impl ToString]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    format!("[{}]", items.join(" "))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn endpoint() -> EndpointRecord {
        EndpointRecord {
            name: "web.2.ehdz".into(),
            service_name: "web".into(),
            service_id: "871xn".into(),
            virtual_ip: "10.0.1.8".into(),
            endpoint_ip: "10.0.1.10".into(),
            task_aliases: vec!["23983e3fa69a".into()],
            ..EndpointRecord::default()
        }
    }

    fn port(name: &str, protocol: i32) -> PortConfig {
        PortConfig {
            name: name.into(),
            protocol,
            target_port: 80,
            published_port: 8080,
        }
    }

    #[test]
    fn endpoints_are_printed_as_docker_does() {
        assert_eq!(
            endpoint().to_string(),
            "{Name:web.2.ehdz ServiceName:web ServiceID:871xn VirtualIP:10.0.1.8 EndpointIP:10.0.1.10 IngressPorts:[] \
             Aliases:[] TaskAliases:[23983e3fa69a] ServiceDisabled:false}"
        );
    }

    #[test]
    fn ports_and_aliases_are_lists() {
        let record = EndpointRecord {
            ingress_ports: vec![port("http", 0), port("", 1), port("x", 2), port("y", 7)],
            aliases: vec!["www".into(), "site".into()],
            service_disabled: true,
            ..EndpointRecord::default()
        };
        assert_eq!(
            record.to_string(),
            "{Name: ServiceName: ServiceID: VirtualIP:<nil> EndpointIP:<nil> IngressPorts:[\
             &PortConfig{Name:http,Protocol:TCP,TargetPort:80,PublishedPort:8080,} \
             &PortConfig{Name:,Protocol:UDP,TargetPort:80,PublishedPort:8080,} \
             &PortConfig{Name:x,Protocol:SCTP,TargetPort:80,PublishedPort:8080,} \
             &PortConfig{Name:y,Protocol:7,TargetPort:80,PublishedPort:8080,}] \
             Aliases:[www site] TaskAliases:[] ServiceDisabled:true}"
        );
    }

    #[test]
    fn peers_are_printed_as_docker_does() {
        // As protoc encodes it.
        let value = "CgwxMC4wLjEuMTAvMjQSETAyOjQyOjBhOjAwOjAxOjBhGgoxOTIuMC4yLjEx";
        let record: PeerRecord = decode(value).unwrap();
        assert_eq!(
            record.to_string(),
            "{EndpointIP:10.0.1.10/24 EndpointMAC:02:42:0a:00:01:0a TunnelEndpointIP:192.0.2.11}"
        );
        let none = "{EndpointIP:<nil> EndpointMAC:<nil> TunnelEndpointIP:<nil>}";
        assert_eq!(PeerRecord::default().to_string(), none);
    }

    #[test]
    fn a_missing_address_is_nil_whether_docker_wrote_that_or_nothing() {
        for virtual_ip in ["", "<nil>"] {
            let virtual_ip = virtual_ip.into();
            let record = EndpointRecord {
                virtual_ip,
                ..endpoint()
            };
            let value = STANDARD.encode(record.encode_to_vec());
            let record: EndpointRecord = decode(&value).unwrap();
            assert!(record.to_string().contains("VirtualIP:<nil> E"), "{record}");
        }
    }

    #[test]
    fn what_is_no_record_is_told() {
        let kind = |value| decode::<PeerRecord>(value).unwrap_err().to_string();
        assert_eq!(kind("%"), "base64");
        assert_eq!(kind("aGVsbG8="), "protobuf");
    }

    proptest! {
        #[test]
        fn no_value_panics(bytes in any::<Vec<u8>>(), text in any::<String>()) {
            for value in [STANDARD.encode(bytes), text] {
                if let Ok(record) = decode::<EndpointRecord>(&value) {
                    let is_whole = record.to_string().starts_with("{Name:");
                    prop_assert!(is_whole);
                }
                if let Ok(record) = decode::<PeerRecord>(&value) {
                    let is_whole = record.to_string().starts_with("{EndpointIP:");
                    prop_assert!(is_whole);
                }
            }
        }
    }
}
