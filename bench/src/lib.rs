//! The load program: it plays the upstream and the clients around the real binaries, verifies every
//! event while it measures, and measures bare floors of the same work in the same run.
//!
//! [`feed`] is the load, [`load`] sends it, [`client`] and [`fleet`] receive it (through [`secure`]
//! where the port speaks TLS) and [`verify`] it, [`rig`] puts them together with the programs of
//! [`process`], and [`scenario`] says what is measured. `docs/BENCHMARKS.md` has the figures.

pub mod client;
pub mod clock;
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
