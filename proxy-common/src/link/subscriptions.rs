//! The channels wanted from an upstream, and its answers to the subscriptions. Pure: the connection
//! feeds it statuses and sends its requests.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::status::ChannelStatus;
use crate::protocol::{Channel, Kind, UpstreamStatus};

/// What a link should subscribe to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Channels of which an upstream serves any number.
    pub channels: BTreeSet<Channel>,
    /// Contracts of kinds of which the vendor serves a limited number. Those to ask for first come
    /// first. The number of a contract is another one each time it is wanted anew. It then gets a
    /// new outcome, even if the link has not seen that it was not wanted for a moment.
    pub contracts: Vec<(Channel, u64)>,
}

/// How long an upstream may take to answer a subscription before the next one is sent.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The most symbols in one request.
const BATCH: usize = 500;
/// The most contracts in one request.
const CONTRACT_BATCH: usize = 200;
/// How the vendor begins its refusal of contracts for want of room (measured).
const LIMIT_REACHED: &str = "Subscription limit reached";
/// A refusal for want of room comes as several statuses, fewer than the request has items. It is
/// over when none has come for this long.
const BURST_PAUSE: Duration = Duration::from_millis(300);

/// The upstream's answer to a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Carried,
    Refused,
    /// No answer came in time. The vendor does not answer for types that it does not know.
    Unanswered,
}

/// A request to send upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `subscribe` or `unsubscribe`.
    pub action: &'static str,
    /// The channels, separated by commas.
    pub params: String,
}

/// The outcome of a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubscriptionOutcome {
    /// The upstream carries this channel.
    Carried(Channel),
    /// The upstream refuses this channel, for this reason.
    Refused(Channel, String),
    /// The upstream did not answer in time.
    Unanswered(Channel),
    /// The upstream has no room for one more contract of this kind than this number, which the
    /// connection holds.
    Full(Kind, usize),
}

/// The subscriptions of one connection.
///
/// A refusal names no channel (measured: `not authorized`). So each wildcard has a request of its
/// own, symbols share requests by kind, and a request waits for the answer to the one before.
///
/// Contracts that are not wanted any more leave before others are asked for, because the vendor
/// counts those held and refuses the whole request that is over its limit.
#[derive(Debug)]
pub struct UpstreamSubscriptions {
    pub(super) wanted: Wanted,
    /// The contracts wanted, for look-ups.
    contracts: BTreeMap<Channel, u64>,
    answers: BTreeMap<Channel, Answer>,
    in_flight: Option<InFlight>,
    /// The most contracts in the next request. Halved by a refusal for want of room.
    contract_batch: usize,
    /// Kinds of which not one more contract was taken. Until the wanted contracts change, no other
    /// is asked for.
    full: BTreeSet<Kind>,
    /// Until when statuses of the last refusal for want of room may come.
    burst_until: Option<Instant>,
    /// The contracts wanted at first, which have no outcome yet as far as is known.
    first: BTreeSet<Channel>,
}

#[derive(Debug)]
struct InFlight {
    open: BTreeMap<String, Channel>,
    /// The upstream's reasons. A refusal names no channel.
    refusals: Vec<String>,
    contracts: bool,
    /// Whether the request was refused whole, for want of room.
    limited: bool,
    deadline: Instant,
}

impl Default for UpstreamSubscriptions {
    fn default() -> Self {
        Self {
            wanted: Wanted::default(),
            contracts: BTreeMap::new(),
            answers: BTreeMap::new(),
            in_flight: None,
            contract_batch: CONTRACT_BATCH,
            full: BTreeSet::new(),
            burst_until: None,
            first: BTreeSet::new(),
        }
    }
}

impl UpstreamSubscriptions {
    /// Sets what is wanted from now on. Returns the outcomes of contracts that are wanted anew and
    /// still subscribed.
    pub fn want(&mut self, wanted: Wanted) -> Vec<SubscriptionOutcome> {
        let mut outcomes = Vec::new();
        if self.wanted == Wanted::default() {
            self.first = wanted.contracts.iter().map(|(channel, _)| channel.clone()).collect();
        }
        if wanted.contracts != self.wanted.contracts {
            let contracts: BTreeMap<Channel, u64> = wanted.contracts.iter().cloned().collect();
            let anew = |(channel, n): &(&Channel, &u64)| self.contracts.get(channel) != Some(n);
            for (channel, _) in contracts.iter().filter(anew) {
                match self.answers.get(channel) {
                    Some(Answer::Carried | Answer::Unanswered) => {
                        outcomes.push(SubscriptionOutcome::Carried(channel.clone()));
                    }
                    Some(Answer::Refused) => _ = self.answers.remove(channel),
                    None => {}
                }
            }
            self.contracts = contracts;
            self.full.clear();
        }
        self.wanted = wanted;
        outcomes
    }

