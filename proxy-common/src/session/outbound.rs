//! The write half of a session: framing, batching, and a queue bounded in bytes and age.
//!
//! Whoever has data writes it straight to the socket, without waking the session's task. Only when the socket is full does
//! the rest wait in the session's queue, and only then does the session's task wait for room ([`Outbound::run_writer`]). What
//! is queued meanwhile leaves as one message: no delay while the client keeps up, fewer and larger messages when it falls behind.
//!
//! The choice between writing from the routing thread and a task per session lives in this module alone.

use std::{
    future,
    io::{self, IoSlice},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tungstenite::protocol::frame::coding::{Control, OpCode};

use crate::{
    metrics::{LossReason, SessionMetrics},
    protocol::messages::{MAX_MESSAGE_BYTES, Status, status_frame},
    session::{
        close::CloseReason,
        slow_consumer::{SlowLimits, Verdict},
    },
    transport::socket::Socket,
    websocket::frame::{Frame, MAX_HEADER_BYTES, append_header},
};

mod queue;

pub use self::queue::{Chunk, ChunkBuffer};
use self::queue::{Lane, MAX_HEAD, State, message_head};

/// Most bytes of control frames waiting; past it the peer pings without reading.
const MAX_CONTROL_BYTES: usize = 64 * 1024;
/// Most parts given to one `writev`; far below the system's limit of 1,024.
const MAX_PARTS: usize = 64;
/// Messages are framed ahead up to this size. Control frames wait for what is framed, so it is not more than a moment's worth.
const WIRE_BYTES: usize = 128 * 1024;

/// The write half of one session, shared by its task and by whoever routes data to it.
///
/// The lock is held for the length of a non-blocking write at most and never across an await; only the session's own task
/// and the router meet at it.
#[derive(Debug)]
pub struct Outbound {
    socket: Socket,
    lane: Mutex<Lane>,
    /// Tells the session's task that the socket is full or that the session is condemned.
    attention: Notify,
    limits: SlowLimits,
    metrics: Arc<SessionMetrics>,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flushed {
    /// Nothing is left to write.
    Empty,
    /// The socket is full; the session's task goes on when there is room.
    Blocked,
    /// The socket failed.
    Broken,
}

impl Outbound {
    /// The write half over this socket.
    pub fn new(socket: Socket, limits: SlowLimits, metrics: Arc<SessionMetrics>) -> Self {
        Self {
            socket,
            lane: Mutex::new(Lane::new(Instant::now())),
            attention: Notify::new(),
            limits,
            metrics,
        }
    }

    /// The socket, for reading.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Sends events, in the order of the calls. Chunks waiting together share a message.
    ///
    /// A session past its limits is condemned: it gets no more, and its task ends it. Events for a session that no longer
    /// takes any are counted as lost.
    pub fn deliver(&self, chunks: &[Chunk<'_>], now: Instant) {
        let mut lane = self.lock();
        if lane.state != State::Open {
            let events = chunks.iter().map(|chunk| u64::from(chunk.events)).sum();
            return self.metrics.lost(LossReason::SessionClosed, events);
        }
        if lane.is_empty() && self.write_directly(&mut lane, chunks, now) {
            return;
        }
        for chunk in chunks {
            lane.push(chunk.share(), chunk.events, now, false);
        }
        self.settle(&mut lane, now);
    }

    /// Sends whole frames, in order with the events around them.
    pub fn send_frames<'a>(
        &self,
        frames: impl IntoIterator<Item = (&'a Frame, u32)>,
        now: Instant,
    ) {
        let mut lane = self.lock();
        let mut frames = frames.into_iter().peekable();
        // Usually a single answer, and nothing before it: no queue is needed.
        if lane.is_empty()
            && lane.state == State::Open
            && let Some((frame, events)) = frames.next()
        {
            if frames.peek().is_none() {
                return self.write_framed(&mut lane, frame.bytes(), events, now);
            }
            lane.push(frame.bytes().clone(), events, now, true);
        }
        for (frame, events) in frames {
            if lane.state != State::Open {
                self.metrics.lost(LossReason::SessionClosed, events.into());
                continue;
            }
            lane.push(frame.bytes().clone(), events, now, true);
        }
        if lane.state == State::Open {
            self.settle(&mut lane, now);
        }
    }

    /// Sends one whole frame that holds no events.
    pub fn send_frame(&self, frame: &Frame, now: Instant) {
        self.send_frames([(frame, 0)], now);
    }

    /// Adds a control frame ahead of queued data and writes what the socket takes. It leaves at the next frame border.
    ///
    /// A peer that makes us answer without reading the answers is condemned.
    pub fn send_control(&self, control: Control, payload: &[u8]) {
        let mut lane = self.lock();
        if !matches!(lane.state, State::Open) {
            return;
        }
        if lane.control.is_empty() {
            lane.control_since = Instant::now();
        }
        append_control(&mut lane.control, control, payload);
        if lane.control.len() > MAX_CONTROL_BYTES {
            return self.condemn(&mut lane, CloseReason::ControlFlood);
        }
        self.write_on(&mut lane);
    }

    /// Writes what the socket takes without waiting.
    pub fn flush(&self) -> Flushed {
        let mut lane = self.lock();
        self.write_on(&mut lane)
    }

    /// Whether nothing waits to be written.
    pub fn is_idle(&self) -> bool {
        self.lock().is_empty()
    }

    /// Writes whenever the socket has room again. Returns when a backlog has been written, or with the reason for which the
    /// session has to end.
    ///
    /// Cancel-safe: all state is in the lane.
    ///
    /// # Errors
    ///
    /// The session is condemned or its socket failed.
    pub async fn run_writer(&self) -> Result<(), CloseReason> {
        loop {
            let (state, oldest) = {
                let lane = self.lock();
                (lane.state, lane.oldest())
            };
            match state {
                State::Condemned(reason) => return Err(reason),
                State::Broken => return Err(CloseReason::ClientGone),
                State::Open | State::Closing => {}
            }
            let Some(oldest) = oldest else {
                self.attention.notified().await;
                continue;
            };
            // Boxed: an idle session, which most are, should not carry the room that a backlog needs.
            if Box::pin(self.work_off(state, oldest)).await? {
                return Ok(());
            }
        }
    }

    /// Waits for room in the socket, for attention or for the limit on age, and does what is to be done then. True once
    /// everything is written.
    async fn work_off(&self, state: State, oldest: Instant) -> Result<bool, CloseReason> {
        tokio::select! {
            ready = future::poll_fn(|cx| self.socket.poll_write_ready(cx)) => {
                ready.map_err(|_| CloseReason::ClientGone)?;
                match self.flush() {
                    Flushed::Empty => return Ok(true),
                    Flushed::Blocked => {}
                    Flushed::Broken => return Err(CloseReason::ClientGone),
                }
            }
            () = self.attention.notified() => {}
            () = sleep_until(oldest + self.limits.max_lag), if state == State::Open => {
                self.check_age(Instant::now());
            }
        }
        Ok(false)
    }

    /// Bytes that wait here.
    pub fn held(&self) -> usize {
        let lane = self.lock();
        lane.queue_bytes + lane.wire_bytes
    }

    /// Ends the session as a slow consumer, for all sessions together hold too much. False if it is at its end already.
    pub fn give_up(&self) -> bool {
        let mut lane = self.lock();
        let open = lane.state == State::Open;
        if open {
            self.condemn(&mut lane, CloseReason::SlowConsumer);
        }
        open
    }

    /// Applies the limit on age to a session that waits for room.
    fn check_age(&self, now: Instant) {
        let mut lane = self.lock();
        if lane.state == State::Open {
            self.judge(&mut lane, now);
        }
    }

    /// Ends the stream: what is queued goes out if the reason lets it, then the close frame. Nothing can be sent afterwards.
    ///
    /// The message half written is completed in any case, since the close frame cannot stand inside it.
    pub fn finish(&self, reason: CloseReason, farewell: Option<&Status>) {
        let mut lane = self.lock();
        if matches!(lane.state, State::Closing | State::Broken) {
            return;
        }
        if !reason.flushes() {
            self.drop_queue(&mut lane, reason);
        }
        let now = Instant::now();
        if let Some(status) = farewell {
            lane.push(status_frame(status).bytes().clone(), 0, now, true);
        }
        if let Some(frame) = reason.frame() {
            // Behind the queue: control frames would overtake what is still to be read.
            while lane.frame_next(now) {}
            let payload = [&frame.code.to_be_bytes()[..], frame.text.as_bytes()].concat();
            let mut framed = Vec::with_capacity(MAX_HEADER_BYTES + payload.len());
            append_control(&mut framed, Control::Close, &payload);
            lane.put(framed.into());
        }
        lane.state = State::Closing;
        self.write_on(&mut lane);
        self.attention.notify_one();
    }

    /// Counts what is still unsent as lost, when the session is over.
    pub fn abandon(&self, reason: CloseReason) {
        let mut lane = self.lock();
        self.drop_queue(&mut lane, reason);
        let events = std::mem::take(&mut lane.wire_events);
        self.metrics.lost(LossReason::of(reason), events.into());
        lane.clear_wire();
        self.report(&mut lane);
        lane.state = State::Broken;
    }

    fn lock(&self) -> MutexGuard<'_, Lane> {
        self.lane.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes one message of these chunks, nothing being queued. False if they do not fit one message.
    fn write_directly(&self, lane: &mut Lane, chunks: &[Chunk<'_>], now: Instant) -> bool {
        if let [Chunk { framed: Some(framed), events, .. }] = chunks {
            self.write_framed(lane, framed, *events, now);
            return true;
        }
        let inner = chunks.iter().map(|chunk| chunk.text.len() + 1).sum::<usize>();
        if inner >= MAX_MESSAGE_BYTES || chunks.len() > MAX_PARTS / 2 - 1 || chunks.is_empty() {
            return false;
        }
        // One comma fewer than chunks, and two brackets.
        let mut head = [0; MAX_HEAD];
        let head = message_head(&mut head, inner + 1);
        let mut parts = [IoSlice::new(&[]); MAX_PARTS];
        let mut n = 0;
        let mut add = |part| {
            parts[n] = IoSlice::new(part);
            n += 1;
        };
        add(head);
        for (i, chunk) in chunks.iter().enumerate() {
            if i > 0 {
                add(b",");
            }
            add(chunk.text);
        }
        add(b"]");
        let total = head.len() + inner;
        let events = chunks.iter().map(|chunk| chunk.events).sum();
        match self.try_write(lane, events, &mut parts[..n]) {
            Some(written) if written < total => {
                lane.commit(head, chunks, written);
                self.go_on_later(lane, events, now);
            }
            Some(_) => self.metrics.delivered(events, 0),
            None => {}
        }
        true
    }

    /// Writes one whole frame, nothing being queued.
    fn write_framed(&self, lane: &mut Lane, framed: &[u8], events: u32, now: Instant) {
        match self.try_write(lane, events, &mut [IoSlice::new(framed)]) {
            Some(written) if written < framed.len() => {
                lane.put(Bytes::copy_from_slice(&framed[written..]));
                self.go_on_later(lane, events, now);
            }
            Some(_) => self.metrics.delivered(events, 0),
            None => {}
        }
    }

    /// Writes, nothing being queued. Tells how many bytes the socket took, or `None` if it failed; the events are lost then.
    fn try_write(&self, lane: &mut Lane, events: u32, parts: &mut [IoSlice<'_>]) -> Option<usize> {
        match self.socket.try_write(parts) {
            Ok(written) => {
                self.metrics.delivered(0, written);
                Some(written)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Some(0),
            Err(_) => {
                self.metrics.lost(LossReason::SessionClosed, events.into());
                self.break_off(lane);
                None
            }
        }
    }

    /// Leaves the rest of a frame, which is on the wire, to the session's task.
    fn go_on_later(&self, lane: &mut Lane, events: u32, now: Instant) {
        lane.wire_events = events;
        lane.wire_since = now;
        self.report(lane);
        self.attention.notify_one();
    }

    /// Writes what can be written of a queue just grown, then applies the policy to the rest.
    fn settle(&self, lane: &mut Lane, now: Instant) {
        // With a message half written the socket was full a moment ago; the session's task is waiting for room.
        if lane.wire.is_empty() && self.write_on(lane) != Flushed::Blocked {
            return;
        }
        self.report(lane);
        self.judge(lane, now);
    }

    /// Brings the gauges of what is queued up to date.
    fn report(&self, lane: &mut Lane) {
        let held = lane.queue_bytes + lane.wire_bytes;
        self.metrics.queue_bytes.inc_by(held as i64 - lane.reported as i64);
        lane.reported = held;
        let events = lane.queue_events + u64::from(lane.wire_events);
        if events != lane.reported_events {
            self.metrics.queue_events.inc_by(events as i64 - lane.reported_events as i64);
            lane.reported_events = events;
        }
    }

    fn judge(&self, lane: &mut Lane, now: Instant) {
        let age =
            lane.oldest().map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        match self.limits.judge(lane.queue_bytes + lane.wire_bytes, age) {
            Verdict::Keep => {}
            Verdict::TooMuch | Verdict::TooOld => self.condemn(lane, CloseReason::SlowConsumer),
        }
    }

    fn condemn(&self, lane: &mut Lane, reason: CloseReason) {
        self.drop_queue(lane, reason);
        lane.state = State::Condemned(reason);
        self.attention.notify_one();
    }

    fn drop_queue(&self, lane: &mut Lane, reason: CloseReason) {
        self.metrics.lost(LossReason::of(reason), lane.queue_events);
        lane.clear_queue();
        self.report(lane);
    }

    fn break_off(&self, lane: &mut Lane) {
        self.drop_queue(lane, CloseReason::ClientGone);
        self.metrics.lost(LossReason::SessionClosed, lane.wire_events.into());
        lane.wire_events = 0;
        lane.clear_wire();
        self.report(lane);
        lane.state = State::Broken;
        self.attention.notify_one();
    }

    fn write_on(&self, lane: &mut Lane) -> Flushed {
        if lane.state == State::Broken {
            return Flushed::Broken;
        }
        loop {
            if lane.wire.is_empty() {
                self.metrics.delivered(std::mem::take(&mut lane.wire_events), 0);
                let since = lane.oldest().unwrap_or(lane.wire_since);
                if !lane.frame_next(since) {
                    lane.release();
                    self.report(lane);
                    return Flushed::Empty;
                }
                // More of them in one system call.
                while lane.wire_bytes < WIRE_BYTES
                    && lane.wire.len() + 2 <= MAX_PARTS
                    && lane.frame_next(since)
                {}
            }
            let mut parts = [IoSlice::new(&[]); MAX_PARTS];
            let n = lane.wire.len().min(MAX_PARTS);
            for (part, bytes) in parts.iter_mut().zip(&lane.wire) {
                *part = IoSlice::new(bytes);
            }
            match self.socket.try_write(&mut parts[..n]) {
                Ok(written) => {
                    lane.advance(written);
                    self.metrics.delivered(0, written);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.report(lane);
                    self.attention.notify_one();
                    return Flushed::Blocked;
                }
                Err(_) => {
                    self.break_off(lane);
                    return Flushed::Broken;
                }
            }
        }
    }
}

fn append_control(out: &mut Vec<u8>, control: Control, payload: &[u8]) {
    append_header(out, OpCode::Control(control), payload.len());
    out.extend_from_slice(payload);
}

impl Drop for Outbound {
    fn drop(&mut self) {
        let lane = self.lane.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.metrics.queue_bytes.dec_by(lane.reported as i64);
        self.metrics.queue_events.dec_by(lane.reported_events as i64);
    }
}
