//! Looking up the sessions that want an event, from few subscriptions to many, and the cost of a
//! subscription change.

use std::hint::black_box;

use bench::{
    client::ClientPlan,
    event::symbol,
    feed::{FRAME_EVENTS, Feed},
    rig::client,
    scenario::s3,
    shapes::{index_of, prefixes},
};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use proxy_common::protocol::{Channel, Kind, Market};

fn lookup(criterion: &mut Criterion) {
    let feed = Feed::new(FRAME_EVENTS);
    let symbols: Vec<(Kind, String)> = feed
        .topics()
        .iter()
        .map(|topic| (if topic.trade { Kind::T } else { Kind::Q }, symbol(topic.rank.into())))
        .collect();
    let mut group = criterion.benchmark_group("lookup");
    group.throughput(Throughput::Elements(FRAME_EVENTS as u64));
    let mut measure = |name: String, clients: &[ClientPlan]| {
        let index = index_of(clients);
        let mut frames = symbols.chunks(FRAME_EVENTS).cycle();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let mut found = 0;
                for (kind, symbol) in frames.next().unwrap_or_default() {
                    let symbol = black_box(symbol.as_bytes());
                    index.lookup(*kind, Some(symbol), |cohort| found += black_box(cohort));
                }
                found
            });
        });
    };
    for clients in [10, 100, 1_000, 10_000] {
        let name = format!("{clients} sessions, 20,000 subscriptions");
        measure(name, &s3::clients(&feed, clients));
    }
    for count in [1, 100, 10_000] {
        let mut clients = s3::clients(&feed, 1_000);
        clients.push(client(&feed, prefixes(count)));
        measure(format!("the same of 1,000 sessions, and {count} prefixes of trades"), &clients);
    }
    group.finish();
}

fn change(criterion: &mut Criterion) {
    let feed = Feed::new(FRAME_EVENTS);
    let mut group = criterion.benchmark_group("change");
    for clients in [10, 1_000] {
        let mut index = index_of(&s3::clients(&feed, clients));
        let mut n = 0;
        group.bench_function(format!("one channel there and back among {clients}"), |bencher| {
            bencher.iter_batched(
                || {
                    n += 1;
                    Channel::parse(&format!("A.{}", symbol(n % 1_000)), Market::Stocks)
                },
                |channel| {
                    if let Ok(channel) = channel {
                        index.change(1, [channel.clone()], true);
                        index.change(1, [channel], false);
                    }
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, lookup, change);
criterion_main!(benches);
