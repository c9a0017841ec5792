//! The contracts that clients hold: for which keys, what the firehose answers, and what to ask of
//! it. Pure.
//!
//! Only contracts of types that the firehose serves on demand are asked of it. Until it has said
//! which types these are, contracts are kept all the same, because they may have to be asked for.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, btree_map::Entry},
    sync::Arc,
};

use proxy_common::protocol::{Channel, Kind, Market, OnBehalfOf};

use crate::index::SessionId;

/// The most contracts in one request to the firehose.
const BATCH: usize = 500;

/// A request to the firehose.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// Whether to subscribe or to unsubscribe.
    pub subscribe: bool,
    /// For whom. The number of clients counts in a request to subscribe only.
    pub on_behalf_of: OnBehalfOf,
    /// The contracts.
    pub contracts: Vec<Channel>,
}

/// The contracts of all clients.
#[derive(Debug)]
pub struct Contracts {
    market: Market,
    /// The types on demand, as the firehose said last.
    on_demand: BTreeSet<Kind>,
    /// Whether events may be missing anyway. Contracts are then acknowledged at once.
    outage: bool,
    /// Whether this connection's firehose has been asked for the contracts.
    asked: bool,
    contracts: BTreeMap<Channel, Contract>,
    sessions: HashMap<SessionId, BTreeSet<Channel>>,
    /// Contracts that the firehose has yet to answer for, since the connection began.
    unanswered: BTreeSet<Channel>,
    /// Contracts with unsubscriptions that the firehose has yet to answer.
    leaving: BTreeMap<Channel, Leaving>,
    /// Where the number of a key's clients differs from what the firehose was last sent.
    recounts: BTreeSet<(Arc<str>, Channel)>,
    requests: Vec<Request>,
}

/// The unsubscriptions of a contract that the firehose has yet to answer.
#[derive(Debug, Default)]
struct Leaving {
    /// How many there are.
    unanswered: usize,
    /// How many of them came before the contract was last without a holder, and that one. Until
    /// these are answered, all other answers for the contract belong to earlier requests.
    outdated: usize,
}

#[derive(Debug, Default)]
struct Contract {
    holders: BTreeMap<SessionId, Holder>,
    /// How many of the holders have each key.
    clients: BTreeMap<Arc<str>, u32>,
    /// Whether the firehose delivers it on this connection.
    granted: bool,
}

#[derive(Debug)]
struct Holder {
    key: Arc<str>,
    last_answer: LastAnswer,
}

/// The last answer to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LastAnswer {
    Nothing,
    Subscribed,
    Refused,
}

impl Contract {
    /// How many clients with this key hold it.
    fn clients(&self, key: &str) -> u32 {
        self.clients.get(key).copied().unwrap_or(0)
    }

    /// Counts a holder with this key less.
    fn remove_client(&mut self, key: &str) {
        if let Some(clients) = self.clients.get_mut(key) {
            *clients -= 1;
            if *clients == 0 {
                self.clients.remove(key);
            }
        }
    }
}

impl Contracts {
    /// Starts without contracts and without a connection.
    pub fn new(market: Market) -> Self {
        Self {
            market,
            on_demand: BTreeSet::new(),
            outage: true,
            asked: false,
            contracts: BTreeMap::new(),
            sessions: HashMap::new(),
            unanswered: BTreeSet::new(),
            leaving: BTreeMap::new(),
            recounts: BTreeSet::new(),
            requests: Vec::new(),
        }
    }

    /// Whether this is a contract of a type that some firehose may serve on demand.
    pub fn includes(&self, channel: &Channel) -> bool {
        matches!(channel, Channel::Symbol(kind, _) if self.market.may_lack_wildcard(*kind))
    }

    /// Whether the firehose serves this contract on demand.
    pub fn is_on_demand(&self, contract: &Channel) -> bool {
        contract.kind().is_some_and(|kind| self.on_demand.contains(&kind))
    }

