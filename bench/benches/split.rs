//! Finding the events of a frame: the feed's shape, and any key order and white space.

use std::hint::black_box;

use bench::{
    feed::{FRAME_EVENTS, Feed},
    shapes::{any_shape, feed_shape},
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use filtered_proxy::split::split;

fn frames(criterion: &mut Criterion) {
    let feed = Feed::new(FRAME_EVENTS);
    let mut group = criterion.benchmark_group("split");
    group.throughput(Throughput::Elements(FRAME_EVENTS as u64));
    for (name, frames) in [("feed's shape", feed_shape(&feed)), ("any shape", any_shape(&feed))] {
        let mut frames = frames.iter().cycle();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let frame = frames.next().map_or(&[][..], |frame| frame);
                split(black_box(frame), |event| {
                    black_box(&event);
                })
            });
        });
    }
    group.finish();
}

criterion_group!(benches, frames);
criterion_main!(benches);
