//! The steps that every frame goes through: checking it and finding its statuses, and finding its
//! events, in the feed's shape and with keys and white space in any order.

use std::hint::black_box;

use bench::{
    feed::{FRAME_EVENTS, Feed},
    shapes::{any_shape, feed_shape},
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use filtered_proxy::split::split;
use proxy_common::{protocol::demux, websocket::Frame};

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
                });
            });
        });
    }
    group.finish();
}

fn statuses(criterion: &mut Criterion) {
    let feed = Feed::new(FRAME_EVENTS);
    let mut group = criterion.benchmark_group("separate");
    group.throughput(Throughput::Elements(FRAME_EVENTS as u64));
    for (name, texts) in [("feed's shape", feed_shape(&feed)), ("any shape", any_shape(&feed))] {
        let frames: Vec<Frame> = texts.iter().map(|text| Frame::new(text)).collect();
        let mut frames = frames.iter().cycle();
        group.bench_function(name, |bencher| {
            bencher.iter(|| demux(black_box(frames.next().expect("an endless cycle").clone())));
        });
    }
    group.finish();
}

criterion_group!(benches, statuses, frames);
criterion_main!(benches);