    /// The next request to send, if one is due.
    pub fn next_request(&mut self, now: Instant) -> Option<Request> {
        if self.in_flight.is_some() {
            return None;
        }
        if let Some(request) = self.next_surplus(true) {
            return Some(request);
        }
        let (mut batch, mut contracts) = (self.next_channels(), false);
        if batch.is_empty() {
            (batch, contracts) = (self.next_contracts(), true);
        }
        if batch.is_empty() {
            // Last, so that a wildcard and its symbols replace each other without a gap.
            return self.next_surplus(false);
        }
        let params = join(&batch);
        let open = batch.into_iter().map(|channel| (channel.to_string(), channel)).collect();
        self.in_flight = Some(InFlight {
            open,
            refusals: Vec::new(),
            contracts,
            limited: false,
            deadline: now + ANSWER_TIMEOUT,
        });
        Some(Request { action: "subscribe", params })
    }

    /// Unsubscribes what is not wanted any more: as long as contracts are wanted, only symbols of
    /// their kinds, or else all.
    fn next_surplus(&mut self, contracts: bool) -> Option<Request> {
        let limited: BTreeSet<Kind> = match contracts {
            true => self.contracts.keys().filter_map(Channel::kind).collect(),
            false => BTreeSet::new(),
        };
        let is_due = |channel: &Channel| {
            !contracts || matches!(channel, Channel::Symbol(kind, _) if limited.contains(kind))
        };
        let surplus: Vec<Channel> = self
            .answers
            .keys()
            .filter(|channel| !self.is_wanted(channel) && is_due(channel))
            .take(BATCH)
            .cloned()
            .collect();
        if surplus.is_empty() {
            return None;
        }
        for channel in &surplus {
            self.answers.remove(channel);
        }
        Some(Request { action: "unsubscribe", params: join(&surplus) })
    }

    fn is_wanted(&self, channel: &Channel) -> bool {
        self.wanted.channels.contains(channel) || self.contracts.contains_key(channel)
    }

    fn next_channels(&self) -> Vec<Channel> {
        let channels = self.wanted.channels.iter();
        let mut missing = channels.filter(|channel| !self.answers.contains_key(channel));
        match missing.next() {
            None => Vec::new(),
            Some(first @ (Channel::All | Channel::Kind(_) | Channel::Prefix(..))) => {
                vec![first.clone()]
            }
            Some(first @ Channel::Symbol(kind, _)) => std::iter::once(first)
                .chain(missing.filter(|other| matches!(other, Channel::Symbol(k, _) if k == kind)))
                .take(BATCH)
                .cloned()
                .collect(),
        }
    }

    fn next_contracts(&self) -> Vec<Channel> {
        let mut missing = self.missing_contracts().peekable();
        let kind = missing.peek().and_then(|channel| channel.kind());
        missing
            .filter(|channel| channel.kind() == kind)
            .take(self.contract_batch)
            .cloned()
            .collect()
    }

    fn missing_contracts(&self) -> impl Iterator<Item = &Channel> {
        self.wanted.contracts.iter().map(|(channel, _)| channel).filter(|channel| {
            !self.answers.contains_key(channel)
                && channel.kind().is_none_or(|kind| !self.full.contains(&kind))
        })
    }

    /// Applies a status of the upstream, if it answers a subscription.
    pub fn on_status(&mut self, status: &UpstreamStatus, now: Instant) -> Vec<SubscriptionOutcome> {
        match status.status.as_str() {
            "success" => match status.message.strip_prefix("subscribed to: ") {
                Some(item) => self.on_acknowledged(item),
                None => Vec::new(),
            },
            "error" => self.on_refusal(&status.message, now),
            _ => Vec::new(),
        }
    }

