//! Shutdown: exit code 0 in time, and a close code with which clients reconnect.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use polygon_sim::Fault;
use tests::{
    http::get,
    program::Signal,
    stack::{
        self, CLIENT_KEY, FIREHOSE_KEY, ReservedPort, Sim, Stack, StackConfig, VENDOR_KEY, is_up,
    },
    wait::{SOON, eventually},
    ws_client::{GREETING, Received, TestClient, objects},
};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::interval};

use crate::events::trade;

/// The longest a program may take to stop.
const IN_TIME: Duration = Duration::from_secs(10);
/// The close code for a restart, after which every official client reconnects.
const RESTART: Received = Received::Closed(Some(1012));

#[tokio::test]
async fn both_signals_end_both_programs_with_code_0_and_clients_with_1012() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let sim = Sim::start().await;
        let firehose = stack::firehose(&sim.url("stocks")).start().await;
        let filtered = stack::filtered(firehose.addr()).start().await;
        is_up(&filtered).await;
        for (mut program, key) in [(filtered, CLIENT_KEY), (firehose, FIREHOSE_KEY)] {
            let mut subscribed = TestClient::login(program.addr(), key).await;
            subscribed.subscribe("*").await;
            let mut idle = TestClient::login(program.addr(), key).await;
            let mut stranger = TestClient::connect(program.addr()).await;
            stranger.expect(GREETING).await;
            let started = Instant::now();
            program.signal(signal);
            for client in [&mut subscribed, &mut idle, &mut stranger] {
                assert_eq!(client.end(IN_TIME).await, RESTART);
            }
            let status = program.wait_exit(IN_TIME).await;
            assert_eq!(status.code(), Some(0), "after {signal}");
            assert!(started.elapsed() < IN_TIME);
        }
    }
}

