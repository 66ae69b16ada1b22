//! `/v1/datapath`: what the kernel should hold, what it holds, what would be done about it, and the endpoints of this host.

use std::net::IpAddr;

use axum::extract::State;
use axum::http::StatusCode;
use axum::middleware::from_fn;
use diagnostic::api::{Json, JsonBody, Names, OfNetwork, OpenApiRouter, Params, Problem, no_query};
use networkdb::{Key, NetworkId};
use overlay_sync::driver::DataPathError;
use overlay_sync::reconcile::AskError;
use overlay_sync::reconcile::report::{NetworkReport, PlanReport};
use overlay_sync::reconcile::rows::RowsReport;
use overlay_sync::{DataPath, PeerRecord};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

/// The data path of this host.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Report {
    /// Address of this host that other hosts send packets to.
    #[schema(value_type = String)]
    local: IpAddr,
    /// The networks that this node is attached to, sorted.
    networks: Vec<NetworkReport>,
    /// Networks that have a namespace on this host and no data path by this node: `networkdb datapath cleanup` removes it.
    #[schema(value_type = Vec<String>)]
    leftovers: Vec<NetworkId>,
}

/// What was set right.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Repaired {
    /// The operations, in their order; the list may be cut.
    done: Vec<String>,
    /// How many they were.
    operations: usize,
}

impl Repaired {
    /// Lists operations.
    pub(super) fn of<T: ToString>(ops: &[T]) -> Self {
        Self {
            done: ops.iter().take(LISTED_MAX).map(T::to_string).collect(),
            operations: ops.len(),
        }
    }
}

/// An endpoint of this host.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Endpoint {
    /// Its address, with the length of its subnet's prefix, as in 10.0.1.5/24.
    #[schema(pattern = r"^[0-9a-fA-F:.]{2,45}/[0-9]{1,3}$")]
    address: String,
    /// Its hardware address, six bytes in hexadecimal with colons between them; neither one of a group nor all zeros.
    #[schema(pattern = "^[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}$")]
    mac: String,
}

/// An endpoint in the path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct OfEndpoint {
    /// Id of the network: 1 to 255 bytes of UTF-8, percent-encoded.
    #[param(value_type = String, min_length = 1, max_length = 255)]
    network: NetworkId,
    /// Id of the endpoint, which is the key of its record: 1 to 255 bytes of UTF-8, percent-encoded.
    #[param(value_type = String, min_length = 1, max_length = 255)]
    endpoint: Key,
}

/// Which page of rows.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Which {
    /// Rows of the page at most.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<u16>,
    /// Where the page starts: what the one before it gave as `next`.
    cursor: Option<String>,
}

/// Rows of a page when the client does not say, and at most.
const ROWS: [u16; 2] = [100, 1_000];

/// Operations that an answer lists.
const LISTED_MAX: usize = 1_000;

/// All endpoints, with what the document says about them.
pub(super) fn endpoints(path: &DataPath) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(report))
        .routes(routes!(plan))
        .routes(routes!(repair))
        .routes(routes!(put, delete))
        .route_layer(from_fn(no_query))
        .routes(routes!(rows))
        .with_state(path.clone())
}

/// Returns how the data path of this host is: what the kernel should hold, conflicts, errors, times. Asks the kernel nothing.
#[utoipa::path(get, path = "/v1/datapath", tag = "datapath", operation_id = "getDatapath", responses(
    (status = 200, description = "The data path.", body = Report)
))]
async fn report(State(path): State<DataPath>) -> Result<Json<Report>, Problem> {
    let networks = path.reports().await.map_err(Problem::closed)?;
    let leftovers = path.leftovers().await.map_err(problem)?;
    Ok(Json(Report {
        local: path.local(),
        networks,
        leftovers: leftovers.into_iter().collect(),
    }))
}

/// Compares the kernel with what it should hold of a network, and changes nothing.
#[utoipa::path(get, path = "/v1/datapath/{network}/plan", tag = "datapath", operation_id = "getDatapathPlan",
    params(OfNetwork), responses(
    (status = 200, description = "What the kernel holds, and what would have to be done.", body = PlanReport),
    (status = 404, description = "This node is not attached to the network.", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "The network has no data path on this node.", body = Problem, content_type = "application/problem+json"),
    (status = 500, description = "The kernel refused.", body = Problem, content_type = "application/problem+json"),
))]
async fn plan(
    State(path): State<DataPath>,
    Names(of): Names<OfNetwork>,
) -> Result<Json<PlanReport>, Problem> {
    Ok(Json(path.plan(&of.network).await.map_err(problem)?))
}

