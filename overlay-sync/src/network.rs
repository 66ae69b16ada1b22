//! How an overlay network is laid out: its segments with their subnets, and what fits into a packet.
//!
//! The same JSON is the value of the table `networks` and the configuration of an agent. Example:
//! `{"segments": [{"vni": 4097, "subnets": ["10.0.1.0/24", "fd00:1::/64"]}], "mtu": 1400}`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::kernel::Vni;
use crate::record::{cidr, unusable};
use crate::service::{Forwarding, Scheduler};

/// Most subnets of a network, so that no value of a table keeps a host busy with devices.
pub const SUBNETS_MAX: usize = 1_024;

/// Longest text about bad JSON, in characters; the JSON may be anybody's.
const JSON_ERROR_MAX: usize = 200;

/// The least that fits into a packet of IPv4, in bytes (RFC 791).
const MTU_MIN: u32 = 68;
/// The least that fits into a packet of IPv6, in bytes (RFC 8200, section 5).
const MTU_MIN_V6: u32 = 1_280;
/// The most that the length field of IP can say, in bytes.
const MTU_MAX: u32 = 65_535;

/// Bytes before an endpoint's packet on the wire: Ethernet 14, VXLAN 8, UDP 8 and IPv4 20 (RFC 7348, section 5).
const OVERHEAD_V4: u32 = 50;
/// The same with an IPv6 header of 40 bytes.
const OVERHEAD_V6: u32 = 70;

/// The layout of an overlay network.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// Its segments, each a VXLAN device and a bridge. Containers of different segments reach each other by a gateway.
    pub segments: Vec<SegmentConfig>,
    /// What fits into a packet, in bytes; by default what the host's network leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Packets between hosts are to be encrypted.
    #[serde(default)]
    pub encrypted: bool,
    /// How connections to services are led.
    #[serde(default, skip_serializing_if = "ServicesConfig::is_default")]
    pub services: ServicesConfig,
    /// Ports that services of this network publish are ports of every host; so of one network of a host.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ingress: bool,
}

/// How connections to services of a network are led to endpoints.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ServicesConfig {
    /// How an endpoint is chosen: `rr` one after the other, `sh` by the client's address, `lc` with the fewest connections
    /// (IPVS only). Default `rr`.
    #[serde(default)]
    pub scheduler: Scheduler,
    /// `nat`: endpoints see the balancer's address, need nothing and answer by it. `direct` (IPVS only): they see the
    /// client's and answer it by themselves, for which each must have the VIP on its loopback device. Default `nat`.
    #[serde(default)]
    pub forwarding: Forwarding,
}

impl ServicesConfig {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// One segment of an overlay network.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentConfig {
    /// The number that packets carry, unique among all VXLAN devices of a host.
    pub vni: Vni,
    /// Its subnets, for instance one of IPv4 and one of IPv6.
    #[serde(deserialize_with = "nets")]
    pub subnets: Vec<IpNet>,
    /// Addresses of the bridge, with the prefix length of their subnet. By default the first address of each subnet.
    #[serde(
        default,
        deserialize_with = "some_nets",
        skip_serializing_if = "Option::is_none"
    )]
    pub gateways: Option<Vec<IpNet>>,
}

