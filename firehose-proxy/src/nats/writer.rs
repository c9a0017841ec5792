//! The writer: a cursor in the history, and a window of messages on their way.
//!
//! Whatever disturbs it (a refusal, no answer for 2 s, a connection lost) leads to the same thing:
//! it reads the end of the stream, decides by that how to go on, and goes on.

use std::{future, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use proxy_common::{
    nats::Head,
    protocol::{Gone, Market, Notice, TierName},
};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{
    connection::{Connection, Outgoing, Reply, TIMEOUT},
    payload::{MAX_JOINED, joined, payload},
    state::{State, States},
    status::WriterStatus,
    stream::NO_ANSWER,
    window::{Progress, Sent, Subject, Window},
};
use crate::{config::FeedConfig, epochs::Epochs, ring::Wake, role::Role, subscriber::Shared};

/// How often the state is written if it does not change.
const STATE_INTERVAL: Duration = Duration::from_secs(1);
/// How long a stopping program waits for NATS to take the rest.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// How long it may take to go on: many requests and a whole window, each with its own deadline.
const RESUME_TIMEOUT: Duration = Duration::from_secs(30);
/// What a server does whose disk is full.
const STORES_NOTHING: &str =
    "it stores nothing of what it is sent: see its log, the disk may be full";
/// How long it waits before it tries again.
const RETRY: Duration = Duration::from_millis(250);
/// One message out of this many asks for a reply, beside the last that is ready.
const ASK_EVERY: u32 = 32;

/// What a writer needs of its market.
pub(crate) struct WriterParts {
    pub(crate) market: Market,
    /// Who we are, for whoever reads the state.
    pub(crate) holder: String,
    pub(crate) config: FeedConfig,
    pub(crate) shared: Shared,
    /// What the ring wakes with each message.
    pub(crate) wake: Arc<Wake>,
    /// Whether it may write, and in which epoch.
    pub(crate) writing: watch::Receiver<Role>,
    /// For a new epoch, if the stream has a later one and no lease says which counts.
    pub(crate) epochs: Option<Epochs>,
}

/// Writes the feed of a market into its stream.
pub(super) struct Writer {
    pub(super) parts: WriterParts,
    pub(super) status: Arc<WriterStatus>,
    pub(super) states: States,
    /// Messages since the last one that asked for a reply.
    unasked: u32,
    /// When the oldest message that waits was sent, or its predecessor acknowledged.
    pub(super) waiting_since: Instant,
}

/// Why the writing in an epoch has ended.
pub(super) enum End {
    /// The permission has changed.
    Changed,
    /// The program stops.
    Stopped,
    /// A later epoch is in the stream. Whether this one was opened.
    Fenced { later: u64, opened: bool },
}

/// Why the writer must look at the end of the stream.
pub(super) enum Trouble {
    End(End),
    Fenced(u64),
    /// Another message stands where ours was to stand.
    Moved,
    Failed(String),
}

impl From<String> for Trouble {
    fn from(reason: String) -> Self {
        Self::Failed(reason)
    }
}

impl Writer {
    pub(super) fn new(parts: WriterParts, status: Arc<WriterStatus>) -> Self {
        let states = States::default();
        Self { parts, status, states, unasked: 0, waiting_since: Instant::now() }
    }

    /// Writes until `stop`, then what the history still holds, for at most a second.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let Some(mut connection) = self.connect(&stop).await else { return };
        let mut begun = 0;
        loop {
            let role = self.parts.writing.borrow_and_update().clone();
            let Role::Holder { epoch, .. } = role else {
                self.status.is_off();
                if self.is_over_before_a_change(&stop).await {
                    return;
                }
                continue;
            };
            let epoch = epoch.max(begun);
            match self.write(&mut connection, epoch, &stop).await {
                End::Stopped => return,
                End::Changed => continue,
                // Without a lease nobody else is known to write: our clock has gone back.
                End::Fenced { later, opened: false } if self.parts.epochs.is_some() => {
                    let epochs = self.parts.epochs.take();
                    let Some(epochs) = epochs else { continue };
                    match timeout(TIMEOUT, epochs.begin(later + 1)).await {
                        Ok(Some(in_force)) => begun = in_force,
                        Ok(None) | Err(_) => return,
                    }
                    continue;
                }
                End::Fenced { later, .. } => self.status.is_fenced(epoch, later),
            }
            if self.is_over_before_a_change(&stop).await {
                return;
            }
        }
    }

    /// Waits for another permission. Returns whether the program stops before that.
    async fn is_over_before_a_change(&mut self, stop: &CancellationToken) -> bool {
        stop.run_until_cancelled(changed(&mut self.parts.writing)).await.is_none()
    }

    /// Connects, however often it takes. `None` once the program stops.
    async fn connect(&self, stop: &CancellationToken) -> Option<Connection> {
        let WriterParts { config, market, holder, .. } = &self.parts;
        let connecting = async {
            loop {
                match Connection::open(config, *market, holder).await {
                    Ok(connection) => return connection,
                    Err(reason) => self.status.is_down(&reason),
                }
                sleep(RETRY).await;
            }
        };
        stop.run_until_cancelled(connecting).await
    }

    /// Writes in this epoch.
    async fn write(
        &mut self,
        connection: &mut Connection,
        epoch: u64,
        stop: &CancellationToken,
    ) -> End {
        let mut window = None;
        let mut writing = self.parts.writing.clone();
        let (mut stored, mut stuck_since) = (0, Instant::now());
        let mut over = pin!(after(stop, FLUSH_TIMEOUT));
        loop {
            let working = async {
                let resumed = self.resume(connection, epoch, &mut window);
                timeout(RESUME_TIMEOUT, resumed)
                    .await
                    .unwrap_or_else(|_| Err(NO_ANSWER.to_owned().into()))?;
                let Some(window) = &mut window else { return Ok(()) };
                self.flow(connection, epoch, window, stop).await
            };
            let result: Result<(), Trouble> = tokio::select! {
                biased;
                () = changed(&mut writing) => return End::Changed,
                result = working => result,
                () = &mut over => return End::Stopped,
            };
            let was_moved = matches!(result, Err(Trouble::Moved));
            match result {
                Ok(()) => {}
                Err(Trouble::End(end)) => return end,
                Err(Trouble::Fenced(later)) => {
                    return End::Fenced { later, opened: window.is_some() };
                }
                Err(Trouble::Moved) => debug!("looks at the end of the stream: it was moved"),
                Err(Trouble::Failed(reason)) => {
                    self.status.is_down(&connection.explain(reason));
                }
            }
            let now_stored = window.as_ref().map_or(0, |window| window.stored().0);
            if now_stored != stored {
                stuck_since = Instant::now();
            } else {
                // Nothing came of it. A server that cannot write refuses all but the first message.
                if was_moved && stuck_since.elapsed() >= TIMEOUT {
                    self.status.is_down(STORES_NOTHING);
                }
                tokio::select! {
                    () = changed(&mut writing) => return End::Changed,
                    () = &mut over => return End::Stopped,
                    () = connection.events.changed() => {}
                    () = sleep(RETRY) => {}
                }
            }
            stored = now_stored;
        }
    }

    /// Writes as the history grows, until something disturbs it.
    async fn flow(
        &mut self,
        connection: &mut Connection,
        epoch: u64,
        window: &mut Window,
        stop: &CancellationToken,
    ) -> Result<(), Trouble> {
        let wake = Arc::clone(&self.parts.wake);
        let mut ticks = interval(STATE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut state, mut stopping) = (None, false);
        loop {
            if self.states.may_differ(&wake) {
                state = Some(self.states.take(&self.parts.shared, &wake));
            }
            self.fill(connection, epoch, window, &mut state).await?;
            let end = self.parts.shared.ring.history().end();
            self.show(window, end);
            if stopping && window.len() == 0 && state.is_none() && window.progress().entry >= end {
                return Err(Trouble::End(End::Stopped));
            }
            let deadline = self.waiting_since + TIMEOUT;
            tokio::select! {
                biased;
                reply = connection.replies.next() => match reply {
                    Reply::Stored(seq) if seq < window.next_seq() => {
                        self.on_stored(epoch, window, seq);
                    }
                    Reply::Stored(_) => return Err(Trouble::Moved),
                    Reply::Moved => {
                        self.status.refused.inc();
                        return Err(Trouble::Moved);
                    }
                    Reply::Refused(reason) => {
                        self.status.refused.inc();
                        return Err(reason.into());
                    }
                },
                () = connection.events.changed() => {
                    connection.begin_pass()?;
                    return Err(Trouble::Moved);
                }
                () = sleep_until(deadline), if window.len() > 0 => {
                    return Err(NO_ANSWER.to_owned().into());
                }
                _ = ticks.tick() => if state.is_none() {
                    state = Some(self.states.take(&self.parts.shared, &wake));
                },
                () = wake.published.notified(), if window.has_room() => {}
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    state = Some(self.states.take(&self.parts.shared, &wake));
                }
            }
        }
    }

    /// Sends what is ready, while the window has room.
    async fn fill(
        &mut self,
        connection: &Connection,
        epoch: u64,
        window: &mut Window,
        state: &mut Option<State>,
    ) -> Result<(), Trouble> {
        let mut entries = Vec::new();
        while window.has_room() {
            let history = self.parts.shared.ring.history();
            let before = window.progress();
            if let Some(State { before: due, .. }) = state
                && before.entry >= *due
                && let Some(state) = state.take()
            {
                if let Some(notice) = self.states.before(&state, before.position) {
                    let head = before.head(before.time);
                    self.send(connection, window, Subject::Data, head, notice, before).await?;
                }
                let head = before.head(before.time);
                self.send(connection, window, Subject::State, head, state.frames, before).await?;
                continue;
            }
            entries.clear();
            if history.read(before.entry, MAX_JOINED, &mut entries).is_err() {
                let (notice, after) = self.overtaken(before);
                // The head counts the loss already, so that it does not look like one of the
                // stream.
                let head = after.head(after.time);
                self.send(connection, window, Subject::Data, head, notice, after).await?;
                continue;
            }
            let due = state.as_ref().map_or(u64::MAX, |state| state.before);
            let fit = entries.iter().take_while(|entry| entry.position.epoch == epoch).count();
            let fit = fit.min(usize::try_from(due - before.entry).unwrap_or(usize::MAX));
            let taken = &entries[..joined(&entries[..fit])];
            let Some(last) = taken.last() else { break };
            self.states.on_entries(taken);
            let data = taken.iter().rev().find(|entry| !entry.notice);
            let after = Progress {
                entry: before.entry + taken.len() as u64,
                position: last.position,
                events: before.events + taken.iter().map(|e| u64::from(e.events)).sum::<u64>(),
                lost: before.lost,
                time: data.map_or(before.time, |entry| entry.time),
            };
            let head = before.head(after.time);
            self.send(connection, window, Subject::Data, head, payload(taken), after).await?;
        }
        Ok(())
    }

    /// What to write where the history has dropped what was to follow, and where that leads.
    fn overtaken(&self, before: Progress) -> (Bytes, Progress) {
        let history = self.parts.shared.ring.history();
        let (entry, position, total) = history.count_before(before.entry);
        let frames = position.seq.saturating_sub(before.position.seq);
        let events = total.saturating_sub(before.events + before.lost);
        self.status.lost.inc_by(events);
        let why = Gone::Overtaken(Some(frames));
        let notice = Notice::gone(TierName::Firehose, why, Some(before.position), position);
        let notice = notice.counting(events).frame().bytes().clone();
        (notice, Progress { entry, position, lost: before.lost + events, ..before })
    }

    async fn send(
        &mut self,
        connection: &Connection,
        window: &mut Window,
        subject: Subject,
        head: Head,
        payload: Bytes,
        after: Progress,
    ) -> Result<(), Trouble> {
        if window.len() == 0 {
            self.waiting_since = Instant::now();
        }
        let seq = window.next_seq();
        let sent = Sent { seq, subject, head, payload, after };
        // Before it is sent: whatever happens meanwhile, it may be stored.
        window.push(sent.clone());
        let is_last = !window.has_room() || after.entry >= self.parts.shared.ring.history().end();
        let asks = self.asks(is_last);
        Ok(connection.publish(sent.outgoing(asks)).await?)
    }

    /// Whether the next message asks for a reply.
    pub(super) fn asks(&mut self, is_last: bool) -> bool {
        self.unasked += 1;
        let asks = is_last || self.unasked >= ASK_EVERY;
        if asks {
            self.unasked = 0;
        }
        asks
    }

    pub(super) fn on_stored(&mut self, epoch: u64, window: &mut Window, seq: u64) {
        let (messages, bytes) = window.acknowledge(seq);
        self.status.messages.inc_by(messages);
        self.status.bytes.inc_by(bytes);
        if messages > 0 || window.len() == 0 {
            self.status.is_up(epoch);
        }
        self.waiting_since = Instant::now();
    }

    fn show(&self, window: &Window, end: u64) {
        self.status.unacknowledged.set(window.len() as i64);
        let lag = end.saturating_sub(window.stored().1.entry);
        self.status.lag.set(i64::try_from(lag).unwrap_or(i64::MAX));
    }
}

impl Sent {
    pub(super) fn outgoing(&self, asks: bool) -> Outgoing<'_> {
        Outgoing {
            subject: self.subject,
            head: &self.head,
            payload: &self.payload,
            expected: Some(self.seq - 1),
            asks,
        }
    }
}

/// Waits for another permission.
async fn changed(writing: &mut watch::Receiver<Role>) {
    if writing.changed().await.is_err() {
        future::pending::<()>().await;
    }
}

/// Waits for `stop`, and then this long.
async fn after(stop: &CancellationToken, time: Duration) {
    stop.cancelled().await;
    sleep(time).await;
}
