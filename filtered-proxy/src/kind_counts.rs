//! Counts the events of a batch by kind. Pure.

use std::collections::BTreeSet;

use proxy_common::protocol::Kind;

use crate::split::event::EventKind;

/// How many events of each kind there were.
#[derive(Debug, Default)]
pub struct KindCounts {
    /// By number. All kinds without a name share the last one.
    named: [u64; Kind::COUNT + 1],
    /// Kinds without a name that are counted by themselves.
    listed: Vec<(Kind, u64)>,
}

impl KindCounts {
    /// Counts these kinds without a name by themselves from now on, and no others. Call it between
    /// two batches.
    pub fn list(&mut self, kinds: &BTreeSet<Kind>) {
        let unnamed = kinds.iter().filter(|kind| kind.number() == Kind::COUNT);
        self.listed = unnamed.map(|kind| (*kind, 0)).collect();
    }

    /// Counts an event.
    #[inline(always)]
    pub fn add(&mut self, kind: EventKind) {
        let number = match kind {
            EventKind::Known(kind) => kind.number(),
            EventKind::Unknown | EventKind::Missing => Kind::COUNT,
        };
        if number == Kind::COUNT && !self.listed.is_empty() {
            return self.add_unnamed(kind);
        }
        self.named[number] += 1;
    }

    #[cold]
    fn add_unnamed(&mut self, event: EventKind) {
        let is_event = |kind: Kind| event == EventKind::Known(kind);
        match self.listed.iter_mut().find(|(kind, _)| is_event(*kind)) {
            Some((_, count)) => *count += 1,
            None => self.named[Kind::COUNT] += 1,
        }
    }

    /// Passes each kind that came to `record`, with its number of events, and starts anew. `None`
    /// stands for all kinds that are not counted by themselves.
    pub fn take(&mut self, mut record: impl FnMut(Option<Kind>, u64)) {
        let kinds = Kind::NAMED.into_iter().map(Some).chain([None]);
        let listed = self.listed.iter_mut().map(|(kind, count)| (Some(*kind), count));
        for (kind, count) in kinds.zip(&mut self.named).chain(listed) {
            let count = std::mem::take(count);
            if count > 0 {
                record(kind, count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_and_listed_kinds_are_counted_by_themselves() {
        let kind = |code: &str| Kind::from_code(code.as_bytes()).unwrap();
        let mut counts = KindCounts::default();
        counts.list(&BTreeSet::from([Kind::T, kind("NEW9")]));
        for code in ["T", "V", "T", "NEW9", "NEW8", "NEW9", "NEW9"] {
            counts.add(EventKind::Known(kind(code)));
        }
        counts.add(EventKind::Unknown);
        let mut found = Vec::new();
        counts.take(|kind, count| found.push((kind, count)));
        let new9 = Some(kind("NEW9"));
        assert_eq!(found, [(Some(Kind::T), 2), (Some(Kind::V), 1), (None, 2), (new9, 3)]);
        counts.take(|kind, count| panic!("{count} of {kind:?} again"));
        counts.list(&BTreeSet::new());
        counts.add(EventKind::Known(kind("NEW9")));
        counts.take(|kind, count| assert_eq!((kind, count), (None, 1)));
    }
}
