//! End-to-end tests: the real programs with real sockets, and a simulated market as their upstream.
//!
//! Every rule of the protocol that clients rely on is tested here with its texts written out. There
//! is one test binary, so that the programs under test are built once and the tests share the
//! machine well.

mod access;
mod autobahn;
mod balancing;
mod check;
mod commands;
mod compose;
mod config;
mod container;
mod contracts;
mod coverage;
mod damage;
mod demo;
mod doc_snippets;
mod documents;
mod event_shapes;
mod events;
mod faults;
mod filter;
mod front;
mod half_open;
mod handshake;
mod healthcheck;
mod http;
mod ignored_settings;
mod keys;
mod kubernetes;
mod large_messages;
mod ledger;
mod login;
mod logs;
mod manual;
mod markets;
mod metrics;
mod monitoring;
mod named_clients;
mod nats_access;
mod nats_document;
mod nats_peers;
mod nats_sessions;

mod new_types;
mod notices;
mod official_clients;
mod oracle_churn;
mod oracle_contracts;
mod oracle_markets;
mod oracle_nats;
mod oracle_resume;
mod outages;
mod page;
mod prefixes;
mod record;
mod responsiveness;
mod resume;
mod rolling;
mod scale;
mod seed;
mod shutdown;
mod silence;
mod slow;
mod slow_resume;
mod snapshot;
mod soak;
mod sources;
mod status;
mod systemd;
mod tidy;
mod tiers;
mod tls;
mod tls_ports;
mod upstream;
mod version;
