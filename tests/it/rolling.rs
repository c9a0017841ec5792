//! A rolling restart: the filtered proxies behind nginx or HAProxy are replaced one after the other
//! under load.

use std::{
    mem::take,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use fastrand::Rng;
use futures_util::future::join_all;
use tests::{
    aware::{Aware, MARKER},
    oracle::Step,
    program::Signal,
    stack::{CLIENT_KEY, is_up},
    wait::{SOON, eventually, within},
    ws_client::{AUTHENTICATED, GREETING, Received, TestClient, acks, objects},
};
use tokio::{
    task::JoinSet,
    time::{Instant, interval},
};
use tokio_util::sync::CancellationToken;

use crate::{
    balancing::Balanced,
    events::{number_of_trade, trade},
    front::Front,
};

/// The number of clients.
const CLIENTS: usize = 12;
/// How long an event may take on a busy machine.
const ON_ITS_WAY: Duration = Duration::from_secs(2);

/// One session of a client between two closes: its events, and its times.
#[derive(Debug)]
struct Life {
    /// From when on it gets everything.
    acknowledged: Instant,
    got: Vec<usize>,
    closed: Instant,
    /// The status that came before the close.
    closing_status: Option<String>,
}

/// Behaves as the vendor's Python client does: after a close in the middle it connects again at
/// once and subscribes again.
async fn live(addr: SocketAddr, end: &CancellationToken) -> Vec<Life> {
    let mut lives = Vec::new();
    while !end.is_cancelled() {
        // A refused handshake is tried again.
        let Some(mut client) = TestClient::try_connect(addr).await else { continue };
        client.expect(GREETING).await;
        client.command("auth", CLIENT_KEY).await;
        client.expect(AUTHENTICATED).await;
        client.command("subscribe", "T.AAPL").await;
        // A client that connects at the last moment may be closed before it gets anything.
        match client.next(SOON).await {
            Received::Text(text) if text == acks("subscribed", "T.AAPL") => {}
            Received::Text(text) => {
                assert!(text.contains(r#""status":"draining""#), "{text}");
                continue;
            }
            end => panic!("{end:?} instead of an answer"),
        }
        let now = Instant::now();
        let mut life =
            Life { acknowledged: now, got: Vec::new(), closed: now, closing_status: None };
        loop {
            let received = tokio::select! {
                received = client.next(SOON) => received,
                () = end.cancelled() => break,
            };
            match received {
                Received::Text(text) => {
                    for object in objects(&text) {
                        assert_eq!(life.closing_status, None, "nothing follows the closing status");
                        match number_of_trade(&object) {
                            Some(n) => life.got.push(n),
                            // A proxy that has just started says so, and from when on nothing is
                            // missing.
                            None if object.contains(r#""status":"upstream_down""#) => {}
                            None if object.contains(r#""status":"upstream_up""#) => {
                                life.acknowledged = Instant::now();
                            }
                            None => life.closing_status = Some(object),
                        }
                    }
                }
                Received::Closed(code) => {
                    assert_eq!(code, Some(1012));
                    break;
                }
                Received::Dropped => panic!("dropped without a close frame"),
            }
        }
        life.closed = Instant::now();
        if !life.got.is_empty() {
            lives.push(life);
        }
    }
    lives
}

#[tokio::test]
async fn a_rolling_restart_behind_nginx_loses_nothing_but_the_time_away_and_says_so() {
    rolling_restart(Front::NginxTls).await;
}

#[tokio::test]
async fn a_rolling_restart_behind_haproxy_loses_nothing_but_the_time_away_and_says_so() {
    rolling_restart(Front::HaproxyTls).await;
}

#[tokio::test]
async fn a_rolling_restart_behind_haproxy_in_tcp_mode_loses_nothing_but_the_time_away() {
    rolling_restart(Front::HaproxyTcpPlain).await;
}

#[tokio::test]
async fn a_rolling_restart_behind_nginx_costs_clients_that_know_their_position_nothing() {
    let mut balanced = Balanced::start(Front::NginxPlain, &[("DRAIN_SPREAD", "1s")]).await;
    let mut proxies = take(&mut balanced.stack.filtered);
    let sent = Arc::<AtomicUsize>::default();
    let end = CancellationToken::new();
    let load = async {
        let mut ticks = interval(Duration::from_millis(4));
        while !end.is_cancelled() {
            ticks.tick().await;
            balanced.stack.publish(&[trade("AAPL", sent.fetch_add(1, SeqCst))]);
        }
        balanced.stack.publish(&[format!("{MARKER}0}}")]);
    };
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let client = Aware {
            doors: vec![balanced.running.addr()],
            key: CLIENT_KEY,
            channels: "T.AAPL".to_owned(),
            changing: Vec::new(),
            rng: Rng::new(),
            leaves: None,
            sent: Arc::clone(&sent),
            heard: Arc::default(),
        };
        clients.spawn(client.live());
    }
    let more = async || {
        let before = sent.load(SeqCst);
        eventually(SOON, "some load", async || sent.load(SeqCst) > before + 100).await;
    };
    let restarts = async {
        for (n, proxy) in proxies.iter_mut().enumerate() {
            more().await;
            proxy.signal(Signal::SIGTERM);
            assert_eq!(proxy.wait_exit(Duration::from_secs(10)).await.code(), Some(0));
            *proxy = balanced.launch(n).start().await;
            is_up(proxy).await;
        }
        more().await;
        end.cancel();
    };
    within(5 * SOON, "a rolling restart", async { tokio::join!(load, restarts) }).await;
    balanced.stack.filtered = proxies;
    let all = sent.load(SeqCst);
    let mut connections = 0;
    while let Some(story) = within(SOON, "the last event", clients.join_next()).await {
        let story = story.expect("a client");
        let is_trade = |step: &Step| match step {
            Step::Event(event) => number_of_trade(event),
            Step::Gap | Step::Changed { .. } => None,
        };
        let got: Vec<usize> = story.steps.iter().filter_map(is_trade).collect();
        assert!(got[0] < 100, "it was there from the beginning");
        assert_eq!(got, (got[0]..all).collect::<Vec<_>>(), "{}", story.log.join("\n"));
        assert!(story.notices.keys().all(|notice| !notice.contains("gap")), "{:?}", story.notices);
        connections += story.ends.len();
    }
    assert!(connections >= 2 * CLIENTS, "the clients left each proxy: {connections} connections");
}

async fn rolling_restart(front: Front) {
    let mut balanced = Balanced::start(front, &[("DRAIN_SPREAD", "1s")]).await;
    let mut proxies = take(&mut balanced.stack.filtered);
    // The time at which each event was published.
    let published = Mutex::new(Vec::new());
    let count = || published.lock().expect("no holder panicked").len();
    let end = CancellationToken::new();
    let load = async {
        let mut ticks = interval(Duration::from_millis(5));
        while !end.is_cancelled() {
            ticks.tick().await;
            let n = count();
            published.lock().expect("no holder panicked").push(Instant::now());
            balanced.stack.publish(&[trade("AAPL", n)]);
        }
    };
    let restarts = async {
        for (n, proxy) in proxies.iter_mut().enumerate() {
            let before = count();
            eventually(SOON, "some load", async || count() > before + 50).await;
            proxy.signal(Signal::SIGTERM);
            assert_eq!(proxy.wait_exit(Duration::from_secs(10)).await.code(), Some(0));
            *proxy = balanced.launch(n).start().await;
            is_up(proxy).await;
        }
        let before = count();
        eventually(SOON, "some load", async || count() > before + 50).await;
        end.cancel();
    };
    let clients = join_all((0..CLIENTS).map(|_| live(balanced.running.addr(), &end)));
    let all = async { tokio::join!(clients, load, restarts).0 };
    let clients = within(5 * SOON, "a rolling restart", all).await;
    let restarts = proxies.len();
    balanced.stack.filtered = proxies;

    let published = published.into_inner().expect("no holder panicked");
    for lives in &clients {
        for life in lives {
            let first = life.got[0];
            let all: Vec<_> = (first..first + life.got.len()).collect();
            assert_eq!(life.got, all, "nothing is missing within a session");
        }
        for pair in lives.windows(2) {
            let (last, first) = (pair[0].got[pair[0].got.len() - 1], pair[1].got[0]);
            assert!(last < first, "an event came twice");
            let closing_status = pair[0].closing_status.as_deref().expect("a closing status");
            assert!(closing_status.contains(r#""status":"draining""#), "{closing_status}");
            assert!(pair[1].acknowledged - pair[0].closed < SOON, "away too long");
            for at in &published[last + 1..first] {
                assert!(*at + ON_ITS_WAY > pair[0].closed, "published long before the close");
                assert!(*at < pair[1].acknowledged, "published after the acknowledgement");
            }
        }
        assert!(lives.len() <= 1 + restarts, "{} sessions", lives.len());
    }
    let lives: usize = clients.iter().map(Vec::len).sum();
    assert!(lives >= 2 * CLIENTS, "the clients left each proxy: {lives} sessions");
}
