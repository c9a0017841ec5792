//! The output of the demo: first how to connect, then the figures once a second.

use std::{
    io::{self, IsTerminal, Write},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use filtered_proxy::FilteredTier;
use firehose_proxy::FirehoseTier;
use proxy_common::{link::LinkMetrics, program::wiring::BoundTier, session::SessionMetrics};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::probe::Delays;

/// The most that a line of figures takes on a terminal. One that fills the narrowest usual terminal
/// could not be written over.
const COLUMNS: usize = 79;

/// The metrics behind the figures.
pub(crate) struct Figures {
    upstream: Arc<LinkMetrics>,
    clients: Arc<SessionMetrics>,
}

impl Figures {
    pub(crate) fn new(
        firehose: &BoundTier<FirehoseTier>,
        filtered: &BoundTier<FilteredTier>,
    ) -> Self {
        let (upstream, clients) = (&firehose.counters[0].upstream, &filtered.counters[0].sessions);
        Self { upstream: Arc::clone(upstream), clients: Arc::clone(clients) }
    }

    fn totals(&self) -> (u64, u64) {
        (self.upstream.events.get(), self.clients.events_delivered.get())
    }
}

/// Prints the output of the demo.
pub(crate) struct Screen {
    key: &'static str,
    market: SocketAddr,
    firehose: SocketAddr,
    filtered: SocketAddr,
    /// On a terminal the figures stay in one line. Elsewhere every second gets a line.
    terminal: bool,
}

impl Screen {
    pub(crate) fn new(
        key: &'static str,
        market: SocketAddr,
        firehose: SocketAddr,
        filtered: SocketAddr,
    ) -> Self {
        Self { key, market, firehose, filtered, terminal: io::stdout().is_terminal() }
    }

    /// Prints until `stop`, or until the output is closed.
    pub(crate) async fn run(self, figures: Figures, delays: Delays, stop: CancellationToken) {
        if self.print(&self.introduction()).is_err() {
            return;
        }
        let mut seconds = interval(Duration::from_secs(1));
        seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        seconds.tick().await;
        let (mut before, mut at) = (figures.totals(), Instant::now());
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = seconds.tick() => {}
            }
            let (now, elapsed) = (figures.totals(), at.elapsed().as_secs_f64());
            at = Instant::now();
            let rate = |now: u64, before: u64| (now - before) as f64 / elapsed;
            let line = format!(
                "upstream {:>6.0} | delivered {:>7.0} | clients {:>3} | added delay {}",
                rate(now.0, before.0),
                rate(now.1, before.1),
                figures.clients.sessions.get(),
                delay(delays.take()),
            );
            before = now;
            let line =
                if self.terminal { format!("\r\x1b[K{line:.COLUMNS$}") } else { line + "\n" };
            if self.print(&line).is_err() {
                return;
            }
        }
        // If this fails, the output is closed.
        let _ = self.print("\nstopped\n");
    }

    fn print(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    fn introduction(&self) -> String {
        let Self { key, market, firehose, filtered, .. } = self;
        let (host, port) = ("localhost", filtered.port());
        // A terminal of 80 columns must not break a line, and each block must work when it is
        // pasted.
        format!(
            "\
SIMULATED DATA: nothing shown here is a real market.

  simulated market  ws://{market}
  firehose          ws://{firehose}     http://{firehose}/health
  filtered proxy    ws://{filtered}     http://{filtered}/health

Connect a client of your own from another terminal (key: {key}). Paste the
first line into a shell, and the rest at the prompt that it opens.

Python:

pip install massive && python3

from massive import WebSocketClient
WebSocketClient(api_key=\"{key}\", feed=\"{host}:{port}\", secure=False,
                subscriptions=[\"T.AAPL\", \"Q.AAPL\"]).run(print)

JavaScript:

npm install @massive.com/client-js && node

import(\"@massive.com/client-js\").then(({{ websocketClient }}) => {{
  const ws = websocketClient(\"{key}\", \"ws://{host}:{port}\").stocks();
  ws.onmessage = ({{ data }}) => {{
    console.log(data);
    if (data.includes(\"auth_success\"))
      ws.send('{{\"action\":\"subscribe\",\"params\":\"T.AAPL\"}}');
  }};
}});

The project's own client, in a shell at the top of the repository:

pip install websockets
python3 tests/test_client.py --key {key} --url ws://{host}:{port}

Below: events per second, and the delay from market to client (median / 99 %),
which a client inside the demo measures. Ctrl-C stops everything.

"
        )
    }
}

fn delay(measured: Option<(Duration, Duration)>) -> String {
    let millis = |time: Duration| time.as_secs_f64() * 1_000.0;
    match measured {
        Some((median, p99)) => format!("{:.2} / {:.2} ms", millis(median), millis(p99)),
        None => "-".to_owned(),
    }
}
