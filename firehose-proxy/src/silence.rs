//! Reports types of event that fall silent while their market is open. Nothing else follows from a
//! silence.

pub mod market_hours;
pub mod monitor;
pub mod rules;
