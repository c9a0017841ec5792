//! Decides which kinds have fallen silent while their market is open. A silent kind is only
//! reported; no connection is dropped for it.
//!
//! Pure: the caller passes the time and the kinds seen.

use std::time::{Duration, Instant};

use proxy_common::protocol::{Kind, Market};

use super::market_hours::Hours;

/// A set of kinds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kinds(u32);

impl Kinds {
    /// The set whose [`bits`](Self::bits) are these.
    pub fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The set as a number.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Adds a kind. Leaves out kinds without a name: nobody knows how often they come.
    pub fn insert(&mut self, kind: Kind) {
        self.0 |= Self::bit(kind);
    }

    /// Whether the set holds a kind.
    pub fn contains(self, kind: Kind) -> bool {
        self.0 & Self::bit(kind) != 0
    }

    fn bit(kind: Kind) -> u32 {
        if kind.number() < Kind::COUNT { 1 << kind.number() } else { 0 }
    }

    /// The kinds that are not in `others`.
    pub fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// The kinds, in the order of their numbers.
    pub fn iter(self) -> impl Iterator<Item = Kind> {
        Kind::NAMED.into_iter().filter(move |kind| self.contains(*kind))
    }

    /// Whether the set is empty.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<Kind> for Kinds {
    fn from_iter<I: IntoIterator<Item = Kind>>(kinds: I) -> Self {
        kinds.into_iter().fold(Self::default(), |mut set, kind| {
            set.insert(kind);
            set
        })
    }
}

/// How many alarm periods a kind may stay silent, in all its symbols together, before it is
/// reported; `None` if its silence is normal.
///
/// Minute bars come once a minute. Forex and futures have thin hours. Before and after the session,
/// a delayed feed is still empty for a quarter of an hour.
pub fn silence_factor(market: Market, kind: Kind, hours: Hours) -> Option<u32> {
    use Kind::{A, AM, C, CA, CAS, Q, T, V, XA, XAS, XQ, XT};
    match (market, hours, kind) {
        (Market::Stocks, Hours::Regular, T | Q | A) => Some(1),
        (Market::Stocks, Hours::Extended, T | Q) => Some(20),
        (Market::Options, Hours::Regular, T | A) => Some(1),
        (Market::Indices, Hours::Regular, V | A) => Some(1),
        (Market::Stocks | Market::Options | Market::Indices, Hours::Regular, AM) => Some(3),
        (Market::Crypto, Hours::Regular, XT | XQ | XAS) => Some(1),
        (Market::Crypto, Hours::Regular, XA) => Some(3),
        (Market::Forex, Hours::Regular, C | CAS) => Some(5),
        (Market::Forex, Hours::Regular, CA) => Some(10),
        (Market::Futures, Hours::Regular, T | Q | A) => Some(5),
        (Market::Futures, Hours::Regular, AM) => Some(10),
        _ => None,
    }
}

/// Measures how long each kind has been quiet.
#[derive(Debug)]
pub struct Silence {
    market: Market,
    alarm: Duration,
    quiet_since: [Option<Instant>; Kind::COUNT],
    /// The kind of hour at the last call.
    hours: Option<Hours>,
}

impl Silence {
    /// Starts with no kind quiet. `alarm` is the alarm period: how long a busy kind may stay silent
    /// in the regular session.
    pub fn new(market: Market, alarm: Duration) -> Self {
        Self { market, alarm, quiet_since: [None; Kind::COUNT], hours: None }
    }

