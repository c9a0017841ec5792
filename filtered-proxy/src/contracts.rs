//! The contracts that clients hold: for which keys, what the firehose answers, and what to ask of
//! it. Pure.
//!
//! Only contracts of types that the firehose serves on demand are asked of it. Until it has said
//! which types these are, contracts are kept all the same, because they may have to be asked for.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use proxy_common::protocol::{Channel, Kind, Market};

use crate::index::SessionId;

/// The most contracts in one request to the firehose.
const BATCH: usize = 500;

/// A request to the firehose.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// Whether to subscribe or to unsubscribe.
    pub subscribe: bool,
    /// The label of the key for which.
    pub key: Arc<str>,
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
    requests: Vec<Request>,
}

#[derive(Debug, Default)]
struct Contract {
    holders: BTreeMap<SessionId, Holder>,
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
    fn holds(&self, key: &str) -> bool {
        self.holders.values().any(|holder| &*holder.key == key)
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
        let is_new_for_key = !entry.holds(key);
        let now = !on_demand || self.outage || entry.granted;
        let last_answer = if now { LastAnswer::Subscribed } else { LastAnswer::Nothing };
        // A session keeps the key with which it first asked.
        let holder =
            entry.holders.entry(session).or_insert(Holder { key: Arc::clone(key), last_answer });
        holder.last_answer = last_answer;
        let (key, granted) = (Arc::clone(&holder.key), entry.granted);
        self.sessions.entry(session).or_default().insert(contract.clone());
        // The firehose repeats its answer if it is asked again.
        if on_demand && self.asked && (is_new_for_key || !granted) {
            if !granted {
                self.unanswered.insert(contract.clone());
            }
            self.request(true, &key, contract);
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

    /// Removes all contracts of a session.
    pub fn leave(&mut self, session: SessionId) {
        for contract in self.sessions.remove(&session).into_iter().flatten() {
            self.remove_holder(session, &contract);
        }
    }

    fn remove_holder(&mut self, session: SessionId, contract: &Channel) {
        let Some(entry) = self.contracts.get_mut(contract) else { return };
        let Some(Holder { key, .. }) = entry.holders.remove(&session) else { return };
        let last_of_key = !entry.holds(&key);
        if entry.holders.is_empty() {
            self.contracts.remove(contract);
            self.unanswered.remove(contract);
        }
        if last_of_key && self.asked && self.is_on_demand(contract) {
            self.request(false, &key, contract);
        }
    }

    /// The firehose subscribed or refused a contract. Returns the sessions to tell.
    pub fn on_answer(&mut self, contract: &Channel, granted: bool) -> Vec<SessionId> {
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

    /// The connection to the firehose is lost.
    pub fn on_down(&mut self) {
        (self.outage, self.asked) = (true, false);
        self.contracts.values_mut().for_each(|contract| contract.granted = false);
        self.unanswered.clear();
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
        let mut asked: Vec<(usize, &Channel, BTreeSet<Arc<str>>)> = Vec::new();
        let mut subscribed = Vec::new();
        for (contract, entry) in &mut self.contracts {
            if contract.kind().is_some_and(|kind| on_demand.contains(&kind)) {
                let keys = entry.holders.values().map(|holder| Arc::clone(&holder.key)).collect();
                asked.push((entry.holders.len(), contract, keys));
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
        // A request has no order within. So each holds contracts of equally many clients.
        let mut by_key = BTreeMap::<(Arc<str>, Reverse<usize>), Vec<Channel>>::new();
        for (holders, contract, keys) in asked {
            self.unanswered.insert(contract.clone());
            for key in keys {
                by_key.entry((key, Reverse(holders))).or_default().push(contract.clone());
            }
        }
        for ((key, _), contracts) in by_key {
            for contracts in contracts.chunks(BATCH) {
                let (key, contracts) = (Arc::clone(&key), contracts.to_vec());
                self.requests.push(Request { subscribe: true, key, contracts });
            }
        }
        subscribed
    }

    fn request(&mut self, subscribe: bool, key: &Arc<str>, contract: &Channel) {
        match self.requests.last_mut() {
            Some(last)
                if last.subscribe == subscribe
                    && last.key == *key
                    && last.contracts.len() < BATCH =>
            {
                last.contracts.push(contract.clone());
            }
            _ => {
                let (key, contracts) = (Arc::clone(key), vec![contract.clone()]);
                self.requests.push(Request { subscribe, key, contracts });
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
            format!("{sign}{} {}", request.key, names.join(","))
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
        assert_eq!(requests(&mut contracts), ["+a Q.X"], "asked for the place of today");
        assert_eq!(contracts.on_answer(&x, false), [2]);
        assert_eq!(contracts.on_answer(&x, true), [1, 2]);
        assert_eq!(contracts.on_answer(&x, false), [1, 2], "it lost its room");
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
        assert_eq!(requests(&mut contracts), ["+a Q.Z", "+a Q.Y", "+a Q.W", "+b Q.Z"]);
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
        assert_eq!(requests(&mut contracts), ["+a Q.X"]);
        assert_eq!(contracts.on_answer(&x, false), [1, 2]);
        // And an earlier one again.
        let subscribed = contracts.on_coverage(&BTreeSet::new());
        assert_eq!(subscribed, [(1, x.clone()), (2, x)]);
    }
}
