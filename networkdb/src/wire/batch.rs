//! Many writes of one network in one message: the names of network, tables and owners stand in it once.
//!
//! Written by hand, because it is made for every datagram of a busy node; read by the generated code. A batch of one
//! write is a plain `TableEvent`, which decoders of Docker's protocol understand.

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use super::convert::{pack_bytes, residual, residual_millis, stamp};
use super::proto::{self, MessageType};
use super::{
    Body, Key, LamportTime, Message, NetworkId, NodeId, Stamp, TableName, TableRecord, WireError,
    WriteKind,
};
use crate::id::Version;

/// Most bytes that an owner takes beside its name: tags, lengths, generation and time.
const OWNER_OVERHEAD: usize = 28;
/// Most bytes around the message and before its rows, beside the network's name.
const HEAD_OVERHEAD: usize = 24;

const CREATE: u64 = 0;
const UPDATE: u64 = 1;
const DELETE: u64 = 2;
const STUB: u64 = 3;
const UPDATED_STUB: u64 = 4;

/// Collects writes of one network until a message is full.
#[derive(Debug)]
pub(crate) struct BatchWriter {
    network: NetworkId,
    owners: Vec<(NodeId, Stamp)>,
    tables: Vec<TableName>,
    rows: BytesMut,
    first: Option<TableRecord>,
    count: usize,
    last_time: u64,
    head_bytes: usize,
}

impl BatchWriter {
    pub(crate) fn new(network: NetworkId) -> Self {
        Self {
            head_bytes: HEAD_OVERHEAD + network.as_str().len(),
            network,
            owners: Vec::new(),
            tables: Vec::new(),
            rows: BytesMut::new(),
            first: None,
            count: 0,
            last_time: 0,
        }
    }

    pub(crate) fn network(&self) -> &NetworkId {
        &self.network
    }

    /// How many writes it holds.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Bytes of the message at most.
    pub(crate) fn bytes_max(&self) -> usize {
        self.head_bytes + self.rows.len()
    }

    /// Bytes of the message at most once it holds this write too.
    pub(crate) fn bytes_with(&self, record: &TableRecord) -> usize {
        let (owner, table) = (self.owners.len() as u64, self.tables.len() as u64);
        let row = Row::of(record, self.last_time, owner, table).len();
        let mut bytes = self.bytes_max() + 1 + encoded_len_varint(row as u64) + row;
        if !self.tables.contains(&record.table) {
            bytes += 4 + record.table.as_str().len();
        }
        if self.owner_place(&record.version).is_none() {
            bytes += OWNER_OVERHEAD + record.version.owner.as_str().len();
        }
        bytes
    }

    fn owner_place(&self, version: &Version) -> Option<usize> {
        let mut owners = self.owners.iter();
        owners.position(|(node, stamp)| *stamp == version.stamp && *node == version.owner)
    }

    pub(crate) fn push(&mut self, record: &TableRecord) {
        let version = &record.version;
        let owner = self.owner_place(version).unwrap_or_else(|| {
            self.head_bytes += OWNER_OVERHEAD + version.owner.as_str().len();
            self.owners.push((version.owner.clone(), version.stamp));
            self.owners.len() - 1
        });
        let mut tables = self.tables.iter();
        let table = tables.position(|name| *name == record.table);
        let table = table.unwrap_or_else(|| {
            self.head_bytes += 4 + record.table.as_str().len();
            self.tables.push(record.table.clone());
            self.tables.len() - 1
        });
        self.put_row(record, owner as u64, table as u64);
        self.count += 1;
        if self.count == 1 {
            self.first = Some(record.clone());
        }
    }

    fn put_row(&mut self, record: &TableRecord, owner: u64, table: u64) {
        let row = Row::of(record, self.last_time, owner, table);
        self.last_time = record.version.time.0;
        let bytes = row.len();
        self.rows.reserve(bytes + 6);
        encode_key(4, WireType::LengthDelimited, &mut self.rows);
        encode_varint(bytes as u64, &mut self.rows);
        row.put(&mut self.rows);
    }

    /// Returns the message, ready to be sent.
    pub(crate) fn finish(mut self) -> Bytes {
        if let Some(first) = self.first.take_if(|_| self.count == 1) {
            return Message::Table(first).encode();
        }
        let owner = |(node, stamp): &(NodeId, Stamp)| proto::table_batch::Owner {
            node_name: node.to_string(),
            generation: stamp.generation.0,
            joined: stamp.joined.0,
        };
        let head = proto::TableBatch {
            network_id: self.network.to_string(),
            owners: self.owners.iter().map(owner).collect(),
            tables: self.tables.iter().map(ToString::to_string).collect(),
            rows: Vec::new(),
        };
        let mut data = BytesMut::with_capacity(head.encoded_len() + self.rows.len());
        head.encode_raw(&mut data);
        data.unsplit(self.rows);
        pack_bytes(MessageType::TableBatch, &data)
    }
}

/// A row's fields as they are encoded.
struct Row<'a> {
    key: &'a [u8],
    value: &'a [u8],
    /// With their numbers; zeros are left out.
    numbers: [(u32, u64); 5],
    hash: Option<u64>,
}

