//! The write half of a session: framing, batching, and a queue bounded in bytes and age.
//!
//! The caller that has data writes it straight to the socket, without waking the session's task. If
//! the socket is full, the rest waits in the session's queue, and the session's task waits until
//! the socket takes more ([`Outbound::run_writer`]). Events queued meanwhile share messages. So a
//! client that keeps up sees no delay, and a client that falls behind gets fewer and larger
//! messages.
//!
//! Only this module decides whether the routing thread or the session's task writes.

pub(super) mod chunk;
mod queue;

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

use self::{
    chunk::{Chunk, MAX_HEAD, message_head},
    queue::{State, Times, WriteQueue},
};
use super::{
    close::CloseReason,
    metrics::{LossReason, SessionMetrics},
    slow_consumer::SlowLimits,
};
use crate::{
    protocol::{MAX_MESSAGE_BYTES, Status, status_frame},
    transport::Socket,
    websocket::{Frame, MAX_HEADER_BYTES, append_header},
};

/// Most bytes of waiting control frames. A peer that passes it pings without reading the pongs.
const MAX_WAITING_CONTROL_BYTES: usize = 64 * 1024;
/// Most parts given to one `writev`; far below the system's limit of 1,024.
const MAX_PARTS: usize = 64;
/// Messages are framed ahead up to this size. It is small because control frames wait for the
/// messages framed before them.
const FRAMED_AHEAD_BYTES: usize = 128 * 1024;
/// How far apart the delays are that a session measures, if it is the only one.
const MEASURING_INTERVAL: Duration = Duration::from_millis(1);

/// The write half of one session, shared by its task and by the thread that routes data to it.
///
/// The lock is held for non-blocking writes at most, never across an await. In general only the
/// session's task and the router compete for it.
#[derive(Debug)]
pub struct Outbound {
    socket: Socket,
    queue: Mutex<WriteQueue>,
    /// Wakes the session's task when the socket is full or the session is evicted.
    wake: Notify,
    limits: SlowLimits,
    metrics: Arc<SessionMetrics>,
}

/// What a session has got, and what it has yet to get.
#[derive(Debug, Clone, Copy)]
pub struct Backlog {
    /// Bytes that wait to be written.
    pub bytes: usize,
    /// When the oldest of them was read from upstream.
    pub oldest_read_at: Option<Instant>,
    /// Events written to the socket.
    pub delivered: u64,
}

/// What a session has got, all in all.
#[derive(Debug, Clone, Copy)]
pub struct Totals {
    /// Events written to the socket.
    pub events: u64,
    /// Bytes written to the socket, before TLS.
    pub bytes: u64,
    /// How long ago the oldest data that waited was read from upstream, when the session began to
    /// end. Zero if none waited.
    pub lag: Duration,
}

impl Backlog {
    /// How long ago the oldest of the data that waits was read from upstream. Zero if none waits.
    pub fn lag(&self) -> Duration {
        self.oldest_read_at.map_or(Duration::ZERO, |read_at| read_at.elapsed())
    }
}

/// The result of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flushed {
    /// Nothing is left to write.
    Empty,
    /// The socket is full. The session's task continues once the socket takes more.
    Blocked,
    /// Nothing more is written: the socket failed, or the session is over.
    Over,
}

impl Outbound {
    /// The write half over this socket.
    pub fn new(socket: Socket, limits: SlowLimits, metrics: Arc<SessionMetrics>) -> Self {
        Self {
            socket,
            queue: Mutex::new(WriteQueue::new(Instant::now())),
            wake: Notify::new(),
            limits,
            metrics,
        }
    }

