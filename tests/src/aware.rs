//! A client that knows about positions: it comes back after every loss and goes on from where it
//! stood, at any of several proxies.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use fastrand::Rng;
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};

use crate::{
    oracle::Step,
    ws_client::{AUTHENTICATED, GREETING, acks, objects},
};

/// How long a step of the login may take on a working connection.
const STEP: Duration = Duration::from_secs(5);
/// The pause before the next try.
const PAUSE: Duration = Duration::from_millis(20);
/// A connection that is silent for so long is given up.
const SILENCE_LIMIT: Duration = Duration::from_secs(8);

/// The text with which a marker begins; its number follows. Every client gets the channel of
/// markers. The number of the last one is 0.
pub const MARKER: &str = r#"{"ev":"AM","sym":"END","v":"#;

type Socket = WebSocketStream<TcpStream>;

/// A client, and until when it stays.
#[derive(Debug)]
pub struct Aware {
    /// The proxies, or what stands before them.
    pub doors: Vec<SocketAddr>,
    /// The key to present.
    pub key: &'static str,
    /// The channels to subscribe to, beside that of the markers.
    pub channels: String,
    /// Decides at which door it comes back, and when it leaves by itself.
    pub rng: Rng,
    /// Items that it subscribes to and unsubscribes from all the time, while it replays too. Then
    /// each of its connections stands for itself, because a count of events is that of one set of
    /// items.
    pub changing: Vec<String>,
    /// The longest time from one leave to the next. `None` if it never leaves by itself.
    pub leaves: Option<Duration>,
    /// How many events have been given to the simulator.
    pub sent: Arc<AtomicUsize>,
    /// The number of the last marker that came.
    pub heard: Arc<AtomicUsize>,
}

/// What a client saw, over all its connections.
#[derive(Debug, Default)]
pub struct Story {
    /// In order, without what it got before it knew any position. If it changes its items, of the
    /// last connection.
    pub steps: Vec<Step>,
    /// The same for each connection before, if it changes its items.
    pub earlier: Vec<Vec<Step>>,
    /// How often each notice came: its tier, status and reason.
    pub notices: BTreeMap<String, usize>,
    /// Its connections that were subscribed, and how each of them ended.
    pub ends: Vec<String>,
    /// How often it named events behind a position that it already had.
    pub skips: usize,
    /// What it saw last, for people.
    pub log: Vec<String>,
}

/// Where a client stands.
#[derive(Debug, Default)]
struct Standing {
    position: String,
    /// How many events came behind it.
    events: u64,
}

/// A change on its way: its acknowledgement, and the items added and removed.
type Pending = (String, Vec<String>, Vec<String>);

/// The outages that a client knows of.
#[derive(Debug, Default)]
struct Down {
    /// Whether the vendor's data may be incomplete.
    vendor: bool,
    /// How many steps there were when a proxy lost its link, while it has none.
    proxy: Option<usize>,
    /// How many steps there were when the connection began.
    connected: usize,
}

impl Aware {
    /// Lives until the last marker comes.
    pub async fn live(mut self) -> Story {
        let (mut story, mut place) = (Story::default(), None);
        let mut down = Down::default();
        loop {
            let door = self.doors[self.rng.usize(..self.doors.len())];
            if let Some(socket) = self.log_in(door, place.as_ref(), &mut story).await
                && self.follow(socket, &mut place, &mut down, &mut story).await
            {
                return story;
            }
            if place.is_none() {
                // What came cannot be told from what will come.
                story.steps.clear();
                down = Down::default();
            }
            sleep(PAUSE).await;
        }
    }

    fn params(&self) -> String {
        format!("{},AM.END", self.channels)
    }