/// The vendor frees the account's connection sooner if it is closed.
#[tokio::test]
async fn the_upstream_gets_a_close_frame() {
    let sim = Sim::start().await;
    let firehose = stack::firehose(&sim.url("stocks"));
    let filtered = stack::filtered(sim.addr()).env("FIREHOSE_API_KEY", VENDOR_KEY);
    for (closes, launch) in [(1, filtered), (2, firehose)] {
        let mut program = launch.start().await;
        is_up(&program).await;
        program.signal(Signal::SIGTERM);
        let started = Instant::now();
        assert_eq!(program.wait_exit(IN_TIME).await.code(), Some(0));
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
        eventually(SOON, "closed", async || sim.handle.stats().closes_received == closes).await;
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_can_not_hold_up_the_upstreams_close_frame() {
    let stack = Stack::with(StackConfig {
        firehose_env: vec![("CLIENT_MAX_LAG", "60s".to_owned()), ("DRAIN_SPREAD", "1s".to_owned())],
        ..StackConfig::default()
    })
    .await;
    let mut stuck = TestClient::connect_narrow(stack.firehose.addr(), 4_096).await;
    stuck.log_in(FIREHOSE_KEY).await;
    stuck.subscribe("*").await;
    let events: Vec<_> = (0..60_000).map(|n| trade("AAPL", n)).collect();
    for frame in events.chunks(500) {
        stack.publish(frame);
    }
    eventually(SOON, "something is queued", async || {
        stack.firehose.metric("firehose_queue_bytes").await > Some(0.0)
    })
    .await;
    stack.firehose.signal(Signal::SIGTERM);
    let started = Instant::now();
    eventually(SOON, "the firehose has closed", async || {
        stack.sim.handle.stats().closes_received == 1
    })
    .await;
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

#[tokio::test]
async fn an_upstream_that_does_not_answer_the_close_can_not_hold_up_the_stop() {
    let sim = Sim::start().await;
    let mut firehose = stack::firehose(&sim.url("stocks")).start().await;
    is_up(&firehose).await;
    sim.handle.inject(Fault::Silence { on: true });
    firehose.signal(Signal::SIGTERM);
    let started = Instant::now();
    assert_eq!(firehose.wait_exit(IN_TIME).await.code(), Some(0));
    let took = started.elapsed();
    assert!((2..5).contains(&took.as_secs()), "it waits for the answer, but not long: {took:?}");
    sim.handle.inject(Fault::Silence { on: false });
    eventually(SOON, "the close frame was sent", async || sim.handle.stats().closes_received == 1)
        .await;
}

#[tokio::test]
async fn programs_without_an_upstream_stop_as_well() {
    let port = ReservedPort::new();
    let programs = [
        stack::filtered(port.addr()).start().await,
        stack::firehose(&format!("ws://{}/stocks", port.addr())).start().await,
    ];
    for program in programs {
        eventually(SOON, "a try fails", async || {
            !program.health_text("/upstream/last_error").await.is_empty()
        })
        .await;
        program.stop().await;
    }
}

#[tokio::test]
async fn what_is_queued_is_delivered_before_the_close() {
    let mut stack = Stack::with(StackConfig {
        filtered_env: vec![("CLIENT_MAX_LAG", "60s".to_owned())],
        ..StackConfig::default()
    })
    .await;
    let mut late = TestClient::connect_narrow(stack.addr(), 4_096).await;
    late.log_in(CLIENT_KEY).await;
    late.subscribe("*").await;
    let mut witness = stack.subscriber("*").await;
    let events: Vec<_> = (0..60_000).map(|n| trade("AAPL", n)).collect();
    for frame in events.chunks(500) {
        stack.publish(frame);
    }
    witness.expect_objects(&events).await;
    let filtered = stack.filtered.remove(0);
    eventually(SOON, "something is queued", async || {
        filtered.metric("filtered_queue_bytes").await > Some(0.0)
    })
    .await;
    filtered.signal(Signal::SIGTERM);
    let mut filtered = filtered;
    assert_eq!(witness.end(IN_TIME).await, RESTART);
    late.expect_objects(&events).await;
    assert_eq!(late.end(IN_TIME).await, RESTART);
    assert_eq!(filtered.wait_exit(IN_TIME).await.code(), Some(0));
}

#[tokio::test]
async fn a_client_that_does_not_read_can_not_hold_up_the_stop() {
    let mut stack = Stack::with(StackConfig {
        filtered_env: vec![
            ("CLIENT_MAX_LAG", "60s".to_owned()),
            ("DRAIN_TIMEOUT", "1s".to_owned()),
            ("DRAIN_SPREAD", "100ms".to_owned()),
        ],
        ..StackConfig::default()
    })
    .await;
    let mut stuck = TestClient::connect_narrow(stack.addr(), 4_096).await;
    stuck.log_in(CLIENT_KEY).await;
    stuck.subscribe("*").await;
    let events: Vec<_> = (0..60_000).map(|n| trade("AAPL", n)).collect();
    for frame in events.chunks(500) {
        stack.publish(frame);
    }
    let mut filtered = stack.filtered.remove(0);
    eventually(SOON, "something is queued", async || {
        filtered.metric("filtered_queue_bytes").await > Some(0.0)
    })
    .await;
    let mut reader = TestClient::login(filtered.addr(), CLIENT_KEY).await;
    filtered.signal(Signal::SIGTERM);
    assert_eq!(reader.end(IN_TIME).await, RESTART);
    assert_eq!(filtered.wait_exit(IN_TIME).await.code(), Some(0));
}

#[tokio::test]
async fn the_port_is_free_for_the_successor_at_once() {
    let port = ReservedPort::new();
    let sim = Sim::start().await;
    let launch = || stack::firehose(&sim.url("stocks")).env("FIREHOSE_PORT", port.addr().port());
    for _ in 0..3 {
        let firehose = launch().start().await;
        let mut client = TestClient::login(firehose.addr(), FIREHOSE_KEY).await;
        let (end, ()) = tokio::join!(client.end(SOON), firehose.stop());
        assert_eq!(end, RESTART);
    }
}

#[tokio::test]
async fn an_unfinished_request_can_not_hold_up_the_stop() {
    let sim = Sim::start().await;
    let firehose = stack::firehose(&sim.url("stocks")).env("AUTH_TIMEOUT", "60s").start().await;
    let filtered = stack::filtered(firehose.addr()).env("AUTH_TIMEOUT", "60s").start().await;
    is_up(&filtered).await;
    for program in [filtered, firehose] {
        let mut open = Vec::new();
        for head in ["", "GET /stocks HTTP/1.1\r\nHost: x\r\nUpgrade: webs"] {
            let mut stream = TcpStream::connect(program.addr()).await.expect("connect");
            stream.write_all(head.as_bytes()).await.expect("send half a request");
            open.push(stream);
        }
        // Both have arrived, since a later request has been answered.
        assert_eq!(get(program.addr(), "/livez").await.status, 200);
        program.stop().await;
    }
}

#[tokio::test]
async fn a_drain_closes_clients_one_by_one_and_serves_each_until_then() {
    let mut stack = Stack::with(StackConfig {
        filtered_env: vec![("DRAIN_SPREAD", "3s".to_owned())],
        ..StackConfig::default()
    })
    .await;
    let mut clients = Vec::new();
    for _ in 0..30 {
        clients.push(stack.subscriber("T.AAPL").await);
    }
    let mut proxy = stack.filtered.remove(0);
    proxy.signal(Signal::SIGTERM);
    proxy.logged("stopping; a second signal stops at once").await;
    let started = Instant::now();
    eventually(SOON, "no new client is accepted", async || {
        TcpStream::connect(proxy.addr()).await.is_err()
    })
    .await;
    let mut published = 0;
    let readers = clients.iter_mut().map(async |client| {
        let mut got = Vec::new();
        loop {
            match client.next(IN_TIME).await {
                Received::Text(text) => got.extend(objects(&text)),
                end => return (got, end, started.elapsed()),
            }
        }
    });
    let ends = while_doing(join_all(readers), async || {
        stack.sim.handle.publish(&[trade("AAPL", published)]);
        published += 1;
    })
    .await;
    let mut times = Vec::new();
    for (mut got, end, at) in ends {
        assert_eq!(end, RESTART);
        let closing_status = got.pop().expect("a closing status");
        assert!(closing_status.contains(r#""status":"draining""#), "{closing_status}");
        let expected: Vec<_> = (0..got.len()).map(|n| trade("AAPL", n)).collect();
        assert_eq!(got, expected, "everything until its close");
        times.push(at);
    }
    times.sort_unstable();
    // That thirty closes within three seconds all fall into one second happens once in 10^12 runs.
    let (first, last) = (times[0], times[times.len() - 1]);
    assert!(last - first > Duration::from_secs(1), "from {first:?} to {last:?}");
    assert_eq!(proxy.wait_exit(IN_TIME).await.code(), Some(0));
    assert!(started.elapsed() < IN_TIME);
}

/// Calls `act` again and again until the work is done.
async fn while_doing<T>(work: impl Future<Output = T>, mut act: impl AsyncFnMut()) -> T {
    let mut ticks = interval(Duration::from_millis(20));
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = ticks.tick() => act().await,
        }
    }
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    for second in [Signal::SIGTERM, Signal::SIGINT] {
        let slow = ("DRAIN_SPREAD", "5s".to_owned());
        let stack = Stack::with(StackConfig {
            firehose_env: vec![slow.clone()],
            filtered_env: vec![slow],
            ..StackConfig::default()
        })
        .await;
        let Stack { mut filtered, firehose, sim: _sim } = stack;
        for (mut program, key) in [(filtered.remove(0), CLIENT_KEY), (firehose, FIREHOSE_KEY)] {
            let mut clients = Vec::new();
            for _ in 0..30 {
                clients.push(TestClient::login(program.addr(), key).await);
            }
            program.signal(Signal::SIGTERM);
            program.logged("stopping; a second signal stops at once").await;
            let started = Instant::now();
            program.signal(second);
            program.wait_exit(IN_TIME).await;
            // That the last of thirty closes within five seconds comes this early happens once in
            // 10^9 runs.
            assert!(started.elapsed() < Duration::from_millis(2_500), "{:?}", started.elapsed());
        }
    }
}
