//! Types of event that fall silent while their market is open: reported, never acted upon.

pub mod market_hours;
pub mod monitor;
pub mod rules;
