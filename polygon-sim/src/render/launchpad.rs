//! Events of the Launchpad product, the same on each of its markets.

use super::{derivatives, draw::Draw};

/// The value stands before the symbol, as on the wire.
pub(crate) fn value(draw: &mut Draw<'_>, out: &mut String) {
    let mut event = draw.object("LV", out);
    event.price("val", draw.instrument.price).text("sym", &draw.instrument.prefixed);
    event.int("t", draw.now_ns).close();
}

pub(crate) fn minute_bar(draw: &mut Draw<'_>, out: &mut String) {
    let window = draw.minute();
    derivatives::volume_bar(draw, "AM", window, out);
}
