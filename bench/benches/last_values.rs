//! The last values: their memory, and what a snapshot costs the router.

use std::{collections::BTreeSet, hint::black_box, time::Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use filtered_proxy::{coverage::KnownCoverage, last_values::LastValues};
use proxy_common::{
    metrics::Metrics,
    protocol::{Channel, Kind, Market},
};

/// As many trades and as many quotes: about what a day of options holds.
const SYMBOLS: usize = 250_000;

fn snapshot(criterion: &mut Criterion) {
    let (before, now) = (resident(), Instant::now());
    let mut values = LastValues::new(&mut Metrics::default());
    for n in 0..SYMBOLS {
        let symbol = format!("O:SPY2512{n:07}P00");
        for kind in [Kind::T, Kind::Q] {
            let event = format!(r#"{{"ev":"{kind}","sym":"{symbol}","x":"{}"}}"#, "x".repeat(100));
            values.keep(kind, symbol.as_bytes(), event.as_bytes(), now);
        }
    }
    println!("{} bytes a value", (resident() - before) / (2 * SYMBOLS));
    let mut group = criterion.benchmark_group(format!("snapshot of {} values", 2 * SYMBOLS));
    for item in ["T.O:SPY25120000001P00", "T.O:SPY2512000*", "T.*"] {
        let channels = BTreeSet::from([Channel::parse(item, Market::Options).expect("a channel")]);
        let coverage = KnownCoverage::default();
        group.bench_function(item, |bencher| {
            bencher.iter(|| {
                let channels = black_box(&channels);
                values.snapshot(channels, Market::Options, &coverage, now, 8 << 20).map(|f| f.len())
            });
        });
    }
    group.finish();
}

/// Bytes of memory that this process has.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("read the process's status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    let kib = line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number");
    kib << 10
}

criterion_group!(benches, snapshot);
criterion_main!(benches);
