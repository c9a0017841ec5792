//! What all sessions together want of the vendor: the union of their channels, with the number of
//! their holders, and the contracts for which there is room. In place of `*` it asks upstream for
//! the channels that `*` stands for, and in place of a prefix for its kind.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use proxy_common::{
    link::{SubscriptionOutcome, Wanted},
    protocol::{Channel, Kind, OnBehalfOf},
};
use tokio::{sync::watch, time::Instant};

use crate::{
    contracts::{Contracts, Occupancy},
    sources::Sources,
};

/// The reference-counted union of the sessions' channels, and their contracts.
#[derive(Debug)]
pub struct UpstreamDemand {
    sources: Arc<Sources>,
    /// Locked during one change or publication. Both are rare and short.
    state: Mutex<State>,
    /// What each connection should subscribe to.
    wanted: Vec<watch::Sender<Wanted>>,
    /// [`Contracts::version`].
    contracts_version: watch::Sender<u64>,
    /// Whether the vendor has answered every channel wanted.
    all_answered: AtomicBool,
    all: BTreeSet<Channel>,
    /// The contracts that `*` stands for: the operator lists them.
    pinned: BTreeSet<Channel>,
    /// The kinds of contracts.
    on_demand: BTreeSet<Kind>,
    linger: Duration,
}

#[derive(Debug)]
struct State {
    channels: BTreeMap<Channel, Count>,
    contracts: Contracts,
    /// [`Contracts::wanted_version`] as the links were told last.
    published_wanted: u64,
}

#[derive(Debug)]
enum Count {
    Held(usize),
    /// No session holds the channel any more. It stays subscribed until this time.
    Lingering(Instant),
}

impl UpstreamDemand {
    /// Creates an empty union, and shows what each connection should subscribe to. `all` holds the
    /// channels that `*` stands for upstream, where `*` itself means nothing.
    pub fn new(
        sources: Arc<Sources>,
        all: BTreeSet<Channel>,
        linger: Duration,
        contracts: Contracts,
    ) -> (Self, Vec<watch::Receiver<Wanted>>) {
        let (wanted, receivers) =
            (0..sources.connections()).map(|_| watch::channel(Wanted::default())).unzip();
        let on_demand: BTreeSet<Kind> = contracts.occupancy().map(|(kind, _)| kind).collect();
        let is_contract = |channel: &Channel| matches!(channel, Channel::Symbol(kind, _) if on_demand.contains(kind));
        let (pinned, all) = all.into_iter().partition(is_contract);
        let demand = Self {
            sources,
            contracts_version: watch::Sender::new(contracts.version()),
            state: Mutex::new(State { channels: BTreeMap::new(), contracts, published_wanted: 0 }),
            wanted,
            all_answered: AtomicBool::new(false),
            all,
            pinned,
            on_demand,
            linger,
        };
        (demand, receivers)
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

    /// Counts a session as a holder of contracts, on behalf of clients of a key.
    pub fn add_contracts(
        &self,
        session: u64,
        clients: &OnBehalfOf,
        contracts: &BTreeSet<Channel>,
        now: Instant,
    ) {
        self.change_contracts(|state| state.add(session, clients, contracts, now.into_std()));
    }

    /// Counts a session as a holder of contracts no more.
    pub fn remove_contracts<'a>(
        &self,
        session: u64,
        key: &str,
        contracts: impl IntoIterator<Item = &'a Channel>,
        now: Instant,
    ) {
        self.change_contracts(|state| state.remove(session, key, contracts, now.into_std()));
    }

    /// Applies the vendor's answers on one connection, which hold for sessions that have read this
    /// much of the ring. Returns the contracts for which they are news.
    pub fn on_outcomes(
        &self,
        connection: usize,
        outcomes: &[SubscriptionOutcome],
        read: u64,
    ) -> Vec<Channel> {
        let now = Instant::now().into_std();
        self.change_contracts(|contracts| contracts.on_outcomes(connection, outcomes, read, now))
    }

    /// A connection to the vendor is lost, for sessions that have read this much of the ring.
    pub fn on_down(&self, connection: usize, read: u64) {
        let now = Instant::now().into_std();
        self.change_contracts(|contracts| contracts.on_down(connection, read, now));
    }

    /// All connections to the vendor are complete.
    pub fn on_up(&self) {
        self.change_contracts(|contracts| contracts.on_up(Instant::now().into_std()));
    }

    /// Drops channels that have lingered long enough. Call it about once a second.
    pub fn expire(&self, now: Instant) {
        self.change(|counts| {
            let before = counts.len();
            counts.retain(|_, count| !matches!(count, Count::Lingering(until) if *until <= now));
            counts.len() != before
        });
        self.change_contracts(|contracts| contracts.expire(now.into_std()));
    }

