//! Contracts on demand: who gets the room that the vendor gives for kinds without a wildcard, such
//! as option quotes. Pure: time is an argument.
//!
//! The contracts of a kind have one order. The keys take turns, each with its own contracts in the
//! order in which it asked for them. The first contracts of this order, as many as there is room
//! for, are asked of the vendor; the others wait. So a key with few contracts does not wait for a
//! key with many, and the place of a contract depends on nothing but who asked for what, and when.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use proxy_common::{
    link::SubscriptionOutcome,
    protocol::{Channel, Kind, OnBehalfOf, truncate_reason},
};
use slab::Slab;

/// After the vendor had less room than was known, how long until the firehose tries the whole room
/// again.
const RETRY_ROOM: Duration = Duration::from_secs(60);

/// Where a contract stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It has room; the vendor has yet to answer.
    Asked,
    /// The vendor sends its events; during an outage, it will once the outage is over.
    Granted,
    /// There is no room.
    Waiting {
        /// Its place in the queue; the next one to get room has place 1.
        place: usize,
        /// How many contracts there is room for.
        room: usize,
    },
    /// The vendor refuses it, for this reason.
    Refused(Arc<str>),
}

/// The numbers of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Occupancy {
    /// Contracts asked of the vendor. Those that linger are among them.
    pub held: usize,
    /// Contracts that the vendor serves, as far as is known.
    pub room: usize,
    /// Contracts that wait for room.
    pub waiting: usize,
}

/// A contract as a session sees it.
#[derive(Debug)]
pub struct View<'a> {
    /// Where it stands.
    pub standing: &'a Standing,
    /// Another number each time after the contract was not served.
    pub admission: u64,
    /// How much of the data a session must have read before [`Standing::Granted`] holds for it.
    pub granted_at: u64,
    /// How many contracts there is room for.
    pub room: usize,
}

/// The contracts that sessions hold.
#[derive(Debug)]
pub struct Contracts {
    books: BTreeMap<Kind, Book>,
    /// Since where in the data events may be missing anyway. A contract with room then counts as
    /// granted at once.
    outage: Option<u64>,
    /// Changes when contracts lose their room, or get it during an outage.
    version: u64,
    /// Changes with what is wanted.
    wanted_version: u64,
}

/// The contracts of one kind.
#[derive(Debug)]
struct Book {
    /// The room of each connection that shares these contracts.
    rooms: Vec<Room>,
    /// The number of the first of these connections.
    first: usize,
    linger: Duration,
    contracts: Slab<Contract>,
    /// Where each contract is.
    ids: BTreeMap<Channel, usize>,
    keys: BTreeMap<Arc<str>, KeyContracts>,
    /// How often anyone has asked.
    asked: u64,
    /// Contracts to ask of the vendor.
    wanted: Vec<Admitted>,
    /// How often a contract was given room.
    admissions: u64,
    waiting: usize,
    /// Whether anything has changed on which the order, the room or what is wanted depends. The
    /// vendor's acknowledgements are the most frequent change, and change none of these.
    allocation_due: bool,
}

/// The room of one connection.
#[derive(Debug, Clone, Copy)]
struct Room {
    contracts: usize,
    /// A smaller room, which the vendor showed, and until when it counts.
    lowered: Option<(usize, Instant)>,
}

/// A contract that has room.
#[derive(Debug, PartialEq, Eq)]
struct Admitted {
    contract: Channel,
    /// The number of its admission.
    number: u64,
    /// Its connection, counted from the first that shares the contracts.
    connection: usize,
}

/// The contracts of one key, in the order in which it asked for them.
#[derive(Debug)]
struct KeyContracts {
    /// When the key first asked.
    since: u64,
    contracts: BTreeMap<u64, usize>,
}

#[derive(Debug)]
struct Contract {
    channel: Channel,
    claims: BTreeMap<Arc<str>, Claim>,
    /// The operator's own choice for `*`. It goes before all others.
    pinned: bool,
    /// Without a holder it stays until then, while there is room.
    lingers_until: Option<Instant>,
    standing: Standing,
    /// Another number each time after it was not served.
    admission: u64,
    /// Its last connection, counted from the first that shares the contracts.
    connection: Option<usize>,
    /// Whether the vendor has taken it on this connection, since this admission.
    confirmed: bool,
    /// [`View::granted_at`].
    granted_at: u64,
    /// Refused on this connection, so it takes no room.
    excluded: bool,
}

