//! The lease: which of several firehoses may dial the vendor for a market.

pub mod protocol;
pub mod value;
