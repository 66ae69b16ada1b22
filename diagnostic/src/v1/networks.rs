//! Endpoints about networks: which, joining and leaving them, who is attached, what they hold, how far they are.

use axum::extract::State;
use axum::http::StatusCode;
use networkdb::NetworkError;
use networkdb::node::{JoinProgress, NetworkDb};
use networkdb::{NetworkId, NodeId, TableName};
use serde::Serialize;
use utoipa::ToSchema;

use super::extract::{Names, OfNetwork, OfTable};
use super::problem::Problem;
use super::{Api, Json, walking};

/// The networks that this node is attached to.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Networks {
    /// Sorted.
    #[schema(value_type = Vec<String>)]
    networks: Vec<NetworkId>,
}

/// A network that this node is attached to.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Network {
    /// Its id.
    #[schema(value_type = String)]
    network: NetworkId,
    /// Visible entries.
    entries: usize,
    /// Entries whose owner failed.
    hidden: usize,
    /// Deletes that are still remembered.
    tombstones: usize,
    /// All records held, dead ones included.
    records: usize,
    /// Events that wait to be sent.
    queue: usize,
    /// The digest of all records: equal on two nodes that hold the same. 32 hex digits.
    #[schema(pattern = "^[0-9a-f]{32}$")]
    digest: String,
    /// How far the first sync is.
    sync: Sync,
}

/// How far the first sync of a network is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Sync {
    /// The network.
    #[schema(value_type = String)]
    network: NetworkId,
    /// Whether it is done; it is when there was nobody to sync with.
    is_done: bool,
    /// Records received, those that changed nothing included.
    records: u64,
    /// How long it has taken so far, or took.
    elapsed_ms: f64,
}

/// How far the first syncs are.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Syncs {
    /// One for each network, sorted.
    networks: Vec<Sync>,
    /// Syncs of this node that ended well.
    completed: u64,
    /// Syncs of this node that were given up.
    failed: u64,
}

/// The nodes attached to a network.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Peers {
    /// Those that are up, sorted by id; this node is one of them.
    peers: Vec<Peer>,
}

/// A node and where it is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Peer {
    /// The node.
    #[schema(value_type = String)]
    id: NodeId,
    /// Its address.
    addr: String,
}

/// A digest.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Digest {
    /// Equal on two nodes that hold the same records, whatever the order they came in. 32 hex digits.
    #[schema(pattern = "^[0-9a-f]{32}$")]
    digest: String,
}

/// The tables of a network.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Tables {
    /// Those that were ever written to, sorted by name.
    tables: Vec<Table>,
}

/// What a table holds.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Table {
    /// Its name.
    #[schema(value_type = String)]
    table: TableName,
    /// Visible entries.
    entries: usize,
    /// Bytes of their values.
    value_bytes: usize,
    /// Entries whose owner failed.
    hidden: usize,
    /// Deletes that are still remembered.
    tombstones: usize,
    /// Entries of nodes that have left.
    stubs: usize,
}

impl Sync {
    fn of(network: NetworkId, progress: &JoinProgress) -> Self {
        Self {
            network,
            is_done: progress.is_done,
            records: progress.records,
            elapsed_ms: progress.elapsed.as_secs_f64() * 1_000.0,
        }
    }
}

/// Returns the digest of a network as text.
pub(crate) fn digest_of(db: &NetworkDb, network: &NetworkId) -> Result<String, Problem> {
    let digest = db.digest(network);
    let digest = digest.ok_or_else(|| Problem::no_network(network))?;
    Ok(format!("{:032x}", digest.0))
}

/// Refuses what names a network that this node is not attached to.
pub(crate) fn check(db: &NetworkDb, network: &NetworkId) -> Result<(), Problem> {
    if db.is_attached(network) {
        return Ok(());
    }
    Err(Problem::no_network(network))
}

async fn tables_of(db: &NetworkDb, network: &NetworkId) -> Vec<Table> {
    let (db, network) = (db.clone(), network.clone());
    walking(move || {
        let tables = db.tables(&network).into_iter();
        let counted = tables.filter_map(|table| {
            let stats = db.table_stats(&network, &table)?;
            Some(Table {
                table,
                entries: stats.entries,
                value_bytes: stats.value_bytes,
                hidden: stats.hidden,
                tombstones: stats.tombstones,
                stubs: stats.stubs,
            })
        });
        counted.collect()
    })
    .await
}

async fn network_of(db: &NetworkDb, network: NetworkId) -> Result<Network, Problem> {
    let missing = || Problem::no_network(&network);
    let stats = db.network_stats(&network).await.ok_or_else(missing)?;
    let progress = db.join_progress(&network).await.ok_or_else(missing)?;
    let digest = digest_of(db, &network)?;
    let tables = tables_of(db, &network).await;
    let sum = |count: fn(&Table) -> usize| tables.iter().map(count).sum();
    Ok(Network {
        entries: sum(|table| table.entries),
        hidden: sum(|table| table.hidden),
        tombstones: sum(|table| table.tombstones),
        records: stats.entries,
        queue: stats.queue,
        digest,
        sync: Sync::of(network.clone(), &progress),
        network,
    })
}

/// Lists the networks that this node is attached to.
#[utoipa::path(get, path = "/v1/networks", tag = "networks", operation_id = "listNetworks", responses(
    (status = 200, description = "The networks.", body = Networks)
))]
pub(crate) async fn list(State(api): State<Api>) -> Json<Networks> {
    let networks = api.db.networks();
    Json(Networks { networks })
}

