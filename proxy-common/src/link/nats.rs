//! A session over NATS: takes the feed out of a market's stream, and behaves as a session with the
//! firehose that writes it would.

mod follow;
mod metrics;
mod seek;
mod session;
mod stream;
mod upstream;
mod wants;

pub(super) use self::session::NatsSession;
pub use self::{metrics::ReaderMetrics, upstream::NatsUpstream};