/// What one key asked for.
#[derive(Debug)]
struct Claim {
    asked: u64,
    /// How many clients each session asks for.
    sessions: BTreeMap<u64, u32>,
}

/// What has changed.
struct Reallocated {
    standings: bool,
    wanted: bool,
}

impl Contract {
    fn holders(&self) -> u64 {
        let clients = self.claims.values().flat_map(|claim| claim.sessions.values());
        clients.map(|clients| u64::from(*clients)).sum()
    }

    /// Whether it was granted because of an outage, and the vendor has yet to answer.
    fn is_late(&self) -> bool {
        self.standing == Standing::Granted && !self.confirmed
    }

    fn is_held(&self) -> bool {
        self.pinned || !self.claims.is_empty()
    }
}

impl Contracts {
    /// Starts without a contract, in an outage. Contracts of each of these kinds are asked for over
    /// some connections, and each connection has room for this many of each kind. A contract stays
    /// asked for this long after its last holder has left.
    pub fn new(
        kinds: impl IntoIterator<Item = (Kind, Range<usize>)>,
        room: usize,
        linger: Duration,
    ) -> Self {
        let book = |(kind, connections)| (kind, Book::new(connections, room, linger));
        let books = kinds.into_iter().map(book).collect();
        Self { books, outage: Some(0), version: 0, wanted_version: 0 }
    }

