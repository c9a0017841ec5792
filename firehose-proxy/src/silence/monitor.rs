//! Watches which kinds the upstream sends: records when each came last, and reports those that have
//! fallen silent.
//!
//! The firehose does not open frames. To see which kinds still come, the sampler inspects about a
//! thousand frames a second, spread evenly. Once it has seen every kind that is asked for, it rests
//! until the next second.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use memchr::memmem::Finder;
use proxy_common::{
    health::{EventTypes, LastEvent},
    metrics::{Level, Metrics},
    protocol::{Channel, Kind, Market},
};
use tracing::{info, warn};

use super::{
    market_hours::{Hours, hours},
    rules::{Kinds, Silence},
};
use crate::entitlements::Refusals;

/// Most frames inspected in a second.
const FRAMES_INSPECTED: u64 = 1_000;

/// Reports which kinds have fallen silent.
#[derive(Debug)]
pub struct SilenceMonitor {
    market: Market,
    watch: Mutex<Watch>,
    seen_kinds: Arc<SeenKinds>,
    event_types: Arc<EventTypes>,
    /// How many kinds are silent.
    silent_kinds: Level,
    /// 1 while the market is in its regular session.
    market_open: Level,
}

#[derive(Debug)]
struct Watch {
    /// `None` if the alarm is off.
    silence: Option<Silence>,
    frames: u64,
    hours: Hours,
    silent: Vec<(Kind, Duration)>,
}

/// The state that the sampler and the monitor share. The bits are those of [`Kinds`].
#[derive(Debug)]
struct SeenKinds {
    /// The kinds to look for.
    asked: AtomicU32,
    seen: AtomicU32,
    /// The sampler inspects one frame in this many.
    stride: AtomicU32,
}

/// Inspects some of the frames for their kinds.
#[derive(Debug)]
pub struct Sampler {
    seen_kinds: Arc<SeenKinds>,
    countdown: u32,
    ev: Finder<'static>,
}

/// The state of the upstream at one tick.
#[derive(Debug)]
pub struct UpstreamSnapshot<'a> {
    /// Whether the upstream is up.
    pub up: bool,
    /// The channels that the link asks for.
    pub wanted: &'a BTreeSet<Channel>,
    /// The channels that the vendor refuses.
    pub refused: &'a Refusals,
    /// Frames received since the start.
    pub frames: u64,
}

impl SilenceMonitor {
    /// Creates a monitor that raises its alarm after this time, or never, and the sampler that
    /// inspects frames for it. Registers what it measures.
    pub fn register(
        market: Market,
        alarm: Option<Duration>,
        metrics: &mut Metrics,
    ) -> (Self, Sampler) {
        let silent_kinds = metrics.register(
            "upstream_silent_kinds",
            "Types of which nothing comes while their market is open",
        );
        let help = "Whether the market is in its regular session";
        let market_open = metrics.register("market_open", help);
        let event_types = EventTypes::register(metrics, false);
        let seen_kinds = Arc::new(SeenKinds {
            asked: AtomicU32::new(0),
            seen: AtomicU32::new(0),
            stride: AtomicU32::new(1),
        });
        let sampler = Sampler {
            seen_kinds: Arc::clone(&seen_kinds),
            countdown: 1,
            ev: Finder::new(br#""ev""#),
        };
        let silence = alarm.map(|alarm| Silence::new(market, alarm));
        let watch = Watch { silence, frames: 0, hours: Hours::Closed, silent: Vec::new() };
        let watch = Mutex::new(watch);
        (Self { market, watch, seen_kinds, event_types, silent_kinds, market_open }, sampler)
    }

    /// Evaluates the kinds seen since the last call, and logs changes. Call it about once a second.
    pub fn tick(&self, now: Instant, time: SystemTime, snapshot: &UpstreamSnapshot<'_>) {
        let watch = &mut *self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        let (whole, asked) = match snapshot.up {
            true => (
                asked_whole(snapshot.wanted, snapshot.refused).collect(),
                snapshot.wanted.iter().filter_map(Channel::kind).collect(),
            ),
            false => (Kinds::default(), Kinds::default()),
        };
        let hours = hours(self.market, time);
        self.market_open.set((hours == Hours::Regular).into());
        let seen = Kinds::from_bits(self.seen_kinds.seen.swap(0, Ordering::Relaxed));
        for kind in seen.iter() {
            self.event_types.record(Some(kind), 0, time);
        }
        let silence = watch.silence.as_mut();
        let silent = silence.map_or_else(Vec::new, |one| one.tick(now, hours, whole, seen));
        report(&watch.silent, &silent);
        self.silent_kinds.set(silent.len() as i64);
        self.seen_kinds.asked.store(asked.bits(), Ordering::Relaxed);
        let stride = (snapshot.frames - watch.frames).div_ceil(FRAMES_INSPECTED).max(1);
        self.seen_kinds.stride.store(u32::try_from(stride).unwrap_or(u32::MAX), Ordering::Relaxed);
        (watch.silent, watch.frames, watch.hours) = (silent, snapshot.frames, hours);
    }

    /// Whether the market is in its regular session, and when the last event of each type came.
    pub fn view(&self) -> (bool, Vec<LastEvent>) {
        (self.market_open.get() == 1, self.event_types.last())
    }

    /// One sentence for each silent kind.
    pub fn problems(&self) -> Vec<String> {
        let watch = &*self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        let when = match watch.hours {
            Hours::Extended => "before or after the regular session",
            Hours::Regular | Hours::Closed => "while the market is open",
        };
        let sentence = |(kind, quiet): &(Kind, Duration)| {
            format!("no {kind} came for {} s {when}", quiet.as_secs())
        };
        watch.silent.iter().map(sentence).collect()
    }
}

/// The kinds that are asked for with all their symbols, and are not refused.
fn asked_whole<'a>(
    wanted: &'a BTreeSet<Channel>,
    refused: &'a Refusals,
) -> impl Iterator<Item = Kind> + 'a {
    // Channels of whole kinds are sorted before those of symbols.
    let whole = wanted.iter().take_while(|channel| !matches!(channel, Channel::Symbol(..)));
    whole.filter(|channel| !refused.reasons.contains_key(*channel)).filter_map(|channel| {
        match channel {
            Channel::Kind(kind) => Some(*kind),
            Channel::All | Channel::Symbol(..) | Channel::Prefix(..) => None,
        }
    })
}

