//! A logged-in connection: reads frames, asks for channels, answers and sends pings.

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

use super::{
    BoxFuture, LinkError, Wanted,
    client_socket::{Message, WebSocket},
    login,
};
use crate::{
    health::ChannelHealth,
    link::subscriptions::{Change, UpstreamChannels},
    metrics::LinkMetrics,
    protocol::{
        coverage::Carried,
        messages::{UpstreamStatus, command_text},
    },
    websocket::frame::{Frame, separate},
};

/// Pings without a sign of life after which the connection counts as dead.
const MAX_SILENT_PINGS: u8 = 2;

/// In a flood, timers and requests are looked after this often. Reading 64 messages takes a part of the runtime's budget only.
const MESSAGES_BETWEEN_CHORES: u32 = 64;

/// What a connection yields.
pub(super) enum Received {
    Data {
        frame: Frame,
        events: u64,
    },
    /// A message that holds no events, whatever it was to hold.
    Malformed,
    Notice(Frame),
    Carried(String),
    Channels(Vec<Change>),
    /// Each channel wanted by now is carried, or is known not to be.
    Settled,
}

/// A logged-in connection.
pub(super) struct Connection {
    socket: WebSocket,
    since: Instant,
    channels: UpstreamChannels,
    /// Resolves when other channels are wanted.
    wanted: BoxFuture<watch::Receiver<Wanted>>,
    /// Whether there may be something to ask of the upstream.
    ask: bool,
    answer_deadline: Pin<Box<Sleep>>,
    ping: Interval,
    silent_pings: u8,
    metrics: Arc<LinkMetrics>,
    ready: VecDeque<Received>,
    /// Messages read since timers and requests were last looked after.
    since_chores: u32,
    /// Why the connection ends, to be told behind what came before.
    end: Option<LinkError>,
    /// The status with which upstream announced the end, to be told when it comes.
    farewell: Option<String>,
}