/// Lists the forwarding rows and neighbours of a network, page by page: what the kernel should hold, what it holds, and which
/// record says so. Each page asks the kernel anew.
#[utoipa::path(get, path = "/v1/datapath/{network}/rows", tag = "datapath", operation_id = "getDatapathRows",
    params(OfNetwork, Which), responses(
    (status = 200, description = "A page of rows.", body = RowsReport),
    (status = 400, description = "The limit or the cursor cannot be used.", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "This node is not attached to the network.", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "The network has no data path on this node.", body = Problem, content_type = "application/problem+json"),
    (status = 500, description = "The kernel refused.", body = Problem, content_type = "application/problem+json"),
))]
async fn rows(
    State(path): State<DataPath>,
    Names(of): Names<OfNetwork>,
    Params(which): Params<Which>,
) -> Result<Json<RowsReport>, Problem> {
    let [usual, most] = ROWS;
    let limit = which.limit.unwrap_or(usual);
    if limit == 0 || limit > most {
        return Err(Problem::bad_request(format!("limit must be 1 to {most}")));
    }
    let after = which.cursor.unwrap_or_default();
    let rows = path.rows(&of.network, after, limit.into()).await;
    Ok(Json(rows.map_err(problem)?))
}

/// Compares the kernel with what it should hold of a network, and sets right what differs.
#[utoipa::path(post, path = "/v1/datapath/{network}/repair", tag = "datapath", operation_id = "repairDatapath",
    params(OfNetwork), responses(
    (status = 200, description = "What was done; nothing differs any more.", body = Repaired),
    (status = 404, description = "This node is not attached to the network.", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "The network has no data path on this node.", body = Problem, content_type = "application/problem+json"),
    (status = 500, description = "The kernel refused something; the rest was done.", body = Problem, content_type = "application/problem+json"),
))]
async fn repair(
    State(path): State<DataPath>,
    Names(of): Names<OfNetwork>,
) -> Result<Json<Repaired>, Problem> {
    let ops = path.repair(&of.network).await.map_err(problem)?;
    Ok(Json(Repaired::of(&ops)))
}

/// Tells the cluster that an endpoint is behind this host, in place of what was told under its id before.
#[utoipa::path(put, path = "/v1/datapath/{network}/endpoints/{endpoint}", tag = "datapath", operation_id = "putEndpoint",
    params(OfEndpoint), request_body = Endpoint, responses(
    (status = 204, description = "Accepted here; the others get it by gossip."),
    (status = 404, description = "This node is not attached to the network.", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "A limit is reached.", body = Problem, content_type = "application/problem+json"),
    (status = 413, description = "The body is too large.", body = Problem, content_type = "application/problem+json"),
    (status = 415, description = "The body is not JSON.", body = Problem, content_type = "application/problem+json"),
    (status = 422, description = "The address or the MAC cannot be used.", body = Problem, content_type = "application/problem+json"),
))]
async fn put(
    State(path): State<DataPath>,
    Names(of): Names<OfEndpoint>,
    JsonBody(endpoint): JsonBody<Endpoint>,
) -> Result<StatusCode, Problem> {
    let address = endpoint.address.parse();
    let address = address.map_err(|_| {
        Problem::shape("address: it must be an address with a prefix length, as in 10.0.1.5/24")
    })?;
    let mac = endpoint.mac.parse();
    let record = PeerRecord {
        endpoint: address,
        mac: mac.map_err(|error| Problem::shape(format!("mac: it is {error}")))?,
        vtep: path.local(),
    };
    // What others would refuse is refused here.
    let record = PeerRecord::decode(&record.encode()).map_err(Problem::shape)?;
    path.register(&of.network, &of.endpoint, &record).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tells the cluster that an endpoint is gone.
#[utoipa::path(delete, path = "/v1/datapath/{network}/endpoints/{endpoint}", tag = "datapath", operation_id = "deleteEndpoint",
    params(OfEndpoint), responses(
    (status = 204, description = "Accepted here; the others get it by gossip."),
    (status = 404, description = "There is no such endpoint, or this node is not attached to the network.", body = Problem, content_type = "application/problem+json"),
))]
async fn delete(
    State(path): State<DataPath>,
    Names(of): Names<OfEndpoint>,
) -> Result<StatusCode, Problem> {
    path.unregister(&of.network, &of.endpoint).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) fn problem(error: DataPathError) -> Problem {
    match error {
        DataPathError::Ended(error) => Problem::closed(error),
        DataPathError::Ask(AskError::NotAttached(network)) => Problem::no_network(&network),
        DataPathError::Ask(error @ (AskError::NoDataPath { .. } | AskError::NotBalanced(_))) => {
            Problem::no_data_path(error)
        }
        DataPathError::Ask(error) => Problem::kernel(error),
        error => Problem::kernel(error),
    }
}
