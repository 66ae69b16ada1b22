//! `/v1/services`: what should be balanced, what the kernel holds, and what would be done about it.

use axum::extract::State;
use axum::middleware::from_fn;
use diagnostic::api::{Json, Names, OfNetwork, OpenApiRouter, Problem, no_query};
use networkdb::NodeId;
use overlay_sync::DataPath;
use overlay_sync::reconcile::services::{Balanced, ServicesReport};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::routes;

use super::api::{Repaired, problem};

/// The services of this host.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Services {
    /// This node.
    #[schema(value_type = String)]
    node: NodeId,
    /// The networks whose services are balanced here, sorted; none with `--load-balancer off`.
    networks: Vec<ServicesReport>,
}

/// All endpoints, with what the document says about them.
pub(super) fn endpoints(path: &DataPath) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show))
        .routes(routes!(repair))
        .route_layer(from_fn(no_query))
        .with_state(path.clone())
}

/// Returns the services that should be balanced on this host. Asks the kernel nothing.
#[utoipa::path(get, path = "/v1/services", tag = "services", operation_id = "getServices", responses(
    (status = 200, description = "The services.", body = Services)
))]
async fn list(State(path): State<DataPath>) -> Result<Json<Services>, Problem> {
    Ok(Json(Services {
        node: path.node().clone(),
        networks: path.services().await.map_err(Problem::closed)?,
    }))
}

/// Compares the services of a network with what the kernel holds, and changes nothing.
#[utoipa::path(get, path = "/v1/services/{network}", tag = "services", operation_id = "getServicesOfNetwork",
    params(OfNetwork), responses(
    (status = 200, description = "What should be balanced, what the kernel holds, and what would have to be done.", body = Balanced),
    (status = 404, description = "This node is not attached to the network.", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "The network has no data path on this node, or its services are not balanced.", body = Problem, content_type = "application/problem+json"),
    (status = 500, description = "The kernel refused.", body = Problem, content_type = "application/problem+json"),
))]
async fn show(
    State(path): State<DataPath>,
    Names(of): Names<OfNetwork>,
) -> Result<Json<Balanced>, Problem> {
    Ok(Json(path.balanced(&of.network).await.map_err(problem)?))
}

/// Compares the services of a network with what the kernel holds, and sets right what differs.
#[utoipa::path(post, path = "/v1/services/{network}/repair", tag = "services", operation_id = "repairServices",
    params(OfNetwork), responses(
    (status = 200, description = "What was done; nothing differs any more.", body = Repaired),
    (status = 404, description = "This node is not attached to the network.", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "The network has no data path on this node, or its services are not balanced.", body = Problem, content_type = "application/problem+json"),
    (status = 500, description = "The kernel refused something; the rest was done.", body = Problem, content_type = "application/problem+json"),
))]
async fn repair(
    State(path): State<DataPath>,
    Names(of): Names<OfNetwork>,
) -> Result<Json<Repaired>, Problem> {
    let ops = path.repair_services(&of.network).await.map_err(problem)?;
    Ok(Json(Repaired::of(&ops)))
}
