//! The delays of events.

use hdrhistogram::Histogram;

/// The longest delay recorded exactly, in nanoseconds.
const MAX_NS: u64 = 120_000_000_000;

/// The delay of every event, from its stamp to its arrival at the client's socket.
#[derive(Debug)]
pub struct Latency {
    histogram: Histogram<u64>,
    /// The last stamp and arrival. Neighbours mostly share them and are counted together.
    last: (u64, u64),
    count: u64,
}

impl Default for Latency {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1_000, MAX_NS, 3).expect("bounds make sense");
        Self { histogram, last: (0, 0), count: 0 }
    }
}

impl Latency {
    /// Records one event.
    #[inline(always)]
    pub fn note(&mut self, stamp_ns: u64, now_ns: u64) {
        if self.last != (stamp_ns, now_ns) {
            self.store();
            self.last = (stamp_ns, now_ns);
        }
        self.count += 1;
    }

    fn store(&mut self) {
        let ns = self.last.1.saturating_sub(self.last.0);
        self.histogram.saturating_record_n(ns, self.count);
        self.count = 0;
    }

    /// The delay in milliseconds that this share of the events did not exceed.
    pub fn quantile_ms(&mut self, share: f64) -> f64 {
        self.store();
        self.histogram.value_at_quantile(share) as f64 / 1e6
    }

    /// Forgets all delays.
    pub fn clear(&mut self) {
        self.count = 0;
        self.histogram.reset();
    }
}
