//! NATS as a further way for a market's feed, beside the ring: a writer that stores the history in
//! a stream as it grows.
//!
//! The history is the writer's buffer. The publisher never waits for it, and a NATS that is away
//! for a while misses nothing that the history still holds.

mod connection;
mod demand;
mod payload;
mod resume;
mod state;
mod status;
mod stream;
mod window;
mod writer;

use std::{sync::Arc, time::Duration};

use proxy_common::metrics::Metrics;
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use self::writer::Writer;
pub(crate) use self::{demand::DemandListener, status::WriterStatus, writer::WriterParts};

/// How long a stopping program waits for NATS to take the rest. The writer itself gives up earlier.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(1_500);

/// A writer that has yet to start.
pub(crate) struct FeedWriter {
    writer: Writer,
}

/// A writer that runs. It ends with this value.
pub(crate) struct RunningWriter {
    task: JoinSet<()>,
    stop: CancellationToken,
}

impl FeedWriter {
    /// A writer, and what is known of it.
    pub(crate) fn new(parts: WriterParts, metrics: &mut Metrics) -> (Self, Arc<WriterStatus>) {
        let status = Arc::new(WriterStatus::register(metrics));
        let writer = Writer::new(parts, Arc::clone(&status));
        (Self { writer }, status)
    }

    /// Runs it in a task of its own.
    pub(crate) fn start(self) -> RunningWriter {
        let (mut task, stop) = (JoinSet::new(), CancellationToken::new());
        task.spawn(self.writer.run(stop.clone()).instrument(Span::current()));
        RunningWriter { task, stop }
    }
}

impl RunningWriter {
    /// Ends it, once NATS has what the history holds or after a second.
    pub(crate) async fn close(mut self) {
        self.stop.cancel();
        // Past it the task ends with `self`.
        let _ = timeout(CLOSE_TIMEOUT, self.task.join_next()).await;
    }
}

/// The name of this program's run: its machine and its process.
pub(crate) fn holder() -> String {
    format!("{}:{}", proxy_common::nats::instance().host, std::process::id())
}
