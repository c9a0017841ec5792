//! Drives the contracts on demand, and the link's requests for them, with random schedules against
//! a model of the vendor's limit. Checks who holds the room.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::{Duration, Instant},
};

use fastrand::Rng;
use firehose_proxy::contracts::{Contracts, Occupancy, Standing};
use proxy_common::{
    link::{SubscriptionOutcome, UpstreamSubscriptions, Wanted},
    protocol::{Channel, Kind, OnBehalfOf, UpstreamStatus},
};

const ROOM: usize = 12;
const LINGER: Duration = Duration::from_secs(30);
const SESSIONS: u64 = 4;
const KEYS: [&str; 3] = ["desk-a", "desk-b", "desk-c"];
const CONTRACTS: usize = 30;
const LIMIT: &str =
    "Subscription limit reached for feed. Please remove some subscriptions and try again.";

/// The vendor's side of one connection.
#[derive(Debug)]
struct Vendor {
    room: usize,
    /// What the vendor serves at other times.
    whole_room: usize,
    held: BTreeSet<String>,
    /// Statuses on their way.
    statuses: Vec<(&'static str, String)>,
    refused: HashSet<String>,
}

impl Vendor {
    fn take(&mut self, action: &str, params: &str) {
        let items: Vec<&str> = params.split(',').collect();
        if action == "unsubscribe" {
            items.iter().for_each(|item| _ = self.held.remove(*item));
            return;
        }
        assert!(items.len() <= 200);
        let taken = items.iter().filter(|item| !self.refused.contains(**item));
        let taken: Vec<String> = taken.map(|item| (*item).to_owned()).collect();
        assert!(
            self.held.len() + items.len() <= self.whole_room,
            "never asks for more than the room"
        );
        if self.held.len() + taken.len() > self.room {
            let burst = (items.len() * 27).div_ceil(200);
            self.statuses.extend((0..burst).map(|_| ("error", LIMIT.to_owned())));
            return;
        }
        let refusals = items.len() - taken.len();
        self.statuses.extend((0..refusals).map(|_| ("error", "not authorized".to_owned())));
        for item in taken {
            self.statuses.push(("success", format!("subscribed to: {item}")));
            self.held.insert(item);
        }
    }
}

/// Who holds what, by a plain list of asks.
#[derive(Debug, Default)]
struct Holders {
    /// The order of the asks of each key, with the sessions that hold the contract for it.
    asks: Vec<(&'static str, Channel, BTreeSet<u64>)>,
    left: BTreeMap<Channel, Instant>,
}

impl Holders {
    fn held(&self) -> BTreeSet<&Channel> {
        self.asks.iter().map(|(_, contract, _)| contract).collect()
    }
}

#[derive(Debug)]
struct World {
    random: Rng,
    now: Instant,
    contracts: Contracts,
    /// The connections, which share the contracts.
    connections: Vec<(UpstreamSubscriptions, Vendor)>,
    holders: Holders,
}

fn channels(wanted: Vec<(Channel, u64)>) -> Vec<Channel> {
    wanted.into_iter().map(|(channel, _)| channel).collect()
}

fn clients_of(key: &str, clients: u32) -> OnBehalfOf {
    OnBehalfOf { key: key.into(), clients }
}

fn one(key: &str) -> OnBehalfOf {
    clients_of(key, 1)
}

fn contract(n: usize) -> Channel {
    Channel::Symbol(Kind::Q, format!("O:{n:02}").into())
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let refused = match random.bool() {
            true => (0..3).map(|_| contract(random.usize(..CONTRACTS)).to_string()).collect(),
            false => HashSet::new(),
        };
        // Together they have the same room.
        let connections = random.usize(1..4);
        let room = ROOM / connections;
        let vendor = || Vendor {
            room,
            whole_room: room,
            held: BTreeSet::new(),
            statuses: Vec::new(),
            refused: refused.clone(),
        };
        Self {
            random,
            now: Instant::now(),
            contracts: Contracts::new([(Kind::Q, 0..connections)], room, LINGER),
            connections: (0..connections)
                .map(|_| (UpstreamSubscriptions::default(), vendor()))
                .collect(),
            holders: Holders::default(),
        }
    }

    fn some_contracts(&mut self) -> BTreeSet<Channel> {
        (0..self.random.usize(1..8)).map(|_| contract(self.random.usize(..CONTRACTS))).collect()
    }

