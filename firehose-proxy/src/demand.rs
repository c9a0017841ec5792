//! The union of the channels that all sessions hold, with the number of their holders. In place of
//! `*` it asks upstream for the channels that `*` stands for, and in place of a prefix for its
//! kind.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use proxy_common::{
    link::Wanted,
    protocol::{Channel, Feed, Kind},
};
use tokio::{sync::watch, time::Instant};

/// The reference-counted union of the sessions' channels.
#[derive(Debug)]
pub struct UpstreamDemand {
    feed: Feed,
    /// Locked during one change or publication. Both are rare and short.
    channels: Mutex<BTreeMap<Channel, Count>>,
    wanted: watch::Sender<Wanted>,
    /// Whether the vendor has answered every channel wanted.
    all_answered: AtomicBool,
    all: BTreeSet<Channel>,
    linger: Duration,
}

#[derive(Debug)]
enum Count {
    Held(usize),
    /// No session holds the channel any more. It stays subscribed until this time.
    Lingering(Instant),
}

impl UpstreamDemand {
    /// Creates an empty union. `all` holds the channels that `*` stands for upstream, where `*`
    /// itself means nothing.
    pub fn new(
        feed: Feed,
        all: BTreeSet<Channel>,
        linger: Duration,
    ) -> (Self, watch::Receiver<Wanted>) {
        let (wanted, receiver) = watch::channel(Wanted::new());
        let (channels, all_answered) = (Mutex::default(), AtomicBool::new(false));
        (Self { feed, channels, wanted, all_answered, all, linger }, receiver)
    }