/// Why a layout cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkConfigError {
    /// It is not the JSON of a layout.
    #[error("{0}")]
    Json(String),
    /// There is no segment.
    #[error("a network needs at least one segment")]
    NoSegment,
    /// A segment has no subnet.
    #[error("the segment with VNI {0} needs at least one subnet")]
    NoSubnet(u32),
    /// There are more subnets than are taken.
    #[error("a network has at most {SUBNETS_MAX} subnets")]
    TooManySubnets,
    /// Two segments have one number.
    #[error("VNI {0} is given twice")]
    VniTwice(u32),
    /// Two subnets have addresses in common.
    #[error("subnets {0} and {1} overlap")]
    Overlap(IpNet, IpNet),
    /// A subnet has no room for endpoints.
    #[error("subnet {0} has no room for endpoints")]
    NoRoom(IpNet),
    /// No endpoint can have addresses of a subnet.
    #[error("subnet {0} is of no use: {1} is {2}")]
    Unusable(IpNet, IpAddr, &'static str),
    /// A gateway has an address that no host of a subnet has.
    #[error("gateway {0} is {1}")]
    Reserved(IpNet, &'static str),
    /// A gateway is in no subnet of its segment, or has another prefix length.
    #[error(
        "gateway {0} is in no subnet of its segment; it has to be written with the prefix length of its subnet"
    )]
    Gateway(IpNet),
    /// The size of packets is out of range.
    #[error("MTU {mtu} is not between {min} and {max}")]
    Mtu {
        /// What was asked for.
        mtu: u32,
        /// The least, which is more with IPv6 subnets.
        min: u32,
        /// The most.
        max: u32,
    },
}

impl Serialize for Vni {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.number())
    }
}

impl<'de> Deserialize<'de> for Vni {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = u32::deserialize(deserializer)?;
        Self::new(number).ok_or_else(|| {
            let (min, max) = (Self::MIN, Self::MAX);
            D::Error::custom(format!("VNI {number} is not between {min} and {max}"))
        })
    }
}

/// A subnet or a gateway, read as addresses of records are.
struct Net(IpNet);

impl<'de> Deserialize<'de> for Net {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let net = cidr(&text).map(Self);
        net.ok_or_else(|| {
            D::Error::custom(format!(
                "{text:?} is not an address with a prefix length, as in 10.0.1.0/24"
            ))
        })
    }
}

fn nets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let nets = Vec::<Net>::deserialize(deserializer)?;
    Ok(nets.into_iter().map(|net| net.0).collect())
}

fn some_nets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<IpNet>>, D::Error> {
    nets(deserializer).map(Some)
}

impl NetworkConfig {
    /// Reads and checks a layout.
    pub fn from_json(text: &[u8]) -> Result<Self, NetworkConfigError> {
        let parsed: Self =
            serde_json::from_slice(text).map_err(|error| NetworkConfigError::Json(told(&error)))?;
        parsed.check()
    }

    /// Writes it.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts and numbers are JSON")
    }

    /// Checks what the form alone does not say.
    pub fn check(self) -> Result<Self, NetworkConfigError> {
        if self.segments.is_empty() {
            return Err(NetworkConfigError::NoSegment);
        }
        let mut vnis = BTreeSet::new();
        let mut subnets: Vec<IpNet> = Vec::new();
        for segment in &self.segments {
            let vni = segment.vni.number();
            if !vnis.insert(vni) {
                return Err(NetworkConfigError::VniTwice(vni));
            }
            if segment.subnets.is_empty() {
                return Err(NetworkConfigError::NoSubnet(vni));
            }
            for subnet in &segment.subnets {
                check_subnet(subnet, &subnets)?;
                subnets.push(*subnet);
            }
            if let Some(gateways) = &segment.gateways {
                gateways
                    .iter()
                    .try_for_each(|gateway| segment.check_gateway(gateway))?;
            }
        }
        self.check_mtu()
    }

    fn check_mtu(self) -> Result<Self, NetworkConfigError> {
        let (min, max) = (self.mtu_min(), MTU_MAX);
        match self.mtu {
            Some(mtu) if !(min..=max).contains(&mtu) => {
                Err(NetworkConfigError::Mtu { mtu, min, max })
            }
            _ => Ok(self),
        }
    }

    /// Returns the least that may fit into a packet, in bytes.
    pub(crate) fn mtu_min(&self) -> u32 {
        let mut subnets = self.segments.iter().flat_map(|segment| &segment.subnets);
        if subnets.any(|subnet| subnet.addr().is_ipv6()) {
            MTU_MIN_V6
        } else {
            MTU_MIN
        }
    }

    /// Returns all subnets.
    pub fn subnets(&self) -> impl Iterator<Item = &IpNet> {
        self.segments.iter().flat_map(|segment| &segment.subnets)
    }

    /// Returns the segment that an endpoint's address belongs to: one with a subnet that contains it and has the same prefix
    /// length, as Docker has it.
    #[must_use]
    pub fn segment_of(&self, endpoint: IpNet) -> Option<&SegmentConfig> {
        self.segments.iter().find(|segment| segment.has(&endpoint))
    }
}

