//! The session: reads the stream through one consumer, makes a new one whenever anything is not as
//! expected, and publishes what the link asks for.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use async_nats::{
    HeaderMap, Message as Received, Subscriber, connection::State, message::OutboundMessage,
};
use bytes::Bytes;
use futures_util::{Sink, Stream as _};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, warn};

use super::{
    follow::{Follower, Message, NewEpoch, Seen},
    seek::seek,
    stream::{Delivery, Reading, Stream},
    upstream::{Complaint, NatsUpstream},
    wants::Wants,
};
use crate::{
    link::{error::LinkError, upstream_socket::UpstreamMessage},
    nats::ANSWERED,
    protocol::{Command, Start, Status, millis, status_frame},
    websocket::Frame,
};

/// How often the session looks at what should have come.
const TICK: Duration = Duration::from_millis(100);
/// After this many ticks without a word of the server, its consumer counts as gone.
const SILENT_CONSUMER: u32 = 15;
/// After this many ticks without a message of the firehose, it counts as gone.
const SILENT_FIREHOSE: u32 = 30;
/// The same as a time.
const SILENCE: Duration = Duration::from_secs(3);
/// How long a consumer may take to be made anew, and NATS to be back. Then the outage is announced.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long an attempt waits for a firehose that is silent.
const WAIT: Duration = Duration::from_secs(30);
/// How often the stream is asked meanwhile.
const ASKING: Duration = Duration::from_millis(250);
/// How often it is published what is wanted.
const DEMAND: Duration = Duration::from_secs(5);
/// How long the end of a session may take.
const END: Duration = Duration::from_secs(1);
/// The most messages that wait to be sent. Each is an answer to the server, or a part of the
/// demand.
const MAX_OUTGOING: usize = 4_096;

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A session with a firehose through its market's stream. It makes progress only while it is
/// polled.
pub(crate) struct NatsSession {
    upstream: Arc<NatsUpstream>,
    stream: Stream,
    complaint: Complaint,
    answers: Subscriber,
    phase: Phase,
    follower: Option<Follower>,
    /// What counts of the follower are in the metrics.
    counted: Seen,
    /// Frames that come before those of the follower.
    ready: VecDeque<Frame>,
    outgoing: VecDeque<OutboundMessage>,
    tick: Interval,
    /// Whether a phase has begun that is yet to be polled.
    has_begun: bool,
    /// Ticks without a word of the server.
    silent: u32,
    /// Ticks without a message of the firehose.
    silent_firehose: u32,
    /// Ticks without a connection.
    apart: u32,
    /// When the demand is published next.
    demand_due: Instant,
    read_at: Instant,
    /// The last message delivered.
    last: Option<Delivery>,
}

enum Phase {
    /// Nothing was asked for yet.
    Idle,
    Opening(BoxFuture<Result<(Follower, Reading), LinkError>>),
    Reading {
        reading: Reading,
        of_consumer: u64,
    },
    Renewing(BoxFuture<Result<Reading, LinkError>>),
}

/// What a message of the consumer means.
enum Met {
    /// It was taken.
    Taken,
    /// Nothing for the follower.
    Control,
    /// Something is not as expected: a consumer must be made anew.
    Unexpected(&'static str),
}

impl NatsSession {
    /// Connects, and waits until a firehose writes the stream.
    pub(crate) async fn begin(upstream: Arc<NatsUpstream>) -> Result<Self, LinkError> {
        let (stream, complaint) = upstream.find().await?;
        let failed = |why: String| LinkError::Unreachable(complaint.explain(why));
        await_firehose(&upstream, &stream, &complaint).await?;
        let answers = stream.client.subscribe(upstream.names.answers(upstream.id())).await;
        let answers = answers.map_err(|error| failed(error.to_string()))?;
        upstream.memory().wants.begin_anew();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let now = Instant::now();
        Ok(Self {
            upstream,
            stream,
            complaint,
            answers,
            phase: Phase::Idle,
            follower: None,
            counted: Seen::default(),
            ready: VecDeque::new(),
            outgoing: VecDeque::new(),
            tick,
            has_begun: false,
            silent: 0,
            silent_firehose: 0,
            apart: 0,
            demand_due: now + DEMAND,
            read_at: now,
            last: None,
        })
    }

