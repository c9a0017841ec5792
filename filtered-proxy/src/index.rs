//! The index: finds the sessions that want an event, by its kind and symbol. Pure and without
//! locks; the router owns it.
//!
//! Sessions that hold the same channels form a cohort, which costs as much as one session. An event
//! is looked up once, however many sessions there are. The cost grows with the cohorts that want
//! it.

mod prefixes;
pub mod table;

use std::{collections::BTreeSet, hash::BuildHasher};

use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashSet, HashTable};
use proxy_common::protocol::{
    Channel, ChannelSet, Kind, MAX_SYMBOL_BYTES, Market, without_separator,
};
use slab::Slab;

use self::{
    prefixes::Prefixes,
    table::{CohortId, HolderLists, Holders, SymbolTable},
};

/// Identifies a session.
pub type SessionId = u64;

/// Most channels that sessions may share as a cohort. A session with more is a cohort of its own.
/// So the cost of a change depends on the channels that change, not on the channels held.
const SHARED_CHANNELS: usize = 64;

/// Which sessions hold which channels. `M` is the caller's value for each session.
#[derive(Debug)]
pub struct Index<M> {
    cohorts: Slab<Cohort<M>>,
    sessions: HashMap<SessionId, CohortId, RandomState>,
    /// Cohorts of up to [`SHARED_CHANNELS`] channels, by their channels.
    by_channels: HashTable<CohortId>,
    /// Cohorts that hold `*`. They are in no other list.
    all: Vec<CohortId>,
    /// Cohorts that hold `*` and contracts on demand, which `*` does not include. They are also in
    /// the tables of these contracts, and in no other list.
    all_and_contracts: Vec<CohortId>,
    /// By the number of the kind.
    named: [KindTables; Kind::COUNT],
    /// Of kinds without a number, while some cohort holds them.
    others: OtherTables,
    lists: HolderLists,
    subscriptions: usize,
    hasher: RandomState,
}

/// The cohorts that hold channels of one kind.
#[derive(Debug, Default)]
struct KindTables {
    whole: Vec<CohortId>,
    symbols: SymbolTable,
    /// `None` while no cohort holds one, so that they cost nothing then.
    prefixes: Option<Box<Prefixes>>,
    /// If the kind is on demand: its symbols that `*` includes all the same.
    on_demand: Option<HashSet<Box<[u8]>, RandomState>>,
}

impl KindTables {
    #[inline]
    fn is_on_demand(&self, symbol: Option<&[u8]>) -> bool {
        let Some(listed) = &self.on_demand else { return false };
        symbol.is_none_or(|symbol| !listed.contains(symbol))
    }

    fn entries(&self) -> usize {
        let prefixes = self.prefixes.as_ref().map_or(0, |prefixes| prefixes.entries());
        self.whole.len() + self.symbols.len() + prefixes
    }
}

type OtherTables = HashMap<Kind, KindTables, RandomState>;

/// The tables of a kind, which are made if it has none.
fn tables_mut<'a>(
    named: &'a mut [KindTables],
    others: &'a mut OtherTables,
    kind: Kind,
) -> &'a mut KindTables {
    match named.get_mut(kind.number()) {
        Some(tables) => tables,
        None => others.entry(kind).or_default(),
    }
}

#[derive(Debug)]
struct Cohort<M> {
    channels: ChannelSet,
    members: Vec<(SessionId, M)>,
}

impl<M> Default for Index<M> {
    fn default() -> Self {
        Self {
            cohorts: Slab::new(),
            sessions: HashMap::default(),
            by_channels: HashTable::new(),
            all: Vec::new(),
            all_and_contracts: Vec::new(),
            named: std::array::from_fn(|_| KindTables::default()),
            others: HashMap::default(),
            lists: HolderLists::default(),
            subscriptions: 0,
            hasher: RandomState::default(),
        }
    }
}

impl<M> Index<M> {
    /// Adds a session that holds nothing yet.
    pub fn join(&mut self, session: SessionId, member: M) {
        self.assign(session, member, ChannelSet::default());
    }

