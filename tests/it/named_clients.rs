//! Unchanged clients with a named session: what comes after their last pong comes again, whatever
//! happened to them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tests::{
    official_clients::{Client, Running},
    program::Program,
    relay::{Fault, Relay},
    stack::{self, CLIENT_KEY, Sim, is_complete, is_up},
    wait::{SOON, eventually, within},
};
use tokio::{task::JoinHandle, time::interval};
use tokio_util::sync::CancellationToken;

use crate::events::{number_of_trade, trade};

/// A client is killed so often.
const KILLS: usize = 3;

/// A filtered proxy behind a relay, under load.
struct Loaded {
    filtered: Program,
    relay: Relay,
    _firehose: Program,
    sim: Sim,
    published: Arc<AtomicUsize>,
}

impl Loaded {
    async fn start() -> Self {
        let sim = Sim::start().await;
        let firehose = stack::firehose(&sim.url("stocks")).start().await;
        let relay = Relay::start(firehose.addr()).await;
        let filtered = stack::filtered(relay.addr()).start().await;
        is_up(&filtered).await;
        is_complete(&filtered).await;
        Self { filtered, relay, _firehose: firehose, sim, published: Arc::default() }
    }

    /// Publishes trades, each in a frame of its own, until the token is cancelled.
    fn load(&self, end: &CancellationToken) -> JoinHandle<()> {
        let (sim, published, end) =
            (self.sim.handle.clone(), Arc::clone(&self.published), end.clone());
        tokio::spawn(async move {
            let mut ticks = interval(Duration::from_millis(3));
            while !end.is_cancelled() {
                ticks.tick().await;
                sim.publish(&[trade("AAPL", published.load(SeqCst))]);
                published.fetch_add(1, SeqCst);
            }
            sim.publish(&[trade("AAPL", published.load(SeqCst))]);
        })
    }

    fn published(&self) -> usize {
        self.published.load(SeqCst)
    }

    /// Waits until so many more trades are published.
    async fn more(&self, trades: usize) {
        let before = self.published();
        let more = async || self.published() > before + trades;
        eventually(SOON, "more trades", more).await;
    }

    async fn client(&self, client: Client, name: &str) -> Option<Running> {
        let url = format!("ws://{}/session/{name}", self.filtered.addr());
        let mut running = client.start_at(&url, CLIENT_KEY, "T.AAPL").await?;
        running.subscribed("T.AAPL").await;
        Some(running)
    }
}

/// Reads up to this trade.
async fn read_to(running: &mut Running, last: usize) -> Vec<usize> {
    let mut numbers = Vec::new();
    within(2 * SOON, "the last trade", async {
        while numbers.last() != Some(&last) {
            numbers.extend(number_of_trade(&running.next_unless_notice().await));
        }
    })
    .await;
    numbers
}

#[tokio::test]
async fn a_cut_between_the_tiers_costs_an_unchanged_client_nothing() {
    let loaded = Loaded::start().await;
    let clients = [Client::PythonMassive, Client::PythonPlain, Client::JsMassive, Client::JsPlain];
    let clients =
        join_all(clients.map(async |client| loaded.client(client, &format!("{client:?}")).await));
    let clients: Vec<_> = clients.await.into_iter().flatten().collect();
    let end = CancellationToken::new();
    let load = loaded.load(&end);
    for _ in 0..2 {
        loaded.more(100).await;
        loaded.relay.inject(Fault::BlackHole);
        loaded.more(50).await;
        loaded.relay.inject(Fault::Reset);
        loaded.more(50).await;
        loaded.relay.heal();
        is_up(&loaded.filtered).await;
    }
    loaded.more(50).await;
    end.cancel();
    load.await.expect("the load");
    for mut client in clients {
        let got = read_to(&mut client, loaded.published()).await;
        assert_eq!(got, (0..=loaded.published()).collect::<Vec<_>>(), "{client:?}");
        client.finish().await;
    }
}

#[tokio::test]
async fn a_killed_client_misses_nothing_when_it_comes_back_under_its_name() {
    let loaded = Loaded::start().await;
    let clients = [Client::PythonMassive, Client::PythonPlain, Client::JsMassive, Client::JsPlain];
    let end = CancellationToken::new();
    let load = loaded.load(&end);
    let lives = join_all(clients.map(async |client| {
        let name = format!("{client:?}");
        let mut lives = Vec::new();
        let mut running = loaded.client(client, &name).await?;
        for _ in 0..KILLS {
            let mut got: Vec<usize> = Vec::new();
            let first = loaded.published();
            while got.last().is_none_or(|last| *last < first + 150) {
                got.extend(number_of_trade(&running.next_unless_notice().await));
            }
            got.extend(running.kill().await.iter().filter_map(|object| number_of_trade(object)));
            lives.push(got);
            loaded.more(30).await;
            running = loaded.client(client, &name).await?;
        }
        Some((client, running, lives))
    }))
    .await;
    end.cancel();
    load.await.expect("the load");
    for (client, mut running, mut lives) in lives.into_iter().flatten() {
        lives.push(read_to(&mut running, loaded.published()).await);
        for life in &lives {
            let all: Vec<_> = (life[0]..life[0] + life.len()).collect();
            assert_eq!(*life, all, "{client:?}: nothing is missing or repeated in a session");
        }
        for pair in lives.windows(2) {
            let (last, first) = (pair[0][pair[0].len() - 1], pair[1][0]);
            println!("{client:?}: killed behind {last}, came back to {first}");
            assert!(first <= last + 1, "{client:?}: killed behind {last}, came back to {first}");
            // About 250 ms of it may come again: 83 trades, and more on a busy machine.
            assert!(last < first + 1_000, "{client:?}: too much came again");
        }
        running.finish().await;
    }
}
