//! Endpoints that write and read entries.

use bytes::Bytes;
use networkdb::node::{Accepted, NetworkDb, Write, WriteAction};
use networkdb::{Key, NetworkId, TableName, WriteError};

use crate::failure::Failure;
use crate::params::Params;
use crate::reply::Reply;
use crate::routes::{Handling, Request};

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
pub(crate) fn create(db: &NetworkDb, request: &Request) -> Handling {
    let action = value(&request.params).map(WriteAction::Create);
    write(db, request, action, Failure::create)
}

/// Answers `/updateentry`.
pub(crate) fn update(db: &NetworkDb, request: &Request) -> Handling {
    let action = value(&request.params).map(WriteAction::Update);
    write(db, request, action, Failure::update)
}

/// Answers `/deleteentry`.
pub(crate) fn delete(db: &NetworkDb, request: &Request) -> Handling {
    write(db, request, Ok(WriteAction::Delete), Failure::delete)
}

fn value(params: &Params) -> Result<Bytes, Failure> {
    params.value().map(Bytes::from)
}

/// Makes a write, at once if the node has nothing else to do.
fn write(
    db: &NetworkDb,
    request: &Request,
    action: Result<WriteAction, Failure>,
    failure: fn(&WriteError) -> Failure,
) -> Handling {
    let write = Place::of(&request.params).and_then(|place| {
        let action = action?;
        Ok(Write {
            network: place.network,
            table: place.table,
            key: place.key,
            action,
        })
    });
    let write = match write {
        Ok(write) => write,
        Err(failure) => return Handling::Now(Err(failure)),
    };
    let answer = move |made: Result<Accepted, WriteError>| {
        let done = made.map(|_| Reply::done());
        done.map_err(|error| failure(&error))
    };
    match db.try_perform(write) {
        Ok(made) => Handling::Now(answer(made)),
        Err(write) => {
            let db = db.clone();
            Handling::Later(Box::pin(async move { answer(db.perform(write).await) }))
        }
    }
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
