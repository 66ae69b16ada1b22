//! The server of Docker's e2e test service: what it answers beyond every diagnostic server.
//!
//! | path | parameters | answer |
//! |---|---|---|
//! | `/myip` | | the address that other nodes are told |
//! | `/watchtable` | `tname` | `OK`; watches the tables of that name in every network from then on |
//! | `/watchedtableentries` | `tname` | what a program that watches has been told of |
//!
//! All three answer in text, whatever is asked for. The program `networkdb-test` is such a server, and the client that
//! drives a few of them.

mod watched;

use std::sync::Arc;

use diagnostic::{Failure, PathTaken, Reply, Request, Route, Routes};
use networkdb::TableName;
use networkdb::node::{NetworkDb, WatchFilter};

use self::watched::Watched;

/// Mounts the paths for a node.
pub fn mount(routes: &Routes, db: &NetworkDb) -> Result<(), PathTaken> {
    let ip = db.advertised_addr().ip().to_canonical();
    let my_ip = move |_| std::future::ready(Ok(Reply::text(format!("{ip}\n"))));
    routes.register(Route::new("/myip", my_ip).text_only())?;

    let watched = Arc::new(Watched::default());
    let (of_watch, db) = (Arc::clone(&watched), db.clone());
    let watch = move |request: Request| watch(Arc::clone(&of_watch), db.clone(), request);
    let watch = Route::new("/watchtable", watch).requires("tname=table_name");
    routes.register(watch.text_only().changes())?;

    let entries = move |request: Request| std::future::ready(entries(&watched, &request));
    let entries = Route::new("/watchedtableentries", entries).requires("tname=table_name");
    routes.register(entries.text_only())
}

/// Begins to watch, unless that has been done. The network that clients name is not looked at, as in the original.
async fn watch(watched: Arc<Watched>, db: NetworkDb, request: Request) -> Result<Reply, Failure> {
    let table: TableName = request.params.name("tname")?;
    let started = Ok(Reply::text("OK\n"));
    let Some(folded) = watched.add(&table)? else {
        return started;
    };
    let filter = WatchFilter {
        table: Some(table),
        ..WatchFilter::default()
    };
    let watch = db.watch(filter).await;
    let mut watch = watch.map_err(|closed| Failure::new(closed.to_string()))?;
    tokio::spawn(async move {
        while let Some(event) = watch.next().await {
            folded.fold(event);
        }
    });
    started
}

fn entries(watched: &Watched, request: &Request) -> Result<Reply, Failure> {
    let table = request.params.text("tname")?;
    Ok(Reply::text(match watched.get(table) {
        Some(folded) => folded.listing(),
        None => format!("Table {table} not watched\n").into_bytes(),
    }))
}