fn report(before: &[(Kind, Duration)], now: &[(Kind, Duration)]) {
    let lists = |list: &[(Kind, Duration)], kind| list.iter().any(|(other, _)| *other == kind);
    for (kind, quiet) in now.iter().filter(|(kind, _)| !lists(before, *kind)) {
        warn!(%kind, quiet_seconds = quiet.as_secs(), "nothing of this kind comes though its market is open");
    }
    for (kind, _) in before.iter().filter(|(kind, _)| !lists(now, *kind)) {
        info!(%kind, "no longer silent, or no longer expected");
    }
}

impl Sampler {
    /// Skips a frame, or inspects it. Returns whether it is one of the sample.
    #[inline]
    pub fn frame(&mut self, text: &[u8]) -> bool {
        self.countdown -= 1;
        let sampled = self.countdown == 0;
        if sampled {
            self.inspect(text);
        }
        sampled
    }

    #[cold]
    fn inspect(&mut self, text: &[u8]) {
        self.countdown = self.seen_kinds.stride.load(Ordering::Relaxed);
        let asked = Kinds::from_bits(self.seen_kinds.asked.load(Ordering::Relaxed));
        let seen = Kinds::from_bits(self.seen_kinds.seen.load(Ordering::Relaxed));
        let missing = asked.without(seen);
        if missing.is_empty() {
            return;
        }
        let mut found = Kinds::default();
        for at in self.ev.find_iter(text) {
            if let Some(kind) = kind_after_ev(&text[at + 4..]) {
                found.insert(kind);
                if missing.without(found).is_empty() {
                    break;
                }
            }
        }
        self.seen_kinds.seen.fetch_or(found.bits(), Ordering::Relaxed);
    }
}

