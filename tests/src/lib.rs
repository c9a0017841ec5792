//! The harness of the end-to-end tests.
//!
//! All code here uses the product as its users do: through sockets, and as real programs, which run
//! as processes with an environment of their own. It links nothing of the product, so the product
//! cannot agree with itself by mistake. The tests spell out the protocol's texts, and [`oracle`]
//! models subscriptions on a real JSON parser.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`wait`] | deadlines: [`wait::within`], [`wait::eventually`], [`wait::holds_for`] |
//! | [`program`] | a product binary as a process: settings, log lines, signals, exit code |
//! | [`stack`] | simulator, firehose and filtered proxies, connected in one call |
//! | [`ws_client`] | a WebSocket client that keeps the bytes it receives |
//! | [`http`] | plain HTTP requests |
//! | [`imports`] | which module of a crate imports which |
//! | [`tls`] | certificates, and TLS on either side of a port |
//! | [`tools`] | programs of other projects that the tests run |
//! | [`lease`] | firehoses of which one may dial, and takeovers |
//! | [`ledger`] | whether a program's counters account for every event |
//! | [`nats`] | real NATS servers and clusters, and an independent look into a stream |
//! | [`relay`] | a TCP relay that injects faults |
//! | [`chain`] | a whole chain with a relay at each hop, and a market of numbered events |
//! | [`disk`] | a disk that hangs, for one program |
//! | [`damage`] | messages without events, and events that are no JSON |
//! | [`soak`] | the chain under faults for any time, and what the programs hold afterwards |
//! | [`watcher`] | a client that reconnects after every loss and keeps what it saw |
//! | [`oracle`] | which events a client must have received |
//! | [`churn`] | clients that change their subscriptions all the time, checked by the oracle |
//! | [`official_clients`] | the vendor's official clients, unmodified |
//! | [`grafana`] | Grafana's own types for dashboards |
//! | [`autobahn`] | the Autobahn cases, against both ends of the product's WebSockets |

pub mod autobahn;
pub mod aware;
pub mod browser;
pub mod chain;
pub mod churn;
pub mod damage;
pub mod disk;
pub mod grafana;
pub mod http;
pub mod imports;
pub mod lease;
pub mod ledger;
pub mod nats;
pub mod official_clients;
pub mod oracle;
pub mod program;
pub mod relay;
pub mod soak;
pub mod stack;
pub mod tls;
pub mod tools;
pub mod wait;
pub mod watcher;
pub mod ws_client;
