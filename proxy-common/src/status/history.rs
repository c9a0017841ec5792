//! The last minutes of a market: rates, delays, and what went wrong. Pure: the caller passes the
//! time and the counts.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};

use serde::{Serialize, Serializer};

use crate::{
    metrics::{BucketCounts, quantile},
    protocol::Outage,
};

/// Rates are kept for each of this many seconds.
const RATES_KEPT: usize = 300;
/// Delays are those of this many seconds.
const DELAYS_KEPT: usize = 60;
/// Incidents kept, the last ones.
const INCIDENTS_KEPT: usize = 20;
/// Losses of one kind that are no further apart are one incident.
const SAME_INCIDENT: Duration = Duration::from_secs(10);

/// The last minutes of a market.
#[derive(Debug, Default)]
pub(super) struct History {
    last: Option<Counts>,
    received: VecDeque<f64>,
    delivered: VecDeque<f64>,
    /// Of the last seconds, the oldest first.
    delays: VecDeque<(BucketCounts, BucketCounts)>,
    incidents: VecDeque<Incident>,
    last_outage_end: Option<SystemTime>,
    /// The outage that the upstream reports of its own upstream.
    reported: Option<Incident>,
}

/// Counts since the start of the program.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counts {
    pub(super) at: SystemTime,
    pub(super) received: u64,
    pub(super) delivered: u64,
    pub(super) added_delay: BucketCounts,
    pub(super) forward_latency: BucketCounts,
    /// Events lost by reason, as far as it is an incident.
    pub(super) lost: [(&'static str, u64); 4],
}

/// Events a second in the last minutes, one number a second, the oldest first.
#[derive(Debug, Clone, Serialize)]
pub struct Rates {
    /// Received from upstream.
    pub received: Vec<f64>,
    /// Written to sessions, counted for each session.
    pub delivered: Vec<f64>,
}

/// The distribution of a delay in the last minute, estimated from the buckets of its histogram.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct DelaySummary {
    /// Half of the delays are not longer.
    pub p50_seconds: f64,
    /// 99 of 100 delays are not longer.
    pub p99_seconds: f64,
    /// How many were measured.
    pub measured: u64,
}

/// Something that went wrong.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Incident {
    /// `outage` or `gap`.
    pub kind: &'static str,
    /// When it began.
    #[serde(serialize_with = "rfc3339")]
    pub from: SystemTime,
    /// When it ended. Null while it goes on.
    #[serde(serialize_with = "rfc3339_or_null")]
    pub to: Option<SystemTime>,
    /// Why.
    pub reason: String,
    /// How many events were lost, counted for each session. Null if that cannot be known.
    pub events: Option<u64>,
}

pub(super) fn rfc3339<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&humantime::format_rfc3339_millis(*time))
}

fn rfc3339_or_null<S: Serializer>(time: &Option<SystemTime>, to: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => rfc3339(time, to),
        None => to.serialize_none(),
    }
}

impl History {
    /// Adds the counts of this second.
    pub(super) fn add(&mut self, counts: Counts) {
        let Some(last) = self.last.replace(counts) else { return };
        let seconds = counts.at.duration_since(last.at).unwrap_or_default().as_secs_f64();
        let rate = |now: u64, before: u64| {
            ((now - before) as f64 / seconds.max(0.001) * 10.0).round() / 10.0
        };
        push(&mut self.received, rate(counts.received, last.received), RATES_KEPT);
        push(&mut self.delivered, rate(counts.delivered, last.delivered), RATES_KEPT);
        let since = |now: BucketCounts, before: BucketCounts| {
            std::array::from_fn(|bucket| now[bucket] - before[bucket])
        };
        let delays = (
            since(counts.added_delay, last.added_delay),
            since(counts.forward_latency, last.forward_latency),
        );
        push(&mut self.delays, delays, DELAYS_KEPT);
        for ((reason, now), (_, before)) in counts.lost.into_iter().zip(last.lost) {
            if now > before {
                self.add_gap(last.at, counts.at, reason, Some(now - before));
            }
        }
    }

    /// Adds a gap, or extends the last one of this reason.
    pub(super) fn add_gap(
        &mut self,
        from: SystemTime,
        to: SystemTime,
        reason: &str,
        events: Option<u64>,
    ) {
        let earlier = self.incidents.iter_mut().rev().find(|one| one.reason == reason);
        match earlier {
            Some(Incident { to: Some(end), events: lost, .. }) if from < *end + SAME_INCIDENT => {
                *end = to;
                *lost = lost.zip(events).map(|(before, more)| before + more);
            }
            _ => {
                let (reason, to) = (reason.to_owned(), Some(to));
                let gap = Incident { kind: "gap", from, to, reason, events };
                push(&mut self.incidents, gap, INCIDENTS_KEPT);
            }
        }
    }

    /// Adds the last outage that ended, unless it is known.
    pub(super) fn add_outage(&mut self, outage: &Outage, to: SystemTime) {
        if self.last_outage_end.replace(to) != Some(to) {
            let (from, reason) = (outage.from, outage.reason.clone());
            let incident = Incident { kind: "outage", from, to: Some(to), reason, events: None };
            push(&mut self.incidents, incident, INCIDENTS_KEPT);
        }
    }