/// Tells what this node holds of a network, by walking its tables.
#[utoipa::path(get, path = "/v1/networks/{network}", tag = "networks", operation_id = "getNetwork",
    params(OfNetwork), responses(
    (status = 200, description = "The network.", body = Network), (status = 404, response = Problem),
))]
pub(crate) async fn get(
    State(api): State<Api>,
    Names(names): Names<OfNetwork>,
) -> Result<Json<Network>, Problem> {
    network_of(&api.db, names.network).await.map(Json)
}

/// Attaches this node to a network; done when the first sync is, or after some seconds in which it goes on.
#[utoipa::path(put, path = "/v1/networks/{network}", tag = "networks", operation_id = "joinNetwork",
    params(OfNetwork), responses(
    (status = 200, description = "The node was attached already.", body = Network),
    (status = 201, description = "The node is attached.", body = Network),
    (status = 404, response = Problem), (status = 409, response = Problem),
))]
pub(crate) async fn put(
    State(api): State<Api>,
    Names(names): Names<OfNetwork>,
) -> Result<(StatusCode, Json<Network>), Problem> {
    let status = match api.db.join_network(&names.network).await {
        Ok(()) => StatusCode::CREATED,
        Err(NetworkError::AlreadyAttached { .. }) => StatusCode::OK,
        Err(error) => return Err(error.into()),
    };
    // Somebody else may have made the node leave meanwhile; then it is not found.
    let network = network_of(&api.db, names.network).await?;
    Ok((status, Json(network)))
}

/// Ends the attachment of this node to a network: what it wrote goes on all nodes.
#[utoipa::path(delete, path = "/v1/networks/{network}", tag = "networks", operation_id = "leaveNetwork",
    params(OfNetwork), responses(
    (status = 204, description = "The node is not attached any more."), (status = 404, response = Problem),
))]
pub(crate) async fn delete(
    State(api): State<Api>,
    Names(names): Names<OfNetwork>,
) -> Result<StatusCode, Problem> {
    check(&api.db, &names.network)?;
    api.db.leave_network(&names.network).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists the nodes attached to a network, this one included.
#[utoipa::path(get, path = "/v1/networks/{network}/peers", tag = "networks", operation_id = "listPeers",
    params(OfNetwork), responses(
    (status = 200, description = "The nodes.", body = Peers), (status = 404, response = Problem),
))]
pub(crate) async fn peers(
    State(api): State<Api>,
    Names(names): Names<OfNetwork>,
) -> Result<Json<Peers>, Problem> {
    check(&api.db, &names.network)?;
    let peers = api.db.peers(&names.network).into_iter();
    let peer = |peer: networkdb::node::Peer| Peer {
        id: peer.id,
        addr: peer.addr.to_string(),
    };
    let peers = peers.map(peer).collect();
    Ok(Json(Peers { peers }))
}

/// Returns the digest of all records of a network, which costs next to nothing.
#[utoipa::path(get, path = "/v1/networks/{network}/digest", tag = "networks", operation_id = "getNetworkDigest",
    params(OfNetwork), responses(
    (status = 200, description = "The digest.", body = Digest), (status = 404, response = Problem),
))]
pub(crate) async fn digest(
    State(api): State<Api>,
    Names(names): Names<OfNetwork>,
) -> Result<Json<Digest>, Problem> {
    let digest = digest_of(&api.db, &names.network)?;
    Ok(Json(Digest { digest }))
}

/// Lists the tables of a network with what they hold, by walking them.
#[utoipa::path(get, path = "/v1/networks/{network}/tables", tag = "tables", operation_id = "listTables",
    params(OfNetwork), responses(
    (status = 200, description = "The tables.", body = Tables), (status = 404, response = Problem),
))]
pub(crate) async fn tables(
    State(api): State<Api>,
    Names(names): Names<OfNetwork>,
) -> Result<Json<Tables>, Problem> {
    check(&api.db, &names.network)?;
    let tables = tables_of(&api.db, &names.network).await;
    Ok(Json(Tables { tables }))
}

/// Returns the digest of all records of a table; zeros when nothing was written to it.
#[utoipa::path(get, path = "/v1/networks/{network}/tables/{table}/digest", tag = "tables",
    operation_id = "getTableDigest", params(OfTable), responses(
    (status = 200, description = "The digest.", body = Digest), (status = 404, response = Problem),
))]
pub(crate) async fn table_digest(
    State(api): State<Api>,
    Names(names): Names<OfTable>,
) -> Result<Json<Digest>, Problem> {
    check(&api.db, &names.network)?;
    let digest = api.db.table_digest(&names.network, &names.table);
    let digest = format!("{:032x}", digest.unwrap_or_default().0);
    Ok(Json(Digest { digest }))
}

/// Tells how far the first sync of every network is.
#[utoipa::path(get, path = "/v1/sync", tag = "networks", operation_id = "getSync", responses(
    (status = 200, description = "The progress.", body = Syncs)
))]
pub(crate) async fn sync(State(api): State<Api>) -> Result<Json<Syncs>, Problem> {
    let stats = api.db.stats().await?;
    let mut networks = Vec::new();
    for network in api.db.networks() {
        if let Some(progress) = api.db.join_progress(&network).await {
            networks.push(Sync::of(network, &progress));
        }
    }
    Ok(Json(Syncs {
        networks,
        completed: stats.syncs_completed,
        failed: stats.syncs_failed,
    }))
}