    fn ask(&mut self) {
        let (session, key) = (self.random.u64(..SESSIONS), KEYS[self.random.usize(..KEYS.len())]);
        // One at a time: the order within a command is the caller's.
        for contract in self.some_contracts() {
            self.contracts.add(session, &one(key), [&contract], self.now);
            let asks = &mut self.holders.asks;
            match asks.iter_mut().find(|(k, c, _)| *k == key && *c == contract) {
                Some((_, _, sessions)) => _ = sessions.insert(session),
                None => asks.push((key, contract, BTreeSet::from([session]))),
            }
        }
    }

    fn leave(&mut self) {
        let (session, key) = (self.random.u64(..SESSIONS), KEYS[self.random.usize(..KEYS.len())]);
        let everything: BTreeSet<Channel> = (0..CONTRACTS).map(contract).collect();
        let gone = if self.random.u8(..4) == 0 { everything } else { self.some_contracts() };
        self.contracts.remove(session, key, &gone, self.now);
        let before: BTreeSet<Channel> = self.holders.held().into_iter().cloned().collect();
        self.holders.asks.retain_mut(|(k, contract, sessions)| {
            if *k == key && gone.contains(contract) {
                sessions.remove(&session);
            }
            !sessions.is_empty()
        });
        for contract in before {
            if !self.holders.held().contains(&contract) {
                self.holders.left.insert(contract, self.now);
            }
        }
    }

    /// The links take what is wanted, and send what is due.
    fn request(&mut self) {
        for at in 0..self.connections.len() {
            let contracts = self.contracts.wanted(at);
            let (link, _) = &mut self.connections[at];
            let outcomes = link.want(Wanted { contracts, ..Wanted::default() });
            self.apply(at, &outcomes);
            let (link, vendor) = &mut self.connections[at];
            while let Some(request) = link.next_request(self.now) {
                vendor.take(request.action, &request.params);
            }
        }
    }

    /// Some of the statuses arrive.
    fn receive(&mut self, at: usize, count: usize) {
        let (_, vendor) = &mut self.connections[at];
        let count = count.min(vendor.statuses.len());
        for (status, message) in vendor.statuses.drain(..count).collect::<Vec<_>>() {
            let status = UpstreamStatus { status: status.to_owned(), message };
            let outcomes = self.connections[at].0.on_status(&status, self.now);
            self.apply(at, &outcomes);
        }
    }

    fn receive_all(&mut self) {
        (0..self.connections.len()).for_each(|at| self.receive(at, usize::MAX));
    }

