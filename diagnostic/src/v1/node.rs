//! Endpoints about this node and the cluster.

use axum::extract::State;
use axum::http::StatusCode;
use networkdb::NodeId;
use networkdb::node::{MemberState, MemberStatus};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::extract::JsonBody;
use super::problem::Problem;
use super::{Api, Json};

/// Members that one request may name.
const MEMBERS_MAX: usize = 64;

/// This node.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Node {
    /// Its id.
    #[schema(value_type = String)]
    id: NodeId,
    /// The host's name.
    hostname: String,
    /// The version of the program.
    version: &'static str,
    /// The cluster's name.
    cluster: String,
    /// False after the node has left the cluster, until it is told to join one.
    in_cluster: bool,
    /// The address that other nodes are told.
    advertised_addr: String,
    /// The address of the gossip sockets.
    gossip_addr: String,
    /// Whether gossip is encrypted.
    is_sealed: bool,
    /// This run of the node, in hex.
    generation: String,
    /// 0 is healthy; higher means that the node runs late and probes more patiently.
    health_score: u32,
    /// How long the node has run.
    uptime_seconds: f64,
}

/// The nodes that this node knows.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Members {
    /// Sorted by id.
    members: Vec<Member>,
}

/// What this node knows of a node.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Member {
    /// Its id.
    #[schema(value_type = String)]
    id: NodeId,
    /// Where it is or was; null when this node never met it.
    addr: Option<String>,
    /// What is known of its state.
    state: StateName,
    /// How often it has refuted that it failed; null when the failure detector does not tell.
    incarnation: Option<u16>,
    /// Its run, in hex.
    generation: String,
    /// How long a round trip of the failure detector's probes takes, smoothed; null when none was measured.
    round_trip_ms: Option<f64>,
    /// The health score as in `/v1/node`; null for other nodes, which do not tell.
    health_score: Option<u32>,
}

/// What is known of a node's state.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MemberState)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StateName {
    /// It answers.
    Alive,
    /// It did not answer somebody, and has some time to refute.
    Suspect,
    /// It failed.
    Down,
    /// It said that it leaves.
    Left,
    /// Others have told of it, this node has not met it.
    Heard,
}

/// Members to join.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Join {
    /// `HOST[:PORT]` each; one that answers is enough.
    #[schema(min_items = 1, max_items = 64)]
    members: Vec<Address>,
}

/// `HOST[:PORT]`. In some languages `$` alone would let a line break through at the end.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(value_type = String, min_length = 1, max_length = 255, pattern = r"^[A-Za-z0-9._\-:\[\]]{1,255}$(?!\n)")]
struct Address(String);

impl Address {
    fn check(&self) -> Result<String, Problem> {
        let is_taken = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:[]".contains(&byte);
        let text = &self.0;
        if text.is_empty() || text.len() > 255 || !text.bytes().all(is_taken) {
            return Err(Problem::shape(
                "a member is HOST[:PORT], 1 to 255 characters",
            ));
        }
        Ok(text.clone())
    }
}

impl From<MemberState> for StateName {
    fn from(state: MemberState) -> Self {
        match state {
            MemberState::Alive => Self::Alive,
            MemberState::Suspect => Self::Suspect,
            MemberState::Down => Self::Down,
            MemberState::Left => Self::Left,
            MemberState::Heard => Self::Heard,
        }
    }
}

impl Member {
    fn of(status: MemberStatus, me: &NodeId, my_score: u32) -> Self {
        Self {
            health_score: (status.id == *me).then_some(my_score),
            id: status.id,
            addr: status.addr.map(|addr| addr.to_string()),
            state: status.state.into(),
            incarnation: status.incarnation,
            generation: status.generation.to_string(),
            round_trip_ms: status.round_trip.map(|trip| trip.as_secs_f64() * 1_000.0),
        }
    }
}

/// Tells what this node is.
#[utoipa::path(get, path = "/v1/node", tag = "node", operation_id = "getNode", responses(
    (status = 200, description = "This node.", body = Node)
))]
pub(crate) async fn node(State(api): State<Api>) -> Result<Json<Node>, Problem> {
    let (db, status) = (&api.db, api.db.status().await?);
    Ok(Json(Node {
        id: db.id().clone(),
        hostname: status.hostname,
        version: env!("CARGO_PKG_VERSION"),
        cluster: status.cluster,
        in_cluster: !status.has_left,
        advertised_addr: db.advertised_addr().to_string(),
        gossip_addr: db.gossip_addr().to_string(),
        is_sealed: status.is_sealed,
        generation: status.generation.to_string(),
        health_score: status.health_score,
        uptime_seconds: status.uptime.as_secs_f64(),
    }))
}

/// Lists the nodes that this node knows, itself and those that are gone included.
#[utoipa::path(get, path = "/v1/members", tag = "node", operation_id = "listMembers", responses(
    (status = 200, description = "The nodes known.", body = Members)
))]
pub(crate) async fn members(State(api): State<Api>) -> Result<Json<Members>, Problem> {
    let score = api.db.status().await?.health_score;
    let members = api.db.members().await?.into_iter();
    let members = members.map(|status| Member::of(status, api.db.id(), score));
    let members = members.collect();
    Ok(Json(Members { members }))
}

/// Joins the cluster of the members named; done when one of them has answered. Those that resolve are tried again later.
#[utoipa::path(post, path = "/v1/join", tag = "node", operation_id = "join", request_body = Join, responses(
    (status = 204, description = "One of the members has answered."), (status = 409, response = Problem),
    (status = 408, response = Problem), (status = 413, response = Problem),
    (status = 415, response = Problem), (status = 422, response = Problem),
))]
pub(crate) async fn join(
    State(api): State<Api>,
    JsonBody(join): JsonBody<Join>,
) -> Result<StatusCode, Problem> {
    if join.members.is_empty() || join.members.len() > MEMBERS_MAX {
        let count = join.members.len();
        return Err(Problem::shape(format!(
            "{count} members are named, it must be 1 to {MEMBERS_MAX}"
        )));
    }
    let members: Result<Vec<String>, Problem> = join.members.iter().map(Address::check).collect();
    api.db.join(&members?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Takes this node out of the cluster and of all networks. The process goes on and may join again.
#[utoipa::path(post, path = "/v1/leave", tag = "node", operation_id = "leave", responses(
    (status = 204, description = "The node has left.")
))]
pub(crate) async fn leave(State(api): State<Api>) -> Result<StatusCode, Problem> {
    api.db.leave().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The counters of the node.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct Stats(networkdb::Stats);

impl utoipa::PartialSchema for Stats {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        let mut object = utoipa::openapi::ObjectBuilder::new()
            .description(Some("Counters since the node started, by name."));
        let names = serde_json::to_value(networkdb::Stats::default()).unwrap_or_default();
        for name in names.as_object().into_iter().flat_map(|names| names.keys()) {
            object = object.property(name, u64::schema()).required(name);
        }
        object.into()
    }
}

impl ToSchema for Stats {}

/// Tells everything that is counted.
#[utoipa::path(get, path = "/v1/stats", tag = "node", operation_id = "getStats", responses(
    (status = 200, description = "The counters.", body = Stats)
))]
pub(crate) async fn stats(State(api): State<Api>) -> Result<Json<Stats>, Problem> {
    Ok(Json(Stats(api.db.stats().await?)))
}
