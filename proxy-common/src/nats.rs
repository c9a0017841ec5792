//! NATS, which can carry each market's feed from one firehose to filtered proxies on many hosts:
//! how to reach its servers, and the names and heads of what the tiers exchange there.
//!
//! | name | what it is |
//! | --- | --- |
//! | stream `POLYGON_STOCKS` | the feed of a market, the two subjects below |
//! | `polygon.stocks.data` | whole WebSocket frames, unmasked, one or several: events and notices in the order in which a session with `*` gets them |
//! | `polygon.stocks.state` | the frames that a session would get which subscribes to `*` now; once a second and at each change |
//! | `polygon.stocks.demand.ID` | what the filtered proxy of this ID wants; not stored |
//! | `polygon.stocks.answers.ID` | the firehose's answers for its contracts; not stored |
//! | `polygon.stocks.health.ask` | asks every program for its health; not stored |
//! | `polygon.stocks.health.to.ID` | their answers for the program of this ID; not stored |
//! | bucket `POLYGON_LEASE`, key `stocks` | which firehose may dial the vendor |
//! | bucket `POLYGON_SESSIONS` | what named sessions have received |
//!
//! Each message of the stream bears a [`Head`]. A firehose stores its messages as a chain: each
//! one with the header `Nats-Expected-Last-Sequence`, so that the server takes it only directly
//! behind the one before. A firehose that begins stores states without that header, one more than
//! it may have messages under way. They move the stream's sequence so far that nothing under way
//! of an earlier firehose fits any more, and the server refuses whatever that one still sends.

mod config;
#[cfg(feature = "nats")]
mod connect;
mod head;
mod instance;
mod names;
#[cfg(feature = "nats")]
mod steady;

pub use self::{
    config::{Credentials, NatsConfig, Servers, servers},
    head::{ANSWERED, HEAD, HOLDER, Head},
    instance::{Instance, instance},
    names::Names,
};
#[cfg(feature = "nats")]
pub use self::{
    connect::{OLDEST_SERVER, connect, is_too_old},
    steady::SteadyConnection,
};
