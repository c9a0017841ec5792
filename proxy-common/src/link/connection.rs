//! A logged-in connection: reads frames, subscribes to channels, answers pings and sends its own.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, Interval, MissedTickBehavior, Sleep, interval_at},
};
use tracing::{debug, warn};
use tungstenite::protocol::{CloseFrame, frame::coding::CloseCode};

use super::{
    error::LinkError,
    event::{ContractAnswer, LinkEvent},
    login,
    metrics::LinkMetrics,
    status::ChannelStatus,
    subscriptions::{SubscriptionOutcome, UpstreamSubscriptions, Wanted},
    upstream::{SessionError, Upstream},
    upstream_socket::UpstreamMessage,
};
use crate::{
    metrics::count_and_sample,
    protocol::{
        Coverage, MarkKind, Position, PositionMark, Start, UpstreamStatus, command_text, demux,
        gap_begins, refused_contract, subscribe_text,
    },
    websocket::Frame,
};

/// After this many pings during which nothing arrived, the connection counts as dead.
const MAX_SILENT_PINGS: u8 = 2;

/// In a flood, timers and requests get their turn after this many messages. Reading 64 messages
/// uses only a part of the runtime's budget.
const MESSAGES_BETWEEN_HOUSEKEEPING: u32 = 64;

/// A logged-in connection.
pub(super) struct Connection {
    socket: Upstream,
    since: Instant,
    pub(super) subscriptions: UpstreamSubscriptions,
    /// Resolves when the wanted channels change.
    wanted: Pin<Box<dyn Future<Output = watch::Receiver<Wanted>> + Send>>,
    /// Where the subscription of everything begins, until it is sent. `None` if the link resumes
    /// nothing.
    start: Option<Start>,
    /// Where the feed stands behind the last frame, once the firehose has said where it begins.
    position: Option<Position>,
    /// Whether a request to the upstream may be due.
    request_due: bool,
    answer_deadline: Pin<Box<Sleep>>,
    /// Whether [`LinkEvent::AllAnswered`] has been yielded since the last change of what is wanted.
    answered_reported: bool,
    /// Whether it has been yielded on this connection. The first also waits for the contracts.
    complete: bool,
    ping: Interval,
    silent_pings: u8,
    metrics: Arc<LinkMetrics>,
    /// Events known but not yet yielded. A frame brings at most a few.
    ready: VecDeque<LinkEvent>,
    messages_since_housekeeping: u32,
    /// Why the connection ends, to be yielded after the events before it.
    end: Option<LinkError>,
    /// The last status that answers nothing. It often says why the upstream then closes.
    last_status: Option<String>,
}