    fn on_acknowledged(&mut self, item: &str) -> Vec<SubscriptionOutcome> {
        let channel = match &mut self.in_flight {
            Some(in_flight) => in_flight.open.remove(item),
            None => None,
        };
        // An answer may come after its deadline.
        let late = || self.answers.keys().find(|channel| channel.to_string() == item).cloned();
        let Some(channel) = channel.or_else(late) else { return Vec::new() };
        self.answers.insert(channel.clone(), Answer::Carried);
        let mut outcomes = vec![SubscriptionOutcome::Carried(channel)];
        outcomes.extend(self.close_if_answered());
        outcomes
    }

    fn on_refusal(&mut self, message: &str, now: Instant) -> Vec<SubscriptionOutcome> {
        match &mut self.in_flight {
            Some(in_flight) if in_flight.contracts && message.starts_with(LIMIT_REACHED) => {
                in_flight.limited = true;
                in_flight.deadline = now + BURST_PAUSE;
                Vec::new()
            }
            // Statuses of a burst that lasts longer than its pause answer nothing.
            _ if message.starts_with(LIMIT_REACHED)
                && self.burst_until.is_some_and(|until| now < until) =>
            {
                Vec::new()
            }
            Some(in_flight) => {
                in_flight.refusals.push(message.to_owned());
                self.close_if_answered()
            }
            None => Vec::new(),
        }
    }

    /// Closes the request in flight once each of its channels is acknowledged or refused.
    fn close_if_answered(&mut self) -> Vec<SubscriptionOutcome> {
        match self.in_flight.take() {
            Some(in_flight)
                if in_flight.open.is_empty()
                    || !in_flight.limited && in_flight.open.len() <= in_flight.refusals.len() =>
            {
                if in_flight.contracts {
                    self.contract_batch = (2 * self.contract_batch).min(CONTRACT_BATCH);
                }
                let why = in_flight.refusals.last().cloned().unwrap_or_default();
                let refused = |channel| SubscriptionOutcome::Refused(channel, why.clone());
                self.close(in_flight.open, Answer::Refused, refused)
            }
            other => {
                self.in_flight = other;
                Vec::new()
            }
        }
    }

    /// Closes a request that got no answer in time, or that was refused for want of room.
    pub fn on_time(&mut self, now: Instant) -> Vec<SubscriptionOutcome> {
        match self.in_flight.take() {
            Some(in_flight) if in_flight.deadline <= now && in_flight.limited => {
                self.burst_until = Some(now + ANSWER_TIMEOUT);
                self.ask_for_fewer(in_flight.open)
            }
            Some(in_flight) if in_flight.deadline <= now => {
                self.close(in_flight.open, Answer::Unanswered, SubscriptionOutcome::Unanswered)
            }
            other => {
                self.in_flight = other;
                Vec::new()
            }
        }
    }

    /// Half of the contracts are asked for again, unless not even one was taken.
    fn ask_for_fewer(&mut self, open: BTreeMap<String, Channel>) -> Vec<SubscriptionOutcome> {
        self.contract_batch = (open.len() / 2).max(1);
        match (open.len(), open.into_values().find_map(|channel| channel.kind())) {
            (1, Some(kind)) => {
                self.full.insert(kind);
                vec![SubscriptionOutcome::Full(kind, self.held(kind))]
            }
            _ => Vec::new(),
        }
    }

    /// How many symbols of a kind the upstream holds for this connection, as far as is known.
    fn held(&self, kind: Kind) -> usize {
        let held = |(channel, answer): &(&Channel, &Answer)| {
            matches!(channel, Channel::Symbol(k, _) if *k == kind) && **answer != Answer::Refused
        };
        self.answers.iter().filter(held).count()
    }

    fn close(
        &mut self,
        open: BTreeMap<String, Channel>,
        answer: Answer,
        outcome: impl Fn(Channel) -> SubscriptionOutcome,
    ) -> Vec<SubscriptionOutcome> {
        let mut outcomes = Vec::with_capacity(open.len());
        for channel in open.into_values() {
            self.answers.insert(channel.clone(), answer);
            outcomes.push(outcome(channel));
        }
        outcomes
    }

    /// When to call [`on_time`](Self::on_time), if at all.
    pub fn deadline(&self) -> Option<Instant> {
        self.in_flight.as_ref().map(|in_flight| in_flight.deadline)
    }

    /// Whether every channel and contract wanted is answered, or its time for an answer is over.
    pub fn all_answered(&self) -> bool {
        self.channels_answered()
            && self.in_flight.is_none()
            && self.missing_contracts().next().is_none()
    }