    /// The upstream reports this outage of its own upstream, or none any more.
    pub(super) fn set_reported(&mut self, reason: Option<&String>, now: SystemTime) {
        match (reason, self.reported.take()) {
            (Some(reason), known) => {
                let from = known.map_or(now, |known| known.from);
                let reason = reason.clone();
                self.reported =
                    Some(Incident { kind: "outage", from, to: None, reason, events: None });
            }
            (None, Some(known)) => {
                let ended = Incident { to: Some(now), ..known };
                push(&mut self.incidents, ended, INCIDENTS_KEPT);
            }
            (None, None) => {}
        }
    }

    /// The outage that the upstream reports of its own upstream.
    pub(super) fn reported(&self) -> Option<&Incident> {
        self.reported.as_ref()
    }

    /// The rates of the last minutes.
    pub(super) fn rates(&self) -> Rates {
        Rates {
            received: self.received.iter().copied().collect(),
            delivered: self.delivered.iter().copied().collect(),
        }
    }

    /// The added delay of the last minute; `None` if none was measured.
    pub(super) fn added_delay(&self) -> Option<DelaySummary> {
        summary(self.delays.iter().map(|(added, _)| added))
    }

    /// The forward latency of the last minute; `None` if none was measured.
    pub(super) fn forward_latency(&self) -> Option<DelaySummary> {
        summary(self.delays.iter().map(|(_, forward)| forward))
    }

    /// The last incidents, the latest first.
    pub(super) fn incidents(&self) -> impl Iterator<Item = &Incident> {
        self.incidents.iter().rev()
    }
}

fn push<T>(kept: &mut VecDeque<T>, value: T, most: usize) {
    if kept.len() == most {
        kept.pop_front();
    }
    kept.push_back(value);
}

fn summary<'a>(seconds: impl Iterator<Item = &'a BucketCounts>) -> Option<DelaySummary> {
    let mut total = BucketCounts::default();
    for second in seconds {
        total.iter_mut().zip(second).for_each(|(total, count)| *total += count);
    }
    Some(DelaySummary {
        p50_seconds: quantile(&total, 0.5)?.as_secs_f64(),
        p99_seconds: quantile(&total, 0.99)?.as_secs_f64(),
        measured: total.iter().sum(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    fn counts(second: u64, received: u64, overrun: u64) -> Counts {
        Counts {
            at: at(second),
            received,
            delivered: received / 2,
            added_delay: BucketCounts::default(),
            forward_latency: BucketCounts::default(),
            lost: [
                ("ring_overrun", overrun),
                ("slow_consumer", 0),
                ("oversize", 0),
                ("malformed", 0),
            ],
        }
    }

    #[test]
    fn rates_are_kept_for_five_minutes() {
        let mut history = History::default();
        for second in 0..400 {
            history.add(counts(second, second * second, 0));
        }
        let Rates { received, delivered } = history.rates();
        assert_eq!((received.len(), delivered.len()), (300, 300));
        assert_eq!((received[0], received[299]), (199.0, 797.0));
        assert_eq!(history.incidents().count(), 0);
    }

    #[test]
    fn losses_close_together_are_one_gap() {
        let mut history = History::default();
        let mut lost = 0;
        for second in 0..40 {
            lost += if [1, 4, 30].contains(&second) { 5 } else { 0 };
            history.add(counts(second, 0, lost));
        }
        let found: Vec<_> =
            history.incidents().map(|one| (one.from, one.to.unwrap(), one.events)).collect();
        assert_eq!(found, [(at(29), at(30), Some(5)), (at(0), at(4), Some(10))]);
    }

    #[test]
    fn an_outage_is_added_once_and_the_last_twenty_stay() {
        let mut history = History::default();
        for n in 0..60 {
            let outage = Outage { from: at(n / 2 * 10), reason: format!("lost {}", n / 2) };
            history.add_outage(&outage, at(n / 2 * 10 + 5));
        }
        let reasons: Vec<_> = history.incidents().map(|one| one.reason.clone()).collect();
        assert_eq!((reasons.len(), &*reasons[0], &*reasons[19]), (20, "lost 29", "lost 10"));
    }

    #[test]
    fn an_outage_that_is_reported_keeps_its_begin_until_it_ends() {
        let mut history = History::default();
        for (second, reason) in [(1, Some("lost")), (2, Some("refused")), (9, None), (10, None)] {
            history.set_reported(reason.map(str::to_owned).as_ref(), at(second));
            assert_eq!(history.reported().map(|one| one.from), reason.map(|_| at(1)));
        }
        let found: Vec<_> = history.incidents().collect();
        assert_eq!((found.len(), found[0].from, found[0].to), (1, at(1), Some(at(9))));
        assert_eq!(found[0].reason, "refused");
    }

    #[test]
    fn delays_are_those_of_the_last_minute() {
        let mut history = History::default();
        let mut total = BucketCounts::default();
        for second in 0..100 {
            // Half of the time about 20 us, then about 2 ms.
            total[if second < 50 { 0 } else { 6 }] += 10;
            history.add(Counts { added_delay: total, ..counts(second, 0, 0) });
        }
        let DelaySummary { p50_seconds, p99_seconds, measured } = history.added_delay().unwrap();
        assert_eq!(measured, 600);
        assert!((0.001..0.002).contains(&p50_seconds), "{p50_seconds}");
        assert!((0.002..0.0025).contains(&p99_seconds), "{p99_seconds}");
        assert_eq!(history.forward_latency(), None);
    }
}