    /// Adds a contract of a session whose key has this label. Returns whether it is subscribed at
    /// once. Otherwise the firehose's answer decides.
    pub fn subscribe(&mut self, session: SessionId, key: &Arc<str>, contract: &Channel) -> bool {
        let on_demand = self.is_on_demand(contract);
        let entry = self.contracts.entry(contract.clone()).or_default();
        let now = !on_demand || self.outage || entry.granted;
        let last_answer = if now { LastAnswer::Subscribed } else { LastAnswer::Nothing };
        // A session keeps the key with which it first asked.
        let holders_before = entry.holders.len();
        let holder =
            entry.holders.entry(session).or_insert(Holder { key: Arc::clone(key), last_answer });
        holder.last_answer = last_answer;
        let (key, granted) = (Arc::clone(&holder.key), entry.granted);
        let is_new = entry.holders.len() > holders_before;
        if is_new {
            *entry.clients.entry(Arc::clone(&key)).or_default() += 1;
        }
        let clients = entry.clients(&key);
        self.sessions.entry(session).or_default().insert(contract.clone());
        if on_demand && self.asked {
            if !granted {
                self.unanswered.insert(contract.clone());
            }
            // The firehose repeats its answer if it is asked again.
            if !granted || clients == 1 && is_new {
                self.recounts.remove(&(Arc::clone(&key), contract.clone()));
                self.request(true, OnBehalfOf { key, clients }, contract);
            } else if is_new {
                self.recounts.insert((key, contract.clone()));
            }
        }
        now
    }

    /// Removes a contract of a session.
    pub fn unsubscribe(&mut self, session: SessionId, contract: &Channel) {
        if let Some(held) = self.sessions.get_mut(&session) {
            held.remove(contract);
            if held.is_empty() {
                self.sessions.remove(&session);
            }
        }
        self.remove_holder(session, contract);
    }

    /// The sessions that hold any contract of a type on demand.
    pub fn sessions(&self) -> impl Iterator<Item = SessionId> {
        let any = |contracts: &BTreeSet<Channel>| contracts.iter().any(|c| self.is_on_demand(c));
        self.sessions.iter().filter(move |(_, contracts)| any(contracts)).map(|(id, _)| *id)
    }

    /// Removes all contracts of a session.
    pub fn leave(&mut self, session: SessionId) {
        for contract in self.sessions.remove(&session).into_iter().flatten() {
            self.remove_holder(session, &contract);
        }
    }

    fn remove_holder(&mut self, session: SessionId, contract: &Channel) {
        let Some(entry) = self.contracts.get_mut(contract) else { return };
        let Some(Holder { key, .. }) = entry.holders.remove(&session) else { return };
        entry.remove_client(&key);
        let (clients, is_last) = (entry.clients(&key), entry.holders.is_empty());
        if is_last {
            self.contracts.remove(contract);
            self.unanswered.remove(contract);
        }
        if !self.asked || !self.is_on_demand(contract) {
            return;
        }
        if clients > 0 {
            self.recounts.insert((key, contract.clone()));
            return;
        }
        self.recounts.remove(&(Arc::clone(&key), contract.clone()));
        let leaving = self.leaving.entry(contract.clone()).or_default();
        leaving.unanswered += 1;
        if is_last {
            leaving.outdated = leaving.unanswered;
        }
        self.request(false, OnBehalfOf { key, clients: 1 }, contract);
    }

    /// The firehose subscribed or refused a contract. Returns the sessions to tell.
    pub fn on_answer(&mut self, contract: &Channel, granted: bool) -> Vec<SessionId> {
        if self.leaving.get(contract).is_some_and(|leaving| leaving.outdated > 0) {
            return Vec::new();
        }
        self.set_answer(contract, granted)
    }

    /// The firehose has not answered for a contract in time. Returns the sessions to tell.
    pub fn on_no_answer(&mut self, contract: &Channel) -> Vec<SessionId> {
        self.set_answer(contract, false)
    }

    fn set_answer(&mut self, contract: &Channel, granted: bool) -> Vec<SessionId> {
        self.unanswered.remove(contract);
        let Some(entry) = self.contracts.get_mut(contract) else { return Vec::new() };
        entry.granted = granted;
        let last_answer = if granted { LastAnswer::Subscribed } else { LastAnswer::Refused };
        let changed = entry.holders.iter_mut().filter_map(|(session, holder)| {
            (std::mem::replace(&mut holder.last_answer, last_answer) != last_answer)
                .then_some(*session)
        });
        changed.collect()
    }

