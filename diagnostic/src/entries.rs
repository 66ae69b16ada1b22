//! Endpoints that write and read entries.

use bytes::Bytes;
use networkdb::node::NetworkDb;
use networkdb::{Key, NetworkId, TableName};

use crate::failure::Failure;
use crate::params::Params;
use crate::reply::Reply;
use crate::routes::Request;

/// Usage of the endpoints that take a value.
pub(crate) const WRITE: &str = "tname=table_name&nid=network_id&key=k&value=v";
/// Usage of the endpoints that take a key.
pub(crate) const KEY: &str = "tname=table_name&nid=network_id&key=k";
/// Usage of the endpoint that takes a table.
pub(crate) const TABLE: &str = "tname=table_name&nid=network_id";

/// Keys and values of a table that is copied to be shown as it was at one moment; a larger one is read while it is sent.
const WHOLE_BYTES_MAX: usize = 1 << 20;

/// The place of an entry.
pub(crate) struct Place {
    pub(crate) network: NetworkId,
    pub(crate) table: TableName,
    pub(crate) key: Key,
}

impl Place {
    fn of(params: &Params) -> Result<Self, Failure> {
        Ok(Self {
            network: params.name("nid")?,
            table: params.name("tname")?,
            key: params.name("key")?,
        })
    }
}

/// Answers `/createentry`.
pub(crate) async fn create(db: NetworkDb, request: Request) -> Result<Reply, Failure> {
    let place = Place::of(&request.params)?;
    let value = Bytes::from(request.params.value()?);
    db.create_entry(&place.network, &place.table, &place.key, value)
        .await
        .map(|()| Reply::done())
        .map_err(|error| Failure::create(&error))
}

/// Answers `/updateentry`.
pub(crate) async fn update(db: NetworkDb, request: Request) -> Result<Reply, Failure> {
    let place = Place::of(&request.params)?;
    let value = Bytes::from(request.params.value()?);
    db.update_entry(&place.network, &place.table, &place.key, value)
        .await
        .map(|()| Reply::done())
        .map_err(|error| Failure::update(&error))
}

/// Answers `/deleteentry`.
pub(crate) async fn delete(db: NetworkDb, request: Request) -> Result<Reply, Failure> {
    let place = Place::of(&request.params)?;
    db.delete_entry(&place.network, &place.table, &place.key)
        .await
        .map(|()| Reply::done())
        .map_err(|error| Failure::delete(&error))
}

/// Answers `/getentry`.
pub(crate) fn get(db: &NetworkDb, request: &Request) -> Result<Reply, Failure> {
    let place = Place::of(&request.params)?;
    db.entry(&place.network, &place.table, &place.key)
        .map(Reply::entry)
        .map_err(|error| Failure::read(&place, error))
}

/// Answers `/gettable`.
pub(crate) fn table(db: &NetworkDb, request: &Request) -> Result<Reply, Failure> {
    let network = request.params.name("nid")?;
    let table = request.params.name("tname")?;
    let (mut entries, mut bytes) = (0, 0);
    db.walk(&network, &table, |key, value, _| {
        entries += 1;
        bytes += key.len() + value.len();
    });
    if bytes > WHOLE_BYTES_MAX {
        return Ok(Reply::large_table(db.clone(), network, table, entries));
    }
    Ok(Reply::table(db.table(&network, &table)))
}