impl Connection {
    pub(super) fn new(
        socket: WebSocket,
        mut wanted: watch::Receiver<Wanted>,
        ping_interval: Duration,
        metrics: Arc<LinkMetrics>,
    ) -> Self {
        let mut channels = UpstreamChannels::default();
        channels.want(wanted.borrow_and_update().clone());
        let now = Instant::now();
        let mut ping = interval_at(now + ping_interval, ping_interval);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            socket,
            since: now,
            channels,
            wanted: on_change(wanted),
            ask: true,
            answer_deadline: Box::pin(tokio::time::sleep(Duration::ZERO)),
            ping,
            silent_pings: 0,
            metrics,
            ready: VecDeque::new(),
            since_chores: 0,
            end: None,
            farewell: None,
        }
    }

    /// How long the connection has been logged in.
    pub(super) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// What is known of the channels; `None` while an answer is awaited that would change it at once.
    pub(super) fn channels(&self) -> Option<ChannelHealth> {
        self.channels.deadline().is_none().then(|| self.channels.health())
    }

    /// Frames come first, so that upstream never waits for us. The rest is looked after whenever no frame is there, and after
    /// every so many frames in a flood, while the runtime still grants this task its timers.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Received, LinkError>> {
        loop {
            if let Some(received) = self.ready.pop_front() {
                return Poll::Ready(Ok(received));
            }
            if let Some(error) = self.end.take() {
                return Poll::Ready(Err(error));
            }
            if self.since_chores >= MESSAGES_BETWEEN_CHORES {
                self.do_chores(cx)?;
            }
            match self.socket.poll_next(cx) {
                Poll::Ready(Ok(message)) => self.on_message(message),
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(Err(self.lost(error.to_string())));
                }
                Poll::Pending => {
                    self.do_chores(cx)?;
                    if self.ready.is_empty() {
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    fn do_chores(&mut self, cx: &mut Context<'_>) -> Result<(), LinkError> {
        self.since_chores = 0;
        self.poll_wanted(cx);
        self.poll_channels(cx);
        self.poll_ping(cx)?;
        self.poll_flush(cx)
    }

    fn poll_wanted(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(mut receiver) = self.wanted.as_mut().poll(cx) {
            self.channels.want(receiver.borrow_and_update().clone());
            self.wanted = on_change(receiver);
            self.ask = true;
        }
    }

    fn poll_channels(&mut self, cx: &mut Context<'_>) {
        if let Some(deadline) = self.channels.deadline()
            && self.answer_deadline.as_mut().poll(cx).is_ready()
        {
            let changes = self.channels.on_time(deadline);
            self.changed(changes);
        }
        while std::mem::take(&mut self.ask) {
            let now = std::time::Instant::now();
            let Some(request) = self.channels.next_request(now) else {
                if self.channels.is_settled() {
                    self.ready.push_back(Received::Settled);
                }
                return;
            };
            self.ask = true;
            self.socket.send_text(&command_text(request.action, &request.params));
            if let Some(deadline) = self.channels.deadline() {
                self.answer_deadline.as_mut().reset(deadline.into());
                // Polled once, so that it wakes this task.
                let _ = self.answer_deadline.as_mut().poll(cx);
            }
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

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Result<(), LinkError> {
        match self.socket.poll_flush(cx) {
            Poll::Ready(Err(error)) => Err(self.lost(error.to_string())),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    fn on_message(&mut self, message: Message) {
        self.silent_pings = 0;
        self.since_chores += 1;
        match message {
            Message::Text(frame) => self.on_frame(frame),
            Message::Binary(payload) => self.malformed(payload.len(), "binary"),
            Message::Close(why) => self.end = Some(self.lost(why)),
            Message::Control => {}
        }
    }

    fn on_frame(&mut self, frame: Frame) {
        let bytes = frame.text().len();
        let Ok(separated) = separate(frame) else {
            return self.malformed(bytes, "no JSON array");
        };
        if let Some(frame) = separated.data {
            self.metrics.frames.inc();
            self.metrics.events.inc_by(separated.events);
            self.metrics.bytes.inc_by(frame.text().len() as u64);
            self.ready.push_back(Received::Data { frame, events: separated.events });
        }
        if separated.statuses.is_empty() {
            return;
        }
        let mut changes = Vec::new();
        for frame_status in separated.statuses {
            changes.append(&mut self.channels.on_status(&frame_status.status));
            self.on_status(frame_status.status, &frame_status.text);
        }
        self.changed(changes);
    }

    fn on_status(&mut self, status: UpstreamStatus, text: &str) {
        match status.status.as_str() {
            "success" | "error" | "connected" | "auth_success" => {
                debug!(?status, "upstream status");
            }
            "gap" | "upstream_down" | "upstream_up" => {
                let frame = Frame::of_object(text);
                self.ready.push_back(Received::Notice(frame));
            }
            Carried::STATUS => self.ready.push_back(Received::Carried(text.to_owned())),
            _ => {
                warn!(status = status.status, message = status.message, "upstream status");
                self.farewell = Some(format!("{}: {}", status.status, status.message));
                self.end = login::login_error(status).or(self.end.take());
            }
        }
    }

    fn changed(&mut self, changes: Vec<Change>) {
        if !changes.is_empty() {
            self.ask = true;
            // Before the next frame: it may hold what is told of data that is complete from here on.
            self.since_chores = MESSAGES_BETWEEN_CHORES;
            self.ready.push_back(Received::Channels(changes));
        }
    }

    fn malformed(&mut self, bytes: usize, what: &str) {
        self.ready.push_back(Received::Malformed);
        // The metric counts them all; one line in a thousand is enough for the log.
        if self.metrics.malformed.inc().is_multiple_of(1_000) {
            warn!(bytes, what, "upstream frame without events dropped");
        }
    }

    fn lost(&self, why: String) -> LinkError {
        LinkError::Closed(match &self.farewell {
            Some(farewell) => format!("{why} (after {farewell})"),
            None => why,
        })
    }
}

fn on_change(mut wanted: watch::Receiver<Wanted>) -> BoxFuture<watch::Receiver<Wanted>> {
    Box::pin(async move {
        if wanted.changed().await.is_err() {
            // Nobody is left to want anything else.
            std::future::pending::<()>().await;
        }
        wanted
    })
}