    /// The firehose unsubscribed a contract for one key.
    pub fn on_unsubscribed(&mut self, contract: &Channel) {
        if let Entry::Occupied(mut leaving) = self.leaving.entry(contract.clone()) {
            let Leaving { unanswered, outdated } = leaving.get_mut();
            (*unanswered, *outdated) = (*unanswered - 1, outdated.saturating_sub(1));
            if *unanswered == 0 {
                leaving.remove();
            }
        }
    }

    /// The connection to the firehose is lost.
    pub fn on_down(&mut self) {
        (self.outage, self.asked) = (true, false);
        self.contracts.values_mut().for_each(|contract| contract.granted = false);
        self.unanswered.clear();
        self.leaving.clear();
        self.recounts.clear();
        self.requests.clear();
    }

    /// Everything wanted arrives.
    pub fn on_up(&mut self) {
        self.outage = false;
    }

    /// Whether the end of an outage has to wait for the firehose's answers.
    pub fn awaits_answers(&self) -> bool {
        let asked_soon = !self.asked && !self.contracts.is_empty();
        asked_soon || !self.unanswered.is_empty()
    }

    /// The contracts that the firehose has yet to answer for. The end of an outage waits for them
    /// no more.
    pub fn take_unanswered(&mut self) -> BTreeSet<Channel> {
        std::mem::take(&mut self.unanswered)
    }

    /// The firehose said which types it serves on demand. Asks for their contracts, if that is new.
    /// Those of most clients come first. Returns whose contracts are subscribed because they are
    /// not served on demand any more.
    pub fn on_coverage(&mut self, on_demand: &BTreeSet<Kind>) -> Vec<(SessionId, Channel)> {
        let changed = self.on_demand != *on_demand;
        if self.asked && !changed {
            return Vec::new();
        }
        self.on_demand.clone_from(on_demand);
        self.asked = true;
        self.recounts.clear();
        // A request has no order within. So each holds contracts of equally many clients.
        let mut by_key = BTreeMap::<(Arc<str>, Reverse<usize>, u32), Vec<Channel>>::new();
        let mut subscribed = Vec::new();
        for (contract, entry) in &mut self.contracts {
            if contract.kind().is_some_and(|kind| on_demand.contains(&kind)) {
                self.unanswered.insert(contract.clone());
                for (key, clients) in &entry.clients {
                    let request = (Arc::clone(key), Reverse(entry.holders.len()), *clients);
                    by_key.entry(request).or_default().push(contract.clone());
                }
                continue;
            }
            for (session, holder) in &mut entry.holders {
                if std::mem::replace(&mut holder.last_answer, LastAnswer::Subscribed)
                    != LastAnswer::Subscribed
                {
                    subscribed.push((*session, contract.clone()));
                }
            }
        }
        for ((key, _, clients), contracts) in by_key {
            self.subscribe_all(&OnBehalfOf { key, clients }, &contracts);
        }
        subscribed
    }

    /// Whether the firehose is to learn of changed numbers of clients. They decide the order in
    /// which it asks the vendor after it has lost the vendor, so they may be a second old.
    pub fn has_recounts(&self) -> bool {
        !self.recounts.is_empty()
    }

    /// Sends the firehose the numbers of clients that have changed.
    pub fn request_recounts(&mut self) {
        let mut by_count = BTreeMap::<(Arc<str>, u32), Vec<Channel>>::new();
        for (key, contract) in std::mem::take(&mut self.recounts) {
            let Some(entry) = self.contracts.get(&contract) else { continue };
            let clients = entry.clients(&key);
            by_count.entry((key, clients)).or_default().push(contract);
        }
        for ((key, clients), contracts) in by_count {
            self.subscribe_all(&OnBehalfOf { key, clients }, &contracts);
        }
    }

    fn subscribe_all(&mut self, on_behalf_of: &OnBehalfOf, contracts: &[Channel]) {
        for contracts in contracts.chunks(BATCH) {
            let (on_behalf_of, contracts) = (on_behalf_of.clone(), contracts.to_vec());
            self.requests.push(Request { subscribe: true, on_behalf_of, contracts });
        }
    }

    fn request(&mut self, subscribe: bool, on_behalf_of: OnBehalfOf, contract: &Channel) {
        match self.requests.last_mut() {
            Some(last)
                if last.subscribe == subscribe
                    && last.on_behalf_of == on_behalf_of
                    && last.contracts.len() < BATCH =>
            {
                last.contracts.push(contract.clone());
            }
            _ => {
                let contracts = vec![contract.clone()];
                self.requests.push(Request { subscribe, on_behalf_of, contracts });
            }
        }
    }

