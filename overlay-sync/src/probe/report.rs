//! What the probes tell: for `/v1/datapath` and metrics.

use serde::Serialize;
use utoipa::ToSchema;

/// How the way to a host is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TunnelState {
    /// No answer yet, nor too many lost.
    Unknown,
    /// It answers, and the largest packets pass.
    Passing,
    /// It answers; packets of the network's MTU do not pass, or the MTU of its device is another.
    MtuMismatch,
    /// It has not answered several times.
    Unreachable,
}

/// The way to one host through the tunnel of a network.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct TunnelReport {
    /// The host's address in the hosts' network.
    pub host: String,
    /// How the way is.
    pub state: TunnelState,
    /// Milliseconds to the host and back, smoothed; absent before the first answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round_trip_ms: Option<f64>,
    /// Small probes sent.
    pub sent: u64,
    /// Small probes that were not answered.
    pub lost: u64,
    /// What should fit into a packet of the network, in bytes.
    pub mtu: u32,
    /// The largest packet that was seen to pass, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu_passes: Option<u32>,
    /// The smallest packet that was seen not to pass, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu_lost: Option<u32>,
    /// The MTU of the other host's device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu_of_host: Option<u32>,
}
