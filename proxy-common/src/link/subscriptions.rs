//! Which channels are wanted of an upstream, asked for, carried and refused. Pure: the link feeds it and sends what it says.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::{
    health::ChannelHealth,
    protocol::{channel::Channel, messages::UpstreamStatus},
};

/// How long an upstream may take to answer a subscription before the next one is sent.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Most symbols in one request.
const BATCH: usize = 500;

/// What is known of a channel that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Carried,
    Refused,
    /// Nothing came in time. The vendor keeps silent on kinds it does not know.
    Silence,
}

/// A request to send upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `subscribe` or `unsubscribe`.
    pub action: &'static str,
    /// The channels, separated by commas.
    pub params: String,
}

/// What an answer changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The upstream carries this channel now.
    Carried(Channel),
    /// The upstream refuses this channel.
    Refused(Channel, String),
    /// The upstream said nothing about this channel.
    Unanswered(Channel),
}

/// The channels of one link.
///
/// A refusal names no channel (measured: `not authorized`), so wildcards are asked one at a time and symbols in
/// requests of one kind, and the next request waits for the answer to the one before.
#[derive(Debug, Default)]
pub struct UpstreamChannels {
    wanted: BTreeSet<Channel>,
    answers: BTreeMap<Channel, Answer>,
    in_flight: Option<InFlight>,
}

#[derive(Debug)]
struct InFlight {
    open: BTreeMap<String, Channel>,
    refusals: usize,
    deadline: Instant,
}

impl UpstreamChannels {
    /// Takes over what is wanted from now on.
    pub fn want(&mut self, wanted: BTreeSet<Channel>) {
        self.wanted = wanted;
    }

    /// The next request to send, if one is due.
    pub fn next_request(&mut self, now: Instant) -> Option<Request> {
        if self.in_flight.is_some() {
            return None;
        }
        let batch = self.next_batch();
        if batch.is_empty() {
            return self.next_surplus();
        }
        let params = join(&batch);
        let open = batch.into_iter().map(|channel| (channel.to_string(), channel)).collect();
        self.in_flight = Some(InFlight { open, refusals: 0, deadline: now + ANSWER_TIMEOUT });
        Some(Request { action: "subscribe", params })
    }