    /// Records that a session asks for contracts, on behalf of this many clients of a key. Asked
    /// again, it replaces their number.
    pub fn add<'a>(
        &mut self,
        session: u64,
        clients: &OnBehalfOf,
        contracts: impl IntoIterator<Item = &'a Channel>,
        now: Instant,
    ) {
        for contract in contracts {
            if let Some(book) = self.book(contract) {
                book.add(session, clients, contract);
            }
        }
        self.allocate(now);
    }

    /// Records that a session asks for these contracts no more, on behalf of a key.
    pub fn remove<'a>(
        &mut self,
        session: u64,
        key: &str,
        contracts: impl IntoIterator<Item = &'a Channel>,
        now: Instant,
    ) {
        for contract in contracts {
            if let Some(book) = self.book(contract) {
                book.remove(session, key, contract, now);
            }
        }
        self.allocate(now);
    }

    /// Sets the contracts that go before all others.
    pub fn pin(&mut self, pinned: &BTreeSet<Channel>, now: Instant) {
        for (kind, book) in &mut self.books {
            book.pin(pinned.iter().filter(|channel| channel.kind() == Some(*kind)));
        }
        self.allocate(now);
    }

    /// Applies the vendor's answers on one connection, which stand at this place in the data.
    /// Returns the contracts for which they are news.
    pub fn on_outcomes(
        &mut self,
        connection: usize,
        outcomes: &[SubscriptionOutcome],
        place: u64,
        now: Instant,
    ) -> Vec<Channel> {
        let mut changed_answers = Vec::new();
        for outcome in outcomes {
            match outcome {
                // A contract without an answer may be served all the same.
                SubscriptionOutcome::Carried(channel)
                | SubscriptionOutcome::Unanswered(channel) => {
                    changed_answers
                        .extend(self.on_taken(connection, channel, place).then(|| channel.clone()));
                }
                SubscriptionOutcome::Refused(channel, why) => {
                    changed_answers
                        .extend(self.on_refused(connection, channel, why).then(|| channel.clone()));
                }
                SubscriptionOutcome::Full(kind, held) => {
                    if let Some(book) = self.books.get_mut(kind) {
                        book.lower(connection, Some((*held, now + RETRY_ROOM)));
                    }
                }
            }
        }
        self.allocate(now);
        changed_answers
    }

    fn on_taken(&mut self, connection: usize, channel: &Channel, place: u64) -> bool {
        let contract = self.book(channel).and_then(|book| book.get_at(connection, channel));
        // An answer that follows a refusal comes too late: the contract is asked for no more.
        let Some(contract) = contract.filter(|contract| !contract.excluded) else { return false };
        match contract.standing {
            Standing::Waiting { .. } => return false,
            Standing::Granted => {
                contract.confirmed = true;
                return false;
            }
            Standing::Asked | Standing::Refused(_) => {}
        }
        (contract.standing, contract.confirmed) = (Standing::Granted, true);
        contract.granted_at = place;
        true
    }

    fn on_refused(&mut self, connection: usize, channel: &Channel, why: &str) -> bool {
        let Some(book) = self.book(channel) else { return false };
        let admission = next(&mut book.admissions);
        let Some(contract) = book.get_at(connection, channel) else { return false };
        contract.admission = admission;
        contract.excluded = true;
        // A contract that only lingers ends.
        contract.lingers_until = None;
        contract.standing = Standing::Refused(truncate_reason(why).into());
        book.allocation_due = true;
        true
    }

    /// A connection is lost, at this place in the data: the next one has the whole room, and
    /// refuses what it refuses.
    pub fn on_down(&mut self, connection: usize, place: u64, now: Instant) {
        // Whatever is granted from now on is granted because of the outage, wherever it began.
        self.outage.get_or_insert(place);
        for book in self.books.values_mut() {
            book.lower(connection, None);
            let of_it = connection.checked_sub(book.first);
            for (_, contract) in &mut book.contracts {
                if contract.connection == of_it {
                    (contract.excluded, contract.confirmed) = (false, false);
                }
            }
        }
        self.allocate(now);
    }

    /// Everything asked for arrives again.
    pub fn on_up(&mut self, now: Instant) {
        if self.outage.take().is_none() {
            return;
        }
        // A contract that was granted because of the outage, and so late that the vendor has yet to
        // answer, is not covered by the outage's end.
        for book in self.books.values_mut() {
            let contracts = book.contracts.iter_mut().map(|(_, contract)| contract);
            for contract in contracts.filter(|contract| contract.is_late()) {
                contract.standing = Standing::Asked;
                contract.admission = next(&mut book.admissions);
                book.allocation_due = true;
                self.version += 1;
            }
        }
        self.allocate(now);
    }

    /// Ends what was to end by now. Call it about once a second.
    pub fn expire(&mut self, now: Instant) {
        self.books.values_mut().for_each(|book| book.expire(now));
        self.allocate(now);
    }

    /// Where a contract stands; `None` if nobody holds it.
    pub fn standing(&self, contract: &Channel) -> Option<&Standing> {
        let contract = self.books.get(&contract.kind()?)?.get(contract)?;
        contract.is_held().then_some(&contract.standing)
    }

    /// The contract as a session sees it; `None` if nobody holds it.
    pub fn view(&self, contract: &Channel) -> Option<View<'_>> {
        let book = self.books.get(&contract.kind()?)?;
        let contract = book.get(contract).filter(|contract| contract.is_held())?;
        let Contract { standing, admission, granted_at, .. } = contract;
        let (admission, granted_at) = (*admission, *granted_at);
        Some(View { standing, admission, granted_at, room: book.current_room() })
    }

    /// A number that changes when contracts lose their room, or get it during an outage. The
    /// vendor's answers are told by [`on_outcomes`](Self::on_outcomes).
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The contracts to ask of the vendor over one connection, each with a number that changes when
    /// it is given room anew. Those of most holders come first; those that only linger come last.
    pub fn wanted(&self, connection: usize) -> Vec<(Channel, u64)> {
        let wanted = self.books.values().flat_map(|book| {
            let of_it = connection.checked_sub(book.first);
            book.wanted.iter().filter(move |admitted| Some(admitted.connection) == of_it)
        });
        wanted.map(|admitted| (admitted.contract.clone(), admitted.number)).collect()
    }

    /// A number that changes with what [`wanted`](Self::wanted) returns.
    pub fn wanted_version(&self) -> u64 {
        self.wanted_version
    }

    /// The numbers of each kind.
    pub fn occupancy(&self) -> impl Iterator<Item = (Kind, Occupancy)> {
        self.books.iter().map(|(kind, book)| {
            let (held, room, waiting) = (book.wanted.len(), book.current_room(), book.waiting);
            (*kind, Occupancy { held, room, waiting })
        })
    }

    fn book(&mut self, contract: &Channel) -> Option<&mut Book> {
        self.books.get_mut(&contract.kind()?)
    }

    /// Gives the room to the first contracts of each order.
    fn allocate(&mut self, now: Instant) {
        for book in self.books.values_mut().filter(|book| book.allocation_due) {
            let Reallocated { standings, wanted } = book.allocate(self.outage, now);
            self.version += u64::from(standings);
            self.wanted_version += u64::from(wanted);
        }
    }
}