    /// Whether that is so for the channels, and for the contracts that were wanted at first.
    pub(super) fn first_answered(&self) -> bool {
        let is_open = |channel: &&Channel| {
            let full = channel.kind().is_some_and(|kind| self.full.contains(&kind));
            self.contracts.contains_key(channel) && !self.answers.contains_key(channel) && !full
        };
        self.channels_answered() && !self.first.iter().any(|channel| is_open(&channel))
    }

    /// Whether that is so for the channels, whatever contracts are asked for.
    pub(super) fn channels_answered(&self) -> bool {
        self.in_flight.as_ref().is_none_or(|in_flight| in_flight.contracts)
            && self.next_channels().is_empty()
    }

    /// The wanted channels, grouped by answer.
    pub(super) fn status(&self) -> ChannelStatus {
        let with = |answer: Option<Answer>| {
            let wanted = self.wanted.channels.iter();
            wanted
                .filter(|channel| {
                    let known = self.answers.get(channel).copied();
                    known == answer || (answer.is_none() && known == Some(Answer::Unanswered))
                })
                .map(ToString::to_string)
                .collect()
        };
        ChannelStatus {
            carried: with(Some(Answer::Carried)),
            refused: with(Some(Answer::Refused)),
            pending: with(None),
        }
    }
}