    /// Connects, logs in and subscribes. `None` if a step fails.
    async fn log_in(
        &self,
        door: SocketAddr,
        place: Option<&Standing>,
        story: &mut Story,
    ) -> Option<Socket> {
        let stream = timeout(STEP, TcpStream::connect(door)).await.ok()?.ok()?;
        let request = format!("ws://{door}/?positions=20ms");
        let (mut socket, _) = timeout(STEP, client_async(request, stream)).await.ok()?.ok()?;
        expect(&mut socket, GREETING).await?;
        let auth = format!(r#"{{"action":"auth","params":"{}"}}"#, self.key);
        timeout(STEP, socket.send(Message::text(auth))).await.ok()?.ok()?;
        expect(&mut socket, AUTHENTICATED).await?;
        let from = match place {
            Some(Standing { position, .. }) if !self.changing.is_empty() => {
                format!(r#","from":"{position}""#)
            }
            Some(Standing { position, events }) => {
                story.skips += usize::from(*events > 0);
                story.log.push(format!("from {position}-{events} at {door}"));
                format!(r#","from":"{position}-{events}""#)
            }
            None => String::new(),
        };
        let params = self.params();
        let subscribe = format!(r#"{{"action":"subscribe","params":"{params}"{from}}}"#);
        timeout(STEP, socket.send(Message::text(subscribe))).await.ok()?.ok()?;
        Some(socket)
    }

    /// Reads until the connection ends or the last marker comes. Returns whether it came.
    async fn follow(
        &mut self,
        mut socket: Socket,
        place: &mut Option<Standing>,
        down: &mut Down,
        story: &mut Story,
    ) -> bool {
        let ack = acks("subscribed", &self.params());
        let leave = self.leaves.map(|most| Instant::now() + most.mul_f64(self.rng.f64()));
        let mut subscribed = false;
        if !self.changing.is_empty() {
            // What was subscribed in an outage that had not ended may not have begun.
            if down.proxy.take().is_some() {
                declare(&mut story.steps, 0);
            }
            story.earlier.push(std::mem::take(&mut story.steps));
        }
        let (mut held, mut pending) = (HashSet::new(), VecDeque::new());
        self.change(&mut socket, &mut held, &mut pending).await;
        down.connected = story.steps.len();
        let end = loop {
            let silence = Instant::now() + SILENCE_LIMIT;
            let until = leave.filter(|_| place.is_some()).map_or(silence, |at| at.min(silence));
            let message = match timeout_at(until, socket.next()).await {
                Ok(Some(Ok(message))) => message,
                Ok(end) => break format!("{end:?}"),
                Err(_) => break "left".to_owned(),
            };
            match message {
                Message::Text(text) if text.as_str() == ack => {
                    subscribed = true;
                    if story.steps.is_empty() {
                        let added = self.params().split(',').map(str::to_owned).collect();
                        let sent_before = self.sent.load(SeqCst);
                        story.steps.push(Step::Changed { added, removed: Vec::new(), sent_before });
                    }
                }
                Message::Text(text)
                    if pending.front().is_some_and(|(ack, ..)| *ack == text.as_str()) =>
                {
                    let (_, added, removed) = pending.pop_front().expect("there is one");
                    let sent_before = self.sent.load(SeqCst);
                    story.log.push(format!("+{added:?} -{removed:?}"));
                    story.steps.push(Step::Changed { added, removed, sent_before });
                }
                Message::Text(text) => {
                    for object in objects(text.as_str()) {
                        if self.take(object, place, down, story) {
                            story.ends.push("the last marker".to_owned());
                            return true;
                        }
                    }
                    if text.as_str().contains(MARKER) && pending.is_empty() {
                        self.change(&mut socket, &mut held, &mut pending).await;
                    }
                }
                Message::Close(frame) => {
                    story.log.push(format!("{frame:?}"));
                }
                Message::Ping(_) => {
                    // The library has the pong ready. A connection that does not take it will end.
                    let _ = timeout(STEP, socket.flush()).await;
                }
                Message::Binary(bytes) => panic!("a binary message: {bytes:?}"),
                Message::Pong(_) | Message::Frame(_) => {}
            }
        };
        if subscribed {
            story.ends.push(end);
        }
        false
    }

    /// Subscribes to one of the changing items that it does not hold, or unsubscribes from one.
    async fn change(
        &mut self,
        socket: &mut Socket,
        held: &mut HashSet<String>,
        pending: &mut VecDeque<Pending>,
    ) {
        let Some(item) = self.rng.choice(&self.changing).cloned() else { return };
        let subscribes = held.insert(item.clone());
        if !subscribes {
            held.remove(&item);
        }
        let action = if subscribes { "subscribe" } else { "unsubscribe" };
        let command = format!(r#"{{"action":"{action}","params":"{item}"}}"#);
        // A connection that does not take it will end.
        let _ = timeout(STEP, socket.send(Message::text(command))).await;
        let ack = acks(&format!("{action}d"), &item);
        let (added, removed) =
            if subscribes { (vec![item], Vec::new()) } else { (Vec::new(), vec![item]) };
        pending.push_back((ack, added, removed));
    }

    /// Takes an object. Returns whether it is the last marker.
    fn take(
        &self,
        object: String,
        place: &mut Option<Standing>,
        down: &mut Down,
        story: &mut Story,
    ) -> bool {
        if object.starts_with(r#"{"ev":"status","#) {
            story.log.push(object.clone());
            note(&object, place, down, story);
            return false;
        }
        if let Some(place) = place {
            place.events += 1;
        }
        if down.vendor {
            story.steps.push(Step::Gap);
        }
        let marker = object.strip_prefix(MARKER);
        let number = marker.and_then(|rest| rest.trim_end_matches('}').parse().ok());
        if number.is_some() {
            story.log.push(object.clone());
        }
        story.steps.push(Step::Event(object));
        match number {
            Some(0) => return true,
            Some(number) => self.heard.store(number, SeqCst),
            None => {}
        }
        false
    }
}

fn note(object: &str, place: &mut Option<Standing>, down: &mut Down, story: &mut Story) {
    let notice: Value = serde_json::from_str(object).expect("a notice is JSON");
    let text = |name: &str| notice[name].as_str().unwrap_or_default().to_owned();
    let (status, tier, position) = (text("status"), text("tier"), text("position"));
    let is_vendor = tier == "firehose";
    let reason = match status.as_str() {
        "gap" => text("reason"),
        "upstream_up" if notice["missed"] == 0 => "nothing missed".to_owned(),
        _ => String::new(),
    };
    *story.notices.entry(format!("{tier} {status} {reason}").trim().to_owned()).or_default() += 1;
    let stands = |position: String| Some(Standing { position, events: 0 });
    match status.as_str() {
        "position" | "live" => *place = stands(position),
        "gap" if reason == "subscribed_in_outage" => {
            // It begins to get these only here.
            declare(&mut story.steps, down.connected);
        }
        "gap" => {
            story.steps.push(Step::Gap);
            // One that came before comes again, if its client stands there.
            if !position.is_empty() && place.as_ref().is_none_or(|p| p.position != position) {
                *place = stands(position);
            }
        }
        // The first events behind it may have come before.
        "resumed" if place.as_ref().is_none_or(|place| place.position != position) => {
            *place = stands(position);
        }
        "upstream_down" if is_vendor => down.vendor = true,
        "upstream_up" if is_vendor => {
            down.vendor = false;
            story.steps.push(Step::Gap);
        }
        "upstream_down" => _ = down.proxy.get_or_insert(story.steps.len()),
        "upstream_up" => {
            let since = down.proxy.take().unwrap_or(down.connected);
            if notice["missed"] != 0 {
                declare(&mut story.steps, since);
            }
        }
        _ => {}
    }
}

/// Only now it is known that something is missing since this step, and anything may be.
fn declare(steps: &mut Vec<Step>, since: usize) {
    for step in steps.split_off(since) {
        steps.extend([Step::Gap, step]);
    }
    steps.push(Step::Gap);
}

/// Takes the next message and checks that it is this one. `None` if none comes.
async fn expect(socket: &mut Socket, text: &str) -> Option<()> {
    loop {
        match timeout(STEP, socket.next()).await.ok()??.ok()? {
            Message::Text(came) if came.as_str() == text => return Some(()),
            // A proxy that stops says so.
            Message::Text(came) => assert!(came.as_str().contains("draining"), "{came}"),
            Message::Close(_) => return None,
            _ => {}
        }
    }
}
