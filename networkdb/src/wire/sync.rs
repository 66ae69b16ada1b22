//! The messages of a sync: protobuf to checked types and back.

use bytes::Bytes;

use super::convert::{Converted, attachments, attachments_of, digest, digest_bytes};
use super::proto;
use super::{
    LamportTime, NARROW_BITS_MAX, Narrow, NetworkId, NodeId, Offer, RANGE_BITS_MAX, Ranges,
    STEP_BITS_MAX, StateHash, TableDigest, TableName, TableNarrow, TableRanges, WireError,
};

fn range_bits(bits: u32, max: u8) -> Converted<u8> {
    match u8::try_from(bits) {
        Ok(bits) if bits <= max => Ok(bits),
        Ok(_) | Err(_) => Err(WireError::Field { field: "bits" }),
    }
}

/// Low halves of digests, 8 bytes each.
fn halves(bytes: &[u8]) -> Converted<Vec<u64>> {
    let half = |bytes: &[u8]| {
        let bytes = bytes.try_into();
        let bytes = bytes.map_err(|_| WireError::Field { field: "digests" })?;
        Ok(u64::from_be_bytes(bytes))
    };
    bytes.chunks(8).map(half).collect()
}

fn halves_bytes(halves: &[u64]) -> Bytes {
    let bytes = halves.iter().flat_map(|half| half.to_be_bytes());
    bytes.collect::<Vec<u8>>().into()
}

pub(super) fn narrow(message: proto::SyncNarrow) -> Converted<Narrow> {
    let table = |table: proto::sync_narrow::Table| {
        let step = range_bits(table.step, STEP_BITS_MAX)?;
        let bits = range_bits(table.bits, NARROW_BITS_MAX - step)?;
        let digests = halves(&table.digests)?;
        if table.ranges.is_empty() || digests.len() != table.ranges.len() << step {
            return Err(WireError::Field { field: "digests" });
        }
        Ok(TableNarrow {
            differing: checked_ranges(table.table_name, bits, table.ranges)?,
            step,
            digests,
        })
    };
    Ok(Narrow {
        network: NetworkId::new(message.network_id)?,
        tables: message
            .tables
            .into_iter()
            .map(table)
            .collect::<Converted<_>>()?,
        more: message.more,
    })
}

pub(super) fn narrow_of(narrow: &Narrow) -> proto::SyncNarrow {
    let table = |table: &TableNarrow| proto::sync_narrow::Table {
        table_name: table.differing.table.to_string(),
        bits: table.differing.bits.into(),
        ranges: table.differing.ranges.clone(),
        step: table.step.into(),
        digests: halves_bytes(&table.digests),
    };
    proto::SyncNarrow {
        network_id: narrow.network.to_string(),
        tables: narrow.tables.iter().map(table).collect(),
        more: narrow.more,
    }
}

fn checked_ranges(table: String, bits: u8, ranges: Vec<u32>) -> Converted<TableRanges> {
    if ranges.iter().any(|range| range >> bits != 0) {
        return Err(WireError::Field { field: "ranges" });
    }
    Ok(TableRanges {
        table: TableName::new(table)?,
        bits,
        ranges,
    })
}

fn table_digest(message: &proto::TableDigest) -> Converted<TableDigest> {
    let bits = range_bits(message.bits, RANGE_BITS_MAX)?;
    let ranges = halves(&message.ranges)?;
    if ranges.len() != 1 << bits {
        return Err(WireError::Field { field: "ranges" });
    }
    Ok(TableDigest {
        table: TableName::new(&message.table_name)?,
        digest: digest(&message.digest)?,
        bits,
        ranges,
    })
}

fn state_hash(bytes: &[u8]) -> Converted<Option<StateHash>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let bytes = bytes.try_into();
    let bytes = bytes.map_err(|_| WireError::Field {
        field: "state_hash",
    })?;
    Ok(Some(StateHash(bytes)))
}

pub(super) fn offer(message: proto::SyncOffer) -> Converted<Offer> {
    Ok(Offer {
        network: NetworkId::new(message.network_id)?,
        node: NodeId::new(message.node_name)?,
        network_time: LamportTime(message.l_time),
        table_time: LamportTime(message.table_time),
        attachments: attachments(message.attachments)?,
        attachments_digest: digest(&message.attachments_digest)?,
        tables: message
            .tables
            .iter()
            .map(table_digest)
            .collect::<Converted<_>>()?,
        more: message.more,
        state_hash: state_hash(&message.state_hash)?,
    })
}

pub(super) fn offer_of(offer: &Offer) -> proto::SyncOffer {
    let table = |table: &TableDigest| proto::TableDigest {
        table_name: table.table.to_string(),
        digest: digest_bytes(table.digest),
        bits: table.bits.into(),
        ranges: halves_bytes(&table.ranges),
    };
    proto::SyncOffer {
        network_id: offer.network.to_string(),
        node_name: offer.node.to_string(),
        l_time: offer.network_time.0,
        table_time: offer.table_time.0,
        attachments: attachments_of(&offer.attachments),
        attachments_digest: digest_bytes(offer.attachments_digest),
        tables: offer.tables.iter().map(table).collect(),
        more: offer.more,
        state_hash: offer
            .state_hash
            .map_or(Bytes::new(), |hash| hash.0.to_vec().into()),
    }
}

fn table_ranges(message: proto::sync_ranges::TableRanges) -> Converted<TableRanges> {
    let bits = range_bits(message.bits, NARROW_BITS_MAX)?;
    checked_ranges(message.table_name, bits, message.ranges)
}

pub(super) fn ranges(message: proto::SyncRanges) -> Converted<Ranges> {
    Ok(Ranges {
        network: NetworkId::new(message.network_id)?,
        node: NodeId::new(message.node_name)?,
        network_time: LamportTime(message.l_time),
        table_time: LamportTime(message.table_time),
        tables: message
            .tables
            .into_iter()
            .map(table_ranges)
            .collect::<Converted<_>>()?,
    })
}

pub(super) fn ranges_of(ranges: &Ranges) -> proto::SyncRanges {
    let table = |table: &TableRanges| proto::sync_ranges::TableRanges {
        table_name: table.table.to_string(),
        bits: table.bits.into(),
        ranges: table.ranges.clone(),
    };
    proto::SyncRanges {
        network_id: ranges.network.to_string(),
        node_name: ranges.node.to_string(),
        l_time: ranges.network_time.0,
        table_time: ranges.table_time.0,
        tables: ranges.tables.iter().map(table).collect(),
    }
}