    /// Sets the kinds that are on demand: their events are for sessions that hold the very symbol,
    /// and not for those that hold `*` or the kind. `listed` are the exceptions.
    pub fn set_on_demand(&mut self, kinds: &BTreeSet<Kind>, listed: &BTreeSet<Channel>) {
        let of_all = |(id, cohort): (CohortId, &Cohort<M>)| {
            cohort.channels.contains(&Channel::All).then_some(id)
        };
        let with_all: Vec<CohortId> = self.cohorts.iter().filter_map(of_all).collect();
        for &id in &with_all {
            self.remove_from_tables(id);
        }
        for (kind, tables) in Kind::NAMED.into_iter().zip(&mut self.named) {
            let listed = listed.iter().filter_map(|channel| match channel {
                Channel::Symbol(k, symbol) if *k == kind => Some(symbol.as_bytes().into()),
                _ => None,
            });
            tables.on_demand = kinds.contains(&kind).then(|| listed.collect());
        }
        for id in with_all {
            self.add_to_tables(id);
        }
    }

    /// Whether an event is for sessions that hold the very symbol only.
    #[inline]
    pub fn is_on_demand(&self, kind: Kind, symbol: Option<&[u8]>) -> bool {
        self.named.get(kind.number()).is_some_and(|tables| tables.is_on_demand(symbol))
    }

    fn is_contract(&self, channel: &Channel) -> bool {
        let Channel::Symbol(kind, _) = channel else { return false };
        self.named.get(kind.number()).is_some_and(|tables| tables.on_demand.is_some())
    }

    /// Adds or removes channels of a session. Skips channels to add that it holds, and channels to
    /// remove that it does not. Returns how many it holds now, or `None` if there is no such
    /// session.
    pub fn change(
        &mut self,
        session: SessionId,
        channels: impl IntoIterator<Item = Channel>,
        subscribe: bool,
    ) -> Option<usize> {
        let id = *self.sessions.get(&session)?;
        let held = &self.cohorts[id].channels;
        let delta: BTreeSet<Channel> =
            channels.into_iter().filter(|channel| held.contains(channel) != subscribe).collect();
        if delta.is_empty() {
            return Some(held.len());
        }
        let count = if subscribe { held.len() + delta.len() } else { held.len() - delta.len() };
        self.subscriptions = self.subscriptions - held.len() + count;
        if self.cohorts[id].members.len() == 1 {
            self.change_alone(id, delta, subscribe);
        } else {
            let mut channels = held.clone();
            apply(&mut channels, delta, subscribe);
            let member = self.take_member(id, session);
            self.assign(session, member, channels);
        }
        Some(count)
    }

    /// The channels that a session holds. `None` if there is no such session.
    pub fn channels(&self, session: SessionId) -> Option<&ChannelSet> {
        self.sessions.get(&session).map(|&id| &self.cohorts[id].channels)
    }

    /// How many channels a session holds.
    pub fn held(&self, session: SessionId) -> usize {
        self.sessions.get(&session).map_or(0, |&id| self.cohorts[id].channels.len())
    }

    /// Removes a session and all its channels. Returns the caller's value for it, or `None` if
    /// there is no such session.
    pub fn leave(&mut self, session: SessionId) -> Option<M> {
        let id = self.sessions.remove(&session)?;
        self.subscriptions -= self.cohorts[id].channels.len();
        let member = self.take_member(id, session);
        if self.cohorts[id].members.is_empty() {
            self.dissolve(id);
        }
        Some(member)
    }

    /// The cohorts that hold `*`. [`lookup`](Self::lookup) skips them.
    pub fn all(&self) -> &[CohortId] {
        &self.all
    }

    /// The cohorts that hold `*` and contracts on demand. They want all events that are not on
    /// demand, and [`lookup`](Self::lookup) visits them for the others.
    pub fn all_and_contracts(&self) -> &[CohortId] {
        &self.all_and_contracts
    }

