//! The channels wanted from an upstream, and its answers to the subscriptions. Pure: the connection
//! feeds it statuses and sends its requests.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::status::ChannelStatus;
use crate::protocol::{Channel, UpstreamStatus};

/// The channels that a link should subscribe to.
pub type Wanted = BTreeSet<Channel>;

/// How long an upstream may take to answer a subscription before the next one is sent.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The most symbols in one request.
const BATCH: usize = 500;

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
pub(super) struct Request {
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
}

/// The subscriptions of one connection.
///
/// A refusal names no channel (measured: `not authorized`). So each wildcard has a request of its
/// own, symbols share requests by kind, and a request waits for the answer to the one before.
#[derive(Debug, Default)]
pub(super) struct UpstreamSubscriptions {
    pub(super) wanted: Wanted,
    answers: BTreeMap<Channel, Answer>,
    in_flight: Option<InFlight>,
}

#[derive(Debug)]
struct InFlight {
    open: BTreeMap<String, Channel>,
    /// The upstream's reasons. A refusal names no channel.
    refusals: Vec<String>,
    deadline: Instant,
}

impl UpstreamSubscriptions {
    /// Sets the channels wanted from now on.
    pub(super) fn want(&mut self, wanted: Wanted) {
        self.wanted = wanted;
    }

    /// The next request to send, if one is due.
    pub(super) fn next_request(&mut self, now: Instant) -> Option<Request> {
        if self.in_flight.is_some() {
            return None;
        }
        let batch = self.next_batch();
        if batch.is_empty() {
            return self.next_surplus();
        }
        let params = join(&batch);
        let open = batch.into_iter().map(|channel| (channel.to_string(), channel)).collect();
        self.in_flight =
            Some(InFlight { open, refusals: Vec::new(), deadline: now + ANSWER_TIMEOUT });
        Some(Request { action: "subscribe", params })
    }

    /// Unsubscribes last, so that a wildcard and its symbols replace each other without a gap.
    fn next_surplus(&mut self) -> Option<Request> {
        let surplus: Vec<Channel> = self
            .answers
            .keys()
            .filter(|channel| !self.wanted.contains(channel))
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

    fn next_batch(&self) -> Vec<Channel> {
        let mut missing = self.wanted.iter().filter(|channel| !self.answers.contains_key(channel));
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

    /// Applies a status of the upstream, if it answers a subscription.
    pub(super) fn on_status(&mut self, status: &UpstreamStatus) -> Vec<SubscriptionOutcome> {
        match status.status.as_str() {
            "success" => match status.message.strip_prefix("subscribed to: ") {
                Some(item) => self.on_acknowledged(item),
                None => Vec::new(),
            },
            "error" => self.on_refusal(&status.message),
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

    fn on_refusal(&mut self, message: &str) -> Vec<SubscriptionOutcome> {
        match &mut self.in_flight {
            Some(in_flight) => in_flight.refusals.push(message.to_owned()),
            None => return Vec::new(),
        }
        self.close_if_answered()
    }

    /// Closes the request in flight once each of its channels is acknowledged or refused.
    fn close_if_answered(&mut self) -> Vec<SubscriptionOutcome> {
        match self.in_flight.take() {
            Some(in_flight) if in_flight.open.len() <= in_flight.refusals.len() => {
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

    /// Closes a request that got no answer in time.
    pub(super) fn on_time(&mut self, now: Instant) -> Vec<SubscriptionOutcome> {
        match self.in_flight.take() {
            Some(in_flight) if in_flight.deadline <= now => {
                self.close(in_flight.open, Answer::Unanswered, SubscriptionOutcome::Unanswered)
            }
            other => {
                self.in_flight = other;
                Vec::new()
            }
        }
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
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.in_flight.as_ref().map(|in_flight| in_flight.deadline)
    }

    /// Whether every channel wanted is answered, or its time for an answer is over.
    pub(super) fn all_answered(&self) -> bool {
        self.in_flight.is_none() && self.next_batch().is_empty()
    }

    /// The wanted channels, grouped by answer.
    pub(super) fn status(&self) -> ChannelStatus {
        let with = |answer: Option<Answer>| {
            let wanted = self.wanted.iter();
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
        UpstreamStatus { status: status.to_owned(), message: message.to_owned() }
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
        up.want(channels("T.*,Q.*,FMV.*"));
        assert_eq!(params(&mut up, now), "subscribe T.*");
        assert_eq!(params(&mut up, now), "", "one at a time");
        up.on_status(&status("success", "subscribed to: T.*"));
        assert_eq!(params(&mut up, now), "subscribe Q.*");
        up.on_status(&status("success", "subscribed to: Q.*"));
        assert!(!up.all_answered());
        assert_eq!(params(&mut up, now), "subscribe FMV.*");
        assert!(!up.all_answered());
        let outcomes = up.on_status(&status("error", "not authorized"));
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
        up.want(channels("T.B,Q.A,T.A"));
        assert_eq!(params(&mut up, now), "subscribe T.A,T.B");
        up.on_status(&status("error", "not authorized"));
        let outcomes = up.on_status(&status("success", "subscribed to: T.B"));
        assert_eq!(outcomes.len(), 2, "T.B carried, so the refusal was for T.A: {outcomes:?}");
        assert_eq!(params(&mut up, now), "subscribe Q.A");
    }

    #[test]
    fn a_refusal_before_the_last_acknowledgment_keeps_its_reason() {
        let mut up = UpstreamSubscriptions::default();
        up.want(channels("T.A,T.B"));
        params(&mut up, Instant::now());
        assert!(up.on_status(&status("error", "symbol unknown")).is_empty(), "of T.A or T.B?");
        let outcomes = up.on_status(&status("success", "subscribed to: T.B"));
        let (refused, why) = (Channel::parse("T.A", Market::Stocks), "symbol unknown".to_owned());
        assert_eq!(outcomes[1..], [SubscriptionOutcome::Refused(refused.unwrap(), why)]);
    }

    #[test]
    fn a_request_without_an_answer_ends_and_may_be_answered_late() {
        let now = Instant::now();
        let mut up = UpstreamSubscriptions::default();
        up.want(channels("NOI.*,*"));
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
            up.on_status(&status("success", "subscribed to: *")),
            [SubscriptionOutcome::Carried(Channel::All)]
        );
        assert_eq!(up.status().pending, ["NOI.*"]);
    }

    #[test]
    fn a_channel_that_is_no_longer_wanted_is_unsubscribed() {
        let now = Instant::now();
        let mut up = UpstreamSubscriptions::default();
        up.want(channels("T.A"));
        params(&mut up, now);
        up.on_status(&status("success", "subscribed to: T.A"));
        up.want(channels("T.B"));
        assert_eq!(params(&mut up, now), "subscribe T.B");
        assert_eq!(params(&mut up, now), "");
        up.on_status(&status("success", "subscribed to: T.B"));
        assert_eq!(params(&mut up, now), "unsubscribe T.A");
        assert_eq!(params(&mut up, now), "");
    }
}