fn join(channels: &[Channel]) -> String {
    channels.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Market;

    fn channels(items: &str) -> BTreeSet<Channel> {
        crate::protocol::channel_items(items)
            .map(|i| Channel::parse(i, Market::Stocks).unwrap())
            .collect()
    }

    fn status(status: &str, message: &str) -> UpstreamStatus {
        let (status, message) = (status.to_owned(), message.to_owned());
        UpstreamStatus { status, message }
    }

    fn of(items: &str) -> Wanted {
        Wanted { channels: channels(items), ..Wanted::default() }
    }

    impl UpstreamSubscriptions {
        fn on(&mut self, text: &str, message: &str) -> Vec<SubscriptionOutcome> {
            self.on_status(&status(text, message), Instant::now())
        }
    }

    fn params(channels: &mut UpstreamSubscriptions, now: Instant) -> String {
        channels
            .next_request(now)
            .map_or_else(String::new, |r| format!("{} {}", r.action, r.params))
    }

    #[test]
    fn wildcards_are_requested_one_by_one_and_refusals_attributed() {
        let now = Instant::now();
        let mut up = UpstreamSubscriptions::default();
        up.want(of("T.*,Q.*,FMV.*"));
        assert_eq!(params(&mut up, now), "subscribe T.*");
        assert_eq!(params(&mut up, now), "", "one at a time");
        up.on("success", "subscribed to: T.*");
        assert_eq!(params(&mut up, now), "subscribe Q.*");
        up.on("success", "subscribed to: Q.*");
        assert!(!up.all_answered());
        assert_eq!(params(&mut up, now), "subscribe FMV.*");
        assert!(!up.all_answered());
        let outcomes = up.on("error", "not authorized");
        assert!(up.all_answered());
        let refused = channels("FMV.*").pop_first().unwrap();
        assert_eq!(outcomes, [SubscriptionOutcome::Refused(refused, "not authorized".to_owned())]);
        assert_eq!(params(&mut up, now), "");
        let health = up.status();
        assert_eq!(health.carried, ["T.*", "Q.*"]);
        assert_eq!(health.refused, ["FMV.*"]);
    }

    #[test]
    fn symbols_of_a_kind_share_a_request() {
        let now = Instant::now();
        let mut up = UpstreamSubscriptions::default();
        up.want(of("T.B,Q.A,T.A"));
        assert_eq!(params(&mut up, now), "subscribe T.A,T.B");
        up.on("error", "not authorized");
        let outcomes = up.on("success", "subscribed to: T.B");
        assert_eq!(outcomes.len(), 2, "T.B carried, so the refusal was for T.A: {outcomes:?}");
        assert_eq!(params(&mut up, now), "subscribe Q.A");
    }

    #[test]
    fn a_refusal_before_the_last_acknowledgment_keeps_its_reason() {
        let mut up = UpstreamSubscriptions::default();
        up.want(of("T.A,T.B"));
        params(&mut up, Instant::now());
        assert!(up.on("error", "symbol unknown").is_empty(), "of T.A or T.B?");
        let outcomes = up.on("success", "subscribed to: T.B");
        let (refused, why) = (Channel::parse("T.A", Market::Stocks), "symbol unknown".to_owned());
        assert_eq!(outcomes[1..], [SubscriptionOutcome::Refused(refused.unwrap(), why)]);
    }

    #[test]
    fn a_request_without_an_answer_ends_and_may_be_answered_late() {
        let now = Instant::now();
        let mut up = UpstreamSubscriptions::default();
        up.want(of("NOI.*,*"));
        assert_eq!(up.deadline(), None);
        assert_eq!(params(&mut up, now), "subscribe *");
        assert_eq!(up.deadline(), Some(now + ANSWER_TIMEOUT));
        assert!(up.on_time(now).is_empty());
        assert_eq!(
            up.on_time(now + ANSWER_TIMEOUT),
            [SubscriptionOutcome::Unanswered(Channel::All)]
        );
        assert_eq!(up.status().pending, ["*", "NOI.*"], "without an answer, and not asked yet");
        assert_eq!(params(&mut up, now), "subscribe NOI.*");
        assert_eq!(
            up.on("success", "subscribed to: *"),
            [SubscriptionOutcome::Carried(Channel::All)]
        );
        assert_eq!(up.status().pending, ["NOI.*"]);
    }

    #[test]
    fn a_channel_that_is_no_longer_wanted_is_unsubscribed() {
        let now = Instant::now();
        let mut up = UpstreamSubscriptions::default();
        up.want(of("T.A"));
        params(&mut up, now);
        up.on("success", "subscribed to: T.A");
        up.want(of("T.B"));
        assert_eq!(params(&mut up, now), "subscribe T.B");
        assert_eq!(params(&mut up, now), "");
        up.on("success", "subscribed to: T.B");
        assert_eq!(params(&mut up, now), "unsubscribe T.A");
        assert_eq!(params(&mut up, now), "");
    }

    const LIMIT: &str =
        "Subscription limit reached for feed. Please remove some subscriptions and try again.";

    fn contracts(numbers: std::ops::Range<usize>) -> Wanted {
        let contracts = numbers.map(|n| Channel::Symbol(Kind::Q, format!("O:{n:04}").into()));
        let contracts = contracts.map(|contract| (contract, 0));
        Wanted { contracts: contracts.collect(), ..Wanted::default() }
    }

    /// Asks, and lets the vendor take everything. Returns the items of each request.
    fn taken(up: &mut UpstreamSubscriptions, now: Instant) -> Vec<usize> {
        let mut sizes = Vec::new();
        while let Some(request) = up.next_request(now) {
            sizes.push(request.params.split(',').count());
            if request.action == "subscribe" {
                for item in request.params.split(',') {
                    up.on("success", &format!("subscribed to: {item}"));
                }
            }
        }
        sizes
    }

    #[test]
    fn contracts_are_asked_for_in_order_and_after_those_before_them_have_left() {
        let now = Instant::now();
        let mut up = UpstreamSubscriptions::default();
        up.want(contracts(0..450));
        assert_eq!(taken(&mut up, now), [200, 200, 50]);
        let mut wanted = contracts(440..460);
        wanted.contracts.reverse();
        wanted.channels = channels("T.*");
        up.want(wanted);
        let release = up.next_request(now).unwrap();
        assert_eq!((release.action, release.params.split(',').count()), ("unsubscribe", 440));
        assert_eq!(params(&mut up, now), "subscribe T.*");
        assert!(!up.channels_answered());
        up.on("success", "subscribed to: T.*");
        assert!(up.channels_answered() && !up.all_answered());
        assert!(params(&mut up, now).starts_with("subscribe Q.O:0459,Q.O:0458,"));
        assert!(up.channels_answered() && !up.all_answered());
    }

    #[test]
    fn a_request_beyond_the_limit_is_halved_down_to_one() {
        let mut now = Instant::now();
        let mut up = UpstreamSubscriptions::default();
        up.want(contracts(0..903));
        let (mut held, mut asked) = (0, Vec::new());
        let full = loop {
            let request = up.next_request(now).unwrap();
            let items: Vec<_> = request.params.split(',').map(str::to_owned).collect();
            asked.push(items.len());
            if held + items.len() <= 901 {
                held += items.len();
                for item in items {
                    up.on("success", &format!("subscribed to: {item}"));
                }
                continue;
            }
            // Fewer statuses than items, none of which answers an item.
            for _ in 0..(items.len() * 27).div_ceil(200) {
                assert!(up.on("error", LIMIT).is_empty());
            }
            assert_eq!(up.next_request(now), None, "the burst may go on");
            now = up.deadline().unwrap();
            assert!(now < Instant::now() + ANSWER_TIMEOUT, "sooner than without an answer");
            let outcomes = up.on_time(now);
            if !outcomes.is_empty() {
                break outcomes;
            }
        };
        assert_eq!(asked[..7], [200, 200, 200, 200, 103, 51, 52]);
        assert!(asked.len() < 20 && asked.ends_with(&[1]), "{asked:?}");
        assert_eq!(full, [SubscriptionOutcome::Full(Kind::Q, 901)]);
        assert_eq!(up.next_request(now), None, "nothing more, and nothing is refused for good");
        assert!(up.all_answered());
        // Once others are wanted, there may be room again.
        up.want(contracts(2..903));
        assert!(params(&mut up, now).starts_with("unsubscribe Q.O:0000,Q.O:0001"));
        assert!(params(&mut up, now).starts_with("subscribe Q.O:0901"));
    }

    #[test]
    fn late_statuses_of_a_burst_count_against_no_other_request() {
        let now = Instant::now();
        let mut up = UpstreamSubscriptions::default();
        up.want(contracts(0..1));
        assert_eq!(params(&mut up, now), "subscribe Q.O:0000");
        up.on("error", LIMIT);
        let over = now + Duration::from_secs(1);
        assert_eq!(up.on_time(over), [SubscriptionOutcome::Full(Kind::Q, 0)]);
        up.want(of("T.A,T.B"));
        assert_eq!(params(&mut up, now), "subscribe T.A,T.B");
        for _ in 0..27 {
            assert!(up.on("error", LIMIT).is_empty());
        }
        up.on("success", "subscribed to: T.A");
        up.on("success", "subscribed to: T.B");
        assert!(up.all_answered() && up.status().refused.is_empty());
        // A contract that is taken is taken, whatever came before its acknowledgement.
        up.want(contracts(0..1));
        assert_eq!(params(&mut up, now), "subscribe Q.O:0000");
        up.on("error", LIMIT);
        assert_eq!(up.on("success", "subscribed to: Q.O:0000").len(), 1);
        assert_eq!(params(&mut up, now), "unsubscribe T.A,T.B");
        assert!(up.all_answered());
        // Without a burst before, it is a refusal like any other.
        up.want(of("T.C"));
        params(&mut up, now);
        let later = now + 2 * ANSWER_TIMEOUT;
        let refused = up.on_status(&status("error", LIMIT), later);
        assert_eq!(
            refused,
            [SubscriptionOutcome::Refused(channels("T.C").pop_first().unwrap(), LIMIT.to_owned())]
        );
    }

    #[test]
    fn a_plan_without_contracts_refuses_each_for_good() {
        let now = Instant::now();
        let mut up = UpstreamSubscriptions::default();
        up.want(contracts(0..2));
        params(&mut up, now);
        assert!(up.on("error", "not authorized").is_empty());
        let outcomes = up.on("error", "not authorized");
        assert!(matches!(
            outcomes[..],
            [SubscriptionOutcome::Refused(..), SubscriptionOutcome::Refused(..)]
        ));
        assert_eq!(up.next_request(now), None);
    }

    #[test]
    fn a_contract_that_is_wanted_anew_gets_a_new_outcome() {
        let now = Instant::now();
        let mut up = UpstreamSubscriptions::default();
        assert!(up.want(contracts(0..2)).is_empty());
        params(&mut up, now);
        up.on("success", "subscribed to: Q.O:0000");
        up.on("error", "not authorized");
        assert!(up.want(contracts(0..2)).is_empty(), "unchanged");
        let mut anew = contracts(0..2);
        anew.contracts.iter_mut().for_each(|(_, n)| *n += 1);
        let carried = contracts(0..1).contracts[0].0.clone();
        assert_eq!(up.want(anew), [SubscriptionOutcome::Carried(carried)]);
        assert_eq!(params(&mut up, now), "subscribe Q.O:0001", "it may be served by now");
    }
}