    /// Calls `visit` with each cohort that gets an event and is not in [`all`](Self::all), at least
    /// once. Returns whether those in `all` get it too.
    ///
    /// `kind` is `None` for a code that no channel can name. `key` is the symbol in the form of
    /// [`Market::symbol_key`].
    #[inline(always)]
    pub fn recipients(
        &self,
        kind: Option<Kind>,
        key: Option<&[u8]>,
        market: Market,
        mut visit: impl FnMut(CohortId),
    ) -> bool {
        let on_demand = kind.is_some_and(|kind| self.is_on_demand(kind, key));
        if !on_demand {
            for &cohort in &self.all_and_contracts {
                visit(cohort);
            }
        }
        if let Some(kind) = kind {
            self.lookup(kind, key, &mut visit);
            if let Some(key) = key
                && market.has_symbol_forms()
                && self.has_prefixes(kind)
            {
                let mut buffer = [0; MAX_SYMBOL_BYTES];
                self.lookup_prefixes(kind, without_separator(key, &mut buffer), &mut visit);
            }
        }
        !on_demand
    }

    /// Calls `visit` with each cohort that wants this event and does not hold `*`. Visits a cohort
    /// as often as it holds channels that match.
    #[inline]
    pub fn lookup(&self, kind: Kind, symbol: Option<&[u8]>, mut visit: impl FnMut(CohortId)) {
        let Some(tables) = self.tables(kind) else { return };
        let on_demand = tables.is_on_demand(symbol);
        if !on_demand {
            for &cohort in &tables.whole {
                visit(cohort);
            }
        }
        let Some(symbol) = symbol else { return };
        if let Some(holders) = tables.symbols.get(symbol) {
            self.visit(holders, &mut visit);
        }
        if let Some(prefixes) = &tables.prefixes
            && !on_demand
        {
            prefixes.of(symbol).for_each(|holders| self.visit(holders, &mut visit));
        }
    }

    /// Whether a cohort that does not hold `*` holds a prefix of this kind.
    #[inline]
    pub fn has_prefixes(&self, kind: Kind) -> bool {
        self.tables(kind).is_some_and(|tables| tables.prefixes.is_some())
    }

    /// Calls `visit` as [`lookup`](Self::lookup) does, with the cohorts that hold a prefix of this
    /// symbol.
    #[inline]
    pub fn lookup_prefixes(&self, kind: Kind, symbol: &[u8], mut visit: impl FnMut(CohortId)) {
        let prefixes = self.tables(kind).and_then(|tables| tables.prefixes.as_ref());
        let holders = prefixes.into_iter().flat_map(|prefixes| prefixes.of(symbol));
        holders.for_each(|holders| self.visit(holders, &mut visit));
    }

    #[inline]
    fn tables(&self, kind: Kind) -> Option<&KindTables> {
        let named = self.named.get(kind.number());
        named.or_else(|| self.tables_of_other(kind))
    }

    #[inline]
    fn visit(&self, holders: &Holders, visit: &mut impl FnMut(CohortId)) {
        for &cohort in self.lists.get(holders) {
            visit(cohort as CohortId);
        }
    }

    /// Kept out of [`lookup`](Self::lookup), which is compiled into the walk over each frame.
    #[cold]
    fn tables_of_other(&self, kind: Kind) -> Option<&KindTables> {
        self.others.get(&kind)
    }

    /// The caller's values for the sessions of a cohort.
    #[inline]
    pub fn members(&self, cohort: CohortId) -> impl Iterator<Item = &M> {
        self.cohorts.get(cohort).into_iter().flat_map(|cohort| &cohort.members).map(|(_, m)| m)
    }

    /// The caller's values for all sessions that hold any channel.
    pub fn holders(&self) -> impl Iterator<Item = &M> {
        let holding = self.cohorts().filter(|(channels, _)| !channels.is_empty());
        holding.flat_map(|(_, members)| members)
    }

