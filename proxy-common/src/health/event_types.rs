//! Which types of events come from upstream: when the last event of each came, and how many.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{
    metrics::{ByType, Count, Metrics, Value},
    protocol::Kind,
};

/// The types of events of one market. A type shows once its first event has come.
#[derive(Debug)]
pub struct EventTypes {
    last: ByType<Value>,
    /// `None` in a tier that does not see every event.
    counts: Option<ByType<Count>>,
    /// The named types, and all others that the operator does not list.
    named: [OnceLock<EventType>; Kind::COUNT + 1],
    /// The types without a name that the operator lists.
    listed: Mutex<BTreeMap<Kind, EventType>>,
}

/// The last event of a type.
#[derive(Debug, Clone, PartialEq)]
pub struct LastEvent {
    /// The type.
    pub name: String,
    /// When it came.
    pub at: SystemTime,
    /// How many came since the start of the program, if the tier sees every event.
    pub events: Option<u64>,
}

#[derive(Debug, Clone)]
struct EventType {
    last: Value,
    count: Option<Count>,
}

impl EventTypes {
    /// Registers the times, and the counts if the tier sees every event.
    pub fn register(metrics: &mut Metrics, sees_all: bool) -> Arc<Self> {
        let help = "When the last event of a type came";
        Arc::new(Self {
            last: metrics.register_seconds_by_type("last_event_timestamp", help),
            counts: sees_all.then(|| metrics.register_by_type("events_by_type", "Events received")),
            named: Default::default(),
            listed: Mutex::default(),
        })
    }

    /// Records events of a type, the last of which came at this time. `None` stands for all types
    /// without a name that the operator does not list. Call it once for many events.
    pub fn record(&self, kind: Option<Kind>, events: u64, at: SystemTime) {
        let number = kind.map_or(Kind::COUNT, Kind::number);
        match kind {
            Some(kind) if number == Kind::COUNT => {
                let mut listed = self.listed();
                listed.entry(kind).or_insert_with(|| self.new_type(Some(kind))).record(events, at);
            }
            _ => self.named[number].get_or_init(|| self.new_type(kind)).record(events, at),
        }
    }

    /// When the last event of each type came, by the value of the label `type`, and how many came
    /// if the tier sees every event.
    pub fn last(&self) -> Vec<LastEvent> {
        let named = Kind::NAMED.map(|kind| kind.to_string()).into_iter();
        let named = named.chain(["other".to_owned()]).zip(&self.named);
        let named = named.filter_map(|(name, cell)| Some((name, cell.get()?.clone())));
        let listed: Vec<_> =
            self.listed().iter().map(|(kind, one)| (kind.to_string(), one.clone())).collect();
        let all = named.chain(listed);
        let last = all.map(|(name, one)| LastEvent {
            name,
            at: UNIX_EPOCH + Duration::from_secs_f64(one.last.get().max(0.0)),
            events: one.count.map(|count| count.get()),
        });
        last.collect()
    }

    fn new_type(&self, kind: Option<Kind>) -> EventType {
        let (last, counts) = (&self.last, self.counts.as_ref());
        match kind {
            Some(kind) => {
                EventType { last: last.of(kind), count: counts.map(|counts| counts.of(kind)) }
            }
            None => EventType { last: last.of_others(), count: counts.map(ByType::of_others) },
        }
    }

    fn listed(&self) -> MutexGuard<'_, BTreeMap<Kind, EventType>> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventType {
    fn record(&self, events: u64, at: SystemTime) {
        self.last.set(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        if let Some(count) = &self.count {
            count.inc_by(events);
        }
    }
}
