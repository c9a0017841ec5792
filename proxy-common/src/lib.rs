//! proxy-common
