//! The load program. It plays the upstream and the clients of the real binaries and verifies every
//! event while it measures. In the same run it measures bare floors of the same work.
//!
//! [`feed`] is the load and [`load`] sends it. [`client`] and [`fleet`] receive it, through
//! [`secure`] where the port speaks TLS, and [`verify`] checks it. [`rig`] connects them with the
//! programs of [`process`], and [`scenario`] defines the measurements. `docs/BENCHMARKS.md` has the
//! figures.

pub mod client;
pub mod clock;
pub mod comparison;
pub mod event;
pub mod feed;
pub mod fleet;
pub mod floor;
pub mod latency;
pub mod load;
pub mod number;
pub mod options;
pub mod plot;
pub mod process;
pub mod rig;
pub mod scenario;
pub mod search;
pub mod secure;
pub mod shapes;
pub mod sheet;
pub mod verify;
pub mod wire;
