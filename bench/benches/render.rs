//! From frames to chunks: split, look up and render, for many sessions with few symbols, for one
//! session on `*`, and for events without a subscriber, also if the last values are kept.

use std::time::Instant;

use bench::{
    feed::{FRAME_EVENTS, Feed},
    rig::client,
    scenario::s3,
    shapes::{any_shape, feed_shape, index_of},
};
use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use filtered_proxy::{batch::Batch, last_values::LastValues};
use proxy_common::{metrics::Metrics, protocol::Market};

/// Frames in one batch, as many as a busy link reads at once.
const FRAMES: usize = 64;

fn render(criterion: &mut Criterion) {
    let feed = Feed::new(FRAME_EVENTS);
    let ours = |text: &[Vec<u8>]| -> Vec<Bytes> { text.iter().cloned().map(Bytes::from).collect() };
    let (plain, any) = (ours(&feed_shape(&feed)), ours(&any_shape(&feed)));
    let many = s3::clients(&feed, 1_000);
    let star = vec![client(&feed, "*".to_owned())];
    let unwanted = vec![client(&feed, "T.ZZZZZ".to_owned())];
    let mut group = criterion.benchmark_group("render");
    group.throughput(Throughput::Elements((FRAMES * FRAME_EVENTS) as u64));
    let now = Instant::now();
    for (name, frames, clients, keeps) in [
        ("1,000 sessions, feed's shape", &plain, &many, false),
        ("1,000 sessions, any shape", &any, &many, false),
        ("one session on *, feed's shape", &plain, &star, false),
        ("no subscriber, feed's shape", &plain, &unwanted, false),
        ("no subscriber, last values kept", &plain, &unwanted, true),
    ] {
        let index = index_of(clients);
        let mut batch = Batch::new(keeps.then(|| LastValues::new(&mut Metrics::default())));
        let mut frames = frames.iter().cycle();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for frame in frames.by_ref().take(FRAMES) {
                    batch.add(frame.clone(), now, Market::Stocks, &index);
                }
                let mut bytes = 0;
                batch.deliver(&index, |_, chunks| {
                    bytes += chunks.iter().map(|chunk| chunk.text().len()).sum::<usize>();
                });
                bytes
            });
        });
    }
    group.finish();
}

criterion_group!(benches, render);
criterion_main!(benches);