    /// Records the kinds `seen` since the last call. `asked` holds the kinds that are asked for
    /// with all their symbols; pass none while the upstream is down. Returns the kinds that are
    /// silent now, and how long each has been quiet.
    ///
    /// The time of a kind starts again when its market opens, when the kind of hour changes, and
    /// when the upstream comes back.
    pub fn tick(
        &mut self,
        now: Instant,
        hours: Hours,
        asked: Kinds,
        seen: Kinds,
    ) -> Vec<(Kind, Duration)> {
        let same_hours = self.hours.replace(hours) == Some(hours);
        let mut silent = Vec::new();
        for (kind, since) in Kind::NAMED.into_iter().zip(&mut self.quiet_since) {
            let silence_factor =
                silence_factor(self.market, kind, hours).filter(|_| asked.contains(kind));
            let Some(silence_factor) = silence_factor else {
                *since = None;
                continue;
            };
            let begin = match *since {
                Some(since) if same_hours && !seen.contains(kind) => since,
                Some(_) | None => now,
            };
            *since = Some(begin);
            let quiet = now.saturating_duration_since(begin);
            if quiet >= self.alarm * silence_factor {
                silent.push((kind, quiet));
            }
        }
        silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn kinds(kinds: &[Kind]) -> Kinds {
        kinds.iter().copied().collect()
    }

    fn names(silent: &[(Kind, Duration)]) -> Vec<String> {
        silent.iter().map(|(kind, _)| kind.to_string()).collect()
    }

    #[test]
    fn a_kind_is_silent_after_its_time_and_no_more_when_it_is_seen() {
        let mut silence = Silence::new(Market::Stocks, MINUTE);
        let (start, none) = (Instant::now(), Kinds::default());
        let asked = kinds(&[Kind::T, Kind::Q, Kind::AM, Kind::LULD]);
        let mut at = |seconds, seen| {
            let now = start + Duration::from_secs(seconds);
            names(&silence.tick(now, Hours::Regular, asked, seen))
        };
        assert_eq!(at(0, none), [""; 0]);
        assert_eq!(at(30, kinds(&[Kind::Q])), [""; 0]);
        assert_eq!(at(59, none), [""; 0]);
        assert_eq!(at(60, none), ["T"]);
        assert_eq!(at(90, none), ["T", "Q"]);
        assert_eq!(at(180, none), ["T", "Q", "AM"], "and never LULD");
        assert_eq!(at(181, kinds(&[Kind::T])), ["Q", "AM"]);
    }

    #[test]
    fn nights_and_outages_are_no_silence_and_restart_the_time() {
        let mut silence = Silence::new(Market::Stocks, MINUTE);
        let (start, none, trades) = (Instant::now(), Kinds::default(), kinds(&[Kind::T]));
        let mut at = |minutes: u32, hours, asked| {
            names(&silence.tick(start + minutes * MINUTE, hours, asked, none))
        };
        assert_eq!(at(0, Hours::Regular, trades), [""; 0]);
        assert_eq!(at(600, Hours::Closed, trades), [""; 0], "at night");
        assert_eq!(at(601, Hours::Regular, trades), [""; 0], "the opening bell");
        assert_eq!(at(602, Hours::Regular, trades), ["T"]);
        assert_eq!(at(603, Hours::Regular, none), [""; 0], "not asked for, or no upstream");
        assert_eq!(at(604, Hours::Regular, trades), [""; 0], "back");
        assert_eq!(at(623, Hours::Extended, trades), [""; 0], "thin hours");
        assert_eq!(at(624, Hours::Extended, trades), [""; 0]);
        assert_eq!(at(643, Hours::Extended, trades), ["T"]);
        assert_eq!(at(650, Hours::Regular, trades), [""; 0], "the bell, after thin hours");
        assert_eq!(at(651, Hours::Regular, trades), ["T"]);
    }

    #[test]
    fn only_kinds_of_the_market_are_expected() {
        for &market in Market::ALL {
            for hours in [Hours::Closed, Hours::Extended, Hours::Regular] {
                for kind in Kind::NAMED {
                    let watched = silence_factor(market, kind, hours).is_some();
                    assert!(!watched || market.kinds().contains(&kind), "{market} {kind}");
                    assert!(!watched || hours != Hours::Closed);
                }
            }
        }
    }

    #[test]
    fn a_set_of_kinds_is_a_set() {
        let new = Kind::from_code(b"NEW9").unwrap();
        let set = kinds(&[Kind::V, Kind::T, Kind::T, new]);
        assert_eq!(set.iter().collect::<Vec<_>>(), [Kind::T, Kind::V]);
        assert!(!set.is_empty());
        assert_eq!(set.without(kinds(&[Kind::T])), kinds(&[Kind::V]));
        assert_eq!(Kinds::from_bits(set.bits()), set);
    }
}