    /// What is not wanted any more goes last, so that a wildcard and its symbols replace each other without a gap.
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
            Some(first @ (Channel::All | Channel::Kind(_))) => vec![first.clone()],
            Some(first @ Channel::Symbol(kind, _)) => std::iter::once(first)
                .chain(missing.filter(|other| matches!(other, Channel::Symbol(k, _) if k == kind)))
                .take(BATCH)
                .cloned()
                .collect(),
        }
    }

    /// Takes a status of the upstream as an answer, if it is one.
    pub fn on_status(&mut self, status: &UpstreamStatus) -> Vec<Change> {
        match status.status.as_str() {
            "success" => match status.message.strip_prefix("subscribed to: ") {
                Some(item) => self.on_acknowledged(item),
                None => Vec::new(),
            },
            "error" => self.on_refusal(&status.message),
            _ => Vec::new(),
        }
    }

    fn on_acknowledged(&mut self, item: &str) -> Vec<Change> {
        let channel = match &mut self.in_flight {
            Some(in_flight) => in_flight.open.remove(item),
            None => None,
        };
        // An answer may come after its deadline.
        let late = || self.answers.keys().find(|channel| channel.to_string() == item).cloned();
        let Some(channel) = channel.or_else(late) else { return Vec::new() };
        self.answers.insert(channel.clone(), Answer::Carried);
        let mut changes = vec![Change::Carried(channel)];
        changes.extend(self.settle("not authorized"));
        changes
    }

    fn on_refusal(&mut self, message: &str) -> Vec<Change> {
        match &mut self.in_flight {
            Some(in_flight) => in_flight.refusals += 1,
            None => return Vec::new(),
        }
        self.settle(message)
    }

    /// Ends the request in flight if each of its channels is acknowledged or refused.
    fn settle(&mut self, message: &str) -> Vec<Change> {
        match self.in_flight.take() {
            Some(in_flight) if in_flight.open.len() <= in_flight.refusals => {
                self.close(in_flight, Answer::Refused, message)
            }
            other => {
                self.in_flight = other;
                Vec::new()
            }
        }
    }

    /// Ends a request that got no answer in time.
    pub fn on_time(&mut self, now: Instant) -> Vec<Change> {
        match self.in_flight.take() {
            Some(in_flight) if in_flight.deadline <= now => {
                self.close(in_flight, Answer::Silence, "")
            }
            other => {
                self.in_flight = other;
                Vec::new()
            }
        }
    }

    fn close(&mut self, in_flight: InFlight, answer: Answer, message: &str) -> Vec<Change> {
        let change = |channel: Channel| match answer {
            Answer::Carried => Change::Carried(channel),
            Answer::Refused => Change::Refused(channel, message.to_owned()),
            Answer::Silence => Change::Unanswered(channel),
        };
        let mut changes = Vec::with_capacity(in_flight.open.len());
        for channel in in_flight.open.into_values() {
            self.answers.insert(channel.clone(), answer);
            changes.push(change(channel));
        }
        changes
    }

    /// When [`on_time`](Self::on_time) has to be called, if at all.
    pub fn deadline(&self) -> Option<Instant> {
        self.in_flight.as_ref().map(|in_flight| in_flight.deadline)
    }

    /// Whether each channel wanted has been asked for and answered, or has had its time to be.
    pub fn is_settled(&self) -> bool {
        self.in_flight.is_none() && self.next_batch().is_empty()
    }

    /// The channels by answer, as `/health` shows them.
    pub fn health(&self) -> ChannelHealth {
        let with = |answer: Option<Answer>| {
            let wanted = self.wanted.iter();
            wanted
                .filter(|channel| {
                    let known = self.answers.get(channel).copied();
                    known == answer || (answer.is_none() && known == Some(Answer::Silence))
                })
                .map(ToString::to_string)
                .collect()
        };
        ChannelHealth {
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
    use crate::protocol::market::Market;

    fn channels(items: &str) -> BTreeSet<Channel> {
        crate::protocol::channel::items(items)
            .map(|i| Channel::parse(i, Market::Stocks).unwrap())
            .collect()
    }

    fn status(status: &str, message: &str) -> UpstreamStatus {
        UpstreamStatus { status: status.to_owned(), message: message.to_owned() }
    }

    fn params(channels: &mut UpstreamChannels, now: Instant) -> String {
        channels
            .next_request(now)
            .map_or_else(String::new, |r| format!("{} {}", r.action, r.params))
    }

    #[test]
    fn wildcards_are_asked_one_by_one_and_refusals_attributed() {
        let now = Instant::now();
        let mut up = UpstreamChannels::default();
        up.want(channels("T.*,Q.*,FMV.*"));
        assert_eq!(params(&mut up, now), "subscribe T.*");
        assert_eq!(params(&mut up, now), "", "one at a time");
        up.on_status(&status("success", "subscribed to: T.*"));
        assert_eq!(params(&mut up, now), "subscribe Q.*");
        up.on_status(&status("success", "subscribed to: Q.*"));
        assert!(!up.is_settled());
        assert_eq!(params(&mut up, now), "subscribe FMV.*");
        assert!(!up.is_settled());
        let changes = up.on_status(&status("error", "not authorized"));
        assert!(up.is_settled());
        let refused = channels("FMV.*").pop_first().unwrap();
        assert_eq!(changes, [Change::Refused(refused, "not authorized".to_owned())]);
        assert_eq!(params(&mut up, now), "");
        let health = up.health();
        assert_eq!(health.carried, ["T.*", "Q.*"]);
        assert_eq!(health.refused, ["FMV.*"]);
    }

    #[test]
    fn symbols_of_a_kind_share_a_request() {
        let now = Instant::now();
        let mut up = UpstreamChannels::default();
        up.want(channels("T.B,Q.A,T.A"));
        assert_eq!(params(&mut up, now), "subscribe T.A,T.B");
        up.on_status(&status("error", "not authorized"));
        let changes = up.on_status(&status("success", "subscribed to: T.B"));
        assert_eq!(changes.len(), 2, "T.B carried, so the refusal was for T.A: {changes:?}");
        assert_eq!(params(&mut up, now), "subscribe Q.A");
    }

    #[test]
    fn silence_ends_after_a_while_and_may_be_broken_late() {
        let now = Instant::now();
        let mut up = UpstreamChannels::default();
        up.want(channels("NOI.*,*"));
        assert_eq!(up.deadline(), None);
        assert_eq!(params(&mut up, now), "subscribe *");
        assert_eq!(up.deadline(), Some(now + ANSWER_TIMEOUT));
        assert!(up.on_time(now).is_empty());
        assert_eq!(up.on_time(now + ANSWER_TIMEOUT), [Change::Unanswered(Channel::All)]);
        assert_eq!(up.health().pending, ["*", "NOI.*"], "without an answer, and not asked yet");
        assert_eq!(params(&mut up, now), "subscribe NOI.*");
        assert_eq!(
            up.on_status(&status("success", "subscribed to: *")),
            [Change::Carried(Channel::All)]
        );
        assert_eq!(up.health().pending, ["NOI.*"]);
    }

    #[test]
    fn what_is_not_wanted_any_more_is_dropped() {
        let now = Instant::now();
        let mut up = UpstreamChannels::default();
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
