//! Endpoints about this server and its node, and the table of all built-in endpoints.

use std::future::Future;

use networkdb::NetworkId;
use networkdb::node::NetworkDb;

use crate::failure::Failure;
use crate::reply::Reply;
use crate::routes::{Handled, Handling, Request, Route, Routes};
use crate::{cluster, entries};

/// Mounts every built-in endpoint.
pub(crate) fn mount(routes: &Routes, db: &NetworkDb) {
    let read = |path: &str, handler: fn(&NetworkDb, &Request) -> Handled| {
        let db = db.clone();
        Route::handled(path, move |request| Handling::Now(handler(&db, &request)))
    };
    let entry = |path: &str, handler: fn(&NetworkDb, &Request) -> Handling| {
        let db = db.clone();
        Route::handled(path, move |request| handler(&db, &request)).changes()
    };
    for route in [
        read("/", |_, request| Ok(Reply::unknown(request.other_path()))),
        read("/help", |_, request| Ok(help(&request.routes))),
        read("/ready", |_, _| Ok(Reply::info("OK"))),
        write(db, "/join", cluster::join).requires(cluster::MEMBERS),
        write(db, "/leave", cluster::leave),
        write(db, "/joinnetwork", cluster::join_network).requires(cluster::NETWORK),
        write(db, "/leavenetwork", cluster::leave_network).requires(cluster::NETWORK),
        read("/clusterpeers", |db, _| Ok(cluster::cluster_peers(db))),
        read("/networkpeers", cluster::network_peers).requires(cluster::PEERS),
        entry("/createentry", entries::create).requires(entries::WRITE),
        entry("/updateentry", entries::update).requires(entries::WRITE),
        entry("/deleteentry", entries::delete).requires(entries::KEY),
        read("/getentry", entries::get).requires(entries::KEY),
        read("/gettable", entries::table).requires(entries::TABLE),
        wait(db, "/networkstats", network_stats).requires(cluster::PEERS),
    ] {
        routes.mount(route);
    }
}

/// Makes a route that changes something.
fn write<F, A>(db: &NetworkDb, path: &str, handler: F) -> Route
where
    F: Fn(NetworkDb, Request) -> A + Send + Sync + 'static,
    A: Future<Output = Result<Reply, Failure>> + Send + 'static,
{
    wait(db, path, handler).changes()
}

/// Makes a route whose handler waits for the node.
fn wait<F, A>(db: &NetworkDb, path: &str, handler: F) -> Route
where
    F: Fn(NetworkDb, Request) -> A + Send + Sync + 'static,
    A: Future<Output = Result<Reply, Failure>> + Send + 'static,
{
    let db = db.clone();
    Route::new(path, move |request| handler(db.clone(), request))
}

/// Answers `/help`: one path a line.
fn help(routes: &Routes) -> Reply {
    let mut paths = routes.paths().join("\n");
    paths.push('\n');
    Reply::info(paths)
}

/// Answers `/networkstats`.
async fn network_stats(db: NetworkDb, request: Request) -> Result<Reply, Failure> {
    let network: NetworkId = request.params.name("nid")?;
    let Some(stats) = db.network_stats(&network).await else {
        return Ok(Reply::counts(-1, -1));
    };
    let shown = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    Ok(Reply::counts(shown(stats.entries), shown(stats.queue)))
}

#[cfg(test)]
mod tests {
    use networkdb::node::NodeConfig;

    use super::*;
    use crate::routes::BUILT_IN;

    #[tokio::test]
    async fn built_in_paths_are_those_that_are_mounted() {
        let config = NodeConfig {
            bind: "127.0.0.1:0".parse().unwrap(),
            ..NodeConfig::default()
        };
        let db = NetworkDb::start(config).await.unwrap();
        let routes = Routes::default();
        mount(&routes, &db);
        assert_eq!(routes.paths(), BUILT_IN);
        db.close().await;
    }
}