/// The kind in the text after the key `ev`. Blanks may surround the colon.
fn kind_after_ev(rest: &[u8]) -> Option<Kind> {
    let rest = rest.trim_ascii_start().strip_prefix(b":")?;
    let code = rest.trim_ascii_start().strip_prefix(b"\"")?;
    Kind::from_code(code.split(|byte| *byte == b'"').next()?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn snapshot<'a>(
        wanted: &'a BTreeSet<Channel>,
        refused: &'a Refusals,
        frames: u64,
    ) -> UpstreamSnapshot<'a> {
        UpstreamSnapshot { up: true, wanted, refused, frames }
    }

    #[test]
    fn silence_is_reported_in_a_sentence_and_counted() {
        let mut metrics = Metrics::default();
        let alarm = Some(Duration::from_secs(60));
        let (monitor, mut sampler) = SilenceMonitor::register(Market::Crypto, alarm, &mut metrics);
        let wanted = BTreeSet::from([Kind::XT, Kind::XQ, Kind::XL2].map(Channel::Kind));
        let refused = Refusals::default();
        let (start, time) = (Instant::now(), SystemTime::UNIX_EPOCH);
        let mut second = 0;
        let mut tick = |frames| {
            let now = start + Duration::from_secs(second);
            second += 1;
            monitor.tick(now, time, &snapshot(&wanted, &refused, frames));
        };
        for frames in 0..=60 {
            tick(frames);
            sampler.frame(br#"[{"ev":"XL2"},{"x":1, "ev" : "XT"}]"#);
        }
        assert_eq!(monitor.problems(), ["no XQ came for 60 s while the market is open"]);
        assert_eq!(monitor.silent_kinds.get(), 1);
        sampler.frame(br#"[{"ev":"XQ"}]"#);
        tick(61);
        assert_eq!(monitor.problems(), [""; 0]);
        assert_eq!(monitor.silent_kinds.get(), 0);
        assert_eq!(monitor.market_open.get(), 1);
    }

    #[test]
    fn without_an_alarm_hours_and_types_are_still_watched() {
        let mut metrics = Metrics::default();
        let (monitor, mut sampler) = SilenceMonitor::register(Market::Stocks, None, &mut metrics);
        let wanted = BTreeSet::from([Channel::Symbol(Kind::T, "AAPL".into())]);
        let refused = Refusals::default();
        // A Wednesday: 12:00 and 18:00 in New York.
        for (seconds, open) in [(1_767_805_200, 1), (1_767_826_800, 0)] {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            monitor.tick(Instant::now(), time, &snapshot(&wanted, &refused, 1));
            assert_eq!(monitor.market_open.get(), open);
            assert!(!metrics.encode().unwrap().contains("last_event") || open == 0);
            assert!(sampler.frame(br#"[{"ev":"T"},{"ev":"Q"}]"#));
        }
        let line = "last_event_timestamp_seconds{type=\"T\"} 1767826800.0";
        let text = metrics.encode().unwrap();
        assert!(text.contains(line), "{text}");
        assert_eq!(monitor.problems(), [""; 0]);
    }

    #[test]
    fn few_of_many_frames_are_inspected_spread_evenly() {
        let mut metrics = Metrics::default();
        let alarm = Some(Duration::from_secs(60));
        let (monitor, mut sampler) = SilenceMonitor::register(Market::Crypto, alarm, &mut metrics);
        let wanted = BTreeSet::from([Channel::Kind(Kind::XT), Channel::Kind(Kind::XQ)]);
        let refused = Refusals::default();
        let (now, time) = (Instant::now(), SystemTime::UNIX_EPOCH);
        monitor.tick(now, time, &snapshot(&wanted, &refused, 100_000));
        let mut inspected = 0;
        for _ in 0..100_000 {
            inspected += u32::from(sampler.countdown == 1);
            sampler.frame(br#"[{"ev":"XT"}]"#);
        }
        assert!((999..=1_001).contains(&inspected), "{inspected}");
    }

    #[test]
    fn a_kind_refused_or_asked_by_symbol_is_not_expected() {
        let wanted = BTreeSet::from([
            Channel::Kind(Kind::T),
            Channel::Kind(Kind::Q),
            Channel::Symbol(Kind::A, "AAPL".into()),
        ]);
        let reasons = BTreeMap::from([(Channel::Kind(Kind::Q), "not authorized".to_owned())]);
        let refused = Refusals { version: 1, reasons };
        assert_eq!(asked_whole(&wanted, &refused).collect::<Vec<_>>(), [Kind::T]);
    }

    #[test]
    fn kinds_are_read_as_the_feed_may_write_them() {
        for (rest, expected) in [
            (r#":"T","sym""#, Some(Kind::T)),
            (" :\n \"XL2\"}", Some(Kind::XL2)),
            (r#":"status""#, None),
            (r#","T""#, None),
            (":", None),
            (":\"T", Some(Kind::T)),
        ] {
            assert_eq!(kind_after_ev(rest.as_bytes()), expected, "{rest}");
        }
    }
}
