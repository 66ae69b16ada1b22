//! Writes on the condition of a version.

use super::*;
use crate::id::VersionTag;

fn write(action: WriteAction) -> Write {
    let (table, key) = place("k");
    Write {
        network: network(),
        table,
        key,
        action,
    }
}

fn value(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

#[test]
fn conditional_writes_take_the_place_of_the_versions_they_name_and_of_no_other() {
    let (mut engine, now) = engine();
    let update = |text, versions: &[VersionTag]| {
        write(WriteAction::UpdateIf {
            value: value(text),
            versions: versions.to_vec(),
        })
    };
    let delete = |versions: &[VersionTag]| {
        write(WriteAction::DeleteIf {
            versions: versions.to_vec(),
        })
    };
    let not_attached = engine.perform(delete(&[]), now).unwrap_err();
    assert!(matches!(not_attached, WriteError::NotAttached { .. }));
    engine.join_network(&network(), now).unwrap();
    let missing = engine.perform(delete(&[VersionTag(1)]), now).unwrap_err();
    assert!(matches!(missing, WriteError::Missing { .. }));
    let put = engine
        .perform(write(WriteAction::Put(value("a"))), now)
        .unwrap();
    assert_eq!(put.kind, WriteKind::Create);
    let first = put.version.tag();
    let second = engine.perform(update("b", &[VersionTag(1), first]), now);
    let second = second.unwrap().version.tag();
    for refused in [update("c", &[first]), delete(&[first]), delete(&[])] {
        let error = engine.perform(refused, now).unwrap_err();
        assert!(matches!(error, WriteError::Changed { .. }), "{error}");
    }
    let put = engine
        .perform(write(WriteAction::Put(value("d"))), now)
        .unwrap();
    assert_eq!(put.kind, WriteKind::Update);
    assert_ne!(put.version.tag(), second);
    let deleted = engine.perform(delete(&[put.version.tag()]), now).unwrap();
    assert!(deleted.version.tombstone);
    let gone = engine.perform(update("e", &[deleted.version.tag()]), now);
    assert!(matches!(gone, Err(WriteError::Missing { .. })));
}

#[test]
fn a_key_that_is_deleted_again_and_again_is_remembered_once() {
    let (mut engine, now) = engine();
    engine.join_network(&network(), now).unwrap();
    for round in 0..100 {
        let now = now + Duration::from_secs(round);
        engine
            .perform(write(WriteAction::Put(value("a"))), now)
            .unwrap();
        let (table, key) = place("k");
        engine.delete_entry(&network(), &table, &key, now).unwrap();
    }
    let local = &engine.networks[&network()];
    assert_eq!((local.expiries.len(), local.fading.len()), (1, 1));
    engine
        .perform(write(WriteAction::Put(value("b"))), now)
        .unwrap();
    let local = &engine.networks[&network()];
    assert_eq!((local.expiries.len(), local.fading.len()), (0, 0));
}
