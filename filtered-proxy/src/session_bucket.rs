//! Shares the names of sessions with other proxies, so that a client may come back to any of them.
//!
//! A bucket in NATS holds for each name which proxy has it, and what its client has confirmed. A
//! session that enters claims its name there. Once a second a proxy saves what has changed, each
//! name only if nobody else has saved it since. So a proxy whose name was claimed elsewhere learns
//! it when it saves, and ends its session: the last one to enter wins, as within one proxy.

mod bucket;
mod saved;
mod saver;

pub use self::bucket::{Bucket, MarketBucket};
pub(crate) use self::saver::save_while;