impl SegmentConfig {
    fn has(&self, endpoint: &IpNet) -> bool {
        let mut subnets = self.subnets.iter();
        subnets.any(|subnet| {
            subnet.prefix_len() == endpoint.prefix_len() && subnet.contains(&endpoint.addr())
        })
    }

    fn check_gateway(&self, gateway: &IpNet) -> Result<(), NetworkConfigError> {
        if !self.has(gateway) {
            return Err(NetworkConfigError::Gateway(*gateway));
        }
        match self.edge(gateway.addr()) {
            Some(what) => Err(NetworkConfigError::Reserved(*gateway, what)),
            None => Ok(()),
        }
    }

    /// Returns the addresses of the bridge.
    #[must_use]
    pub fn gateways(&self) -> BTreeSet<IpNet> {
        match &self.gateways {
            Some(gateways) => gateways.iter().copied().collect(),
            None => self.subnets.iter().filter_map(first_address).collect(),
        }
    }

    /// Says why no endpoint of this segment can have an address; none when one can.
    pub(crate) fn reserved(&self, ip: IpAddr) -> Option<&'static str> {
        let is_gateway = match &self.gateways {
            Some(gateways) => gateways.iter().any(|gateway| gateway.addr() == ip),
            None => {
                let mut firsts = self.subnets.iter().filter_map(first_address);
                firsts.any(|gateway| gateway.addr() == ip)
            }
        };
        match is_gateway {
            true => Some("the address of the gateway"),
            false => self.edge(ip),
        }
    }

    /// Says which end of its subnet an address is; none for those in between.
    fn edge(&self, ip: IpAddr) -> Option<&'static str> {
        let subnet = self.subnets.iter().find(|subnet| subnet.contains(&ip))?;
        if ip == subnet.network() {
            Some("the address of the subnet itself")
        } else if ip.is_ipv4() && ip == subnet.broadcast() {
            Some("the broadcast address of the subnet")
        } else {
            None
        }
    }
}

fn check_subnet(subnet: &IpNet, others: &[IpNet]) -> Result<(), NetworkConfigError> {
    if others.len() == SUBNETS_MAX {
        return Err(NetworkConfigError::TooManySubnets);
    }
    if subnet.prefix_len() + 2 > subnet.max_prefix_len() {
        return Err(NetworkConfigError::NoRoom(*subnet));
    }
    let first = subnet.network();
    if let Some(what) = unusable(first) {
        return Err(NetworkConfigError::Unusable(*subnet, first, what));
    }
    match others.iter().find(|other| overlap(other, subnet)) {
        Some(other) => Err(NetworkConfigError::Overlap(*other, *subnet)),
        None => Ok(()),
    }
}

/// Returns the first address after that of the subnet itself.
fn first_address(subnet: &IpNet) -> Option<IpNet> {
    let first = match subnet.network() {
        IpAddr::V4(ip) => IpAddr::V4((ip.to_bits() + 1).into()),
        IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() + 1).into()),
    };
    IpNet::new(first, subnet.prefix_len()).ok()
}

fn overlap(one: &IpNet, two: &IpNet) -> bool {
    one.contains(&two.network()) || two.contains(&one.network())
}

/// Returns what an underlay leaves for an endpoint's packet, in bytes. `encryption` is what encrypting adds.
#[must_use]
pub fn room(underlay_mtu: u32, is_v6: bool, encryption: u32) -> u32 {
    let overhead = if is_v6 { OVERHEAD_V6 } else { OVERHEAD_V4 };
    underlay_mtu.saturating_sub(overhead.saturating_add(encryption))
}

