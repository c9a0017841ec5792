//! The events that a client must get, compared one by one with those that it gets.

use std::sync::Arc;

use crate::event::Mark;

/// The faults in the events of one client or of several.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Faults {
    /// Events that never came.
    pub missing: u64,
    /// Events that came again, or after later ones.
    pub repeated: u64,
    /// Events of channels that the client did not subscribe to.
    pub foreign: u64,
    /// Events that came with changed bytes.
    pub corrupt: u64,
}

impl Faults {
    /// Whether there is no fault.
    pub fn none(&self) -> bool {
        *self == Self::default()
    }

    /// Adds the faults of another client.
    pub fn add(&mut self, other: &Self) {
        self.missing += other.missing;
        self.repeated += other.repeated;
        self.foreign += other.foreign;
        self.corrupt += other.corrupt;
    }
}

/// Follows one client through the ring: which of its slots comes next, in which lap.
#[derive(Debug, Clone)]
pub struct Verifier {
    /// The client's slots in the ring, ascending. Clients with the same slots share them.
    slots: Arc<[u32]>,
    at: usize,
    lap: u64,
    received: u64,
    faults: Faults,
}

impl Verifier {
    /// A client that must get the events at these slots, from the first lap on.
    pub fn new(slots: Arc<[u32]>) -> Self {
        Self { slots, at: 0, lap: 0, received: 0, faults: Faults::default() }
    }

    /// Takes the next event that came.
    #[inline(always)]
    pub fn take(&mut self, mark: Mark) {
        self.received += 1;
        match self.slots.get(self.at) {
            Some(&slot) if slot == mark.slot && self.lap == mark.lap => {
                self.at += 1;
                if self.at == self.slots.len() {
                    self.at = 0;
                    self.lap += 1;
                }
            }
            _ => self.take_unexpected(mark),
        }
    }

    /// Counts the next events unseen.
    pub fn count(&mut self, events: u64) {
        self.received += events;
        let (slots, position) = (self.slots.len() as u64, self.position() + events);
        (self.lap, self.at) = (position / slots, (position % slots) as usize);
    }

    #[cold]
    fn take_unexpected(&mut self, mark: Mark) {
        let Ok(at) = self.slots.binary_search(&mark.slot) else {
            self.faults.foreign += 1;
            return;
        };
        let (expected, came) = (self.position(), mark.lap * self.slots.len() as u64 + at as u64);
        if came < expected {
            self.faults.repeated += 1;
            return;
        }
        self.faults.missing += came - expected;
        self.lap = (came + 1) / self.slots.len() as u64;
        self.at = ((came + 1) % self.slots.len() as u64) as usize;
    }

    /// Counts an event whose bytes were changed.
    #[cold]
    pub fn take_corrupt(&mut self) {
        self.faults.corrupt += 1;
    }

    /// The number of events that came, right or wrong.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// How many of the client's events it has passed: received or missing.
    pub fn position(&self) -> u64 {
        self.lap * self.slots.len() as u64 + self.at as u64
    }

    /// How many of the client's events come before this sequence number of the load.
    pub fn expected(&self, events: u64, ring_events: u64) -> u64 {
        let (laps, rest) = (events / ring_events, events % ring_events);
        let within = self.slots.partition_point(|&slot| u64::from(slot) < rest);
        laps * self.slots.len() as u64 + within as u64
    }

    /// Whether the client has passed every event up to this sequence number.
    pub fn is_through(&self, events: u64, ring_events: u64) -> bool {
        self.position() >= self.expected(events, ring_events)
    }

    /// The faults when the load has reached this sequence number.
    pub fn faults(&self, events: u64, ring_events: u64) -> Faults {
        let tail = self.expected(events, ring_events).saturating_sub(self.position());
        Faults { missing: self.faults.missing + tail, ..self.faults }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RING: u64 = 100;

    /// A client with slots 3, 10 and 40, and the marks that it must get in three laps.
    fn client() -> (Verifier, Vec<Mark>) {
        let slots: Arc<[u32]> = [3, 10, 40].into();
        let marks = (0..3)
            .flat_map(|lap| [3, 10, 40].map(|slot| Mark { stamp_ns: 0, lap, slot }))
            .collect();
        (Verifier::new(slots), marks)
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut Vec<Mark>), expected: Faults) {
        let (mut verifier, mut marks) = client();
        change(&mut marks);
        for mark in &marks {
            verifier.take(*mark);
        }
        assert_eq!(verifier.faults(3 * RING, RING), expected);
        assert_eq!(verifier.received(), marks.len() as u64);
    }

    #[test]
    fn events_that_come_as_sent_show_no_fault() {
        check(|_| {}, Faults::default());
    }

    #[test]
    fn events_may_be_counted_unseen() {
        let (mut verifier, marks) = client();
        verifier.count(4);
        marks[4..8].iter().for_each(|mark| verifier.take(*mark));
        assert_eq!(verifier.faults(3 * RING, RING), Faults { missing: 1, ..Faults::default() });
        verifier.count(1);
        assert_eq!(verifier.faults(3 * RING, RING), Faults::default());
    }

    #[test]
    fn a_dropped_event_is_missing() {
        for i in 0..9 {
            let without = |marks: &mut Vec<Mark>| {
                marks.remove(i);
            };
            check(without, Faults { missing: 1, ..Faults::default() });
        }
        check(|marks| drop(marks.drain(2..7)), Faults { missing: 5, ..Faults::default() });
        check(Vec::clear, Faults { missing: 9, ..Faults::default() });
    }

    #[test]
    fn an_event_that_comes_twice_is_repeated() {
        for i in 0..9 {
            check(|marks| marks.insert(i, marks[i]), Faults { repeated: 1, ..Faults::default() });
        }
    }

    #[test]
    fn an_event_after_a_later_one_is_noticed() {
        let expected = Faults { missing: 1, repeated: 1, ..Faults::default() };
        check(|marks| marks.swap(4, 5), expected);
    }

    #[test]
    fn another_clients_event_is_foreign() {
        let other = Mark { stamp_ns: 0, lap: 1, slot: 11 };
        check(|marks| marks.insert(4, other), Faults { foreign: 1, ..Faults::default() });
    }

    #[test]
    fn a_client_that_wants_nothing_takes_nothing() {
        let mut verifier = Verifier::new([].into());
        assert!(verifier.is_through(1_000, RING));
        verifier.take(Mark { stamp_ns: 0, lap: 0, slot: 3 });
        assert_eq!(verifier.faults(1_000, RING), Faults { foreign: 1, ..Faults::default() });
    }

    #[test]
    fn the_expected_count_follows_the_load() {
        let (verifier, _) = client();
        for (events, expected) in [(0, 0), (3, 0), (4, 1), (11, 2), (41, 3), (104, 4)] {
            assert_eq!(verifier.expected(events, RING), expected);
        }
    }
}
