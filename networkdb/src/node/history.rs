//! The last changes, for watchers that were cut off and want to go on where they were.
//!
//! Every event that watchers are told has a number. Once somebody has asked for a watch that can be resumed, the last
//! [`HISTORY_EVENTS`] of them are kept, in [`HISTORY_BYTES`] at most; a watcher that names a number which is still held, or
//! the last one, gets what came after it. When nobody watches any more, that goes on until nobody could go on anyway.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use super::watch::{WatchEvent, bytes_of};

/// Events kept; older ones are forgotten, and whoever has not heard of them starts anew.
pub const HISTORY_EVENTS: usize = 16_384;
/// Bytes that the events kept may have, values included; the oldest are forgotten first.
pub const HISTORY_BYTES: usize = 16 << 20;

/// Where a watcher is among all that a node has told. As text, two hex numbers with a dash.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Position {
    /// Which run of the process: numbers of another one mean nothing.
    pub(super) run: u64,
    /// The last event told.
    pub(super) number: u64,
}

/// The text is no [`Position`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a position is two hex numbers with a dash between")]
pub struct PositionError;

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.run, self.number)
    }
}

impl FromStr for Position {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        let number = |text: &str| {
            let is_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
            let number = u64::from_str_radix(text, 16).ok();
            number.filter(|_| is_hex).ok_or(PositionError)
        };
        let (run, last) = text.split_once('-').ok_or(PositionError)?;
        Ok(Self {
            run: number(run)?,
            number: number(last)?,
        })
    }
}

/// What the driver keeps of the past.
#[derive(Debug)]
pub(crate) struct History {
    run: u64,
    /// The number of the last event.
    last: u64,
    is_kept: bool,
    /// Events told since nobody watches.
    unwatched: usize,
    events: VecDeque<(u64, WatchEvent)>,
    bytes: usize,
}

impl History {
    /// Returns a history of a run of the process; `run` differs from run to run.
    pub(crate) fn new(run: u64) -> Self {
        Self {
            run,
            last: 0,
            is_kept: false,
            unwatched: 0,
            events: VecDeque::new(),
            bytes: 0,
        }
    }

    /// Where whoever has been told everything is.
    pub(crate) fn position(&self) -> Position {
        Position {
            run: self.run,
            number: self.last,
        }
    }

    /// Keeps events from here on.
    pub(crate) fn keep(&mut self) {
        self.is_kept = true;
        self.unwatched = 0;
    }

    /// Takes an event that is told and returns its number.
    pub(crate) fn note(&mut self, event: &WatchEvent) -> u64 {
        self.last += 1;
        if self.is_kept {
            self.bytes += bytes_of(event);
            self.events.push_back((self.last, event.clone()));
            while self.events.len() > HISTORY_EVENTS || self.bytes > HISTORY_BYTES {
                let Some((_, oldest)) = self.events.pop_front() else {
                    break;
                };
                self.bytes -= bytes_of(&oldest);
            }
        }
        self.last
    }

    /// Counts that an event was told to nobody; returns whether there is still a reason to be told of changes.
    pub(crate) fn goes_on_unwatched(&mut self) -> bool {
        self.unwatched += 1;
        if self.is_kept && self.unwatched > HISTORY_EVENTS {
            self.is_kept = false;
            self.events.clear();
            self.bytes = 0;
            // What happens from here on is not seen: nobody may go on from before it.
            self.last += 1;
        }
        self.is_kept
    }

    /// Returns what came after a position, unless some of it is forgotten.
    pub(crate) fn after(&self, position: Position) -> Option<Vec<(u64, WatchEvent)>> {
        let first = self
            .events
            .front()
            .map_or(self.last + 1, |(number, _)| *number);
        let is_held = position.number < u64::MAX && position.number + 1 >= first;
        if !self.is_kept || position.run != self.run || !is_held || position.number > self.last {
            return None;
        }
        let later = self
            .events
            .iter()
            .filter(|(number, _)| *number > position.number);
        Some(later.cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeId;

    fn event(number: usize) -> WatchEvent {
        WatchEvent::MemberDown {
            node: NodeId::new(format!("n{number}")).unwrap(),
            left: true,
        }
    }

    fn at(number: u64) -> Position {
        Position { run: 7, number }
    }

    #[test]
    fn what_came_after_a_position_is_told_unless_it_is_forgotten() {
        let mut history = History::new(7);
        history.note(&event(0));
        history.keep();
        assert_eq!(history.after(at(1)), Some(Vec::new()));
        assert_eq!(history.after(at(0)), None, "nobody kept the first one");
        for number in 1..=HISTORY_EVENTS + 1 {
            history.note(&event(number));
        }
        let last = history.position();
        assert_eq!(last, at(HISTORY_EVENTS as u64 + 2));
        assert_eq!(history.after(at(1)), None, "pushed out");
        assert_eq!(history.after(at(2)).unwrap().len(), HISTORY_EVENTS);
        assert_eq!(history.after(last), Some(Vec::new()));
        assert_eq!(history.after(at(last.number + 1)), None, "of the future");
        assert_eq!(history.after(at(u64::MAX)), None, "forged");
        assert_eq!(history.after(Position { run: 8, ..last }), None);
    }

    #[test]
    fn nobody_goes_on_from_before_a_time_that_nobody_watched() {
        let mut history = History::new(7);
        history.keep();
        history.note(&event(0));
        let before = history.position();
        for _ in 0..HISTORY_EVENTS {
            assert!(history.goes_on_unwatched());
        }
        assert!(!history.goes_on_unwatched());
        history.keep();
        assert_eq!(history.after(before), None);
        assert_eq!(history.after(history.position()), Some(Vec::new()));
    }

    #[test]
    fn positions_survive_as_text() {
        let position = Position {
            run: u64::MAX,
            number: 10,
        };
        assert_eq!(position.to_string(), "ffffffffffffffff-a");
        assert_eq!(position.to_string().parse(), Ok(position));
        for text in [
            "",
            "-",
            "1",
            "1-",
            "-1",
            "+1-1",
            "1-2-3",
            "10000000000000000-1",
        ] {
            assert_eq!(text.parse::<Position>(), Err(PositionError), "{text}");
        }
    }
}