/// Tells of bad JSON in one short line.
fn told(error: &serde_json::Error) -> String {
    let text: Vec<char> = error.to_string().chars().collect();
    let is_cut = text.len() > JSON_ERROR_MAX;
    let shown = text.into_iter().take(JSON_ERROR_MAX);
    let mut shown: String = shown
        .flat_map(|char| {
            // Other marks than quotes are written as they are unless they would not be seen.
            let is_plain = matches!(char, '"' | '\'' | '\\');
            let escaped = (!is_plain).then(|| char.escape_debug());
            let plain = is_plain.then_some(char);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect();
    if is_cut {
        shown.push_str("...");
    }
    shown
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<NetworkConfig, NetworkConfigError> {
        NetworkConfig::from_json(text.as_bytes())
    }

    #[test]
    fn a_layout_reads_as_it_is_written() {
        let text = r#"{"segments":[{"vni":4097,"subnets":["10.0.1.0/24","fd00:1::/64"]}],"mtu":1400,"encrypted":false}"#;
        let config = parse(text).unwrap();
        assert_eq!(String::from_utf8(config.to_json()).unwrap(), text);
        let gateways: Vec<String> = config.segments[0]
            .gateways()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(gateways, ["10.0.1.1/24", "fd00:1::1/64"]);
    }

    fn check(cases: &[(&str, &str)]) {
        for (text, error) in cases {
            assert_eq!(parse(text).unwrap_err().to_string(), *error);
        }
    }

    #[test]
    fn json_that_is_no_layout_is_refused_with_its_place() {
        check(&[
            ("{}", "missing field `segments` at line 1 column 2"),
            (
                r#"{"segments":[],"mut":1}"#,
                "unknown field `mut`, expected one of `segments`, `mtu`, `encrypted`, `services`, `ingress` at line 1 column 20",
            ),
            (
                r#"{"segments":[{"vni":1,"subnets":[]}]}"#,
                "VNI 1 is not between 4096 and 16777215 at line 1 column 21",
            ),
            (
                r#"{"segments":[{"vni":16777216,"subnets":[]}]}"#,
                "VNI 16777216 is not between 4096 and 16777215 at line 1 column 28",
            ),
            (
                r#"{"segments":[{"vni":4096,"subnets":["10.0.0.0"]}]}"#,
                "\"10.0.0.0\" is not an address with a prefix length, as in 10.0.1.0/24 at line 1 column 47",
            ),
            (
                r#"{"segments":[{"vni":4096,"subnets":["010.0.0.0/24"]}]}"#,
                "\"010.0.0.0/24\" is not an address with a prefix length, as in 10.0.1.0/24 at line 1 column 51",
            ),
            (
                r#"{"segments":[{"vni":4096,"subnets":["10.0.0.0/24"],"gateway":[]}]}"#,
                "unknown field `gateway`, expected one of `vni`, `subnets`, `gateways` at line 1 column 60",
            ),
        ]);
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        check(&[
            (r#"{"segments":[]}"#, "a network needs at least one segment"),
            (
                r#"{"segments":[{"vni":4096,"subnets":[]}]}"#,
                "the segment with VNI 4096 needs at least one subnet",
            ),
            (
                r#"{"segments":[{"vni":4096,"subnets":["10.0.0.0/0"]}]}"#,
                "subnet 10.0.0.0/0 is of no use: 0.0.0.0 is the unspecified address",
            ),
            (
                r#"{"segments":[{"vni":4096,"subnets":["ff05::/64"]}]}"#,
                "subnet ff05::/64 is of no use: ff05:: is a group address",
            ),
            (
                r#"{"segments":[{"vni":4096,"subnets":["10.0.0.0/24"],"gateways":["10.0.0.0/24"]}]}"#,
                "gateway 10.0.0.0/24 is the address of the subnet itself",
            ),
            (
                r#"{"segments":[{"vni":4096,"subnets":["10.0.0.0/24"],"gateways":["10.0.0.255/24"]}]}"#,
                "gateway 10.0.0.255/24 is the broadcast address of the subnet",
            ),
            (
                r#"{"segments":[{"vni":4096,"subnets":["10.0.0.0/31"]}]}"#,
                "subnet 10.0.0.0/31 has no room for endpoints",
            ),
            (
                r#"{"segments":[{"vni":4096,"subnets":["10.0.0.0/24","10.0.0.128/25"]}]}"#,
                "subnets 10.0.0.0/24 and 10.0.0.128/25 overlap",
            ),
            (
                r#"{"segments":[{"vni":4096,"subnets":["10.0.0.0/24"]},{"vni":4096,"subnets":["10.0.1.0/24"]}]}"#,
                "VNI 4096 is given twice",
            ),
            (
                r#"{"segments":[{"vni":4096,"subnets":["10.0.0.0/24"],"gateways":["10.0.0.1/16"]}]}"#,
                "gateway 10.0.0.1/16 is in no subnet of its segment; it has to be written with the prefix length of its subnet",
            ),
            (
                r#"{"segments":[{"vni":4096,"subnets":["10.0.0.0/24"]}],"mtu":67}"#,
                "MTU 67 is not between 68 and 65535",
            ),
            (
                r#"{"segments":[{"vni":4096,"subnets":["fd00::/64"]}],"mtu":1279}"#,
                "MTU 1279 is not between 1280 and 65535",
            ),
        ]);
    }

    #[test]
    fn what_is_told_of_bad_json_is_one_short_line() {
        let text = format!("{{\"\u{202e}\\n{}\":1}}", "x".repeat(9_999));
        let told = parse(&text).unwrap_err().to_string();
        assert!(told.starts_with("unknown field `\\u{202e}\\nxxx"), "{told}");
        assert!(told.len() < 300);
    }

    #[test]
    fn gateways_can_be_left_out_or_be_others() {
        let of = |gateways: &str| {
            let text = format!(
                r#"{{"segments":[{{"vni":4096,"subnets":["10.0.0.0/24"],"gateways":{gateways}}}]}}"#
            );
            let config = parse(&text).unwrap();
            assert_eq!(
                NetworkConfig::from_json(&config.to_json()),
                Ok(config.clone())
            );
            let gateways = config.segments[0].gateways();
            gateways.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(of("[]"), [""; 0]);
        assert_eq!(of(r#"["10.0.0.254/24"]"#), ["10.0.0.254/24"]);
    }

    #[test]
    fn subnets_are_not_without_end() {
        let config = |count: usize| {
            let subnets: Vec<String> = (0..count)
                .map(|at| format!("\"10.{}.{}.0/24\"", at / 256, at % 256))
                .collect();
            let subnets = subnets.join(",");
            parse(&format!(
                r#"{{"segments":[{{"vni":4096,"subnets":[{subnets}]}}]}}"#
            ))
        };
        assert!(config(SUBNETS_MAX).is_ok());
        let refused = config(SUBNETS_MAX + 1);
        assert_eq!(refused, Err(NetworkConfigError::TooManySubnets));
    }

    #[test]
    fn a_subnet_of_ipv4_in_the_clothes_of_ipv6_is_of_ipv4() {
        let config = parse(r#"{"segments":[{"vni":4096,"subnets":["::ffff:10.0.0.0/120"]}]}"#);
        let config = config.unwrap();
        assert_eq!(config.segments[0].subnets[0].to_string(), "10.0.0.0/24");
        assert_eq!(config.mtu_min(), MTU_MIN);
    }

    #[test]
    fn an_endpoint_belongs_where_subnet_and_prefix_fit() {
        let config = parse(r#"{"segments":[{"vni":4096,"subnets":["10.0.0.0/24"]},{"vni":4097,"subnets":["10.0.1.0/24","fd00::/64"]}]}"#).unwrap();
        let vni = |text: &str| {
            let segment = config.segment_of(text.parse().unwrap());
            segment.map(|segment| segment.vni.number())
        };
        assert_eq!(vni("10.0.0.7/24"), Some(4096));
        assert_eq!(vni("10.0.1.7/24"), Some(4097));
        assert_eq!(vni("fd00::7/64"), Some(4097));
        assert_eq!(vni("10.0.1.7/16"), None);
        assert_eq!(vni("10.0.2.7/24"), None);
        let reserved = |text: &str| config.segments[1].reserved(text.parse().unwrap());
        assert_eq!(reserved("10.0.1.1"), Some("the address of the gateway"));
        assert_eq!(
            reserved("10.0.1.0"),
            Some("the address of the subnet itself")
        );
        assert_eq!(
            reserved("10.0.1.255"),
            Some("the broadcast address of the subnet")
        );
        assert_eq!(reserved("10.0.1.254"), None);
    }

    #[test]
    fn headers_leave_the_rest() {
        assert_eq!(room(1_500, false, 0), 1_450);
        assert_eq!(room(1_500, true, 0), 1_430);
        assert_eq!(room(1_500, false, 26), 1_424);
        assert_eq!(room(20, false, 0), 0);
    }

    /// JSON that is nearly that of a layout.
    fn nearly() -> impl Strategy<Value = String> {
        let number = prop_oneof![
            (0..3_u32).prop_map(|vni| (4_095 + vni).to_string()),
            any::<i64>().prop_map(|number| number.to_string()),
            Just("\"x\"".to_owned()),
        ];
        let net = prop_oneof![
            (0..4_u8, 0..3_u8, 20..34_u8)
                .prop_map(|(net, ip, prefix)| format!("\"10.0.{net}.{ip}/{prefix}\"")),
            (0..3_u8, 60..130_u8).prop_map(|(net, prefix)| format!("\"fd00:{net}::/{prefix}\"")),
            "\"[0-9a-f:./]{0,12}\"",
        ];
        let nets = prop::collection::vec(net, 0..4).prop_map(|nets| nets.join(","));
        let segment = (number, nets.clone(), prop::option::of(nets));
        let segment = segment.prop_map(|(vni, subnets, gateways)| {
            let gateways = gateways.map(|nets| format!(",\"gateways\":[{nets}]"));
            let gateways = gateways.unwrap_or_default();
            format!("{{\"vni\":{vni},\"subnets\":[{subnets}]{gateways}}}")
        });
        let mtu = prop::option::of(0..70_000_u32);
        (prop::collection::vec(segment, 0..3), mtu).prop_map(|(segments, mtu)| {
            let mtu = mtu.map(|mtu| format!(",\"mtu\":{mtu}"));
            let (segments, mtu) = (segments.join(","), mtu.unwrap_or_default());
            format!("{{\"segments\":[{segments}]{mtu}}}")
        })
    }

    proptest! {
        #[test]
        fn any_text_is_a_layout_or_refused(text in "\\PC{0,60}", nearly in nearly()) {
            for text in [text, nearly] {
                let Ok(config) = parse(&text) else { continue };
                prop_assert_eq!(NetworkConfig::from_json(&config.to_json()), Ok(config.clone()));
                for segment in &config.segments {
                    for subnet in &segment.subnets {
                        prop_assert_eq!(config.segment_of(*subnet), Some(segment));
                    }
                    for gateway in segment.gateways() {
                        prop_assert_eq!(config.segment_of(gateway), Some(segment));
                        prop_assert_eq!(segment.reserved(gateway.addr()), Some("the address of the gateway"));
                    }
                }
            }
        }

        #[test]
        fn any_bytes_are_a_layout_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            drop(NetworkConfig::from_json(&bytes));
        }
    }
}
