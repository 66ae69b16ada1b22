//! What watchers are told, word for word.

use super::rules::{Rig, attachment, dead, generation, live, node, other, stamp};
use super::*;

type Told = (String, Option<String>, Option<String>);

fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.engine.set_watching(true);
    rig.meet(&other(1));
    rig.outputs();
    rig
}

fn text(value: Option<Bytes>) -> Option<String> {
    value.map(|value| String::from_utf8(value.to_vec()).unwrap())
}

/// The changes told since the last call, as (key, previous, value).
fn told(rig: &mut Rig) -> Vec<Told> {
    let changes = rig.outputs().into_iter().filter_map(|output| {
        let Output::Notify(change) = output else {
            return None;
        };
        let key = change.key.as_str().to_owned();
        Some((key, text(change.previous), text(change.value)))
    });
    changes.collect()
}

fn change(key: &str, previous: Option<&str>, value: Option<&str>) -> Told {
    let text = |value: Option<&str>| value.map(str::to_owned);
    (key.to_owned(), text(previous), text(value))
}

#[test]
fn creates_updates_and_deletes_out_of_order_are_told_as_changes_that_only_go_forward() {
    let stamp = stamp(1, 1);
    let create = || Message::Table(live("z", stamp, 60, "k", "created"));
    let update = || Message::Table(live("z", stamp, 61, "k", "updated"));
    let delete = || Message::Table(dead("z", stamp, 62, "k"));
    let (c, u) = (Some("created"), Some("updated"));
    let orders: [([Message; 3], &[Told]); 6] = [
        (
            [create(), update(), delete()],
            &[
                change("k", None, c),
                change("k", c, u),
                change("k", u, None),
            ],
        ),
        (
            [create(), delete(), update()],
            &[change("k", None, c), change("k", c, None)],
        ),
        (
            [update(), create(), delete()],
            &[change("k", None, u), change("k", u, None)],
        ),
        (
            [update(), delete(), create()],
            &[change("k", None, u), change("k", u, None)],
        ),
        ([delete(), create(), update()], &[]),
        ([delete(), update(), create()], &[]),
    ];
    for (number, (messages, expected)) in orders.iter().enumerate() {
        let mut rig = rig();
        for message in messages {
            rig.receive(message);
            // Each arrives twice, and the second time says nothing.
            rig.receive(message);
        }
        assert_eq!(told(&mut rig), *expected, "order {number}");
    }
}

#[test]
fn a_change_of_owner_is_told_with_the_value_of_the_owner_before() {
    let mut rig = rig();
    rig.create("k", "mine");
    rig.receive(&Message::Table(live("z", stamp(1, 1), 900, "k", "theirs")));
    let expected = [
        change("k", None, Some("mine")),
        change("k", Some("mine"), Some("theirs")),
    ];
    assert_eq!(told(&mut rig), expected);
}

#[test]
fn entries_that_are_hidden_and_restored_are_told_gone_once_and_back_once() {
    let mut rig = rig();
    rig.receive(&Message::Table(live("z", stamp(1, 1), 60, "k", "v")));
    assert_eq!(told(&mut rig), [change("k", None, Some("v"))]);
    rig.lose(&other(1));
    rig.lose(&other(1));
    assert_eq!(told(&mut rig), [change("k", Some("v"), None)]);
    rig.meet(&other(2));
    rig.meet(&other(2));
    assert_eq!(told(&mut rig), [change("k", None, Some("v"))]);
}

#[test]
fn an_entry_changed_while_it_is_hidden_is_told_with_its_new_value_when_it_is_back() {
    let mut rig = rig();
    rig.receive(&Message::Table(live("z", stamp(1, 1), 60, "k", "old")));
    rig.lose(&other(1));
    told(&mut rig);
    rig.receive(&Message::Table(live("z", stamp(1, 1), 61, "k", "new")));
    assert_eq!(told(&mut rig), []);
    rig.meet(&other(2));
    assert_eq!(told(&mut rig), [change("k", None, Some("new"))]);
}

#[test]
fn a_leave_is_told_once() {
    let mut rig = rig();
    rig.receive(&Message::Table(live("z", stamp(1, 1), 60, "k", "v")));
    told(&mut rig);
    let leave = Message::Attachment(attachment("z", stamp(1, 1), true));
    rig.receive(&leave);
    rig.receive(&leave);
    assert_eq!(told(&mut rig), [change("k", Some("v"), None)]);
}

#[test]
fn nothing_is_told_of_a_leave_when_the_entries_were_hidden_already() {
    let left = Message::Node(NodeRecord {
        node: node("z"),
        generation: generation(1),
        left: true,
        time: LamportTime(60),
        residual: None,
    });
    let leave = Message::Attachment(attachment("z", stamp(1, 1), true));
    for message in [left, leave] {
        let mut rig = rig();
        rig.receive(&Message::Table(live("z", stamp(1, 1), 60, "k", "v")));
        rig.lose(&other(1));
        told(&mut rig);
        rig.receive(&message);
        assert_eq!(told(&mut rig), []);
    }
}

#[test]
fn members_that_come_and_go_are_told_once_and_whether_they_said_so() {
    let mut rig = Rig::new();
    let told = |rig: &mut Rig| -> Vec<(bool, bool)> {
        let events = rig.outputs().into_iter().filter_map(|output| {
            if let Output::MemberUp { .. } = output {
                return Some((true, false));
            }
            let Output::MemberDown { left, .. } = output else {
                return None;
            };
            Some((false, left))
        });
        events.collect()
    };
    rig.meet(&other(1));
    rig.meet(&other(1));
    assert_eq!(told(&mut rig), [(true, false)]);
    rig.lose(&other(1));
    assert_eq!(told(&mut rig), [(false, false)]);
    rig.meet(&other(2));
    assert_eq!(told(&mut rig), [(true, false)]);
    rig.receive(&Message::Node(NodeRecord {
        node: node("z"),
        generation: generation(1),
        left: true,
        time: LamportTime(60),
        residual: None,
    }));
    assert_eq!(told(&mut rig), [(false, true)]);
}
