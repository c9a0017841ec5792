//! Access: decides which clients may connect, how many at once, and how fast they may send.

mod abuse;
mod address_limits;
mod client_address;
mod command_rate;
mod gate;
mod key_limits;
mod keys;
mod origin;

pub use self::{
    abuse::{Abuse, AbuseLog},
    address_limits::AddressPermit,
    client_address::TrustedProxies,
    command_rate::{CommandBudget, CommandRate},
    gate::{AcceptedConnection, Gate, GateConfig, Refusal, shorten},
    key_limits::{KeyLimits, LimitsKept},
    keys::{KeyLease, KeyMetrics, Keys, MAX_LABEL, key_file_line, parse_label},
    origin::Origins,
};
