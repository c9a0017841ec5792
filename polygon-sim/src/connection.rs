//! One client's connection as the service sees it: its stage, its subscriptions, and the items that
//! wait for it.

use std::{
    borrow::Cow,
    collections::{BTreeSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    event::{Batch, EventFrame, Subject},
    interest::{Channel, Interest},
    lock::lock,
    market::Market,
    stats::Counters,
    status,
};

/// The longest frame packed for a lagging client, in bytes. The vendor's limit is not published;
/// its own Go client gives up at 1,000,000.
const PACKED_BYTES: usize = 960_000;

/// An item to send.
#[derive(Debug)]
pub(crate) enum Item {
    /// A frame of statuses.
    Status(String),
    /// A frame of events.
    Events(EventFrame),
    /// A scripted frame sent as it is, with the number of elements it holds.
    Raw(Arc<str>, usize),
    /// A text frame that is not data.
    Garbage(&'static str),
    /// A binary frame.
    Binary(Bytes),
    /// A close frame, then the end.
    Close(u16, Cow<'static, str>),
    /// The end of the TCP connection, without a close frame.
    Drop,
}

impl Item {
    fn bytes(&self) -> usize {
        match self {
            Self::Status(text) => text.len(),
            Self::Events(frame) => frame.text.len(),
            Self::Raw(text, _) => text.len(),
            Self::Garbage(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
            Self::Close(..) | Self::Drop => 0,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Open,
    Authenticated,
    /// The last item is queued, or the connection was aborted.
    Closing,
}

/// A connection. Its session reads and writes the socket; all other code goes through here.
#[derive(Debug)]
pub(crate) struct Connection {
    market: Market,
    /// Bytes that may wait. Past that the connection is killed as a slow consumer.
    limit: usize,
    counters: Arc<Counters>,
    /// A lock, because an acknowledgement and the subscription it announces must take effect in one
    /// step as publishers see it. Never held across an await.
    state: Mutex<State>,
    ready: Notify,
    cut: CancellationToken,
    reset: Arc<AtomicBool>,
}

#[derive(Debug)]
struct State {
    stage: Stage,
    interest: Interest,
    items: VecDeque<Item>,
    bytes: usize,
    newest_tick: u64,
    status_in_data: bool,
}

impl Connection {
    /// A connection on which nothing has been sent yet. It sets `reset` when the connection must
    /// end by a TCP reset.
    pub(crate) fn new(
        market: Market,
        limit: usize,
        counters: Arc<Counters>,
        reset: Arc<AtomicBool>,
    ) -> Self {
        let state = State {
            stage: Stage::Open,
            interest: Interest::new(market),
            items: VecDeque::new(),
            bytes: 0,
            newest_tick: 0,
            status_in_data: false,
        };
        let (ready, cut) = (Notify::new(), CancellationToken::new());
        Self { market, limit, counters, state: Mutex::new(state), ready, cut, reset }
    }

    /// Completes when the connection has to end at once.
    pub(crate) async fn cut(&self) {
        self.cut.cancelled().await;
    }

    /// Ends the connection at once. Items not yet sent are lost.
    pub(crate) fn abort(&self) {
        let mut state = lock(&self.state);
        state.stage = Stage::Closing;
        state.items.clear();
        self.cut.cancel();
    }

    pub(crate) fn is_authenticated(&self) -> bool {
        lock(&self.state).stage == Stage::Authenticated
    }

    /// Whether this connection wants any events.
    pub(crate) fn is_subscribed(&self) -> bool {
        let state = lock(&self.state);
        state.stage == Stage::Authenticated && !state.interest.is_empty()
    }

    /// Adds its channels to the set, if it is authenticated.
    pub(crate) fn collect_channels(&self, into: &mut BTreeSet<String>) {
        let state = lock(&self.state);
        if state.stage == Stage::Authenticated {
            state.interest.collect(into);
        }
    }

    /// Takes the next item to send and waits for one if necessary.
    ///
    /// Cancel-safe. For a lagging client it packs the events of several ticks into one frame:
    /// `per_frame` events, and as many again for each tick that the client lags.
    pub(crate) async fn next(&self, per_frame: usize) -> Item {
        loop {
            if let Some(item) = lock(&self.state).take(per_frame) {
                return item;
            }
            self.ready.notified().await;
        }
    }

    /// Queues one status frame.
    pub(crate) fn send_status(&self, text: (&str, &str)) {
        self.push(&mut lock(&self.state), Item::Status(status::frame(text)));
    }

    /// Queues one text frame that is no data.
    pub(crate) fn send_text(&self, text: String) {
        self.push(&mut lock(&self.state), Item::Status(text));
    }

    /// Queues these items and accepts no more.
    pub(crate) fn send_last(&self, items: impl IntoIterator<Item = Item>) {
        let mut state = lock(&self.state);
        for item in items {
            self.push(&mut state, item);
        }
        state.stage = Stage::Closing;
    }

    /// Queues `auth_success` and opens the connection for data. Returns false if it was
    /// authenticated before.
    pub(crate) fn admit(&self) -> bool {
        let mut state = lock(&self.state);
        let newcomer = state.stage == Stage::Open;
        if newcomer {
            state.stage = Stage::Authenticated;
        }
        self.push(&mut state, Item::Status(status::frame(status::AUTH_SUCCESS)));
        newcomer
    }

    /// Ends an authenticated connection as the limit on connections does.
    pub(crate) fn evict(&self) {
        if self.is_authenticated() {
            self.counters.evictions.one();
            let status = Item::Status(status::frame(status::MAX_CONNECTIONS));
            self.send_last([status, Item::Close(1008, Cow::Borrowed(""))]);
        }
    }

    /// Adds the items of a `subscribe`. Queues one frame, refusals before acknowledgements. Adds
    /// none if the connection would then hold more than `contracts` contracts.
    pub(crate) fn subscribe(&self, params: &str, refused: &[usize], contracts: usize) {
        let mut state = lock(&self.state);
        let items = || channels(self.market, params).map(|(_, channel)| channel);
        if state.interest.would_exceed(items(), contracts) {
            // Measured: 27 statuses for 200 items. Whether they share a frame is unknown.
            for _ in 0..(items().count() * 27).div_ceil(200) {
                self.push(&mut state, Item::Status(status::frame(status::CONTRACT_LIMIT)));
            }
            return;
        }
        let (mut refusals, mut acks) = (Vec::new(), Vec::new());
        for (item, channel) in channels(self.market, params) {
            if refused.contains(&channel.kind) {
                refusals.push(status::object(status::NOT_AUTHORIZED));
            } else if state.interest.add(channel) {
                acks.push(status::object(("success", &format!("subscribed to: {item}"))));
            }
        }
        refusals.append(&mut acks);
        self.answer(&mut state, &refusals);
    }

    /// Removes those items of an `unsubscribe` that are subscribed, and acknowledges them.
    pub(crate) fn unsubscribe(&self, params: &str) {
        let mut state = lock(&self.state);
        let mut acks = Vec::new();
        for (item, channel) in channels(self.market, params) {
            if state.interest.remove(channel) {
                acks.push(status::object(("success", &format!("unsubscribed to: {item}"))));
            }
        }
        self.answer(&mut state, &acks);
    }

    fn answer(&self, state: &mut MutexGuard<'_, State>, statuses: &[String]) {
        if !statuses.is_empty() {
            self.push(state, Item::Status(format!("[{}]", statuses.join(","))));
        }
    }

    /// Queues the subscribed events of a batch, in frames of at most `per_frame`.
    pub(crate) fn offer(
        &self,
        batch: &Batch,
        forms: &[String],
        per_frame: usize,
        tick: Option<u64>,
    ) {
        let mut state = lock(&self.state);
        if state.stage != Stage::Authenticated {
            return;
        }
        state.newest_tick = state.newest_tick.max(tick.unwrap_or(0));
        let mut frame = EventFrame::new(tick);
        let mut start = 0;
        for event in &batch.events {
            if state.interest.wants(event.kind, &forms[event.symbol]) {
                frame.push(&batch.text[start..event.end]);
                if frame.events == per_frame {
                    let full = std::mem::replace(&mut frame, EventFrame::new(tick));
                    self.push(&mut state, Item::Events(full.close()));
                }
            }
            start = event.end;
        }
        if frame.events > 0 {
            self.push(&mut state, Item::Events(frame.close()));
        }
    }

    /// Queues the subscribed ones of these scripted events as one frame.
    pub(crate) fn publish(&self, events: &[(Subject, &str)]) {
        let mut state = lock(&self.state);
        if state.stage == Stage::Authenticated {
            let frame = state.wanted(events);
            if frame.events > 0 {
                self.push(&mut state, Item::Events(frame.close()));
            }
        }
    }

    /// Queues a recorded frame: as it is if all its events are subscribed, otherwise these.
    pub(crate) fn replay(&self, whole: &Arc<str>, events: &[(Subject, &str)]) {
        let mut state = lock(&self.state);
        if state.stage == Stage::Authenticated {
            let frame = state.wanted(events);
            if frame.events == events.len() {
                self.push(&mut state, Item::Raw(Arc::clone(whole), events.len()));
            } else if frame.events > 0 {
                self.push(&mut state, Item::Events(frame.close()));
            }
        }
    }

    /// How many bytes wait to be sent.
    pub(crate) fn waiting_bytes(&self) -> usize {
        lock(&self.state).bytes
    }

    /// Queues an item if the connection is authenticated.
    pub(crate) fn send_authenticated(&self, item: Item) {
        let mut state = lock(&self.state);
        if state.stage == Stage::Authenticated {
            self.push(&mut state, item);
        }
    }

    /// Makes the next frame of events carry a status.
    pub(crate) fn put_status_in_data(&self) {
        lock(&self.state).status_in_data = true;
    }

    fn push(&self, state: &mut State, item: Item) {
        if state.stage == Stage::Closing {
            return;
        }
        state.bytes += item.bytes();
        state.items.push_back(item);
        if state.bytes > self.limit {
            self.counters.slow_kills.one();
            state.stage = Stage::Closing;
            state.items.clear();
            self.reset.store(true, Relaxed);
            self.cut.cancel();
        }
        self.ready.notify_one();
    }
}

impl State {
    /// A frame of those events that are subscribed.
    fn wanted(&self, events: &[(Subject, &str)]) -> EventFrame {
        let mut frame = EventFrame::new(None);
        for (subject, event) in events {
            let is_wanted = match subject {
                Subject::Of(kind, form) => self.interest.wants(*kind, form),
                Subject::Status => true,
                Subject::Unknown => false,
            };
            if is_wanted {
                frame.push(event);
            }
        }
        frame
    }

    fn take(&mut self, per_frame: usize) -> Option<Item> {
        let mut item = self.items.pop_front()?;
        self.bytes -= item.bytes();
        if let Item::Events(frame) = &mut item {
            self.pack(frame, per_frame);
            if std::mem::take(&mut self.status_in_data) {
                let channel = format!("{}.NTEST.Q", self.interest.first_kind());
                frame.insert(&status::object(("success", &format!("subscribed to: {channel}"))));
            }
        }
        Some(item)
    }

    fn pack(&mut self, frame: &mut EventFrame, per_frame: usize) {
        let Some(tick) = frame.tick else { return };
        let lag = usize::try_from(self.newest_tick.saturating_sub(tick)).unwrap_or(usize::MAX);
        let most = per_frame.saturating_mul(lag.saturating_add(1));
        while let Some(Item::Events(next)) = self.items.front() {
            let fits = next.tick.is_some()
                && frame.events + next.events <= most
                && frame.text.len() + next.text.len() <= PACKED_BYTES;
            if !fits {
                return;
            }
            self.bytes -= next.text.len();
            frame.append(next);
            self.items.pop_front();
        }
    }
}

/// The items of a request that name a channel, trimmed, each with its channel. The vendor ignores
/// the others.
fn channels(market: Market, params: &str) -> impl Iterator<Item = (&str, Channel<'_>)> {
    let items = params.split(',').map(str::trim);
    items.filter_map(move |item| Some((item, Channel::parse(market, item)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::BatchEvent;

    fn connection(limit: usize) -> Connection {
        let connection = Connection::new(Market::Stocks, limit, Arc::default(), Arc::default());
        connection.admit();
        connection.subscribe("T.*", &[], 0);
        connection
    }

    fn batch(events: usize) -> Batch {
        let mut batch = Batch::default();
        for _ in 0..events {
            batch.text.push_str("{}");
            let kind = Market::Stocks.kind("T").unwrap();
            batch.events.push(BatchEvent { end: batch.text.len(), kind, symbol: 0 });
        }
        batch
    }

    fn sizes(connection: &Connection) -> Vec<usize> {
        let mut state = lock(&connection.state);
        let mut sizes = Vec::new();
        while let Some(item) = state.take(10) {
            if let Item::Events(frame) = item {
                sizes.push(frame.events);
            }
        }
        assert_eq!(state.bytes, 0);
        sizes
    }

    #[test]
    fn frames_grow_as_the_consumer_lags() {
        let (connection, forms) = (connection(1 << 20), ["AAPL".to_owned()]);
        connection.offer(&batch(25), &forms, 10, Some(1));
        assert_eq!(sizes(&connection), [10, 10, 5], "keeping up");
        for tick in 2..=4 {
            connection.offer(&batch(25), &forms, 10, Some(tick));
        }
        assert_eq!(sizes(&connection), [25, 20, 15, 10, 5], "two ticks of lag, then less and less");
    }

    #[test]
    fn a_consumer_past_the_bound_is_cut_once() {
        let connection = connection(1_000);
        for tick in 0..100 {
            connection.offer(&batch(25), &["AAPL".to_owned()], 10, Some(tick));
        }
        assert!(connection.cut.is_cancelled() && connection.reset.load(Relaxed));
        assert_eq!(connection.counters.snapshot(0).slow_kills, 1);
    }

    #[test]
    fn nothing_follows_the_last_item() {
        let connection = connection(1_000);
        connection.evict();
        connection.evict();
        connection.send_status(status::CONNECTED);
        connection.offer(&batch(1), &["AAPL".to_owned()], 10, Some(1));
        let state = lock(&connection.state);
        assert!(matches!(state.items.back(), Some(Item::Close(1008, _))));
        assert_eq!(connection.counters.snapshot(0).evictions, 1);
    }
}