    /// What to ask of the firehose, in order.
    pub fn take_requests(&mut self) -> Vec<Request> {
        std::mem::take(&mut self.requests)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contract(symbol: &str) -> Channel {
        Channel::Symbol(Kind::Q, symbol.into())
    }

    /// Contracts of a firehose that serves quotes on demand and delivers everything asked for.
    fn up() -> Contracts {
        let mut contracts = Contracts::new(Market::Options);
        assert!(contracts.on_coverage(&BTreeSet::from([Kind::Q])).is_empty());
        contracts.on_up();
        contracts
    }

    fn requests(contracts: &mut Contracts) -> Vec<String> {
        let shown = |request: Request| {
            let sign = if request.subscribe { '+' } else { '-' };
            let names: Vec<_> = request.contracts.iter().map(ToString::to_string).collect();
            let OnBehalfOf { key, clients } = request.on_behalf_of;
            let clients = if clients == 1 { String::new() } else { format!(" for {clients}") };
            format!("{sign}{key} {}{clients}", names.join(","))
        };
        contracts.take_requests().into_iter().map(shown).collect()
    }

    #[test]
    fn a_contract_is_asked_for_once_for_each_key_and_given_up_with_its_last_holder() {
        let (mut contracts, a, b) = (up(), "a".into(), "b".into());
        let (x, y) = (contract("X"), contract("Y"));
        assert!(!contracts.subscribe(1, &a, &x) && !contracts.subscribe(1, &a, &y));
        assert_eq!(requests(&mut contracts), ["+a Q.X,Q.Y"]);
        assert_eq!(contracts.on_answer(&x, true), [1]);
        assert!(contracts.on_answer(&x, true).is_empty(), "told once");
        assert!(contracts.subscribe(2, &a, &x), "at once");
        assert!(requests(&mut contracts).is_empty(), "the key has it");
        assert!(contracts.subscribe(3, &b, &x));
        assert_eq!(requests(&mut contracts), ["+b Q.X"], "it counts for this key too");
        contracts.leave(1);
        assert_eq!(requests(&mut contracts), ["-a Q.Y"]);
        contracts.unsubscribe(3, &x);
        contracts.unsubscribe(2, &x);
        contracts.unsubscribe(2, &x);
        assert_eq!(requests(&mut contracts), ["-b Q.X", "-a Q.X"]);
        assert!(contracts.on_answer(&x, true).is_empty(), "nobody holds it");
        assert!(contracts.contracts.is_empty() && contracts.sessions.is_empty());
    }

    #[test]
    fn whoever_waits_is_told_at_once_and_when_it_gets_in_or_out() {
        let (mut contracts, a) = (up(), "a".into());
        let x = contract("X");
        contracts.subscribe(1, &a, &x);
        assert_eq!(contracts.on_answer(&x, false), [1]);
        requests(&mut contracts);
        assert!(!contracts.subscribe(2, &a, &x));
        assert_eq!(requests(&mut contracts), ["+a Q.X for 2"], "asked for the place of today");
        assert_eq!(contracts.on_answer(&x, false), [2]);
        assert_eq!(contracts.on_answer(&x, true), [1, 2]);
        assert_eq!(contracts.on_answer(&x, false), [1, 2], "it lost its room");
    }

    #[test]
    fn the_firehose_learns_how_many_clients_hold_a_contract() {
        let (mut contracts, a, b) = (up(), "a".into(), "b".into());
        let (x, y) = (contract("X"), contract("Y"));
        for session in 1..=3 {
            contracts.subscribe(session, &a, &x);
            contracts.on_answer(&x, true);
        }
        contracts.subscribe(3, &a, &x);
        contracts.subscribe(4, &b, &x);
        contracts.subscribe(4, &b, &y);
        assert_eq!(requests(&mut contracts), ["+a Q.X", "+b Q.X,Q.Y"]);
        let recounts = |contracts: &mut Contracts| {
            assert!(contracts.has_recounts());
            contracts.request_recounts();
            assert!(!contracts.has_recounts());
            requests(contracts)
        };
        assert_eq!(recounts(&mut contracts), ["+a Q.X for 3"]);
        contracts.leave(1);
        assert!(requests(&mut contracts).is_empty());
        assert_eq!(recounts(&mut contracts), ["+a Q.X for 2"]);
        contracts.leave(2);
        contracts.leave(3);
        assert_eq!(requests(&mut contracts), ["-a Q.X"]);
        assert!(!contracts.has_recounts());
    }

    #[test]
    fn an_answer_to_an_earlier_request_is_none_to_a_later_one() {
        let (mut contracts, a, b) = (up(), "a".into(), "b".into());
        let x = contract("X");
        contracts.subscribe(1, &a, &x);
        contracts.subscribe(1, &b, &x);
        contracts.subscribe(2, &b, &x);
        contracts.leave(2);
        contracts.leave(1);
        contracts.subscribe(3, &a, &x);
        assert_eq!(requests(&mut contracts).len(), 5);
        assert!(contracts.on_answer(&x, true).is_empty(), "of the first request");
        contracts.on_unsubscribed(&x);
        assert!(contracts.on_answer(&x, false).is_empty(), "the first client still held it");
        assert_eq!(contracts.on_no_answer(&x), [3], "an outage ends without an answer");
        contracts.on_unsubscribed(&x);
        assert_eq!(contracts.on_answer(&x, true), [3]);
        assert!(contracts.leaving.is_empty() && !contracts.awaits_answers());
        // An unsubscription for one of two keys makes no answer outdated.
        contracts.subscribe(4, &b, &x);
        contracts.leave(4);
        assert_eq!(contracts.on_answer(&x, false), [3]);
    }

    #[test]
    fn after_a_reconnect_the_contracts_of_most_clients_are_asked_for_first() {
        let (mut contracts, a, b) = (up(), "a".into(), "b".into());
        for (session, symbols) in [(1, "XYZ"), (2, "Z"), (3, "YZ")] {
            for symbol in symbols.chars() {
                let key = if session == 2 { &b } else { &a };
                contracts.subscribe(session, key, &contract(&symbol.to_string()));
            }
        }
        for symbol in ["X", "Y", "Z"] {
            contracts.on_answer(&contract(symbol), true);
        }
        contracts.on_down();
        // During an outage a contract is acknowledged at once, as the notice covers it.
        assert!(contracts.subscribe(4, &a, &contract("W")));
        contracts.unsubscribe(1, &contract("X"));
        assert!(requests(&mut contracts).is_empty() && contracts.awaits_answers());
        contracts.on_coverage(&BTreeSet::from([Kind::Q]));
        assert_eq!(requests(&mut contracts), ["+a Q.Z for 2", "+a Q.Y for 2", "+a Q.W", "+b Q.Z"]);
        for symbol in ["Z", "Y"] {
            assert!(contracts.on_answer(&contract(symbol), true).is_empty(), "nothing new");
        }
        assert!(contracts.awaits_answers());
        assert_eq!(contracts.on_answer(&contract("W"), false), [4]);
        assert!(!contracts.awaits_answers());
    }

    #[test]
    fn contracts_are_asked_for_only_if_the_firehose_serves_them_on_demand() {
        let (mut contracts, a) = (Contracts::new(Market::Options), "a".into());
        let x = contract("X");
        assert!(contracts.includes(&x) && !contracts.includes(&Channel::Kind(Kind::Q)));
        assert!(!contracts.includes(&Channel::Symbol(Kind::T, "X".into())));
        assert!(contracts.subscribe(1, &a, &x), "not known yet");
        // An earlier firehose.
        contracts.on_coverage(&BTreeSet::new());
        contracts.on_up();
        assert!(requests(&mut contracts).is_empty() && !contracts.awaits_answers());
        assert!(contracts.subscribe(2, &a, &x));
        // A later one.
        contracts.on_coverage(&BTreeSet::from([Kind::Q]));
        assert_eq!(requests(&mut contracts), ["+a Q.X for 2"]);
        assert_eq!(contracts.on_answer(&x, false), [1, 2]);
        // And an earlier one again.
        let subscribed = contracts.on_coverage(&BTreeSet::new());
        assert_eq!(subscribed, [(1, x.clone()), (2, x)]);
    }
}
