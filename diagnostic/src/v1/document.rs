//! The parts of the OpenAPI document that are the same for all endpoints.

use utoipa::openapi::path::{Operation, Parameter, PathItem};
use utoipa::openapi::schema::{SchemaType, Type};
use utoipa::openapi::{OpenApi as Document, Ref, RefOr, Schema};
use utoipa::{OpenApi, ToResponse};

use super::problem::Problem;
use super::watch;

/// What the endpoints are added to.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "NetworkDB",
        description = "What a node of a NetworkDB cluster holds, and what it is told to do. A success reply to a write \
            means accepted here: this node holds it and shows it from then on; the others get it by gossip, a moment \
            later. Reads never ask another node.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    components(
        schemas(watch::Change, watch::LostEntry, watch::MemberChange),
        responses(Problem)
    ),
    tags(
        (name = "node", description = "This node and the cluster."),
        (name = "networks", description = "Networks, and what this node holds of them."),
        (name = "tables", description = "Tables of a network."),
        (name = "entries", description = "Entries of a table."),
        (name = "watch", description = "What changes, as server-sent events.")
    )
)]
struct Base;

/// Returns the document without endpoints.
pub(super) fn base() -> Document {
    Base::openapi()
}

/// Adds what any endpoint may answer.
pub(super) fn finished(mut document: Document) -> Document {
    let (name, _) = Problem::response();
    for item in document.paths.paths.values_mut() {
        for operation in operations(item) {
            for parameter in operation.parameters.iter_mut().flatten() {
                absent_is_not_null(parameter);
            }
            // Bad queries and names, no token, not allowed, closed.
            for status in ["400", "401", "403", "503"] {
                let problem = RefOr::Ref(Ref::from_response_name(name));
                let responses = &mut operation.responses.responses;
                responses.entry(status.to_owned()).or_insert(problem);
            }
        }
    }
    document
}

/// A header that is left out is not there; it is never null.
fn absent_is_not_null(parameter: &mut RefOr<Parameter>) {
    if let RefOr::T(parameter) = parameter
        && let Some(RefOr::T(Schema::Object(object))) = &mut parameter.schema
        && matches!(object.schema_type, SchemaType::Array(_))
    {
        object.schema_type = SchemaType::Type(Type::String);
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [
        &mut item.get,
        &mut item.put,
        &mut item.post,
        &mut item.delete,
    ]
    .into_iter()
    .filter_map(Option::as_mut)
}
