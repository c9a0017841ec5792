//! The firehose's answers for contracts on demand, on their way to the sessions.

use std::collections::{BTreeMap, BTreeSet};

use proxy_common::{
    link::ContractAnswer,
    protocol::{Channel, ChannelSet, NoticePolicy, Status, object_frames},
};
use tokio::time::Instant;

use super::state::{Answer, Router};
use crate::{index::SessionId, replay::Part};

impl Router {
    pub(super) fn on_contract(&mut self, item: &str, answer: ContractAnswer) {
        let Ok(contract) = Channel::parse(item, self.market) else { return };
        let (answer, object) = match answer {
            ContractAnswer::Subscribed => (Answer::Granted, Status::subscribed(item).object()),
            ContractAnswer::Refused(object) => (Answer::Refused, object),
            ContractAnswer::Unsubscribed => {
                // Answers before this one are of earlier requests.
                self.tell_answers();
                return self.contracts.on_unsubscribed(&contract);
            }
        };
        self.answers.push((contract, answer, object));
    }

    /// Tells the clients which contracts the end of an outage does not include, because the
    /// firehose has not answered for them. An answer that comes later is sent as usual.
    pub(super) fn refuse_unanswered(&mut self) {
        for contract in self.contracts.take_unanswered() {
            let item = contract.to_string();
            let why = format!("{item:?} waits: the firehose has not answered yet");
            let object = Status::error(why).about(item).object();
            self.answers.push((contract, Answer::None, object));
        }
        self.tell_answers();
    }

    /// Applies the firehose's answers for contracts, between the events before and after them, and
    /// tells the clients that hold these.
    pub(super) fn tell_answers(&mut self) {
        if self.answers.is_empty() {
            return;
        }
        self.deliver();
        let mut by_session = BTreeMap::<SessionId, Vec<String>>::new();
        let mut unnotified = BTreeSet::new();
        for (contract, answer, object) in std::mem::take(&mut self.answers) {
            let granted = answer == Answer::Granted;
            let sessions = match answer {
                Answer::Granted | Answer::Refused => self.contracts.on_answer(&contract, granted),
                Answer::None => self.contracts.on_no_answer(&contract),
            };
            for session in sessions {
                by_session.entry(session).or_default().push(object.clone());
                let held_before = self.held(session);
                let held = self.hold_contract(session, &contract, granted);
                let outages = self.shared.outages.borrow();
                if !outages.go_on() || self.notices == NoticePolicy::Off {
                    continue;
                }
                if held == Some(0) && held_before > 0 {
                    // It would not get the notice of the outage's end.
                    self.awaiting_end.insert(session);
                } else if granted && held == Some(1) && !self.awaiting_end.remove(&session) {
                    // It held nothing, so it did not get the notices of the outages.
                    unnotified.insert(session);
                }
            }
        }
        self.send_objects(by_session);
        let (outages, now) = (self.shared.outages.borrow(), Instant::now());
        for outbound in unnotified.into_iter().filter_map(|session| self.index.member(session)) {
            outbound.send_frames(outages.frames().map(|frame| (frame, 0)), now);
        }
    }

    /// Adds or removes a contract of a session, after an answer of the firehose.
    pub(super) fn hold_contract(
        &mut self,
        session: SessionId,
        contract: &Channel,
        granted: bool,
    ) -> Option<usize> {
        let held = self.hold(session, [contract.clone()], granted);
        let waiting = self.waiting.get(&session);
        if granted && waiting.is_some_and(|w| w.replays && !w.late.contains(contract)) {
            let channels = ChannelSet::from_iter([contract.clone()]);
            self.shared.set_aside(session, Part::new(self.shared.history.end(), channels));
        }
        held
    }

    pub(super) fn send_objects(&mut self, by_session: BTreeMap<SessionId, Vec<String>>) {
        self.count_subscriptions();
        let now = Instant::now();
        for (session, objects) in by_session {
            if let Some(outbound) = self.index.member(session) {
                let frames = object_frames(objects);
                outbound.send_frames(frames.iter().map(|frame| (frame, 0)), now);
            }
        }
    }
}