    /// The channels of each cohort, and the caller's values for its sessions.
    pub fn cohorts(&self) -> impl Iterator<Item = (&ChannelSet, impl Iterator<Item = &M>)> {
        self.cohorts
            .iter()
            .map(|(_, cohort)| (&cohort.channels, cohort.members.iter().map(|(_, member)| member)))
    }

    /// The sessions that hold any channel, with the caller's value for each.
    pub fn sessions(&self) -> impl Iterator<Item = (SessionId, &M)> {
        let holding = self.cohorts.iter().filter(|(_, cohort)| !cohort.channels.is_empty());
        holding.flat_map(|(_, cohort)| cohort.members.iter().map(|(id, member)| (*id, member)))
    }

    /// The caller's value for one session.
    pub fn member(&self, session: SessionId) -> Option<&M> {
        let id = self.sessions.get(&session)?;
        self.cohorts[*id].members.iter().find(|(other, _)| *other == session).map(|(_, m)| m)
    }

    /// How many subscriptions all sessions hold together.
    pub fn subscriptions(&self) -> usize {
        self.subscriptions
    }

    /// How many entries all tables and lists hold; zero once every session has left.
    pub fn entries(&self) -> usize {
        self.cohorts.len()
            + self.by_channels.len()
            + self.all.len()
            + self.all_and_contracts.len()
            + self.named.iter().chain(self.others.values()).map(KindTables::entries).sum::<usize>()
            + self.others.len()
            + self.lists.len()
    }

    /// Changes the channels of a cohort with one session.
    fn change_alone(&mut self, id: CohortId, delta: BTreeSet<Channel>, subscribe: bool) {
        self.forget_channels(id);
        let had_all = self.cohorts[id].channels.contains(&Channel::All);
        if delta.contains(&Channel::All) || had_all {
            // A cohort that holds `*` is in other tables only for its contracts on demand.
            self.remove_from_tables(id);
            apply(&mut self.cohorts[id].channels, delta, subscribe);
            self.add_to_tables(id);
        } else {
            for channel in &delta {
                if subscribe {
                    self.insert_channel(id, channel);
                } else {
                    self.remove_channel(id, channel);
                }
            }
            apply(&mut self.cohorts[id].channels, delta, subscribe);
        }
        if let Some(other) = self.find(&self.cohorts[id].channels) {
            let (session, member) = self.cohorts[id].members.pop().expect("a cohort of one");
            self.remove_from_tables(id);
            self.cohorts.remove(id);
            self.cohorts[other].members.push((session, member));
            self.sessions.insert(session, other);
        } else {
            self.remember_channels(id);
        }
    }

    /// Puts a session into the cohort with these channels, which it creates if there is none.
    fn assign(&mut self, session: SessionId, member: M, channels: ChannelSet) {
        let id = match self.find(&channels) {
            Some(id) => {
                self.cohorts[id].members.push((session, member));
                id
            }
            None => {
                let id = self.cohorts.insert(Cohort { channels, members: vec![(session, member)] });
                self.add_to_tables(id);
                self.remember_channels(id);
                id
            }
        };
        self.sessions.insert(session, id);
    }

    fn take_member(&mut self, id: CohortId, session: SessionId) -> M {
        let members = &mut self.cohorts[id].members;
        let at = members.iter().position(|(other, _)| *other == session);
        members.swap_remove(at.expect("the session is a member of its cohort")).1
    }

    fn dissolve(&mut self, id: CohortId) {
        self.forget_channels(id);
        self.remove_from_tables(id);
        self.cohorts.remove(id);
    }

    fn find(&self, channels: &ChannelSet) -> Option<CohortId> {
        if channels.len() > SHARED_CHANNELS {
            return None;
        }
        let hash = self.hasher.hash_one(channels);
        self.by_channels.find(hash, |&id| self.cohorts[id].channels == *channels).copied()
    }