    /// Counts one more holder of each channel.
    pub fn add<'a>(&self, channels: impl IntoIterator<Item = &'a Channel>) {
        self.change(|counts| {
            for channel in channels {
                match counts.entry(channel.clone()).or_insert(Count::Held(0)) {
                    Count::Held(n) => *n += 1,
                    lingering @ Count::Lingering(_) => *lingering = Count::Held(1),
                }
            }
            true
        });
    }

    /// Counts one holder less of each channel. A channel without holders lingers from `now` on.
    pub fn remove<'a>(&self, channels: impl IntoIterator<Item = &'a Channel>, now: Instant) {
        self.change(|counts| {
            for channel in channels {
                if let Entry::Occupied(mut entry) = counts.entry(channel.clone()) {
                    match entry.get_mut() {
                        Count::Held(n) if *n > 1 => *n -= 1,
                        last @ Count::Held(_) => *last = Count::Lingering(now + self.linger),
                        Count::Lingering(_) => debug_assert!(false, "{channel} has no holder"),
                    }
                }
            }
            // A channel that lingers is still wanted.
            false
        });
    }

    /// Drops channels that have lingered long enough. Call it about once a second.
    pub fn expire(&self, now: Instant) {
        self.change(|counts| {
            let before = counts.len();
            counts.retain(|_, count| !matches!(count, Count::Lingering(until) if *until <= now));
            counts.len() != before
        });
    }

    /// Records which channels the vendor has answered. If these are all that are wanted, calls
    /// `publish`, before any session can want more.
    pub fn set_answered(&self, answered: Option<&Wanted>, publish: impl FnOnce()) {
        let _unchanged = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if Some(&*self.wanted.borrow()) == answered {
            self.all_answered.store(true, Ordering::Release);
            publish();
        }
    }

    /// Whether the vendor has answered every channel since the wanted channels last changed.
    pub fn all_answered(&self) -> bool {
        self.all_answered.load(Ordering::Acquire)
    }

    /// The channels wanted now.
    pub fn wanted(&self) -> watch::Ref<'_, Wanted> {
        self.wanted.borrow()
    }

    /// Applies `change`, which returns whether the wanted channels may have changed.
    fn change(&self, change: impl FnOnce(&mut BTreeMap<Channel, Count>) -> bool) {
        let mut counts = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if !change(&mut counts) {
            return;
        }
        // The vendor acknowledges a prefix as it does any symbol, which is no promise to serve it.
        let upstream = |channel: &Channel| match channel {
            Channel::Prefix(prefix) => Channel::Kind(prefix.kind),
            Channel::All | Channel::Kind(_) | Channel::Symbol(..) => channel.clone(),
        };
        let mut wanted: Wanted = counts.keys().map(upstream).collect();
        if wanted.remove(&Channel::All) {
            wanted.extend(self.all.iter().cloned());
        }
        // It is unknown whether the vendor sends an event twice if two subscriptions match it. So
        // symbols are left out while their kind is wanted. A kind without a wildcard, such as
        // option quotes, is asked for by symbol.
        let whole = |channel: &Channel| match channel {
            Channel::Kind(kind) => self.feed.serves_whole(*kind).then_some(*kind),
            Channel::All | Channel::Symbol(..) | Channel::Prefix(..) => None,
        };
        let whole: BTreeSet<Kind> = wanted.iter().filter_map(whole).collect();
        wanted
            .retain(|channel| !matches!(channel, Channel::Symbol(kind, _) if whole.contains(kind)));
        self.wanted.send_if_modified(|before| {
            let modified = *before != wanted;
            if modified {
                *before = wanted;
                self.all_answered.store(false, Ordering::Release);
            }
            modified
        });
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::protocol::Market;

    use super::*;

    fn feed() -> Feed {
        Feed::new(Market::Stocks, "socket.massive.com")
    }

    fn channels(list: &str) -> BTreeSet<Channel> {
        let parse = |item| Channel::parse(item, Market::Stocks).unwrap();
        proxy_common::protocol::channel_items(list).map(parse).collect()
    }

    fn wanted(receiver: &watch::Receiver<Wanted>) -> String {
        receiver.borrow().iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    #[test]
    fn the_union_is_counted_and_lingers() {
        let linger = Duration::from_secs(30);
        let (union, receiver) = UpstreamDemand::new(feed(), channels("T.*,Q.*"), linger);
        let now = Instant::now();
        let (a, b) = (channels("T.AAPL,T.MSFT"), channels("T.AAPL"));
        union.add(&a);
        union.add(&b);
        assert_eq!(wanted(&receiver), "T.AAPL,T.MSFT");
        union.remove(&a, now);
        union.expire(now + linger - Duration::from_millis(1));
        assert_eq!(wanted(&receiver), "T.AAPL,T.MSFT", "lingering");
        union.expire(now + linger);
        assert_eq!(wanted(&receiver), "T.AAPL");
        union.remove(&b, now);
        union.add(&b);
        union.expire(now + 2 * linger);
        assert_eq!(wanted(&receiver), "T.AAPL", "wanted again while lingering");
    }

    #[test]
    fn star_is_replaced_and_never_passed_on() {
        let (union, receiver) =
            UpstreamDemand::new(feed(), channels("T.*,Q.*"), Duration::from_secs(1));
        let star = channels("*,Q.*");
        union.add(&star);
        assert_eq!(wanted(&receiver), "T.*,Q.*");
        union.remove(&channels("*"), Instant::now());
        union.expire(Instant::now() + Duration::from_secs(2));
        assert_eq!(wanted(&receiver), "Q.*");
    }

    #[test]
    fn a_wildcard_stands_for_its_symbols_while_it_is_wanted() {
        let (union, receiver) =
            UpstreamDemand::new(feed(), channels("T.*"), Duration::from_secs(1));
        union.add(&channels("T.A,Q.A"));
        union.add(&channels("*"));
        assert_eq!(wanted(&receiver), "T.*,Q.A");
        union.remove(&channels("*"), Instant::now());
        union.expire(Instant::now() + Duration::from_secs(2));
        assert_eq!(wanted(&receiver), "T.A,Q.A");
    }

    #[test]
    fn a_prefix_asks_for_its_whole_kind_and_is_never_passed_on() {
        let linger = Duration::from_secs(1);
        let (union, receiver) = UpstreamDemand::new(feed(), channels("Q.*"), linger);
        union.add(&channels("T.AAPL,Q.MSFT"));
        union.add(&channels("T.AA*,T.B*"));
        union.add(&channels("T.AA*"));
        assert_eq!(wanted(&receiver), "T.*,Q.MSFT");
        let now = Instant::now();
        union.remove(&channels("T.AA*,T.B*"), now);
        union.expire(now + linger);
        assert_eq!(wanted(&receiver), "T.*,Q.MSFT", "another session holds one");
        union.remove(&channels("T.AA*"), now);
        union.expire(now + linger);
        assert_eq!(wanted(&receiver), "T.AAPL,Q.MSFT");
    }

    #[test]
    fn a_new_channel_waits_for_the_vendors_answer() {
        let (union, _receiver) =
            UpstreamDemand::new(feed(), channels("T.*"), Duration::from_secs(1));
        assert!(!union.all_answered());
        union.add(&channels("*"));
        union.set_answered(Some(&Wanted::new()), || panic!("T.* is wanted too"));
        assert!(!union.all_answered());
        let mut published = false;
        union.set_answered(Some(&channels("T.*")), || published = true);
        assert!(published);
        union.add(&channels("T.A,T.*,*"));
        assert!(union.all_answered(), "nothing new is asked for");
        union.add(&channels("Q.A"));
        assert!(!union.all_answered());
    }

    #[test]
    fn an_unchanged_union_wakes_no_receiver() {
        let (union, mut receiver) =
            UpstreamDemand::new(feed(), channels("T.*"), Duration::from_secs(1));
        union.add(&channels("T.A"));
        receiver.mark_unchanged();
        union.add(&channels("T.A"));
        union.expire(Instant::now());
        assert!(!receiver.has_changed().unwrap());
    }
}
