//! The frame of a program: its log, its runtime, and what SIGHUP does.

pub mod logging;
pub mod reload;
pub mod runtime;