    fn remember_channels(&mut self, id: CohortId) {
        let channels = &self.cohorts[id].channels;
        if channels.len() <= SHARED_CHANNELS {
            let hash = self.hasher.hash_one(channels);
            let (hasher, cohorts) = (&self.hasher, &self.cohorts);
            let rehash = |&id: &CohortId| hasher.hash_one(&cohorts[id].channels);
            self.by_channels.insert_unique(hash, id, rehash);
        }
    }

    fn forget_channels(&mut self, id: CohortId) {
        if self.cohorts[id].channels.len() > SHARED_CHANNELS {
            return;
        }
        let hash = self.hasher.hash_one(&self.cohorts[id].channels);
        if let Ok(entry) = self.by_channels.find_entry(hash, |&other| other == id) {
            entry.remove();
        }
    }

    /// Adds a cohort to the tables of its channels.
    fn add_to_tables(&mut self, id: CohortId) {
        self.change_tables(id, Self::insert_channel, |cohorts, id| cohorts.push(id));
    }

    /// Removes a cohort from the tables of its channels.
    fn remove_from_tables(&mut self, id: CohortId) {
        self.change_tables(id, Self::remove_channel, remove);
    }

    fn change_tables(
        &mut self,
        id: CohortId,
        change: fn(&mut Self, CohortId, &Channel),
        change_list: fn(&mut Vec<CohortId>, CohortId),
    ) {
        let channels = std::mem::take(&mut self.cohorts[id].channels);
        let all = channels.contains(&Channel::All);
        let mut contracts = false;
        for channel in channels.iter().filter(|channel| **channel != Channel::All) {
            if !all || self.is_contract(channel) {
                contracts = true;
                change(self, id, channel);
            }
        }
        match (all, contracts) {
            (true, true) => change_list(&mut self.all_and_contracts, id),
            (true, false) => change_list(&mut self.all, id),
            (false, _) => {}
        }
        self.cohorts[id].channels = channels;
    }

    fn insert_channel(&mut self, id: CohortId, channel: &Channel) {
        let Some(kind) = channel.kind() else { return };
        let tables = tables_mut(&mut self.named, &mut self.others, kind);
        match channel {
            Channel::Symbol(_, symbol) => tables.symbols.insert(symbol, id, &mut self.lists),
            Channel::Prefix(prefix) => {
                let prefixes = tables.prefixes.get_or_insert_default();
                prefixes.insert(&prefix.start, id, &mut self.lists);
            }
            Channel::All | Channel::Kind(_) => tables.whole.push(id),
        }
    }

    fn remove_channel(&mut self, id: CohortId, channel: &Channel) {
        let Some(kind) = channel.kind() else { return };
        let tables = tables_mut(&mut self.named, &mut self.others, kind);
        match channel {
            Channel::Symbol(_, symbol) => tables.symbols.remove(symbol, id, &mut self.lists),
            Channel::Prefix(prefix) => {
                if let Some(prefixes) = &mut tables.prefixes {
                    prefixes.remove(&prefix.start, id, &mut self.lists);
                    tables.prefixes.take_if(|prefixes| prefixes.entries() == 0);
                }
            }
            Channel::All | Channel::Kind(_) => remove(&mut tables.whole, id),
        }
        if tables.entries() == 0 {
            // Does nothing for a named kind.
            self.others.remove(&kind);
        }
    }
}

fn apply(channels: &mut ChannelSet, delta: BTreeSet<Channel>, subscribe: bool) {
    if subscribe {
        channels.add(delta);
    } else {
        channels.remove(&delta);
    }
}

