//! The metrics, compared with what the tests themselves did, and with what the system says.

use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tests::{
    program::{Launch, Program, Signal},
    stack::{self, CLIENT_KEY, FIREHOSE_KEY, ReservedPort, Sim, Stack, StackConfig, is_complete},
    wait::{SOON, eventually, within},
    ws_client::TestClient,
};
use tokio::process::Command;

use crate::events::{quote, trade};

/// Metrics that a program shows only once there is something to show: an event, a certificate.
pub(crate) const ABSENT_AT_FIRST: [&str; 3] = [
    "last_event_timestamp_seconds",
    "events_by_type_total",
    "tls_certificate_expiry_timestamp_seconds",
];

/// An event of 2 KB, so that a few fill the system's buffers.
fn wide(n: usize) -> String {
    trade(&format!("AAPL\",\"x\":\"{}", "x".repeat(2_000)), n)
}

fn seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs_f64()
}

async fn value(program: &Program, name: &str) -> f64 {
    program.metric(name).await.unwrap_or_else(|| panic!("{name} is shown"))
}

#[tokio::test]
async fn types_of_events_are_counted_and_the_last_of_each_is_timed() {
    let sim = Sim::start().await;
    let firehose = stack::firehose(&sim.url("stocks")).env("UPSTREAM_CHANNELS", "T,Q,NEW9");
    let firehose = firehose.start().await;
    let filtered = stack::filtered(firehose.addr()).start().await;
    eventually(SOON, "NEW9 is requested", async || {
        sim.handle.commands().iter().any(|command| command.contains("NEW9.*"))
    })
    .await;
    // The simulator does not know the type.
    sim.handle
        .publish_raw(r#"[{"ev":"status","status":"success","message":"subscribed to: NEW9.*"}]"#);
    is_complete(&filtered).await;
    for program in [&firehose, &filtered] {
        for name in ["firehose", "filtered"] {
            let last = program.metric(&format!("{name}_last_event_timestamp_seconds")).await;
            assert_eq!(last, None, "no event has come");
        }
    }
    let before = seconds();
    let other = |ev: &str| format!(r#"{{"ev":"{ev}","sym":"AAPL"}}"#);
    let events = [trade("A", 1), quote("B", 2), trade("C", 3), other("NEW9"), other("NEW8")];
    sim.handle.publish_raw(&format!("[{},{}]", events.join(","), other("lower case")));
    let expected = [("T", 2.0), ("Q", 1.0), ("NEW9", 1.0), ("other", 2.0)];
    eventually(SOON, "all events are counted", async || {
        filtered.metric("filtered_events_by_type_total").await == Some(6.0)
    })
    .await;
    for (kind, count) in expected {
        let label = format!("type=\"{kind}\"");
        let found = filtered.metric_with("filtered_events_by_type_total", &label).await;
        assert_eq!(found, Some(count), "{kind}");
        let last = filtered.metric_with("filtered_last_event_timestamp_seconds", &label).await;
        let last = last.unwrap_or_else(|| panic!("{kind} has a time"));
        assert!((before..=seconds()).contains(&last), "{kind}: {before} {last}");
    }
    for kind in ["T", "Q"] {
        // It looks for types anew each second.
        eventually(SOON, "the firehose sees a type", async || {
            sim.handle.publish(&[trade("A", 1), quote("B", 2)]);
            let label = format!("type=\"{kind}\"");
            let last = firehose.metric_with("firehose_last_event_timestamp_seconds", &label).await;
            last.is_some_and(|last| (before..=seconds()).contains(&last))
        })
        .await;
    }
    assert_eq!(firehose.metric("firehose_events_by_type_total").await, None);
}

/// The number of measured delays of at least half a second.
async fn long_delays(program: &Program, name: &str) -> f64 {
    let short = program.metric_with(&format!("{name}_bucket"), "le=\"0.5\"").await;
    value(program, &format!("{name}_count")).await - short.expect("a bucket")
}

#[tokio::test]
async fn a_stalled_session_shows_in_queue_lag_and_delay() {
    let stack = Stack::start().await;
    let filtered = &stack.filtered[0];
    let mut stalled = TestClient::connect_narrow(stack.addr(), 4_096).await;
    stalled.log_in(CLIENT_KEY).await;
    stalled.subscribe("T.*").await;
    let mut quick = stack.subscriber("Q.*").await;
    let queue = "filtered_slowest_session_queue_bytes";
    let lag = "filtered_slowest_session_lag_seconds";
    assert_eq!((value(filtered, queue).await, value(filtered, lag).await), (0.0, 0.0));
    let mut sent = Vec::new();
    eventually(SOON, "the client's queue grows", async || {
        let events: Vec<_> = (sent.len()..sent.len() + 100).map(wide).collect();
        stack.publish(&events);
        sent.extend(events);
        value(filtered, queue).await > 1_000.0
    })
    .await;
    let events: Vec<_> = (0..10).map(|n| quote("B", n)).collect();
    stack.publish(&events);
    quick.expect_objects(&events).await;
    assert_eq!(long_delays(filtered, "filtered_added_delay_seconds").await, 0.0);
    eventually(SOON, "the lag grows", async || value(filtered, lag).await > 0.6).await;
    stalled.expect_objects(&sent).await;
    eventually(SOON, "nothing is queued", async || {
        value(filtered, queue).await == 0.0 && value(filtered, lag).await == 0.0
    })
    .await;
    assert!(long_delays(filtered, "filtered_added_delay_seconds").await > 0.0);
    // The delay of the other client and of handing out was short.
    for (program, tier) in [(&stack.firehose, "firehose"), (filtered, "filtered")] {
        let name = format!("{tier}_forward_latency_seconds");
        assert!(value(program, &format!("{name}_count")).await > 0.0);
        assert_eq!(long_delays(program, &name).await, 0.0, "{tier}");
    }
    let delays = value(&stack.firehose, "firehose_added_delay_seconds_count").await;
    assert!(delays > 0.0, "the filtered proxy is a session of the firehose");
}

#[tokio::test]
async fn the_ring_shows_how_far_its_slowest_session_is_behind() {
    let firehose_env = vec![("RING_FRAMES", "64".to_owned())];
    let config = StackConfig { filtered: 0, firehose_env, ..StackConfig::default() };
    let stack = Stack::with(config).await;
    let used = async || value(&stack.firehose, "firehose_ring_used_ratio").await;
    let mut stalled = TestClient::connect_narrow(stack.firehose.addr(), 4_096).await;
    stalled.log_in(FIREHOSE_KEY).await;
    stalled.subscribe("T.*").await;
    eventually(SOON, "T is carried", async || {
        stack.firehose.health().await["channels"]["carried"] == serde_json::json!(["T.*"])
    })
    .await;
    assert_eq!(used().await, 0.0);
    let mut sent = 0;
    eventually(SOON, "the ring fills", async || {
        stack.publish(&(sent..sent + 20).map(wide).collect::<Vec<_>>());
        sent += 20;
        let used = used().await;
        assert!(used <= 1.0, "{used}");
        used > 0.5
    })
    .await;
    drop(stalled);
    eventually(SOON, "the ring is empty", async || used().await == 0.0).await;
}

#[tokio::test]
async fn the_process_and_its_limits_are_as_the_system_shows_them() {
    let nowhere = ReservedPort::new();
    let launch = stack::firehose(&format!("ws://{}", nowhere.addr()));
    let limits =
        [("MAX_CONNECTIONS", "77"), ("TOTAL_QUEUE_BYTES", "20000000"), ("MARKET", "crypto")];
    let limits = limits.map(|(name, value)| (name, value.to_owned()));
    let firehose = launch.envs(limits).start().await;
    let version = Launch::new("firehose-proxy").arg("--version").run(SOON).await.stdout;
    let version = version.split_whitespace().nth(1).expect("a version").to_owned();
    let label = format!("version=\"{version}\"");
    assert_eq!(firehose.metric_with("firehose_build_info", &label).await, Some(1.0));
    assert_eq!(value(&firehose, "firehose_sessions_limit").await, 77.0);
    assert_eq!(value(&firehose, "firehose_queue_limit_bytes").await, 20_000_000.0);
    eventually(SOON, "crypto is open at any time", async || {
        value(&firehose, "firehose_market_open").await == 1.0
    })
    .await;

    let system = Path::new("/proc").join(firehose.id().to_string());
    let limits = std::fs::read_to_string(system.join("limits")).expect("the system's limits");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("a line");
    let files: f64 =
        files.split_whitespace().nth(3).expect("the soft limit").parse().expect("a number");
    assert_eq!(value(&firehose, "process_max_fds").await, files);
    let open = async || {
        let listed =
            std::fs::read_dir(system.join("fd")).expect("the system's list").count() as f64;
        (listed, value(&firehose, "process_open_fds").await)
    };
    // The connection of the request is open while the program counts, and may be closed later.
    let (listed, shown) = open().await;
    assert!((shown - listed).abs() <= 2.0, "{shown} {listed}");
    let clients = async {
        let mut clients = Vec::new();
        for _ in 0..20 {
            clients.push(TestClient::connect_to(firehose.addr(), "/").await);
        }
        clients
    };
    let clients = within(SOON, "twenty clients", clients).await;
    let (_, more) = open().await;
    assert!((19.0..=22.0).contains(&(more - shown)), "{more} {shown}");
    drop(clients);

    let used = async || value(&firehose, "process_cpu_seconds_total").await;
    let before = used().await;
    eventually(SOON, "the program uses CPU time", async || used().await > before).await;
    let stat = std::fs::read_to_string(system.join("stat")).expect("the system's count");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    // In hundredths of a second: user and system time.
    let ticks = |at: usize| fields[at].parse::<f64>().expect("a number");
    let (system, shown) = ((ticks(11) + ticks(12)) / 100.0, used().await);
    assert!((shown - system).abs() < 0.2, "{shown} {system}");
}

#[tokio::test]
async fn the_end_of_the_certificate_is_shown_and_follows_a_reload() {
    let nowhere = ReservedPort::new();
    let dir = tempfile::tempdir().expect("make a directory");
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    let make = async |days: u32| {
        let mut openssl = Command::new("openssl");
        let options =
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost";
        openssl.args(options.split(' ')).arg("-days").arg(days.to_string());
        openssl.arg("-out").arg(&cert).arg("-keyout").arg(&key);
        let made = within(SOON, "openssl", openssl.output()).await;
        assert!(made.expect("run openssl (Debian: openssl)").status.success());
        seconds() + f64::from(days) * 86_400.0
    };
    let end = make(30).await;
    let launch = stack::firehose(&format!("ws://{}", nowhere.addr()));
    let launch = launch.env("TLS_CERT", cert.display()).env("TLS_KEY", key.display());
    let firehose = launch.env("ADMIN_PORT", 0).start().await;
    let name = "firehose_tls_certificate_expiry_timestamp_seconds";
    let shown = value(&firehose, name).await;
    assert!((shown - end).abs() < Duration::from_secs(5).as_secs_f64(), "{shown} {end}");
    let end = make(90).await;
    firehose.signal(Signal::SIGHUP);
    eventually(SOON, "the new certificate is shown", async || {
        (value(&firehose, name).await - end).abs() < 5.0
    })
    .await;
}
