//! The harness of the end-to-end tests.
//!
//! Everything here uses the product as its users do: the real programs, started as processes with
//! an environment of their own, and sockets. Nothing of the product is linked, so nothing of it can
//! agree with itself by mistake: the protocol's texts stand literally in the tests and [`oracle`]
//! models subscriptions over a real JSON parser.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`wait`] | deadlines on everything: [`wait::within`], [`wait::eventually`], [`wait::holds_for`] |
//! | [`program`] | a product binary as a process: settings, log lines, signals, exit code |
//! | [`stack`] | simulator, firehose and filtered proxies, wired up in one call |
//! | [`ws_client`] | a WebSocket client that keeps the bytes of what it receives |
//! | [`http`] | plain HTTP requests |
//! | [`imports`] | which module of a crate imports which |
//! | [`tls`] | certificates, and TLS on either side of a port |
//! | [`ledger`] | whether a program's counters account for every event |
//! | [`relay`] | a TCP relay that makes trouble on request |
//! | [`chain`] | a whole chain with a relay at each link, and a market of numbered events |
//! | [`soak`] | all of it for as long as asked, and what the programs hold afterwards |
//! | [`watcher`] | a client that comes back after every loss and keeps what it saw |
//! | [`oracle`] | which events a client must have received |
//! | [`official_clients`] | the vendor's official clients, run as they come |
//! | [`autobahn`] | the Autobahn cases, against both ends of the product's WebSockets |

pub mod autobahn;
pub mod chain;
pub mod http;
pub mod imports;
pub mod ledger;
pub mod official_clients;
pub mod oracle;
pub mod program;
pub mod relay;
pub mod soak;
pub mod stack;
pub mod tls;
pub mod wait;
pub mod watcher;
pub mod ws_client;