    /// Whether this is a contract that is asked for on demand.
    pub fn is_on_demand(&self, channel: &Channel) -> bool {
        matches!(channel, Channel::Symbol(kind, _) if self.on_demand.contains(kind))
    }

    /// Reads the contracts.
    pub fn contracts<T>(&self, read: impl FnOnce(&Contracts) -> T) -> T {
        read(&self.state().contracts)
    }

    /// Shows [`Contracts::version`].
    pub fn contracts_version(&self) -> watch::Receiver<u64> {
        self.contracts_version.subscribe()
    }

    /// The numbers of contracts of each kind.
    pub fn occupancy(&self) -> Vec<(Kind, Occupancy)> {
        self.state().contracts.occupancy().collect()
    }

    /// Records which channels the vendor has answered on each connection. If these are all that are
    /// wanted, calls `publish`, before any session can want more.
    pub fn set_answered(&self, answered: &[BTreeSet<Channel>], publish: impl FnOnce()) {
        let _unchanged = self.state();
        let mut wanted = self.wanted.iter().zip(answered);
        if wanted.all(|(wanted, answered)| wanted.borrow().channels == *answered) {
            self.all_answered.store(true, Ordering::Release);
            publish();
        }
    }

    /// Whether the vendor has answered every channel since the wanted channels last changed.
    pub fn all_answered(&self) -> bool {
        self.all_answered.load(Ordering::Acquire)
    }

    /// Whether everything is wanted.
    pub fn wants_all(&self) -> bool {
        self.state().channels.contains_key(&Channel::All)
    }