impl<'a> Row<'a> {
    fn of(record: &'a TableRecord, last_time: u64, owner: u64, table: u64) -> Self {
        let (value, kind): (&[u8], u64) = match (&record.body, record.kind) {
            (Body::Value(value), WriteKind::Update) => (value, UPDATE),
            (Body::Value(value), _) => (value, CREATE),
            (Body::Stub, WriteKind::Update) => (&[], UPDATED_STUB),
            (Body::Stub, _) => (&[], STUB),
            (Body::Tombstone, _) => (&[], DELETE),
        };
        let delta = zigzag(record.version.time.0.wrapping_sub(last_time));
        let residual = residual_millis(record.residual);
        Self {
            key: record.key.as_str().as_bytes(),
            value,
            numbers: [(3, delta), (4, owner), (5, table), (6, kind), (7, residual)],
            hash: matches!(record.body, Body::Stub).then_some(record.version.value_hash),
        }
    }

    fn numbers(&self) -> impl Iterator<Item = (u32, u64)> {
        let numbers = self.numbers.iter().copied();
        numbers.filter(|(_, number)| *number != 0)
    }

    fn len(&self) -> usize {
        let numbers = self.numbers();
        let numbers: usize = numbers.map(|(_, n)| 1 + encoded_len_varint(n)).sum();
        let hash = self.hash.map_or(0, |_| 1 + 8);
        bytes_field_len(self.key) + bytes_field_len(self.value) + numbers + hash
    }

    fn put(&self, into: &mut BytesMut) {
        put_bytes(1, self.key, into);
        put_bytes(2, self.value, into);
        for (field, number) in self.numbers() {
            encode_key(field, WireType::Varint, into);
            encode_varint(number, into);
        }
        if let Some(hash) = self.hash {
            encode_key(8, WireType::SixtyFourBit, into);
            into.put_u64_le(hash);
        }
    }
}

fn zigzag(delta: u64) -> u64 {
    let signed = delta.cast_signed();
    (signed << 1 ^ signed >> 63).cast_unsigned()
}

fn bytes_field_len(bytes: &[u8]) -> usize {
    if bytes.is_empty() {
        return 0;
    }
    1 + encoded_len_varint(bytes.len() as u64) + bytes.len()
}

fn put_bytes(field: u32, bytes: &[u8], into: &mut BytesMut) {
    if bytes.is_empty() {
        return;
    }
    encode_key(field, WireType::LengthDelimited, into);
    encode_varint(bytes.len() as u64, into);
    into.put_slice(bytes);
}

/// Encodes writes of one network; there must be at least one.
pub(super) fn encode(records: &[TableRecord]) -> Bytes {
    let network = records.first().map(|record| record.network.clone());
    let mut writer = BatchWriter::new(network.expect("a batch holds a write"));
    for record in records {
        writer.push(record);
    }
    writer.finish()
}

pub(super) fn decode(data: Bytes) -> Result<Vec<TableRecord>, WireError> {
    let batch = proto::TableBatch::decode(data)?;
    let network = NetworkId::new(batch.network_id)?;
    let mut owners = Vec::with_capacity(batch.owners.len());
    for owner in batch.owners {
        let node = NodeId::new(owner.node_name)?;
        owners.push((node, stamp(owner.generation, owner.joined)?));
    }
    let mut tables = Vec::with_capacity(batch.tables.len());
    for table in batch.tables {
        tables.push(TableName::new(table)?);
    }
    let (mut records, mut time) = (Vec::with_capacity(batch.rows.len()), 0_u64);
    for row in batch.rows {
        time = time.wrapping_add(row.l_time_delta.cast_unsigned());
        let owner = place(&owners, row.owner, "owner")?;
        let table = place(&tables, row.table, "table")?;
        records.push(record(&network, table, owner, time, row)?);
    }
    if records.is_empty() {
        return Err(WireError::Field { field: "rows" });
    }
    Ok(records)
}

fn place<'a, T>(all: &'a [T], at: u32, field: &'static str) -> Result<&'a T, WireError> {
    let found = usize::try_from(at).ok().and_then(|at| all.get(at));
    found.ok_or(WireError::Field { field })
}

fn record(
    network: &NetworkId,
    table: &TableName,
    (node, stamp): &(NodeId, Stamp),
    time: u64,
    row: proto::table_batch::Row,
) -> Result<TableRecord, WireError> {
    let (kind, body) = match u64::from(row.kind) {
        CREATE => (WriteKind::Create, Body::Value(row.value)),
        UPDATE => (WriteKind::Update, Body::Value(row.value)),
        DELETE => (WriteKind::Delete, Body::Tombstone),
        STUB => (WriteKind::Create, Body::Stub),
        UPDATED_STUB => (WriteKind::Update, Body::Stub),
        _ => return Err(WireError::Field { field: "kind" }),
    };
    let residual = residual(row.residual_ms);
    if residual.is_none() && !matches!(body, Body::Value(_)) {
        let field = "residual_ms";
        return Err(WireError::Field { field });
    }
    let key = std::str::from_utf8(&row.key).map_err(|_| WireError::Field { field: "key" })?;
    Ok(TableRecord {
        network: network.clone(),
        table: table.clone(),
        key: Key::new(key)?,
        version: Version {
            time: LamportTime(time),
            owner: node.clone(),
            stamp: *stamp,
            tombstone: body == Body::Tombstone,
            value_hash: match &body {
                Body::Value(value) => crate::engine::value_hash(value),
                Body::Stub => row.value_hash,
                Body::Tombstone => 0,
            },
        },
        kind,
        body,
        residual,
    })
}
