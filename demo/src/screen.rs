//! The output of the demo: first how to connect, then the figures of each market once a second.

use std::{
    io::{self, IsTerminal, Write},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use proxy_common::{
    link::LinkMetrics, program::wiring::MarketCounters, protocol::Market, session::SessionMetrics,
};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::probe::Delays;

/// The most that a line of figures takes on a terminal. One that fills the narrowest usual terminal
/// could not be written over.
const COLUMNS: usize = 79;

/// The sources of a market's figures.
pub(crate) struct Figures {
    market: Market,
    upstream: Arc<LinkMetrics>,
    clients: Arc<SessionMetrics>,
    delays: Delays,
    /// The totals when they were last shown.
    shown: (u64, u64),
}

impl Figures {
    /// The counters of this market at the firehose and at the filtered proxy.
    pub(crate) fn new(
        firehose: &MarketCounters,
        filtered: &MarketCounters,
        delays: Delays,
    ) -> Self {
        let (upstream, clients) = (&firehose.upstream, &filtered.sessions);
        Self {
            market: firehose.market,
            upstream: Arc::clone(upstream),
            clients: Arc::clone(clients),
            delays,
            shown: (0, 0),
        }
    }

    /// The line of figures for the time since the last one.
    fn row(&mut self, seconds: f64) -> String {
        let now = (self.upstream.events.get(), self.clients.events_delivered.get());
        let before = std::mem::replace(&mut self.shown, now);
        let rate = |now: u64, before: u64| (now - before) as f64 / seconds;
        format!(
            "{:<8} {:>10.0} {:>11.0} {:>9}   {}",
            self.market.name(),
            rate(now.0, before.0),
            rate(now.1, before.1),
            self.clients.sessions.get(),
            delay(self.delays.take()),
        )
    }
}

/// Where the parts of the demo listen.
pub(crate) struct Addresses {
    pub(crate) market: SocketAddr,
    pub(crate) firehose: SocketAddr,
    pub(crate) filtered: SocketAddr,
}

/// Prints the output of the demo until `stop`, or until the output is closed.
pub(crate) async fn run(
    addresses: Addresses,
    key: &'static str,
    mut figures: Vec<Figures>,
    stop: CancellationToken,
) {
    let markets: Vec<_> = figures.iter().map(|figures| figures.market).collect();
    if print(&introduction(&addresses, key, &markets)).is_err() {
        return;
    }
    // On a terminal the figures stay in their lines. Elsewhere every second gets lines of its own.
    let terminal = io::stdout().is_terminal();
    let mut back = String::new();
    let mut seconds = interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    seconds.tick().await;
    let mut at = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = seconds.tick() => {}
        }
        let elapsed = at.elapsed().as_secs_f64();
        at = Instant::now();
        let rows = figures.iter_mut().map(|figures| figures.row(elapsed));
        let text: String = if terminal {
            let rows: Vec<_> = rows.map(|row| format!("\r\x1b[K{row:.COLUMNS$}")).collect();
            let text = back + &rows.join("\n");
            back = "\x1b[A".repeat(rows.len() - 1);
            text
        } else {
            rows.map(|row| row + "\n").collect()
        };
        if print(&text).is_err() {
            return;
        }
    }
    // If this fails, the output is closed.
    let _ = print("\nstopped\n");
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// A channel of this market on which much happens.
fn busy_channel(market: Market) -> &'static str {
    match market {
        Market::Stocks => "T.AAPL",
        Market::Options => "T.O:SPY261218C00650000",
        Market::Forex => "C.EUR/USD",
        Market::Crypto => "XT.BTC-USD",
        Market::Indices => "V.I:SPX",
        Market::Futures => "T.ESZ6",
    }
}

fn introduction(addresses: &Addresses, key: &str, markets: &[Market]) -> String {
    let Addresses { market, firehose, filtered } = addresses;
    let (host, port) = ("localhost", filtered.port());
    let paths = markets.iter().map(|&market| {
        let path = format!("/{market}");
        format!("  {path:<17} {}\n", busy_channel(market))
    });
    let paths: String = paths.collect();
    let (first, channel) = (markets[0], busy_channel(markets[0]));
    // A terminal of 80 columns must not break a line, and each block must work when it is pasted.
    format!(
        "\
SIMULATED DATA: nothing shown here is a real market.

  simulated market  ws://{market}
  firehose          ws://{firehose}     http://{firehose}/health
  filtered proxy    ws://{filtered}     http://{filtered}/health

Each market has a path there. A channel to try for each:

{paths}
Connect a client of your own from another terminal (key: {key}). Paste the
first line into a shell, and the rest at the prompt that it opens.

Python:

pip install massive && python3

from massive import WebSocketClient
WebSocketClient(api_key=\"{key}\", feed=\"{host}:{port}\", secure=False,
                market=\"{first}\",
                subscriptions=[\"{channel}\"]).run(print)

JavaScript:

npm install @massive.com/client-js && node

import(\"@massive.com/client-js\").then(({{ websocketClient }}) => {{
  const ws = websocketClient(\"{key}\", \"ws://{host}:{port}\").{first}();
  ws.onmessage = ({{ data }}) => {{
    console.log(data);
    if (data.includes(\"auth_success\"))
      ws.send('{{\"action\":\"subscribe\",\"params\":\"{channel}\"}}');
  }};
}});

The project's own client, in a shell at the top of the repository:

pip install websockets
python3 tests/test_client.py --key {key} --url ws://{host}:{port} \\
    --symbols {channel}

Below: events per second, and the delay from market to client (median / 99 %),
which clients inside the demo measure. Ctrl-C stops everything.

market     upstream   delivered   clients   added delay
"
    )
}

fn delay(measured: Option<(Duration, Duration)>) -> String {
    let millis = |time: Duration| time.as_secs_f64() * 1_000.0;
    match measured {
        Some((median, p99)) => format!("{:.2} / {:.2} ms", millis(median), millis(p99)),
        None => "-".to_owned(),
    }
}
