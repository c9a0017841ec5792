//! Events as text: one function for each kind.

pub(crate) mod currencies;
pub(crate) mod derivatives;
pub(crate) mod draw;
pub(crate) mod indices;
pub(crate) mod launchpad;
mod object;
pub(crate) mod stocks;
