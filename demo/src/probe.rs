//! A client that measures how long events take from a simulated market through both tiers.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use futures_util::{SinkExt, StreamExt};
use hdrhistogram::Histogram;
use serde::Deserialize;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::{connect_async, tungstenite::Message};
use tokio_util::sync::CancellationToken;

/// A longer delay is recorded as this one.
const MAX_DELAY_NS: u64 = 60_000_000_000;

/// Delays measured since the last [`take`](Self::take), in nanoseconds.
#[derive(Debug, Clone)]
pub(crate) struct Delays(Arc<Mutex<Histogram<u64>>>);

impl Default for Delays {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, MAX_DELAY_NS, 2);
        Self(Arc::new(Mutex::new(histogram.expect("the bounds are in order"))))
    }
}

impl Delays {
    /// Takes the delays measured so far: median and 99th percentile. `None` if there are none.
    pub(crate) fn take(&self) -> Option<(Duration, Duration)> {
        let mut histogram = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if histogram.is_empty() {
            return None;
        }
        let at = |quantile| Duration::from_nanos(histogram.value_at_quantile(quantile));
        let found = (at(0.5), at(0.99));
        histogram.reset();
        Some(found)
    }

    fn record(&self, nanos: u64) {
        let mut histogram = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        histogram.saturating_record(nanos.clamp(1, MAX_DELAY_NS));
    }
}

/// The measuring client.
pub(crate) struct Probe {
    /// Where it connects.
    pub(crate) url: String,
    /// The key that it presents.
    pub(crate) key: &'static str,
    /// The channels that it subscribes to: fair values.
    pub(crate) channels: String,
    /// Where it records what it measures.
    pub(crate) delays: Delays,
}

/// FMV is the only frequent kind that carries the time of its creation in nanoseconds.
#[derive(Deserialize)]
struct FairMarketValue {
    #[serde(default)]
    ev: String,
    #[serde(default)]
    t: u64,
}

impl Probe {
    /// Measures until `stop`. Connects again when the connection ends.
    pub(crate) async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                result = self.measure() => if let Err(error) = result {
                    tracing::debug!(%error, "probe disconnected");
                },
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(Duration::from_millis(200)) => {}
            }
        }
    }

    async fn measure(&self) -> anyhow::Result<()> {
        let (mut socket, _) =
            timeout(Duration::from_secs(5), connect_async(self.url.as_str())).await??;
        for (action, params) in [("auth", self.key), ("subscribe", &self.channels)] {
            let command = serde_json::json!({ "action": action, "params": params });
            socket.send(Message::text(command.to_string())).await?;
        }
        while let Some(message) = socket.next().await {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos() as u64;
            if let Message::Text(text) = message? {
                let events: Vec<FairMarketValue> = serde_json::from_str(&text)?;
                for event in events.iter().filter(|event| event.ev == "FMV") {
                    self.delays.record(now.saturating_sub(event.t));
                }
            }
        }
        Ok(())
    }
}
