//! Many items, many sessions, and no resources left behind.

use std::time::{Duration, Instant};

use tests::{
    program::Program,
    stack::{CLIENT_KEY, FIREHOSE_KEY, Stack, StackConfig},
    wait::{SOON, eventually},
    ws_client::{TestClient, acks},
};
use tokio::task::JoinSet;

use crate::{
    events::{quote, trade},
    tiers::ports,
};

#[tokio::test]
async fn five_thousand_items_are_acknowledged_within_a_second() {
    let stack = Stack::start().await;
    let items: Vec<_> = (0..5_000).map(|n| format!("{}.S{n}", ["T", "Q"][n % 2])).collect();
    let params = items.join(",");
    for (addr, key) in ports(&stack) {
        // The best of three, because other load on the machine must not count.
        let mut best = [Duration::MAX; 2];
        for _ in 0..3 {
            let mut client = TestClient::login(addr, key).await;
            for (action, best) in ["subscribe", "unsubscribe"].into_iter().zip(&mut best) {
                let started = Instant::now();
                client.command(action, &params).await;
                let answer = client.next_text().await;
                *best = (*best).min(started.elapsed());
                assert_eq!(answer, acks(&format!("{action}d"), &params));
            }
        }
        assert!(best.iter().all(|best| *best < Duration::from_secs(1)), "{best:?}");
    }
    let mut client = stack.client().await;
    client.subscribe(&params).await;
    let events = [quote("S0", 1), trade("S0", 2), trade("S5000", 3), trade("S4998", 4)];
    stack.publish(&events);
    client.expect_objects(&[&events[1], &events[3]]).await;
}

#[tokio::test]
async fn acknowledgements_past_the_limit_of_a_message_come_in_several() {
    let stack = Stack::start().await;
    let items: Vec<_> = (0..20_000).map(|n| format!("T.SYMBOL{n}")).collect();
    let mut client = stack.client().await;
    for action in ["subscribe", "unsubscribe"] {
        client.command(action, &items.join(",")).await;
        let mut frames = 0;
        let mut acknowledged = Vec::new();
        while acknowledged.len() < items.len() {
            // This checks that the message is below 900,000 bytes.
            acknowledged.extend(client.next_frame().await);
            frames += 1;
        }
        let expected = acks(&format!("{action}d"), &items.join(","));
        assert_eq!(format!("[{}]", acknowledged.join(",")), expected);
        assert!(frames > 1, "more than a message holds");
    }
}

/// Connects, logs in, subscribes to symbols that no other client holds, and leaves in one of
/// several ways.
async fn cycle(addr: std::net::SocketAddr, key: &str, n: usize) {
    let mut client = TestClient::login(addr, key).await;
    let items: Vec<_> = (0..20).map(|i| format!("T.C{n}X{i}")).collect();
    client.subscribe(&format!("T.AAPL,{}", items.join(","))).await;
    match n % 3 {
        0 => client.close().await,
        1 => {
            client.unsubscribe(&items.join(",")).await;
            drop(client);
        }
        _ => drop(client),
    }
}

async fn cycles(addr: std::net::SocketAddr, key: &'static str, range: std::ops::Range<usize>) {
    let mut tasks = JoinSet::new();
    for worker in 0..8 {
        let own = range.clone().skip(worker).step_by(8);
        tasks.spawn(async move {
            for n in own {
                cycle(addr, key, n).await;
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.expect("a client's cycles");
    }
}

/// Open file descriptors of a program, if the system provides the number.
fn open_files(program: &Program) -> Option<usize> {
    Some(std::fs::read_dir(format!("/proc/{}/fd", program.id())).ok()?.count())
}

#[tokio::test]
async fn a_thousand_short_sessions_leave_nothing_behind() {
    let linger = ("UPSTREAM_LINGER", "100ms".to_owned());
    let stack =
        Stack::with(StackConfig { firehose_env: vec![linger], ..StackConfig::default() }).await;
    let tiers = [
        (&stack.filtered[0], CLIENT_KEY, "filtered", 0.0),
        (&stack.firehose, FIREHOSE_KEY, "firehose", 1.0),
    ];
    for (program, key, prefix, own) in tiers {
        let metric = async |name: &str| program.metric(&format!("{prefix}_{name}")).await;
        let all_gone = async |opened: f64| {
            eventually(SOON, "all sessions are gone", async || {
                metric("sessions").await == Some(own)
                    && metric("subscriptions").await == Some(own)
                    && metric("sessions_opened_total").await == Some(opened + own)
                    && metric("sessions_closed_total").await == Some(opened)
            })
            .await;
            eventually(SOON, "none of their channels is held upstream", async || {
                stack.sim.handle.subscriptions().iter().all(|channel| channel.ends_with(".*"))
            })
            .await;
        };
        // One-time allocations, and the peak of resources held at a time, happen in these cycles.
        cycles(program.addr(), key, 0..500).await;
        all_gone(500.0).await;
        let memory = async || program.metric("process_resident_memory_bytes").await;
        let (memory_before, files_before) = (memory().await, open_files(program));
        cycles(program.addr(), key, 500..1_500).await;
        all_gone(1_500.0).await;
        let grown = memory().await.expect("a gauge") - memory_before.expect("a gauge");
        println!("{prefix}: grown by {grown} bytes");
        assert!(grown < 3e6, "{prefix}: grown by {grown} bytes");
        if let (Some(before), Some(after)) = (files_before, open_files(program)) {
            assert!(after <= before + 2, "{prefix}: {before} open files before, {after} after");
        }
        let health = program.health().await;
        assert_eq!(health["sessions"], own, "{health}");
        assert_eq!(health["subscriptions"], own, "{health}");
    }
    // It still works.
    let mut client = stack.subscriber("T.AAPL").await;
    stack.publish(&[trade("AAPL", 1)]);
    client.expect_objects(&[trade("AAPL", 1)]).await;
}
