//! The API under `/v1/`: resources in JSON with status codes of HTTP, described by `/v1/openapi.json`.
//!
//! Handlers parse, call the node and reply. Every error is a problem document (`problem`), every input becomes a typed
//! value before a handler sees it (`extract`), and the document is made of the same attributes as the routes.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use networkdb::node::NetworkDb;
use serde::Serialize;
use tokio::sync::{Semaphore, watch as watch_channel};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

#[expect(unused_qualifications, reason = "written by a macro of utoipa")]
mod batch;
#[expect(unused_qualifications, reason = "written by a macro of utoipa")]
mod consistency;
mod document;
#[expect(unused_qualifications, reason = "written by a macro of utoipa")]
mod entries;
#[expect(unused_qualifications, reason = "written by a macro of utoipa")]
mod extract;
mod networks;
mod node;
#[expect(unused_qualifications, reason = "written by a macro of utoipa")]
mod page;
mod problem;
#[expect(unused_qualifications, reason = "written by a macro of utoipa")]
mod watch;

use crate::connections::Stop;
use crate::extras::Extras;
pub use extract::{JsonBody, Names, Nothing, OfNetwork, Params};
pub use problem::Problem;

/// What handlers need.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    db: NetworkDb,
    /// Places for watches.
    watches: Arc<watch::Places>,
    /// Places for checks of a network.
    checks: Arc<Semaphore>,
    stopped: Stopped,
    document: Bytes,
}

/// Tells when the server stops.
#[derive(Clone, Debug)]
pub(crate) struct Stopped(pub(crate) watch_channel::Receiver<Option<Stop>>);

impl Stopped {
    /// Waits until the server stops; never ends when nobody is left who could stop it.
    async fn wait(&mut self) {
        if self.0.wait_for(Option::is_some).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// A reply in JSON.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

/// Does what takes long, because it looks at every entry, where it keeps no other request waiting.
pub(crate) async fn walking<T: Send + 'static>(walk: impl FnOnce() -> T + Send + 'static) -> T {
    let walked = tokio::task::spawn_blocking(walk).await;
    walked.expect("a walk does not panic, and nobody aborts it")
}

/// Makes the router of a node.
pub(crate) fn router(db: &NetworkDb, stopped: Stopped, extras: &Extras) -> Router {
    let (router, mut document) = routes().split_for_parts();
    let (added, documented) = extras.endpoints().split_for_parts();
    document.merge(documented);
    let document = serde_json::to_vec(&document::finished(document));
    let api = Api {
        db: db.clone(),
        watches: Arc::default(),
        checks: Arc::new(Semaphore::new(consistency::CHECKS_MAX)),
        stopped,
        document: document.expect("the document is JSON").into(),
    };
    router
        .with_state(api)
        .merge(added)
        .method_not_allowed_fallback(no_method)
        .fallback(no_path)
}

/// All endpoints, with what the document says about them.
fn routes() -> OpenApiRouter<Api> {
    let without_query = OpenApiRouter::new()
        .routes(routes!(node::node))
        .routes(routes!(node::members))
        .routes(routes!(node::join))
        .routes(routes!(node::leave))
        .routes(routes!(node::stats))
        .routes(routes!(networks::list))
        .routes(routes!(networks::get, networks::put, networks::delete))
        .routes(routes!(networks::peers))
        .routes(routes!(networks::digest))
        .routes(routes!(networks::tables))
        .routes(routes!(networks::table_digest))
        .routes(routes!(networks::sync))
        .routes(routes!(batch::write))
        .routes(routes!(openapi))
        .route_layer(from_fn(no_query));
    let with_query = OpenApiRouter::with_openapi(document::base())
        .routes(routes!(page::list))
        .routes(routes!(consistency::check))
        .routes(routes!(entries::get, entries::put, entries::delete))
        .routes(routes!(watch::everything))
        .routes(routes!(watch::network))
        .routes(routes!(watch::table));
    with_query.merge(without_query)
}

/// Returns the document that describes this API (OpenAPI 3.1).
#[utoipa::path(get, path = "/v1/openapi.json", tag = "node", operation_id = "getDocument", responses(
    (status = 200, description = "The document.", body = serde_json::Value)
))]
async fn openapi(State(api): State<Api>) -> Response {
    let json = HeaderValue::from_static("application/json");
    ([(CONTENT_TYPE, json)], api.document).into_response()
}

/// Refuses a query where none is taken.
pub async fn no_query(
    query: Result<Params<Nothing>, Problem>,
    request: Request,
    next: Next,
) -> Response {
    match query {
        Ok(_) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

/// Answers a method that an endpoint does not have; `OPTIONS` asks which it has. The router adds them.
pub(crate) async fn no_method(method: Method, uri: Uri) -> Response {
    if method == Method::OPTIONS {
        return StatusCode::NO_CONTENT.into_response();
    }
    Problem::method(format!("{} has no method {method}", uri.path())).into_response()
}

async fn no_path(uri: Uri) -> Problem {
    Problem::unknown_path(format!("there is nothing at {}", uri.path()))
}