impl Book {
    fn new(connections: Range<usize>, room: usize, linger: Duration) -> Self {
        Self {
            first: connections.start,
            rooms: vec![Room { contracts: room, lowered: None }; connections.len()],
            linger,
            contracts: Slab::new(),
            ids: BTreeMap::new(),
            keys: BTreeMap::new(),
            asked: 0,
            wanted: Vec::new(),
            admissions: 0,
            waiting: 0,
            allocation_due: false,
        }
    }

    fn current_room(&self) -> usize {
        self.rooms.iter().map(Room::current).sum()
    }

    /// Sets the smaller room of a connection, if it is one of these.
    fn lower(&mut self, connection: usize, lowered: Option<(usize, Instant)>) {
        let of_it = connection.checked_sub(self.first);
        if let Some(room) = of_it.and_then(|of_it| self.rooms.get_mut(of_it)) {
            (room.lowered, self.allocation_due) = (lowered, true);
        }
    }

    fn get(&self, channel: &Channel) -> Option<&Contract> {
        self.contracts.get(*self.ids.get(channel)?)
    }

    fn get_mut(&mut self, channel: &Channel) -> Option<&mut Contract> {
        self.contracts.get_mut(*self.ids.get(channel)?)
    }

    /// A contract, if it is asked for over this connection. An answer of another one is too late.
    fn get_at(&mut self, connection: usize, channel: &Channel) -> Option<&mut Contract> {
        let of_it = connection.checked_sub(self.first);
        self.get_mut(channel).filter(|contract| contract.connection == of_it)
    }

    fn entry(&mut self, channel: &Channel) -> usize {
        if let Some(id) = self.ids.get(channel) {
            return *id;
        }
        let id = self.contracts.insert(Contract {
            channel: channel.clone(),
            claims: BTreeMap::new(),
            pinned: false,
            lingers_until: None,
            // Set by `allocate`.
            standing: Standing::Waiting { place: 0, room: 0 },
            admission: 0,
            connection: None,
            confirmed: false,
            granted_at: 0,
            excluded: false,
        });
        self.ids.insert(channel.clone(), id);
        id
    }

    fn retain(&mut self, keep: impl Fn(&Contract) -> bool) {
        self.contracts.retain(|_, contract| {
            let keeps = keep(contract);
            if !keeps {
                self.ids.remove(&contract.channel);
            }
            keeps
        });
    }

    fn drop_contract(&mut self, id: usize) {
        let contract = self.contracts.remove(id);
        self.ids.remove(&contract.channel);
    }

    fn add(&mut self, session: u64, clients: &OnBehalfOf, channel: &Channel) {
        let OnBehalfOf { key, clients } = clients;
        let (asked, id) = (next(&mut self.asked), self.entry(channel));
        let contract = &mut self.contracts[id];
        if let Some(claim) = contract.claims.get_mut(key) {
            self.allocation_due |= claim.sessions.insert(session, *clients) != Some(*clients);
            return;
        }
        contract.lingers_until = None;
        contract.claims.insert(
            Arc::clone(key),
            Claim { asked, sessions: BTreeMap::from([(session, *clients)]) },
        );
        let none = KeyContracts { since: asked, contracts: BTreeMap::new() };
        let of_key = self.keys.entry(Arc::clone(key)).or_insert(none);
        of_key.contracts.insert(asked, id);
        self.allocation_due = true;
    }

