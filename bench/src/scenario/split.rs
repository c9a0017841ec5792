//! Splitting frames and looking up every event in an index of S3's 1,000 sessions with 20,000
//! subscriptions. It runs on one thread, without sockets and without rendering.

use std::{hint::black_box, time::Instant};

use anyhow::Result;
use filtered_proxy::split::{event::EventKind, split};

use super::{context::Context, s3};
use crate::{
    feed::FRAME_EVENTS,
    shapes::{any_shape, feed_shape, index_of},
    sheet::{Case, Goal},
};

/// Runs it.
pub fn run(context: &mut Context) -> Result<()> {
    let index = index_of(&s3::clients(&context.feed, 1_000));
    let case = Case { scenario: "split", shape: "alone" };
    for (name, frames, goal) in [
        ("split and lookup, feed's shape", feed_shape(&context.feed), 25e6),
        ("split and lookup, any shape", any_shape(&context.feed), 5e6),
    ] {
        for _ in 0..context.runs {
            let before = Instant::now();
            let mut events = 0;
            let mut wanted = 0_u64;
            for frame in frames.iter().cycle() {
                split(black_box(frame), |event| {
                    events += 1;
                    if let EventKind::Known(kind) = event.kind {
                        index.lookup(kind, event.symbol, |_| wanted += 1);
                    }
                });
                if events % (200 * FRAME_EVENTS) == 0 && before.elapsed() >= context.duration() / 2
                {
                    break;
                }
            }
            black_box(wanted);
            let rate = events as f64 / before.elapsed().as_secs_f64();
            eprintln!("{name}: {rate:.0} events/s");
            context.sheet.note(case, name, "events/s", rate, None, Goal::AtLeast(goal));
        }
    }
    Ok(())
}