fn remove(cohorts: &mut Vec<CohortId>, id: CohortId) {
    if let Some(at) = cohorts.iter().position(|&other| other == id) {
        cohorts.swap_remove(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proxy_common::protocol::{Market, channel_items};

    fn channels(list: &str) -> Vec<Channel> {
        channel_items(list).map(|item| Channel::parse(item, Market::Stocks).unwrap()).collect()
    }

    const NO_SESSION: [u64; 0] = [];

    /// The sessions that get an event, in order of their ids.
    fn wanting(index: &Index<u64>, kind: Kind, symbol: &str) -> Vec<u64> {
        let mut cohorts: BTreeSet<CohortId> = index.all().iter().copied().collect();
        cohorts.extend(index.all_and_contracts());
        if index.is_on_demand(kind, Some(symbol.as_bytes())) {
            cohorts.clear();
        }
        index.lookup(kind, Some(symbol.as_bytes()), |cohort| {
            cohorts.insert(cohort);
        });
        let mut sessions: Vec<u64> =
            cohorts.into_iter().flat_map(|cohort| index.members(cohort)).copied().collect();
        sessions.sort_unstable();
        sessions
    }

    fn with_sessions(sets: &[&str]) -> Index<u64> {
        let mut index = Index::default();
        for (session, list) in (0..).zip(sets) {
            index.join(session, session);
            index.change(session, channels(list), true);
        }
        index
    }

    #[test]
    fn entries_are_independent_of_each_other() {
        let mut index = with_sessions(&["T.*,T.AAPL,*", "T.AAPL", ""]);
        assert_eq!(wanting(&index, Kind::T, "AAPL"), [0, 1]);
        assert_eq!(index.change(0, channels("*"), false), Some(2));
        assert_eq!(wanting(&index, Kind::T, "MSFT"), [0]);
        assert_eq!(wanting(&index, Kind::Q, "AAPL"), NO_SESSION);
        index.change(0, channels("T.*"), false);
        assert_eq!(wanting(&index, Kind::T, "AAPL"), [0, 1]);
        assert_eq!(wanting(&index, Kind::T, "MSFT"), NO_SESSION);
        index.change(0, channels("T.AAPL,T.AAPL,Q.X"), false);
        assert_eq!(wanting(&index, Kind::T, "AAPL"), [1]);
    }

    #[test]
    fn a_prefix_is_an_entry_beside_its_symbols_and_its_kind() {
        let long = "T.O:SPY25*,T.O:SPY251219C00650000";
        let mut index = with_sessions(&["T.*,T.A*,T.AA*,T.AAPL", "T.AA*", "NEW9.A*", long]);
        assert_eq!(wanting(&index, Kind::T, "AAPL"), [0, 1]);
        assert_eq!(wanting(&index, Kind::T, "A"), [0]);
        assert_eq!(wanting(&index, Kind::T, "O:SPY251219P00650000"), [0, 3]);
        assert_eq!(wanting(&index, Kind::Q, "AAPL"), NO_SESSION);
        assert_eq!(wanting(&index, Kind::from_code(b"NEW9").unwrap(), "AB"), [2]);
        index.change(0, channels("T.*,T.AAPL"), false);
        assert_eq!(wanting(&index, Kind::T, "AAPL"), [0, 1]);
        assert_eq!(wanting(&index, Kind::T, "AB"), [0]);
        index.change(0, channels("T.A*,T.AB*"), false);
        assert_eq!(wanting(&index, Kind::T, "AB"), NO_SESSION);
        assert_eq!(wanting(&index, Kind::T, "AA"), [0, 1]);
        assert!(index.has_prefixes(Kind::T) && !index.has_prefixes(Kind::Q));
        for session in 0..4 {
            index.leave(session);
        }
        assert!(!index.has_prefixes(Kind::T));
        assert_eq!((index.subscriptions(), index.entries()), (0, 0));
    }

    #[test]
    fn sessions_with_equal_channels_are_one_cohort() {
        let mut index = with_sessions(&["T.A,Q.B", "Q.B,T.A", "T.A", "Q.B"]);
        assert_eq!(index.cohorts.len(), 3);
        index.change(2, channels("Q.B"), true);
        assert_eq!(index.cohorts.len(), 2, "joined by changing");
        index.change(0, channels("T.C"), true);
        assert_eq!(index.cohorts.len(), 3, "left by changing");
        assert_eq!(wanting(&index, Kind::T, "A"), [0, 1, 2]);
        assert_eq!(wanting(&index, Kind::T, "C"), [0]);
    }

    #[test]
    fn large_sets_are_cohorts_of_their_own() {
        let many: Vec<String> = (0..100).map(|n| format!("T.S{n}")).collect();
        let many = many.join(",");
        let mut index = with_sessions(&[&many, &many]);
        assert_eq!(index.cohorts.len(), 2);
        assert_eq!(wanting(&index, Kind::T, "S7"), [0, 1]);
        let most = channels(&many)[1..].to_vec();
        index.change(0, most.clone(), false);
        index.change(1, most, false);
        assert_eq!(index.cohorts.len(), 1, "small again, and equal");
        assert_eq!(wanting(&index, Kind::T, "S7"), NO_SESSION);
        assert_eq!(wanting(&index, Kind::T, "S0"), [0, 1]);
    }

    #[test]
    fn sets_are_shared_up_to_a_size() {
        let many: Vec<String> = (0..=SHARED_CHANNELS).map(|n| format!("T.S{n}")).collect();
        for (count, cohorts) in [(SHARED_CHANNELS, 1), (SHARED_CHANNELS + 1, 2)] {
            let list = many[..count].join(",");
            assert_eq!(with_sessions(&[&list, &list]).cohorts.len(), cohorts, "{count}");
        }
    }

    #[test]
    fn no_entry_is_left_when_every_session_has_left() {
        let long = "T.A,T.O:SPY251219C00650000";
        let mut index = with_sessions(&["*", "T.*,T.A", long, "T.A,Q.B", "T.A,Q.B", ""]);
        assert_eq!(index.subscriptions(), 9);
        // Cohorts, twice; `*`; `T.*`; `T.A` and `Q.B`; the long symbol; the list of holders of
        // `T.A`.
        assert_eq!(index.entries(), 5 + 5 + 1 + 1 + 2 + 1 + 1);
        for session in 0..6 {
            assert_eq!(index.leave(session), Some(session));
        }
        assert_eq!(index.leave(0), None);
        assert_eq!(index.change(0, channels("T.A"), true), None);
        assert_eq!((index.subscriptions(), index.entries()), (0, 0));
    }

    #[test]
    fn contracts_on_demand_reach_their_holders_alone() {
        let sets = ["*", "Q.*,T.*", "*,Q.X", "Q.X", "Q.Y,T.X", "*,T.X", "T.*,Q.X", "Q.X*"];
        let mut index = with_sessions(&sets);
        let check = |index: &Index<u64>, whole: bool| {
            let x: &[u64] = if whole { &[0, 1, 2, 3, 5, 6, 7] } else { &[2, 3, 6] };
            assert_eq!(wanting(index, Kind::Q, "X"), x);
            let y: &[u64] = if whole { &[0, 1, 2, 4, 5] } else { &[4] };
            assert_eq!(wanting(index, Kind::Q, "Y"), y);
            assert_eq!(wanting(index, Kind::T, "X"), [0, 1, 2, 4, 5, 6]);
            assert_eq!(wanting(index, Kind::Q, "LISTED"), [0, 1, 2, 5]);
        };
        check(&index, true);
        let quotes = BTreeSet::from([Kind::Q]);
        index.set_on_demand(&quotes, &channels("Q.LISTED").into_iter().collect());
        check(&index, false);
        // `*` and contracts come and go.
        index.change(2, channels("Q.X"), false);
        index.change(0, channels("Q.X"), true);
        assert_eq!(wanting(&index, Kind::Q, "X"), [0, 3, 6]);
        index.change(0, channels("*"), false);
        assert_eq!(wanting(&index, Kind::Q, "X"), [0, 3, 6]);
        index.change(0, channels("*"), true);
        index.change(0, channels("Q.X"), false);
        index.change(2, channels("Q.X"), true);
        check(&index, false);
        index.set_on_demand(&BTreeSet::new(), &BTreeSet::new());
        check(&index, true);
        for session in 0..8 {
            index.leave(session);
        }
        assert_eq!((index.subscriptions(), index.entries()), (0, 0));
    }
}