    fn remove(&mut self, session: u64, key: &str, channel: &Channel, now: Instant) {
        let Some(&id) = self.ids.get(channel) else { return };
        let contract = &mut self.contracts[id];
        let Some(claim) = contract.claims.get_mut(key) else { return };
        self.allocation_due |= claim.sessions.remove(&session).is_some();
        if !claim.sessions.is_empty() {
            return;
        }
        let asked = claim.asked;
        contract.claims.remove(key);
        if let Some(of_key) = self.keys.get_mut(key) {
            of_key.contracts.remove(&asked);
            if of_key.contracts.is_empty() {
                self.keys.remove(key);
            }
        }
        self.let_go(id, now);
    }

    /// Lets a contract that nobody holds any more linger, if the vendor may be sending it.
    fn let_go(&mut self, id: usize, now: Instant) {
        let contract = &mut self.contracts[id];
        if contract.is_held() {
            return;
        }
        match contract.standing {
            Standing::Granted | Standing::Asked => contract.lingers_until = Some(now + self.linger),
            Standing::Waiting { .. } | Standing::Refused(_) => self.drop_contract(id),
        }
    }

    fn pin<'a>(&mut self, pinned: impl Iterator<Item = &'a Channel>) {
        let pinned: BTreeSet<&Channel> = pinned.collect();
        let before = self.contracts.iter().filter(|(_, contract)| contract.pinned);
        if before.map(|(_, contract)| &contract.channel).collect::<BTreeSet<_>>() == pinned {
            return;
        }
        self.allocation_due = true;
        for (_, contract) in &mut self.contracts {
            contract.pinned = pinned.contains(&contract.channel);
        }
        self.retain(|contract| contract.is_held() || contract.lingers_until.is_some());
        for channel in pinned {
            let id = self.entry(channel);
            let contract = &mut self.contracts[id];
            (contract.pinned, contract.lingers_until) = (true, None);
        }
    }

    fn expire(&mut self, now: Instant) {
        let before = self.contracts.len();
        self.retain(|contract| {
            contract.is_held() || contract.lingers_until.is_some_and(|until| now < until)
        });
        self.allocation_due |= self.contracts.len() != before;
        for room in &mut self.rooms {
            self.allocation_due |= room.lowered.take_if(|(_, until)| *until <= now).is_some();
        }
    }

    fn allocate(&mut self, outage: Option<u64>, now: Instant) -> Reallocated {
        self.expire(now);
        self.allocation_due = false;
        let (room, order) = (self.current_room(), self.order());
        let (inside, waiting) = order.split_at(room.min(order.len()));
        let mut changed = false;
        for id in inside {
            let contract = &mut self.contracts[*id];
            if contract.admit(outage) {
                contract.admission = next(&mut self.admissions);
                changed |= outage.is_some();
            }
        }
        for (place, id) in (1..).zip(waiting) {
            changed |= self.contracts[*id].queue(Standing::Waiting { place, room });
        }
        self.waiting = waiting.len();
        // Contracts that linger give way first, and those that will end soonest before the others.
        let lingering = |(id, contract): (usize, &Contract)| {
            contract.lingers_until.map(|until| (Reverse(until), contract.channel.clone(), id))
        };
        let mut lingering: Vec<_> = self.contracts.iter().filter_map(lingering).collect();
        lingering.sort();
        for (.., id) in lingering.drain((room - inside.len()).min(lingering.len())..) {
            self.drop_contract(id);
        }
        let mut wanted = inside.to_vec();
        wanted.sort_by_cached_key(|id| Reverse(self.contracts[*id].holders()));
        wanted.extend(lingering.into_iter().map(|(.., id)| id));
        changed |= self.spread(&wanted, outage);
        let is_same = |(id, before): (&usize, &Admitted)| {
            let Contract { channel, admission, connection, .. } = &self.contracts[*id];
            (channel, *admission, *connection)
                == (&before.contract, before.number, Some(before.connection))
        };
        let wanted_changed =
            wanted.len() != self.wanted.len() || !wanted.iter().zip(&self.wanted).all(is_same);
        if wanted_changed {
            let admitted = |id: &usize| {
                let Contract { channel, admission, connection, .. } = &self.contracts[*id];
                let (contract, connection) = (channel.clone(), connection.unwrap_or_default());
                Admitted { contract, number: *admission, connection }
            };
            self.wanted = wanted.iter().map(admitted).collect();
        }
        Reallocated { standings: changed, wanted: wanted_changed }
    }

    /// Gives each of these contracts, for which there is room, a connection. A contract stays where
    /// it is as long as that connection has room; those that arrive already go first. Returns
    /// whether the standing of any has changed: one that moves is asked for anew.
    fn spread(&mut self, wanted: &[usize], outage: Option<u64>) -> bool {
        let mut free: Vec<usize> = self.rooms.iter().map(Room::current).collect();
        let (mut placed, mut changed) = (vec![false; wanted.len()], false);
        for arrives in [true, false] {
            for (id, placed) in wanted.iter().zip(&mut placed) {
                let contract = &self.contracts[*id];
                if let Some(at) = contract.connection
                    && contract.confirmed == arrives
                    && free[at] > 0
                {
                    free[at] -= 1;
                    *placed = true;
                }
            }
        }
        for (id, _) in wanted.iter().zip(placed).filter(|(_, placed)| !placed) {
            let most = (0..free.len()).rev().max_by_key(|&at| free[at]).unwrap_or_default();
            free[most] -= 1;
            let contract = &mut self.contracts[*id];
            let moves = contract.connection.replace(most).is_some_and(|before| before != most);
            if moves && contract.leave_connection(outage) {
                contract.admission = next(&mut self.admissions);
                changed = true;
            }
        }
        changed
    }

    /// All contracts held that the vendor does not refuse, in the order in which they get room.
    fn order(&self) -> Vec<usize> {
        let mut seen = vec![false; self.contracts.capacity()];
        for (id, contract) in &self.contracts {
            seen[id] = contract.pinned || contract.excluded;
        }
        let is_pinned = |id: &usize| self.contracts[*id].pinned && !self.contracts[*id].excluded;
        let mut order: Vec<usize> = match seen.contains(&true) {
            true => self.ids.values().copied().filter(is_pinned).collect(),
            false => Vec::new(),
        };
        let mut round: Vec<&KeyContracts> = self.keys.values().collect();
        round.sort_by_key(|of_key| of_key.since);
        let mut round: VecDeque<_> =
            round.into_iter().map(|of_key| of_key.contracts.values()).collect();
        while let Some(mut contracts) = round.pop_front() {
            if let Some(next) = contracts.find(|id| !std::mem::replace(&mut seen[**id], true)) {
                order.push(*next);
                round.push_back(contracts);
            }
        }
        order
    }
}

