//! polygon-sim
