//! Index events.

use super::draw::Draw;

pub(crate) fn value(draw: &mut Draw<'_>, out: &mut String) {
    let mut event = draw.object("V", out);
    event.price("val", draw.instrument.price).text("T", &draw.instrument.symbol);
    event.int("t", draw.now_ms()).close();
}

pub(crate) fn second_bar(draw: &mut Draw<'_>, out: &mut String) {
    let window = draw.second();
    bar(draw, "A", window, out);
}

pub(crate) fn minute_bar(draw: &mut Draw<'_>, out: &mut String) {
    let window = draw.minute();
    bar(draw, "AM", window, out);
}

fn bar(draw: &mut Draw<'_>, ev: &str, (start, end): (u64, u64), out: &mut String) {
    let prices = draw.bar();
    let mut event = draw.object(ev, out);
    event.text("sym", &draw.instrument.symbol).price("op", draw.instrument.open);
    event.price("o", prices.open).price("c", prices.close);
    event.price("h", prices.high).price("l", prices.low);
    event.int("s", start).int("e", end).close();
}