/// The next number of a count.
fn next(count: &mut u64) -> u64 {
    *count += 1;
    *count
}

impl Room {
    fn current(&self) -> usize {
        self.lowered.map_or(self.contracts, |(lowered, _)| lowered.min(self.contracts))
    }
}

impl Contract {
    /// Gives it room. Returns whether its standing has changed.
    fn admit(&mut self, outage: Option<u64>) -> bool {
        match (&self.standing, outage) {
            // Until the vendor answers again.
            (Standing::Refused(_) | Standing::Granted, _) | (Standing::Asked, None) => {
                return false;
            }
            (Standing::Waiting { .. }, None) => self.standing = Standing::Asked,
            (Standing::Asked | Standing::Waiting { .. }, Some(place)) => {
                (self.standing, self.granted_at) = (Standing::Granted, place);
            }
        }
        self.confirmed = false;
        true
    }

    /// It is asked for over another connection from now on. Returns whether events may be missing
    /// meanwhile, and no outage covers that.
    fn leave_connection(&mut self, outage: Option<u64>) -> bool {
        self.confirmed = false;
        let granted = self.standing == Standing::Granted && outage.is_none();
        if granted {
            self.standing = Standing::Asked;
        }
        granted
    }

    /// Lets it wait. Returns whether it had room.
    fn queue(&mut self, standing: Standing) -> bool {
        let had_room = match self.standing {
            Standing::Refused(_) => return false,
            Standing::Waiting { .. } => false,
            Standing::Asked | Standing::Granted => true,
        };
        self.standing = standing;
        had_room
    }
}
