//! Events as text: for each kind a function that renders one.

pub(crate) mod currencies;
pub(crate) mod derivatives;
pub(crate) mod draw;
pub(crate) mod indices;
pub(crate) mod launchpad;
mod object;
pub(crate) mod stocks;