    /// The socket, for reading.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Sends events, in the order of the calls. Chunks that wait together share a message.
    ///
    /// A session beyond its limits is evicted: it gets no more events, and its task ends it. Events
    /// for a session that is already ending are counted as lost.
    ///
    /// `read_at` is when the oldest of the events was read from upstream.
    pub fn deliver(&self, chunks: &[Chunk<'_>], now: Instant, read_at: Instant) {
        let mut queue = self.lock();
        if queue.state != State::Open {
            let events = chunks.iter().map(|chunk| u64::from(chunk.events)).sum();
            queue.has_dropped = true;
            return self.metrics.lost(LossReason::SessionClosed, events);
        }
        let times = Times { since: now, read_at };
        if queue.is_empty() && self.write_directly(&mut queue, chunks, times) {
            return;
        }
        for chunk in chunks {
            queue.push(chunk.share(), chunk.events, times, false);
        }
        self.write_or_queue(&mut queue, now);
    }

    /// Sends whole frames, in order with the events around them.
    pub fn send_frames<'a>(
        &self,
        frames: impl IntoIterator<Item = (&'a Frame, u32)>,
        now: Instant,
    ) {
        self.send_data(frames, now, now);
    }

    /// Does the same with frames of events. `read_at` is when the oldest of them was read from
    /// upstream.
    pub fn send_data<'a>(
        &self,
        frames: impl IntoIterator<Item = (&'a Frame, u32)>,
        now: Instant,
        read_at: Instant,
    ) {
        let times = Times { since: now, read_at };
        let mut queue = self.lock();
        let mut frames = frames.into_iter().peekable();
        // Usually there is one answer and nothing queued before it, so it needs no queue.
        if queue.is_empty()
            && queue.state == State::Open
            && let Some((frame, events)) = frames.next()
        {
            if frames.peek().is_none() {
                return self.write_framed(&mut queue, frame.bytes(), events, times);
            }
            queue.push(frame.bytes().clone(), events, times, true);
        }
        for (frame, events) in frames {
            if queue.state != State::Open {
                queue.has_dropped |= events > 0;
                self.metrics.lost(LossReason::SessionClosed, events.into());
                continue;
            }
            queue.push(frame.bytes().clone(), events, times, true);
        }
        if queue.state == State::Open {
            self.write_or_queue(&mut queue, now);
        }
    }

    /// Sends one whole frame that holds no events.
    pub fn send_frame(&self, frame: &Frame, now: Instant) {
        self.send_frames([(frame, 0)], now);
    }

    /// Queues a control frame ahead of the data, to leave at the next frame border. Then writes
    /// what the socket takes.
    ///
    /// A peer that asks for answers without reading them is evicted.
    pub fn send_control(&self, control: Control, payload: &[u8]) {
        let mut queue = self.lock();
        if !matches!(queue.state, State::Open) {
            return;
        }
        if queue.control.is_empty() {
            queue.control_since = Instant::now();
        }
        append_control(&mut queue.control, control, payload);
        if queue.control.len() > MAX_WAITING_CONTROL_BYTES {
            return self.start_eviction(&mut queue, CloseReason::ControlFlood);
        }
        self.write_pending(&mut queue);
    }

    /// Sends a ping with at most 125 bytes of payload, in order with the events around it. Its pong
    /// then says that the client has read everything before it.
    pub fn send_ping_in_order(&self, payload: &[u8], now: Instant) {
        let mut frame = Vec::with_capacity(MAX_HEADER_BYTES + payload.len());
        append_control(&mut frame, Control::Ping, payload);
        let mut queue = self.lock();
        if queue.state != State::Open {
            return;
        }
        let times = Times { since: now, read_at: now };
        if queue.is_empty() {
            return self.write_framed(&mut queue, &frame, 0, times);
        }
        queue.push(frame.into(), 0, times, true);
        self.write_or_queue(&mut queue, now);
    }

    /// Writes as much as the socket takes without waiting.
    pub fn flush(&self) -> Flushed {
        let mut queue = self.lock();
        self.write_pending(&mut queue)
    }

    /// Whether nothing waits to be written.
    pub fn is_idle(&self) -> bool {
        self.lock().is_empty()
    }

    /// Writes whenever the socket takes more. Returns when a backlog has been written.
    ///
    /// Cancel-safe: all state is in the queue.
    ///
    /// # Errors
    ///
    /// The session is evicted or its socket failed. The value is the reason to end the session.
    pub async fn run_writer(&self) -> Result<(), CloseReason> {
        loop {
            let (state, oldest) = {
                let queue = self.lock();
                (queue.state, queue.oldest())
            };
            match state {
                State::Evicted(reason) => return Err(reason),
                State::Over => return Err(CloseReason::ClientGone),
                State::Open | State::Closing => {}
            }
            let Some(oldest) = oldest else {
                self.wake.notified().await;
                continue;
            };
            // Boxed: most sessions are idle, and should not hold the memory for a backlog.
            if Box::pin(self.write_backlog(state, oldest)).await? {
                return Ok(());
            }
        }
    }

    /// Waits until the socket takes more, for a wake-up or for the limit on age, and acts on it.
    /// True once everything is written.
    async fn write_backlog(&self, state: State, oldest: Instant) -> Result<bool, CloseReason> {
        tokio::select! {
            ready = future::poll_fn(|cx| self.socket.poll_write_ready(cx)) => {
                ready.map_err(|_| CloseReason::ClientGone)?;
                match self.flush() {
                    Flushed::Empty => return Ok(true),
                    Flushed::Blocked => {}
                    Flushed::Over => return Err(CloseReason::ClientGone),
                }
            }
            () = self.wake.notified() => {}
            () = sleep_until(oldest + self.limits.max_lag), if state == State::Open => {
                let mut queue = self.lock();
                if queue.state == State::Open {
                    self.apply_limits(&mut queue, Instant::now());
                }
            }
        }
        Ok(false)
    }

    /// Bytes that wait to be written.
    pub fn queued_bytes(&self) -> usize {
        self.lock().waiting_bytes()
    }

    /// Bytes sent to the client: written, or waiting to be.
    pub fn sent_bytes(&self) -> u64 {
        let queue = self.lock();
        queue.written_bytes + queue.waiting_bytes() as u64
    }

    /// What is written, and what waits.
    pub fn backlog(&self) -> Backlog {
        let queue = self.lock();
        Backlog {
            bytes: queue.waiting_bytes(),
            oldest_read_at: queue.oldest_read_at(),
            delivered: queue.delivered_events,
        }
    }

    /// What the session has got, once it has ended.
    pub fn totals(&self) -> Totals {
        let queue = self.lock();
        Totals {
            events: queue.delivered_events,
            bytes: queue.written_bytes,
            lag: queue.lag_at_end.unwrap_or_default(),
        }
    }

    /// Whether events were dropped that the session was to get.
    pub fn has_dropped(&self) -> bool {
        self.lock().has_dropped
    }

    /// Ends the session for this reason, from outside its task: drops what is queued, and leaves
    /// the close frame to the session's task. False if the session is already ending.
    pub fn evict(&self, reason: CloseReason) -> bool {
        let mut queue = self.lock();
        let open = queue.state == State::Open;
        if open {
            self.start_eviction(&mut queue, reason);
        }
        open
    }

    /// Ends the stream: writes what is queued if the reason allows it, then the close frame.
    /// Nothing can be sent afterwards.
    ///
    /// A message half written is completed in any case, because a close frame cannot stand inside
    /// it.
    pub fn finish(&self, reason: CloseReason, closing_status: Option<&Status>) {
        let mut queue = self.lock();
        if matches!(queue.state, State::Closing | State::Over) {
            return;
        }
        queue.note_lag();
        if !reason.flushes() {
            self.drop_queue(&mut queue, reason);
        }
        let now = Instant::now();
        if let Some(status) = closing_status {
            let times = Times { since: now, read_at: now };
            queue.push(status_frame(status).bytes().clone(), 0, times, true);
        }
        if let Some(frame) = reason.frame() {
            // Frame the queue first: a control frame would overtake it.
            while queue.frame_next(now) {}
            let payload = [&frame.code.to_be_bytes()[..], frame.text.as_bytes()].concat();
            let mut framed = Vec::with_capacity(MAX_HEADER_BYTES + payload.len());
            append_control(&mut framed, Control::Close, &payload);
            queue.put(framed.into());
        }
        queue.state = State::Closing;
        self.write_pending(&mut queue);
        self.wake.notify_one();
    }

    /// Gives up writing when the session is over, and counts the unsent events as lost.
    pub fn abandon(&self, reason: CloseReason) {
        let mut queue = self.lock();
        self.drop_queue(&mut queue, reason);
        let events = std::mem::take(&mut queue.in_flight_events);
        self.metrics.lost(LossReason::of(reason), events.into());
        queue.clear_in_flight();
        self.publish(&mut queue);
        queue.state = State::Over;
    }

    fn lock(&self) -> MutexGuard<'_, WriteQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes these chunks as one message. Nothing may be queued. False if they do not fit one
    /// message.
    fn write_directly(&self, queue: &mut WriteQueue, chunks: &[Chunk<'_>], times: Times) -> bool {
        if let [Chunk { framed: Some(framed), events, .. }] = chunks {
            self.write_framed(queue, framed, *events, times);
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
        match self.try_write(queue, events, &mut parts[..n]) {
            Some(written) if written < total => {
                queue.commit(head, chunks, written);
                self.defer_rest(queue, events, times);
            }
            Some(_) => self.delivered(queue, events, times.read_at),
            None => {}
        }
        true
    }

    /// Writes one whole frame. Nothing may be queued.
    fn write_framed(&self, queue: &mut WriteQueue, framed: &[u8], events: u32, times: Times) {
        match self.try_write(queue, events, &mut [IoSlice::new(framed)]) {
            Some(written) if written < framed.len() => {
                queue.put(Bytes::copy_from_slice(&framed[written..]));
                self.defer_rest(queue, events, times);
            }
            Some(_) => self.delivered(queue, events, times.read_at),
            None => {}
        }
    }

    /// Writes these parts. Nothing may be queued. Returns how many bytes the socket took, or `None`
    /// if it failed, after counting the events as lost.
    fn try_write(
        &self,
        queue: &mut WriteQueue,
        events: u32,
        parts: &mut [IoSlice<'_>],
    ) -> Option<usize> {
        match self.socket.try_write(parts) {
            Ok(written) => {
                self.metrics.delivered(0, written);
                queue.written_bytes += written as u64;
                Some(written)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Some(0),
            Err(_) => {
                self.metrics.lost(LossReason::SessionClosed, events.into());
                self.fail(queue);
                None
            }
        }
    }

    /// Counts events whose last byte the socket has taken, and measures the delay of some.
    #[inline]
    fn delivered(&self, queue: &mut WriteQueue, events: u32, read_at: Instant) {
        self.metrics.delivered(events, 0);
        queue.delivered_events += u64::from(events);
        if events > 0 && read_at >= queue.next_measured {
            self.measure(queue, read_at);
        }
    }

    /// Measures about a thousand delays a second in all sessions together.
    #[cold]
    fn measure(&self, queue: &mut WriteQueue, read_at: Instant) {
        self.metrics.added_delay.observe(read_at.elapsed());
        let sessions = u32::try_from(self.metrics.sessions.get()).unwrap_or(1).max(1);
        queue.next_measured = read_at + MEASURING_INTERVAL * sessions;
    }

    /// Leaves the rest of a frame, which is in flight, to the session's task.
    fn defer_rest(&self, queue: &mut WriteQueue, events: u32, times: Times) {
        queue.in_flight_events = events;
        queue.in_flight_since = times.since;
        queue.in_flight_read_at = times.read_at;
        self.publish(queue);
        self.wake.notify_one();
    }

    /// Writes what the socket takes of a queue that has just grown, then applies the limits to the
    /// rest.
    fn write_or_queue(&self, queue: &mut WriteQueue, now: Instant) {
        // While a message is in flight the socket was full just before, and the session's task
        // waits for it.
        if queue.in_flight.is_empty() && self.write_pending(queue) != Flushed::Blocked {
            return;
        }
        self.publish(queue);
        self.apply_limits(queue, now);
    }

    /// Updates the gauges of queued bytes and events.
    fn publish(&self, queue: &mut WriteQueue) {
        let queued_bytes = queue.waiting_bytes();
        self.metrics.queue_bytes.inc_by(queued_bytes as i64 - queue.reported as i64);
        queue.reported = queued_bytes;
        let events = queue.item_events + u64::from(queue.in_flight_events);
        if events != queue.reported_events {
            self.metrics.queue_events.inc_by(events as i64 - queue.reported_events as i64);
            queue.reported_events = events;
        }
    }

    fn apply_limits(&self, queue: &mut WriteQueue, now: Instant) {
        let age =
            queue.oldest().map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        if !self.limits.within_limits(queue.waiting_bytes(), age) {
            self.start_eviction(queue, CloseReason::SlowConsumer);
        }
    }

    fn start_eviction(&self, queue: &mut WriteQueue, reason: CloseReason) {
        self.drop_queue(queue, reason);
        queue.state = State::Evicted(reason);
        self.wake.notify_one();
    }

    fn drop_queue(&self, queue: &mut WriteQueue, reason: CloseReason) {
        queue.note_lag();
        self.metrics.lost(LossReason::of(reason), queue.item_events);
        queue.clear_queue();
        self.publish(queue);
    }

    fn fail(&self, queue: &mut WriteQueue) {
        self.drop_queue(queue, CloseReason::ClientGone);
        self.metrics.lost(LossReason::SessionClosed, queue.in_flight_events.into());
        queue.in_flight_events = 0;
        queue.clear_in_flight();
        self.publish(queue);
        queue.state = State::Over;
        self.wake.notify_one();
    }

    fn write_pending(&self, queue: &mut WriteQueue) -> Flushed {
        if queue.state == State::Over {
            return Flushed::Over;
        }
        loop {
            if queue.in_flight.is_empty() {
                let events = std::mem::take(&mut queue.in_flight_events);
                self.delivered(queue, events, queue.in_flight_read_at);
                let since = queue.oldest().unwrap_or(queue.in_flight_since);
                if !queue.frame_next(since) {
                    queue.release();
                    self.publish(queue);
                    return Flushed::Empty;
                }
                // Frame more, for fewer system calls.
                while queue.in_flight_bytes < FRAMED_AHEAD_BYTES
                    && queue.in_flight.len() + 2 <= MAX_PARTS
                    && queue.frame_next(since)
                {}
            }
            let mut parts = [IoSlice::new(&[]); MAX_PARTS];
            let n = queue.in_flight.len().min(MAX_PARTS);
            for (part, bytes) in parts.iter_mut().zip(&queue.in_flight) {
                *part = IoSlice::new(bytes);
            }
            match self.socket.try_write(&mut parts[..n]) {
                Ok(written) => {
                    queue.advance(written);
                    self.metrics.delivered(0, written);
                    queue.written_bytes += written as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.publish(queue);
                    self.wake.notify_one();
                    return Flushed::Blocked;
                }
                Err(_) => {
                    self.fail(queue);
                    return Flushed::Over;
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
        let queue = self.queue.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.metrics.queue_bytes.dec_by(queue.reported as i64);
        self.metrics.queue_events.dec_by(queue.reported_events as i64);
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use tokio::{
        io::AsyncReadExt,
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::websocket::{Decoded, Decoder};

    /// A session's write half without limits, and the client's socket.
    async fn pair() -> (Outbound, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        let limits = SlowLimits { queue_bytes: usize::MAX, max_lag: Duration::from_secs(3_600) };
        (Outbound::new(Socket::from(socket), limits, Arc::default()), client)
    }

    fn deliver(outbound: &Outbound, text: &str) {
        let (text, now) = (Bytes::copy_from_slice(text.as_bytes()), Instant::now());
        outbound.deliver(&[Chunk::shared(&text, 1)], now, now);
    }

    /// Delivers events until the socket takes no more.
    fn fill(outbound: &Outbound) {
        let filler = format!("\"{}\"", "x".repeat(1 << 20));
        while outbound.is_idle() {
            deliver(outbound, &filler);
        }
    }

    /// What the client reads, up to the ping with the payload `end`, without the filler.
    async fn read_until(end: &str, outbound: &Outbound, client: &mut TcpStream) -> Vec<String> {
        let (mut decoder, mut buffer) = (Decoder::of_server(usize::MAX), BytesMut::new());
        let mut found = Vec::new();
        while found.last().is_none_or(|last| last != end) {
            match decoder.decode(&mut buffer).unwrap() {
                Decoded::Text { bytes, head } => {
                    let text = String::from_utf8(bytes[head..].to_vec()).unwrap();
                    found.extend((!text.contains('x')).then_some(text));
                }
                Decoded::Ping(payload) => {
                    found.push(String::from_utf8(payload.to_vec()).unwrap());
                }
                Decoded::Missing(_) => tokio::select! {
                    written = outbound.run_writer() => written.unwrap(),
                    read = client.read_buf(&mut buffer) => assert_ne!(read.unwrap(), 0),
                },
                other => panic!("{other:?}"),
            }
        }
        found
    }

    #[tokio::test]
    async fn a_ping_in_order_leaves_between_the_events_around_it() {
        let (outbound, mut client) = pair().await;
        let now = Instant::now();
        deliver(&outbound, "1");
        outbound.send_ping_in_order(b"1-1", now);
        deliver(&outbound, "2");
        outbound.send_ping_in_order(b"end", now);
        assert!(outbound.is_idle(), "an empty socket takes all of it at once");
        let read = read_until("end", &outbound, &mut client).await;
        assert_eq!(read, ["[1]", "1-1", "[2]", "end"]);

        fill(&outbound);
        deliver(&outbound, "3");
        outbound.send_ping_in_order(b"1-3", now);
        deliver(&outbound, "4");
        deliver(&outbound, "5");
        outbound.send_control(Control::Ping, b"keep-alive");
        outbound.send_ping_in_order(b"end", now);
        let read = read_until("end", &outbound, &mut client).await;
        assert_eq!(read, ["keep-alive", "[3]", "1-3", "[4,5]", "end"]);
        assert!(outbound.is_idle());
        let metrics = &outbound.metrics;
        assert_eq!((metrics.queue_bytes.get(), metrics.queue_events.get()), (0, 0));
    }

    #[tokio::test]
    async fn an_evicted_session_ends_for_the_reason_given_and_sends_nothing_more() {
        let (outbound, _client) = pair().await;
        fill(&outbound);
        deliver(&outbound, "1");
        let queued = outbound.queued_bytes();
        assert!(outbound.evict(CloseReason::TakenOver));
        assert!(!outbound.evict(CloseReason::SlowConsumer), "it is ending already");
        assert_eq!(outbound.run_writer().await, Err(CloseReason::TakenOver));
        assert_eq!(outbound.metrics.total_lost(LossReason::SessionClosed), 1);
        outbound.send_ping_in_order(b"1-1", Instant::now());
        assert_eq!(outbound.queued_bytes(), queued - 1, "what is in flight still leaves");
    }
}