    /// When the last message was taken.
    pub(crate) fn read_at(&self) -> Instant {
        self.read_at
    }

    /// Takes a command, as a firehose would.
    pub(crate) fn send_text(&mut self, text: &str) {
        let Ok(command) = Command::parse(text) else { return };
        if let Command::Subscribe(items) = &command
            && items.on_behalf_of.is_none()
        {
            self.open(items.start);
        }
        self.upstream.memory().wants.on_command(command);
        self.demand_due = self.demand_due.min(Instant::now() + TICK);
    }

    fn open(&mut self, start: Start) {
        let marks = start != Start::Live;
        let last = self.upstream.memory().last.clone();
        let (stream, complaint) = (self.stream.clone(), self.complaint.clone());
        self.has_begun = true;
        self.phase = Phase::Opening(Box::pin(async move {
            let open = async {
                let silent = || "the stream holds no state of a firehose".to_owned();
                let begin = seek(&stream, start, marks, last).await?.ok_or_else(silent)?;
                let reading = stream.read(begin.next).await?;
                Ok((Follower::new(begin), reading))
            };
            open.await.map_err(|why| LinkError::Closed(complaint.explain(why)))
        }));
    }

    /// The next message of the session, if there is one.
    pub(crate) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<UpstreamMessage, LinkError>> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Poll::Ready(Ok(UpstreamMessage::Text(frame)));
            }
            if let Some(frame) = self.follower.as_mut().and_then(Follower::pop) {
                return Poll::Ready(Ok(UpstreamMessage::Text(frame)));
            }
            if let Poll::Ready(Some(answers)) = Pin::new(&mut self.answers).poll_next(cx) {
                self.on_answers(answers);
                continue;
            }
            match &mut self.phase {
                Phase::Idle => return Poll::Pending,
                Phase::Opening(opening) => {
                    let (follower, reading) = ready!(opening.as_mut().poll(cx))?;
                    self.ready.push_back(status_frame(&Status::subscribed("*")));
                    self.follower = Some(follower);
                    self.phase = Phase::Reading { reading, of_consumer: 0 };
                    (self.silent, self.silent_firehose) = (0, 0);
                }
                Phase::Renewing(renewing) => {
                    let reading = ready!(renewing.as_mut().poll(cx))?;
                    self.phase = Phase::Reading { reading, of_consumer: 0 };
                    self.silent = 0;
                }
                Phase::Reading { reading, .. } => {
                    match ready!(Pin::new(&mut reading.messages).poll_next(cx)) {
                        Some(received) => match self.on_received(received)? {
                            Met::Taken => return Poll::Ready(Ok(UpstreamMessage::Control)),
                            Met::Control => {}
                            Met::Unexpected(why) => self.renew(why),
                        },
                        None => self.renew("its subscription ended"),
                    }
                }
            }
        }
    }

    /// Sends what waits, and looks at what should have come.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        while self.tick.poll_tick(cx).is_ready() {
            self.on_tick()?;
        }
        if std::mem::take(&mut self.has_begun) {
            cx.waker().wake_by_ref();
        }
        while !self.outgoing.is_empty() {
            let mut client = Pin::new(&mut self.stream.client);
            let failed = |error: async_nats::PublishError| LinkError::Closed(error.to_string());
            ready!(client.as_mut().poll_ready(cx)).map_err(failed)?;
            if let Some(message) = self.outgoing.pop_front() {
                client.start_send(message).map_err(failed)?;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn on_received(&mut self, received: Received) -> Result<Met, LinkError> {
        self.silent = 0;
        match received.status {
            None => {}
            Some(status) if status.as_u16() == 100 => return Ok(self.on_control(&received)),
            Some(_) => {
                debug!(status = received.description, "the consumer ended");
                return Ok(Met::Unexpected("the server ended it"));
            }
        }
        let Some(delivery) = received.reply.as_deref().and_then(Delivery::read) else {
            return Ok(Met::Control);
        };
        let (Phase::Reading { of_consumer, .. }, Some(follower)) =
            (&mut self.phase, &mut self.follower)
        else {
            return Ok(Met::Control);
        };
        if delivery.of_consumer != *of_consumer + 1 || delivery.seq < follower.next() {
            return Ok(Met::Unexpected("messages were lost on the way"));
        }
        *of_consumer += 1;
        self.read_at = Instant::now();
        self.last = Some(delivery);
        let Some(message) = self.stream.delivered(delivery.seq, received) else {
            return Ok(Met::Control);
        };
        self.silent_firehose = 0;
        match follower.take(message) {
            Ok(()) => Ok(Met::Taken),
            Err(NewEpoch) => {
                let why = "another firehose writes the stream, or it has begun anew";
                Err(LinkError::Closed(why.to_owned()))
            }
        }
    }

    /// A heartbeat, or a request to say that all before it has come.
    fn on_control(&mut self, received: &Received) -> Met {
        let value = |name: &str| {
            let value = received.headers.as_ref().and_then(|headers| headers.get(name));
            value.map(|value| value.as_str().to_owned())
        };
        let answer = received.reply.as_ref().map(ToString::to_string);
        if let Some(subject) = answer.or_else(|| value("Nats-Consumer-Stalled")) {
            self.publish(subject, None, Bytes::new());
        }
        let Phase::Reading { of_consumer, .. } = &self.phase else { return Met::Control };
        let sent = value("Nats-Last-Consumer").and_then(|last| last.parse::<u64>().ok());
        match sent {
            Some(sent) if sent > *of_consumer => Met::Unexpected("messages were lost on the way"),
            Some(_) => {
                self.last = self.last.map(|last| Delivery { pending: 0, ..last });
                Met::Control
            }
            None => Met::Control,
        }
    }

    /// Makes a new consumer that begins with the next message, if the stream is still the same.
    fn renew(&mut self, why: &'static str) {
        let Some(follower) = &self.follower else { return };
        warn!(stream = self.upstream.names.stream(), why, "the consumer is made anew");
        self.upstream.metrics.consumers_renewed.inc();
        let (next, last) = (follower.next(), follower.last().cloned());
        let (stream, complaint) = (self.stream.clone(), self.complaint.clone());
        let reading = std::mem::replace(&mut self.phase, Phase::Idle);
        if let Phase::Reading { reading, .. } = reading {
            drop(reading.messages);
        }
        self.has_begun = true;
        self.phase = Phase::Renewing(Box::pin(async move {
            let mut failure = "NATS does not answer".to_owned();
            let renewing = async {
                loop {
                    match renewed(&stream, next, last.as_ref()).await {
                        Ok(reading) => return reading,
                        Err(why) => failure = why,
                    }
                    sleep(TICK).await;
                }
            };
            let renewed = timeout(PATIENCE, renewing).await;
            match renewed {
                Ok(reading) => reading.ok_or_else(made_anew),
                Err(_) => Err(LinkError::Closed(complaint.explain(failure))),
            }
        }));
    }

    fn on_tick(&mut self) -> Result<(), LinkError> {
        self.count();
        self.publish_demand();
        let connected = self.stream.client.connection_state() == State::Connected;
        let is_back = connected && self.apart > 0;
        self.apart = if connected { 0 } else { self.apart + 1 };
        if TICK * self.apart >= PATIENCE {
            return Err(LinkError::Closed("the connection to NATS is lost".to_owned()));
        }
        if !matches!(self.phase, Phase::Reading { .. }) {
            return Ok(());
        }
        self.silent += 1;
        self.silent_firehose += 1;
        if is_back {
            self.renew("the connection is another one");
        } else if self.silent >= SILENT_CONSUMER {
            self.renew("no heartbeat came");
        } else if self.silent_firehose >= SILENT_FIREHOSE {
            self.upstream.memory().silent = true;
            return Err(LinkError::NoFirehose(SystemTime::now() - SILENCE));
        }
        Ok(())
    }

    fn publish_demand(&mut self) {
        let now = Instant::now();
        let mut memory = self.upstream.memory();
        if now < self.demand_due {
            return;
        }
        self.demand_due = now + DEMAND;
        memory.demand = memory.wants.publish();
        let demand = memory.demand.clone();
        drop(memory);
        let subject = self.upstream.names.demand(self.upstream.id());
        demand.into_iter().for_each(|part| self.publish(subject.clone(), None, part));
    }

    fn on_answers(&mut self, answers: Received) {
        let version = answers.headers.as_ref().and_then(|headers| headers.get(ANSWERED));
        let version = version.and_then(|version| version.as_str().parse().ok()).unwrap_or(0);
        let frames = self.upstream.memory().wants.on_answers(version, answers.payload);
        self.ready.extend(frames);
    }

    fn publish(&mut self, subject: String, headers: Option<HeaderMap>, payload: Bytes) {
        if self.outgoing.len() < MAX_OUTGOING {
            let subject = subject.into();
            self.outgoing.push_back(OutboundMessage { subject, reply: None, payload, headers });
        }
    }

    /// Writes the metrics.
    fn count(&mut self) {
        let metrics = &self.upstream.metrics;
        let Some(last) = self.last else { return };
        metrics.lag_messages.set(i64::try_from(last.pending).unwrap_or(i64::MAX));
        let age = match last.pending {
            0 => 0,
            _ => millis(SystemTime::now()).saturating_sub(last.stored),
        };
        metrics.lag_ms.set(i64::try_from(age).unwrap_or(i64::MAX));
        let Some(follower) = &self.follower else { return };
        let (seen, counted) = (follower.seen, self.counted);
        metrics.old_epoch.inc_by(seen.of_old_epochs - counted.of_old_epochs);
        metrics.holes.inc_by(seen.holes - counted.holes);
        metrics.lost_events.inc_by(seen.lost_events - counted.lost_events);
        self.counted = seen;
    }

    /// Ends the session: the firehose forgets what it wanted, and the server its consumer.
    pub(crate) async fn close(mut self) {
        let nothing = {
            let mut memory = self.upstream.memory();
            memory.wants = Wants::default();
            memory.wants.publish()
        };
        let subject = self.upstream.names.demand(self.upstream.id());
        let client = self.stream.client.clone();
        let phase = std::mem::replace(&mut self.phase, Phase::Idle);
        let ending = async {
            for part in nothing {
                let _ = client.publish(subject.clone(), part).await;
            }
            if let Phase::Reading { reading, .. } = phase {
                self.stream.end(&reading.consumer).await;
            }
            let _ = client.flush().await;
        };
        let _ = timeout(END, ending).await;
    }
}

impl Drop for NatsSession {
    fn drop(&mut self) {
        self.count();
        let last = self.follower.as_ref().and_then(|follower| follower.last().cloned());
        let mut memory = self.upstream.memory();
        memory.last = last.or(memory.last.take());
        self.upstream.metrics.lag_messages.set(0);
        self.upstream.metrics.lag_ms.set(0);
    }
}

/// A consumer from `next` on; `None` if the stream does not hold what was read before.
async fn renewed(
    stream: &Stream,
    next: u64,
    last: Option<&Message>,
) -> Result<Option<Reading>, String> {
    if let Some(last) = last {
        let found = stream.at_or_after(last.seq).await?;
        // It may have been removed by now, but not what was stored later.
        let same = found.is_some_and(|found| found.seq > last.seq || found.head == last.head);
        if !same {
            return Ok(None);
        }
    }
    stream.read(next).await.map(Some)
}

fn made_anew() -> LinkError {
    LinkError::Closed("the stream does not hold any more what was read last".to_owned())
}

/// Waits until a firehose writes the stream. Meanwhile publishes what was wanted last, so that the
/// next one knows it before it dials.
async fn await_firehose(
    upstream: &NatsUpstream,
    stream: &Stream,
    complaint: &Complaint,
) -> Result<(), LinkError> {
    let began = Instant::now();
    let patience = if upstream.memory().silent { WAIT } else { SILENCE };
    let mut first = None;
    let mut demand_due = began;
    loop {
        let info = stream.info().await;
        let info = info.map_err(|why| LinkError::Unreachable(complaint.explain(why)))?;
        let is_new = *first.get_or_insert(info.state.last_seq) != info.state.last_seq;
        if is_new || info.state.messages > 0 && info.age().is_some_and(|age| age < SILENCE) {
            upstream.memory().silent = false;
            return Ok(());
        }
        if began.elapsed() >= patience {
            upstream.memory().silent = true;
            return Err(LinkError::NoFirehose(SystemTime::now() - patience));
        }
        if Instant::now() >= demand_due {
            demand_due = Instant::now() + DEMAND;
            let subject = upstream.names.demand(upstream.id());
            let demand = upstream.memory().demand.clone();
            for part in demand {
                let _ = stream.client.publish(subject.clone(), part).await;
            }
        }
        sleep(ASKING).await;
    }
}