    fn apply(&mut self, at: usize, outcomes: &[SubscriptionOutcome]) {
        if !outcomes.is_empty() {
            self.contracts.on_outcomes(at, outcomes, 0, self.now);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        for at in 0..self.connections.len() {
            if self.connections[at].0.deadline().is_some_and(|deadline| deadline <= self.now) {
                // Whoever waits that long has got everything.
                self.receive(at, usize::MAX);
                let outcomes = self.connections[at].0.on_time(self.now);
                self.apply(at, &outcomes);
            }
        }
        self.contracts.expire(self.now);
    }

    fn reconnect(&mut self) {
        let at = self.random.usize(..self.connections.len());
        self.contracts.on_down(at, 0, self.now);
        let (link, vendor) = &mut self.connections[at];
        *link = UpstreamSubscriptions::default();
        vendor.held.clear();
        vendor.statuses.clear();
        let less = self.random.usize(..=vendor.whole_room / 2) * self.random.usize(..2);
        vendor.room = vendor.whole_room - less;
        if self.random.bool() {
            self.settle();
            self.contracts.on_up(self.now);
        }
    }

    /// Whether some connection has less room than at other times.
    fn has_less_room(&self) -> bool {
        self.connections.iter().any(|(_, vendor)| vendor.room < vendor.whole_room)
    }

    /// The vendor answers everything.
    fn settle(&mut self) {
        for _ in 0..200 {
            self.request();
            self.receive_all();
            // Short of the time after which the whole room is tried again.
            self.pass(Duration::from_millis(300));
            self.request();
            if self
                .connections
                .iter()
                .all(|(link, vendor)| vendor.statuses.is_empty() && link.all_answered())
            {
                return;
            }
        }
        panic!("never done: {self:?}");
    }

    fn occupancy(&self) -> Occupancy {
        self.contracts.occupancy().next().expect("one kind").1
    }

    /// What is asked for over all connections.
    fn wanted(&self) -> Vec<Channel> {
        let connections = 0..self.connections.len();
        connections.flat_map(|at| channels(self.contracts.wanted(at))).collect()
    }

    fn standing(&self, contract: &Channel) -> &Standing {
        self.contracts.standing(contract).unwrap_or_else(|| panic!("{contract} is held"))
    }

    fn check(&self) {
        let wanted = self.wanted();
        let Occupancy { held, room, waiting } = self.occupancy();
        assert!(held <= room && room <= ROOM && held == wanted.len());
        let unique: BTreeSet<&Channel> = wanted.iter().collect();
        assert_eq!(unique.len(), wanted.len());
        let holders = self.holders.held();
        // Nothing is held that nobody wants past the linger.
        for contract in wanted.iter().filter(|contract| !holders.contains(contract)) {
            let left = self.holders.left[contract];
            assert!(self.now < left + LINGER, "{contract} lingers too long");
            assert_eq!(waiting, 0, "{contract} lingers while others wait");
            assert_eq!(self.contracts.standing(contract), None);
        }
        let mut places = BTreeMap::new();
        let mut refused = BTreeSet::new();
        for contract in &holders {
            match self.standing(contract) {
                Standing::Waiting { place, .. } => {
                    assert!(!unique.contains(contract), "{contract} waits and is asked for");
                    assert_eq!(places.insert(*place, *contract), None, "two at one place");
                }
                Standing::Asked | Standing::Granted => {
                    assert!(unique.contains(contract), "{contract} has room and is not asked for");
                }
                Standing::Refused(_) => _ = refused.insert(*contract),
            }
        }
        // No room is left unused while something waits that is not refused.
        let asked = wanted.iter().filter(|contract| holders.contains(contract)).count();
        assert!(places.is_empty() || asked == room, "room for one that waits");
        // Fair: each key has its share, and its own first contracts. One that was refused by the
        // last connection is asked for again, and takes room until the answer.
        let of_key = |key: &str| {
            let of_key = self.holders.asks.iter().filter(move |(k, ..)| *k == key);
            let contracts = of_key.map(|(_, contract, _)| contract);
            let is_out =
                |contract: &&Channel| refused.contains(contract) && !unique.contains(contract);
            contracts.filter(|contract| !is_out(contract)).collect::<Vec<_>>()
        };
        let keys: Vec<_> = KEYS.iter().filter(|key| !of_key(key).is_empty()).collect();
        for key in &keys {
            let contracts = of_key(key);
            let served = contracts.iter().filter(|contract| unique.contains(**contract)).count();
            let share = (room / keys.len()).min(contracts.len());
            assert!(served >= share, "{key} has {served} of its share of {share}");
            let own = contracts.iter().filter(|contract| {
                self.holders.asks.iter().filter(|(_, c, _)| c == **contract).count() == 1
            });
            let waits: Vec<bool> = own.map(|contract| !unique.contains(*contract)).collect();
            assert!(waits.is_sorted(), "{key} did not get in in the order in which it asked");
        }
    }

    /// Once everything is answered, the vendor serves exactly who has room.
    fn check_settled(&self) {
        let Occupancy { room, .. } = self.occupancy();
        let vendors = || self.connections.iter().map(|(_, vendor)| vendor);
        // A connection whose contracts are few has not noticed its smaller room.
        assert!(room >= vendors().map(|vendor| vendor.room).sum());
        let served = self.wanted().iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        let held: Vec<&String> = vendors().flat_map(|vendor| &vendor.held).collect();
        assert_eq!(held.len(), served.len(), "each over one connection");
        assert_eq!(served.iter().collect::<BTreeSet<_>>(), held.into_iter().collect());
        for contract in self.holders.held() {
            match self.standing(contract) {
                Standing::Granted => assert!(served.contains(&contract.to_string())),
                Standing::Refused(why) => {
                    assert!(self.connections[0].1.refused.contains(&contract.to_string()));
                    assert_eq!(&**why, "not authorized");
                }
                Standing::Waiting { .. } => assert_eq!(served.len(), room),
                Standing::Asked => panic!("{contract} has no answer"),
            }
        }
    }
}

#[test]
fn the_room_is_never_exceeded_and_shared_fairly_through_refusals_and_reconnects() {
    let mut waited = 0;
    for seed in 0..60 {
        let mut world = World::new(seed);
        for _ in 0..120 {
            match world.random.u8(..20) {
                0..7 => world.ask(),
                7..11 => world.leave(),
                11..14 => world.request(),
                14..17 => {
                    let at = world.random.usize(..world.connections.len());
                    let count = world.random.usize(..6);
                    world.receive(at, count);
                }
                17 => {
                    let time = Duration::from_millis(world.random.u64(..20_000));
                    world.pass(time);
                }
                18 if world.random.u8(..4) == 0 => world.reconnect(),
                _ => world.settle(),
            }
            world.check();
            waited += world.occupancy().waiting;
        }
        // Past the time after which the whole room is tried again.
        world.pass(Duration::from_secs(120));
        world.settle();
        world.check();
        if world.has_less_room() && world.occupancy().waiting == 0 {
            // Too few contracts to notice the smaller room.
            continue;
        }
        if world.occupancy().waiting > 0 {
            world.check_settled();
        }
    }
    assert!(waited > 10_000, "contracts waited: {waited}");
}

#[test]
fn those_of_most_holders_are_asked_for_first() {
    let now = Instant::now();
    let mut contracts = Contracts::new([(Kind::Q, 0..1)], 10, LINGER);
    for n in 0..5 {
        let sessions = [1, 2, 1, 3, 1][n];
        for session in 0..sessions {
            contracts.add(session, &one("desk"), [&contract(n)], now);
        }
    }
    contracts.on_down(0, 0, now);
    let order = |contracts: &Contracts| channels(contracts.wanted(0));
    let expected = |order: [usize; 5]| Vec::from(order.map(contract));
    assert_eq!(order(&contracts), expected([3, 1, 0, 2, 4]));
    // A filtered proxy says how many of its clients hold them, and later that there are fewer.
    for (key, clients) in [("desk", 3), ("desk-b", 2)] {
        contracts.add(9, &clients_of(key, clients), [&contract(4)], now);
    }
    assert_eq!(order(&contracts), expected([4, 3, 1, 0, 2]), "6 hold one of them");
    contracts.add(9, &one("desk"), [&contract(4)], now);
    contracts.remove(9, "desk-b", [&contract(4)], now);
    assert_eq!(order(&contracts), expected([3, 1, 4, 0, 2]), "2 do");
}

#[test]
fn a_key_of_few_contracts_does_not_wait_for_one_of_many() {
    let now = Instant::now();
    let mut contracts = Contracts::new([(Kind::Q, 0..1)], 10, LINGER);
    let (many, few) = (one("many"), one("few"));
    contracts.on_up(now);
    let first: Vec<Channel> = (0..20).map(contract).collect();
    contracts.add(1, &many, &first, now);
    let taken: Vec<_> = first[..10].iter().cloned().map(SubscriptionOutcome::Carried).collect();
    contracts.on_outcomes(0, &taken, 0, now);
    contracts.add(2, &few, [&contract(25), &contract(26)], now);
    assert_eq!(contracts.standing(&contract(25)), Some(&Standing::Asked));
    assert_eq!(contracts.standing(&contract(26)), Some(&Standing::Asked));
    assert_eq!(contracts.standing(&contract(7)), Some(&Standing::Granted));
    for (n, place) in [(8, 1), (9, 2), (10, 3), (19, 12)] {
        let waits = Standing::Waiting { place, room: 10 };
        assert_eq!(contracts.standing(&contract(n)), Some(&waits), "{n}");
    }
    contracts.remove(2, &few.key, [&contract(25)], now);
    assert_eq!(contracts.standing(&contract(8)), Some(&Standing::Asked));
}

#[test]
fn acknowledgements_change_nothing_for_others_and_come_with_their_place() {
    let now = Instant::now();
    let mut contracts = Contracts::new([(Kind::Q, 0..1)], 1, LINGER);
    contracts.on_up(now);
    contracts.add(1, &one("desk"), &[contract(0), contract(1)], now);
    let versions = |contracts: &Contracts| (contracts.version(), contracts.wanted_version());
    let before = versions(&contracts);
    let carried = [SubscriptionOutcome::Carried(contract(0))];
    assert_eq!(contracts.on_outcomes(0, &carried, 7, now), [contract(0)]);
    assert_eq!(contracts.view(&contract(0)).unwrap().granted_at, 7);
    assert!(contracts.on_outcomes(0, &carried, 8, now).is_empty(), "no news");
    contracts.expire(now);
    assert_eq!(versions(&contracts), before);
    // Another number says that it was not served for some time.
    let admission = contracts.view(&contract(0)).unwrap().admission;
    let refused = [SubscriptionOutcome::Refused(contract(0), "not authorized".to_owned())];
    assert_eq!(contracts.on_outcomes(0, &refused, 9, now), [contract(0)]);
    assert_ne!(contracts.view(&contract(0)).unwrap().admission, admission);
    assert!(contracts.on_outcomes(0, &carried, 10, now).is_empty(), "too late");
    assert!(matches!(contracts.standing(&contract(0)), Some(Standing::Refused(_))));
    assert_eq!(contracts.standing(&contract(1)), Some(&Standing::Asked));
}

#[test]
fn what_an_outage_granted_without_an_answer_is_asked_anew_when_it_ends() {
    let now = Instant::now();
    let mut contracts = Contracts::new([(Kind::Q, 0..1)], 10, LINGER);
    contracts.on_up(now);
    contracts.on_down(0, 5, now);
    contracts.add(1, &one("desk"), &[contract(0), contract(1)], now);
    for n in 0..2 {
        let view = contracts.view(&contract(n)).unwrap();
        assert_eq!((view.standing, view.granted_at), (&Standing::Granted, 5));
    }
    let carried = [SubscriptionOutcome::Carried(contract(0))];
    assert!(contracts.on_outcomes(0, &carried, 6, now).is_empty());
    let before = (contracts.version(), contracts.wanted(0));
    contracts.on_up(now);
    assert_eq!(contracts.standing(&contract(0)), Some(&Standing::Granted));
    assert_eq!(contracts.standing(&contract(1)), Some(&Standing::Asked));
    assert_ne!(contracts.version(), before.0);
    assert_ne!(contracts.wanted(0), before.1);
}

#[test]
fn an_outage_of_two_connections_began_with_the_first() {
    let now = Instant::now();
    let mut contracts = Contracts::new([(Kind::Q, 0..2)], 10, LINGER);
    contracts.on_up(now);
    contracts.on_down(0, 5, now);
    // No notice follows if the second is lost for the same reason, so no session reads up to it.
    contracts.on_down(1, 9, now);
    contracts.add(1, &one("desk"), [&contract(0)], now);
    assert_eq!(contracts.view(&contract(0)).unwrap().granted_at, 5);
}

#[test]
fn a_contract_that_moves_is_asked_for_anew_and_hears_its_own_connection_only() {
    let now = Instant::now();
    let mut contracts = Contracts::new([(Kind::Q, 0..2)], 2, LINGER);
    contracts.on_up(now);
    contracts.add(1, &one("desk"), &[contract(0), contract(1), contract(2)], now);
    let of = |contracts: &Contracts, at| channels(contracts.wanted(at));
    let (zero, one) = (of(&contracts, 0), of(&contracts, 1));
    assert_eq!((zero.len(), one.len()), (2, 1));
    for (at, asked) in [(0, &zero), (1, &one)] {
        let taken: Vec<_> = asked.iter().cloned().map(SubscriptionOutcome::Carried).collect();
        assert_eq!(contracts.on_outcomes(at, &taken, 3, now).len(), taken.len());
    }
    // The first connection turns out to have room for one.
    contracts.on_outcomes(0, &[SubscriptionOutcome::Full(Kind::Q, 1)], 4, now);
    assert_eq!((of(&contracts, 0).len(), of(&contracts, 1).len()), (1, 2));
    let moved = zero.iter().find(|contract| !of(&contracts, 0).contains(contract)).unwrap();
    assert_eq!(contracts.standing(moved), Some(&Standing::Asked), "events may be missing");
    let carried = [SubscriptionOutcome::Carried(moved.clone())];
    assert!(contracts.on_outcomes(0, &carried, 5, now).is_empty(), "of the connection before");
    assert_eq!(contracts.on_outcomes(1, &carried, 6, now), std::slice::from_ref(moved));
}
