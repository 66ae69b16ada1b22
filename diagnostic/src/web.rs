//! The paths that are no part of Docker's API: `/v1/`, `/metrics` and `/ui`.

use axum::Router;
use networkdb::node::NetworkDb;

use crate::extras::Extras;
use crate::metrics;
use crate::ui;
use crate::v1::{self, Stopped};

/// Returns true for a path that the router answers.
pub(crate) fn owns(path: &str) -> bool {
    let first = path
        .strip_prefix('/')
        .and_then(|rest| rest.split('/').next());
    first.is_some_and(|name| ["v1", "metrics", "ui"].contains(&name))
}

/// Returns true for what is the same on every node, which a browser loads before it can bring a token.
pub(crate) fn is_page(path: &str) -> bool {
    path == "/ui" || path.starts_with("/ui/")
}

/// Makes the router of a node.
pub(crate) fn router(db: &NetworkDb, stopped: Stopped, extras: &Extras) -> Router {
    v1::router(db, stopped, extras)
        .merge(metrics::router(db, extras))
        .merge(ui::router())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_segment_decides() {
        for own in ["/v1", "/v1/", "/v1/node", "/metrics", "/ui", "/ui/"] {
            assert!(owns(own), "{own}");
        }
        for other in ["/", "", "/ready", "/v10", "/V1", "//v1", "/x/v1"] {
            assert!(!owns(other), "{other}");
        }
    }
}