    /// The channels wanted now, over all connections.
    pub fn wanted(&self) -> BTreeSet<Channel> {
        self.wanted.iter().flat_map(|wanted| wanted.borrow().channels.clone()).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies `change`, which returns whether the wanted channels may have changed.
    fn change(&self, change: impl FnOnce(&mut BTreeMap<Channel, Count>) -> bool) {
        let mut state = self.state();
        if !change(&mut state.channels) {
            return;
        }
        // The vendor acknowledges a prefix as it does any symbol, which is no promise to serve it.
        let upstream = |channel: &Channel| match channel {
            Channel::Prefix(prefix) => Channel::Kind(prefix.kind),
            Channel::All | Channel::Kind(_) | Channel::Symbol(..) => channel.clone(),
        };
        let mut wanted: BTreeSet<Channel> = state.channels.keys().map(upstream).collect();
        let all = wanted.remove(&Channel::All);
        if all {
            wanted.extend(self.all.iter().cloned());
        }
        if !self.pinned.is_empty() {
            let is_wanted = |contract: &&Channel| {
                all || contract.kind().is_some_and(|kind| wanted.contains(&Channel::Kind(kind)))
            };
            let pinned = self.pinned.iter().filter(is_wanted).cloned().collect();
            state.contracts.pin(&pinned, Instant::now().into_std());
            self.publish_contracts(&mut state);
        }
        // Of a kind on demand, all means the contracts that the operator lists.
        wanted.retain(|channel| !matches!(channel, Channel::Kind(k) if self.on_demand.contains(k)));
        // It is unknown whether the vendor sends an event twice if two subscriptions match it. So
        // symbols are left out while their kind is wanted. A kind without a wildcard, such as
        // option quotes, is asked for by symbol.
        let whole = |channel: &Channel| match channel {
            Channel::Kind(kind) => self.sources.serves_whole(*kind).then_some(*kind),
            Channel::All | Channel::Symbol(..) | Channel::Prefix(..) => None,
        };
        let whole: BTreeSet<Kind> = wanted.iter().filter_map(whole).collect();
        wanted
            .retain(|channel| !matches!(channel, Channel::Symbol(kind, _) if whole.contains(kind)));
        let mut parts = vec![BTreeSet::new(); self.wanted.len()];
        for channel in wanted {
            parts[self.sources.connection(&channel)].insert(channel);
        }
        for (link, part) in self.wanted.iter().zip(parts) {
            link.send_if_modified(|before| {
                let modified = before.channels != part;
                if modified {
                    before.channels = part;
                    self.all_answered.store(false, Ordering::Release);
                }
                modified
            });
        }
    }

    fn change_contracts<T>(&self, change: impl FnOnce(&mut Contracts) -> T) -> T {
        let mut state = self.state();
        let result = change(&mut state.contracts);
        self.publish_contracts(&mut state);
        result
    }

    fn publish_contracts(&self, state: &mut State) {
        // First, so that sessions look before any data that follows the link's next requests.
        let version = state.contracts.version();
        self.contracts_version
            .send_if_modified(|before| std::mem::replace(before, version) != version);
        let wanted_version = state.contracts.wanted_version();
        if state.published_wanted != wanted_version {
            state.published_wanted = wanted_version;
            for (connection, link) in self.wanted.iter().enumerate() {
                let contracts = state.contracts.wanted(connection);
                link.send_if_modified(|wanted| {
                    let modified = wanted.contracts != contracts;
                    if modified {
                        wanted.contracts = contracts;
                    }
                    modified
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::protocol::{Feed, Market};

    use super::*;
    use crate::sources::Source;

    fn sources(market: Market) -> Arc<Sources> {
        let feed = Feed::new(market, "socket.massive.com");
        Arc::new(Sources::new(vec![Source { feed, kinds: BTreeSet::new() }], 1))
    }

    fn demand(
        all: BTreeSet<Channel>,
        linger: Duration,
    ) -> (UpstreamDemand, watch::Receiver<Wanted>) {
        let contracts = Contracts::new([], 0, linger);
        let (demand, mut links) =
            UpstreamDemand::new(sources(Market::Stocks), all, linger, contracts);
        (demand, links.remove(0))
    }

    fn channels(list: &str) -> BTreeSet<Channel> {
        let parse = |item| Channel::parse(item, Market::Stocks).unwrap();
        proxy_common::protocol::channel_items(list).map(parse).collect()
    }

    fn wanted(receiver: &watch::Receiver<Wanted>) -> String {
        receiver.borrow().channels.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    #[test]
    fn the_union_is_counted_and_lingers() {
        let linger = Duration::from_secs(30);
        let (union, receiver) = demand(channels("T.*,Q.*"), linger);
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
        let (union, receiver) = demand(channels("T.*,Q.*"), Duration::from_secs(1));
        let star = channels("*,Q.*");
        union.add(&star);
        assert_eq!(wanted(&receiver), "T.*,Q.*");
        union.remove(&channels("*"), Instant::now());
        union.expire(Instant::now() + Duration::from_secs(2));
        assert_eq!(wanted(&receiver), "Q.*");
    }

    #[test]
    fn a_wildcard_stands_for_its_symbols_while_it_is_wanted() {
        let (union, receiver) = demand(channels("T.*"), Duration::from_secs(1));
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
        let (union, receiver) = demand(channels("Q.*"), linger);
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
        let (union, _receiver) = demand(channels("T.*"), Duration::from_secs(1));
        assert!(!union.all_answered());
        union.add(&channels("*"));
        union.set_answered(&[BTreeSet::new()], || panic!("T.* is wanted too"));
        assert!(!union.all_answered());
        let mut published = false;
        union.set_answered(&[channels("T.*")], || published = true);
        assert!(published);
        union.add(&channels("T.A,T.*,*"));
        assert!(union.all_answered(), "nothing new is asked for");
        union.add(&channels("Q.A"));
        assert!(!union.all_answered());
    }

    #[test]
    fn an_unchanged_union_wakes_no_receiver() {
        let (union, mut receiver) = demand(channels("T.*"), Duration::from_secs(1));
        union.add(&channels("T.A"));
        receiver.mark_unchanged();
        union.add(&channels("T.A"));
        union.expire(Instant::now());
        assert!(!receiver.has_changed().unwrap());
    }

    #[test]
    fn listed_contracts_stand_for_their_kind_which_is_never_asked_for() {
        let parse = |item: &str| Channel::parse(item, Market::Options).unwrap();
        let all = BTreeSet::from(["T.*", "Q.O:A"].map(parse));
        let contracts = Contracts::new([(Kind::Q, 0..1)], 2, Duration::ZERO);
        let sources = sources(Market::Options);
        let (union, mut links) = UpstreamDemand::new(sources, all, Duration::ZERO, contracts);
        let receiver = links.remove(0);
        let pinned = || {
            let wanted = receiver.borrow();
            wanted.contracts.iter().map(|(contract, _)| contract.to_string()).collect::<Vec<_>>()
        };
        for (item, channels) in [("*", "T.*"), ("Q.*", "")] {
            let held = BTreeSet::from([parse(item)]);
            union.add(&held);
            assert_eq!((wanted(&receiver), pinned()), (channels.to_owned(), vec!["Q.O:A".into()]));
            union.remove(&held, Instant::now());
            union.expire(Instant::now());
            assert_eq!((wanted(&receiver), pinned()), (String::new(), vec![]));
        }
    }
}