impl Connection {
    pub(super) fn new(
        socket: Upstream,
        mut wanted: watch::Receiver<Wanted>,
        ping_interval: Duration,
        start: Option<Start>,
        metrics: Arc<LinkMetrics>,
    ) -> Self {
        let mut subscriptions = UpstreamSubscriptions::default();
        subscriptions.want(wanted.borrow_and_update().clone());
        let now = Instant::now();
        let mut ping = interval_at(now + ping_interval, ping_interval);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            socket,
            since: now,
            subscriptions,
            wanted: Box::pin(changed(wanted)),
            start,
            position: None,
            request_due: true,
            answer_deadline: Box::pin(tokio::time::sleep(Duration::ZERO)),
            answered_reported: false,
            complete: false,
            ping,
            silent_pings: 0,
            metrics,
            ready: VecDeque::new(),
            messages_since_housekeeping: 0,
            end: None,
            last_status: None,
        }
    }

    /// The socket, to close it.
    pub(super) fn into_socket(self) -> Upstream {
        self.socket
    }

    /// Where the feed stands behind the last frame, if a firehose has said where it begins.
    pub(super) fn position(&self) -> Option<Position> {
        self.position
    }

    /// Queues a command. It leaves when the connection is polled next.
    pub(super) fn send(&mut self, command: &str) {
        self.socket.send_text(command);
    }

    /// How long the connection has been logged in.
    pub(super) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// The channels, grouped by the upstream's answer. `None` while a request is in flight, because
    /// its answer changes them soon.
    pub(super) fn channels(&self) -> Option<ChannelStatus> {
        self.subscriptions.deadline().is_none().then(|| self.subscriptions.status())
    }

    /// The next event. Frames come first, so that the upstream never waits for us. Timers and
    /// requests get their turn when no frame is there, and regularly in a flood.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<LinkEvent, LinkError>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Ok(event));
            }
            if let Some(error) = self.end.take() {
                return Poll::Ready(Err(error));
            }
            if self.messages_since_housekeeping >= MESSAGES_BETWEEN_HOUSEKEEPING {
                self.keep_house(cx)?;
            }
            match self.socket.poll_next(cx) {
                Poll::Ready(Ok(message)) => self.on_message(message),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.ended(error))),
                Poll::Pending => {
                    self.keep_house(cx)?;
                    if self.ready.is_empty() {
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    fn keep_house(&mut self, cx: &mut Context<'_>) -> Result<(), LinkError> {
        self.messages_since_housekeeping = 0;
        while let Poll::Ready(mut receiver) = self.wanted.as_mut().poll(cx) {
            let outcomes = self.subscriptions.want(receiver.borrow_and_update().clone());
            self.answered_reported = false;
            self.wanted = Box::pin(changed(receiver));
            self.on_outcomes(outcomes);
            self.request_due = true;
        }
        self.poll_requests(cx);
        self.poll_ping(cx)?;
        match self.socket.poll_flush(cx) {
            Poll::Ready(Err(error)) => Err(self.ended(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    fn poll_requests(&mut self, cx: &mut Context<'_>) {
        if let Some(deadline) = self.poll_deadline(cx) {
            let outcomes = self.subscriptions.on_time(deadline);
            self.request_due = true;
            self.on_outcomes(outcomes);
        }
        while std::mem::take(&mut self.request_due) {
            self.report_answered();
            let now = std::time::Instant::now();
            let Some(request) = self.subscriptions.next_request(now) else { return };
            self.request_due = true;
            let text = match self.start.take_if(|_| request.action == "subscribe") {
                Some(start) => subscribe_text(&request.params, start),
                None => command_text(request.action, &request.params, None),
            };
            self.socket.send_text(&text);
            // Polled once, so that it wakes this task.
            let _ = self.poll_deadline(cx);
        }
    }

    /// The deadline of the request in flight, once it has come.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Option<std::time::Instant> {
        let deadline = self.subscriptions.deadline()?;
        if self.answer_deadline.deadline() != deadline.into() {
            self.answer_deadline.as_mut().reset(deadline.into());
        }
        self.answer_deadline.as_mut().poll(cx).is_ready().then_some(deadline)
    }

    /// Yields once that all is answered. Later on it is enough for the channels: contracts are
    /// acknowledged one by one, and may come and go all the time.
    fn report_answered(&mut self) {
        let answered = match self.complete {
            true => self.subscriptions.channels_answered(),
            false => self.subscriptions.first_answered(),
        };
        if answered && !self.answered_reported {
            (self.answered_reported, self.complete) = (true, true);
            self.ready.push_back(LinkEvent::AllAnswered);
        }
    }

    fn poll_ping(&mut self, cx: &mut Context<'_>) -> Result<(), LinkError> {
        while self.ping.poll_tick(cx).is_ready() {
            if self.silent_pings >= MAX_SILENT_PINGS {
                return Err(LinkError::Silent);
            }
            self.silent_pings += 1;
            self.socket.send_ping();
        }
        Ok(())
    }

    fn on_message(&mut self, message: UpstreamMessage) {
        self.silent_pings = 0;
        self.messages_since_housekeeping += 1;
        match message {
            UpstreamMessage::Text(frame) => self.on_frame(frame),
            UpstreamMessage::Binary(payload) => {
                self.drop_message(payload.len(), "binary", may_hold_events(&payload));
            }
            UpstreamMessage::Close(Some(CloseFrame { code: CloseCode::Policy, reason }))
                if reason.is_empty() && self.last_status.is_none() =>
            {
                self.end = Some(LinkError::ClosedByPolicy);
            }
            UpstreamMessage::Close(frame) => {
                self.end = Some(self.closed(login::close_text(frame.as_ref())));
            }
            UpstreamMessage::Control => {}
        }
    }

    fn on_frame(&mut self, frame: Frame) {
        let (bytes, events) = (frame.text().len(), may_hold_events(frame.text()));
        let Ok(demuxed) = demux(frame) else {
            return self.drop_message(bytes, "no JSON array", events);
        };
        let events = demuxed.events + demuxed.malformed;
        self.metrics.events.inc_by(events);
        if let Some(frame) = demuxed.data {
            self.metrics.frames.inc();
            self.metrics.bytes.inc_by(frame.text().len() as u64);
            let (events, read_at) = (demuxed.events, self.socket.read_at());
            self.position = self.position.map(Position::next);
            let position = self.position;
            self.ready.push_back(LinkEvent::Frame { frame, events, read_at, position });
        }
        if demuxed.malformed > 0 || demuxed.broken_off {
            self.ready.push_back(LinkEvent::Malformed { events: demuxed.malformed });
        }
        self.count_dropped(demuxed.not_objects + demuxed.malformed);
        if demuxed.statuses.is_empty() {
            return;
        }
        let (mut outcomes, now) = (Vec::new(), std::time::Instant::now());
        for status in demuxed.statuses {
            let mut answers = self.subscriptions.on_status(&status.parsed, now);
            if answers.is_empty() {
                self.ready.extend(contract_answer(&status.parsed, &status.text));
            }
            outcomes.append(&mut answers);
            self.on_status(status.parsed, &status.text);
        }
        self.on_outcomes(outcomes);
    }

    fn on_status(&mut self, status: UpstreamStatus, text: &str) {
        if let Some(mark) = PositionMark::read(&status.status, text) {
            self.on_mark(mark, text);
        }
        match status.status.as_str() {
            "position" | "resumed" | "live" => {}
            "success" | "error" | "hint" | "connected" | "auth_success"
                if !login::is_eviction(&status.message) =>
            {
                debug!(status = status.status, text = status.message, "upstream status");
            }
            "gap" | "upstream_down" | "upstream_up" => {
                self.ready.push_back(LinkEvent::Notice(Frame::of_object(text), status));
            }
            Coverage::STATUS => self.ready.push_back(LinkEvent::Coverage(text.to_owned())),
            _ => {
                warn!(status = status.status, text = status.message, "upstream status");
                self.last_status = Some(format!("{}: {}", status.status, status.message));
                self.end = login::login_error(status).or(self.end.take());
            }
        }
    }

    /// Compares what the firehose says with what was counted here.
    fn on_mark(&mut self, mark: PositionMark, text: &str) {
        let known = self.position;
        match mark.kind {
            MarkKind::Resumed => self.position = Some(mark.position),
            // A gap of another firehose, before ours, names a place of another feed. Ours goes on
            // in another epoch only behind the one that is known.
            MarkKind::Gap
                if known.is_some_and(|known| {
                    known.epoch != mark.position.epoch
                        && gap_begins(text).is_none_or(|after| after.epoch != known.epoch)
                }) =>
            {
                return;
            }
            MarkKind::Gap => self.position = Some(mark.position),
            MarkKind::At | MarkKind::Live if known.is_none_or(|known| known == mark.position) => {
                self.position = Some(mark.position);
            }
            MarkKind::At | MarkKind::Live => {
                self.position = None;
                self.end = Some(LinkError::Positions { counted: known, said: mark.position });
                return;
            }
        }
        self.ready.push_back(LinkEvent::Mark(mark));
    }

    fn on_outcomes(&mut self, outcomes: Vec<SubscriptionOutcome>) {
        if !outcomes.is_empty() {
            self.request_due = true;
            // Housekeeping comes before the next frame. From here on the data may be complete, and
            // `AllAnswered` must say so first.
            self.messages_since_housekeeping = MESSAGES_BETWEEN_HOUSEKEEPING;
            self.ready.push_back(LinkEvent::Subscriptions(outcomes));
        }
    }

    /// Counts elements of an array that were dropped.
    fn count_dropped(&self, elements: u64) {
        if elements == 0 {
            return;
        }
        if count_and_sample(&self.metrics.elements_dropped, elements) {
            warn!(elements, "elements of an upstream array dropped: no objects, or not JSON");
        }
    }

    /// Counts a message that is no array of events. It matters to clients only if it may have held
    /// events: others are heartbeats.
    fn drop_message(&mut self, bytes: usize, what: &str, may_hold_events: bool) {
        if may_hold_events {
            self.ready.push_back(LinkEvent::Malformed { events: 0 });
        }
        if count_and_sample(&self.metrics.malformed, 1) {
            warn!(bytes, what, "upstream frame without events dropped");
        }
    }

    fn ended(&self, error: SessionError) -> LinkError {
        match error {
            SessionError::Socket(error) => self.closed(error.to_string()),
            SessionError::Known(error) => error,
        }
    }

    fn closed(&self, why: String) -> LinkError {
        login::closed(why, self.last_status.as_deref())
    }
}

/// The answer of a firehose for a contract. Only a router asks for contracts of a firehose, and
/// nobody else acts on the answer.
fn contract_answer(status: &UpstreamStatus, text: &str) -> Option<LinkEvent> {
    let (item, answer) = match status.status.as_str() {
        "success" => match status.message.split_once("subscribed to: ")? {
            ("", item) => (item.to_owned(), ContractAnswer::Subscribed),
            ("un", item) => (item.to_owned(), ContractAnswer::Unsubscribed),
            _ => return None,
        },
        "error" => (refused_contract(text)?, ContractAnswer::Refused(text.to_owned())),
        _ => return None,
    };
    Some(LinkEvent::Contract { item, answer })
}

/// Whether a message that is no array may hold events: an object begins in it.
fn may_hold_events(message: &[u8]) -> bool {
    message.contains(&b'{')
}

/// Resolves when `wanted` changes; never if its sender is gone.
async fn changed(mut wanted: watch::Receiver<Wanted>) -> watch::Receiver<Wanted> {
    if wanted.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
    wanted
}
