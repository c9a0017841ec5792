//! Drives the contracts on demand, and the link's requests for them, with random schedules against
//! a model of the vendor's limit. Checks who holds the room.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use fastrand::Rng;
use firehose_proxy::contracts::{Contracts, Occupancy, Standing};
use proxy_common::{
    link::{SubscriptionOutcome, UpstreamSubscriptions, Wanted},
    protocol::{Channel, Kind, UpstreamStatus},
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
        assert!(self.held.len() + items.len() <= ROOM, "never asks for more than the room");
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
    link: UpstreamSubscriptions,
    vendor: Vendor,
    holders: Holders,
    keys: BTreeMap<&'static str, Arc<str>>,
}

fn channels(wanted: Vec<(Channel, u64)>) -> Vec<Channel> {
    wanted.into_iter().map(|(channel, _)| channel).collect()
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
        Self {
            random,
            now: Instant::now(),
            contracts: Contracts::new([(Kind::Q, 0..1)], ROOM, LINGER),
            link: UpstreamSubscriptions::default(),
            vendor: Vendor { room: ROOM, held: BTreeSet::new(), statuses: Vec::new(), refused },
            holders: Holders::default(),
            keys: KEYS.map(|key| (key, Arc::from(key))).into(),
        }
    }

    fn some_contracts(&mut self) -> BTreeSet<Channel> {
        (0..self.random.usize(1..8)).map(|_| contract(self.random.usize(..CONTRACTS))).collect()
    }

    fn ask(&mut self) {
        let (session, key) = (self.random.u64(..SESSIONS), KEYS[self.random.usize(..KEYS.len())]);
        // One at a time: the order within a command is the caller's.
        for contract in self.some_contracts() {
            self.contracts.add(session, &self.keys[key], [&contract], self.now);
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

    /// The link takes what is wanted, and sends what is due.
    fn request(&mut self) {
        let contracts = self.contracts.wanted(0);
        let outcomes = self.link.want(Wanted { contracts, ..Wanted::default() });
        self.apply(&outcomes);
        while let Some(request) = self.link.next_request(self.now) {
            self.vendor.take(request.action, &request.params);
        }
    }

    /// Some of the statuses arrive.
    fn receive(&mut self, count: usize) {
        let count = count.min(self.vendor.statuses.len());
        for (status, message) in self.vendor.statuses.drain(..count).collect::<Vec<_>>() {
            let status = UpstreamStatus { status: status.to_owned(), message };
            let outcomes = self.link.on_status(&status, self.now);
            self.apply(&outcomes);
        }
    }

    fn apply(&mut self, outcomes: &[SubscriptionOutcome]) {
        if !outcomes.is_empty() {
            self.contracts.on_outcomes(0, outcomes, 0, self.now);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        if self.link.deadline().is_some_and(|deadline| deadline <= self.now) {
            // Whoever waits that long has got everything.
            self.receive(usize::MAX);
            let outcomes = self.link.on_time(self.now);
            self.apply(&outcomes);
        }
        self.contracts.expire(self.now);
    }

    fn reconnect(&mut self) {
        self.contracts.on_down(0, self.now);
        self.link = UpstreamSubscriptions::default();
        self.vendor.held.clear();
        self.vendor.statuses.clear();
        self.vendor.room = ROOM - self.random.usize(..6) * self.random.usize(..2);
        if self.random.bool() {
            self.settle();
            self.contracts.on_up(self.now);
        }
    }

    /// The vendor answers everything.
    fn settle(&mut self) {
        for _ in 0..200 {
            self.request();
            self.receive(usize::MAX);
            // Short of the time after which the whole room is tried again.
            self.pass(Duration::from_millis(300));
            self.request();
            if self.vendor.statuses.is_empty() && self.link.all_answered() {
                return;
            }
        }
        panic!("never done: {self:?}");
    }

    fn occupancy(&self) -> Occupancy {
        self.contracts.occupancy().next().expect("one kind").1
    }

    fn standing(&self, contract: &Channel) -> &Standing {
        self.contracts.standing(contract).unwrap_or_else(|| panic!("{contract} is held"))
    }

    fn check(&self) {
        let wanted = channels(self.contracts.wanted(0));
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
        // Fair: each key has its share, and its own first contracts. One that was refused by the last
        // connection is asked for again, and takes room until the answer.
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
        assert_eq!(room, self.vendor.room.min(ROOM));
        let wanted = channels(self.contracts.wanted(0));
        let served = wanted.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        assert_eq!(served, self.vendor.held);
        for contract in self.holders.held() {
            match self.standing(contract) {
                Standing::Granted => assert!(served.contains(&contract.to_string())),
                Standing::Refused(why) => {
                    assert!(self.vendor.refused.contains(&contract.to_string()));
                    assert_eq!(&**why, "not authorized");
                }
                Standing::Waiting { .. } => assert_eq!(self.vendor.held.len(), room),
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
                    let count = world.random.usize(..6);
                    world.receive(count);
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
        if world.vendor.room < ROOM && world.occupancy().held <= world.vendor.room {
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
    let key: Arc<str> = "desk".into();
    for n in 0..5 {
        let sessions = [1, 2, 1, 3, 1][n];
        for session in 0..sessions {
            contracts.add(session, &key, [&contract(n)], now);
        }
    }
    contracts.on_down(0, now);
    let order: Vec<Channel> = [3, 1, 0, 2, 4].map(contract).into();
    assert_eq!(channels(contracts.wanted(0)), order);
}

#[test]
fn a_key_of_few_contracts_does_not_wait_for_one_of_many() {
    let now = Instant::now();
    let mut contracts = Contracts::new([(Kind::Q, 0..1)], 10, LINGER);
    let (many, few): (Arc<str>, Arc<str>) = ("many".into(), "few".into());
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
    contracts.remove(2, &few, [&contract(25)], now);
    assert_eq!(contracts.standing(&contract(8)), Some(&Standing::Asked));
}

#[test]
fn acknowledgements_change_nothing_for_others_and_come_with_their_place() {
    let now = Instant::now();
    let mut contracts = Contracts::new([Kind::Q], 1, LINGER);
    contracts.on_up(now);
    contracts.add(1, &"desk".into(), &[contract(0), contract(1)], now);
    let versions = |contracts: &Contracts| (contracts.version(), contracts.wanted_version());
    let before = versions(&contracts);
    let carried = [SubscriptionOutcome::Carried(contract(0))];
    assert_eq!(contracts.on_outcomes(&carried, 7, now), [contract(0)]);
    assert_eq!(contracts.view(&contract(0)).unwrap().granted_at, 7);
    assert!(contracts.on_outcomes(&carried, 8, now).is_empty(), "no news");
    contracts.expire(now);
    assert_eq!(versions(&contracts), before);
    // Another number says that it was not served for some time.
    let admission = contracts.view(&contract(0)).unwrap().admission;
    let refused = [SubscriptionOutcome::Refused(contract(0), "not authorized".to_owned())];
    assert_eq!(contracts.on_outcomes(&refused, 9, now), [contract(0)]);
    assert_ne!(contracts.view(&contract(0)).unwrap().admission, admission);
    assert!(contracts.on_outcomes(&carried, 10, now).is_empty(), "too late");
    assert!(matches!(contracts.standing(&contract(0)), Some(Standing::Refused(_))));
    assert_eq!(contracts.standing(&contract(1)), Some(&Standing::Asked));
}

#[test]
fn what_an_outage_granted_without_an_answer_is_asked_anew_when_it_ends() {
    let now = Instant::now();
    let mut contracts = Contracts::new([Kind::Q], 10, LINGER);
    contracts.on_up(now);
    contracts.on_down(5, now);
    contracts.add(1, &"desk".into(), &[contract(0), contract(1)], now);
    for n in 0..2 {
        let view = contracts.view(&contract(n)).unwrap();
        assert_eq!((view.standing, view.granted_at), (&Standing::Granted, 5));
    }
    let carried = [SubscriptionOutcome::Carried(contract(0))];
    assert!(contracts.on_outcomes(&carried, 6, now).is_empty());
    let before = (contracts.version(), contracts.wanted());
    contracts.on_up(now);
    assert_eq!(contracts.standing(&contract(0)), Some(&Standing::Granted));
    assert_eq!(contracts.standing(&contract(1)), Some(&Standing::Asked));
    assert_ne!(contracts.version(), before.0);
    assert_ne!(contracts.wanted(), before.1);
}
