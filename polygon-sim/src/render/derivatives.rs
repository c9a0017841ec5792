//! Option and futures events.

use super::draw::Draw;

const VENUES: [u64; 6] = [302, 308, 312, 316, 322, 325];
const CONDITIONS: [u64; 4] = [209, 227, 232, 233];

pub(crate) fn option_trade(draw: &mut Draw<'_>, out: &mut String) {
    let sequence = draw.sequence();
    let mut event = draw.object("T", out);
    event.text("sym", &draw.instrument.symbol).int("x", draw.pick(&VENUES));
    event.price("p", draw.instrument.price).int("s", 1 + draw.below(40));
    if draw.chance(90) {
        event.ints("c", &[draw.pick(&CONDITIONS)]);
    }
    event.int("t", draw.now_ms()).int("q", sequence).close();
}

pub(crate) fn option_quote(draw: &mut Draw<'_>, out: &mut String) {
    let sequence = draw.sequence();
    let (bid, ask) = draw.spread();
    let mut event = draw.object("Q", out);
    event.text("sym", &draw.instrument.symbol);
    event.int("bx", draw.pick(&VENUES)).int("ax", draw.pick(&VENUES));
    event.price("bp", bid).price("ap", ask);
    event.int("bs", 1 + draw.below(200)).int("as", 1 + draw.below(200));
    event.int("t", draw.now_ms()).int("q", sequence).close();
}

pub(crate) fn option_second_bar(draw: &mut Draw<'_>, out: &mut String) {
    let window = draw.second();
    volume_bar(draw, "A", window, out);
}

pub(crate) fn option_minute_bar(draw: &mut Draw<'_>, out: &mut String) {
    let window = draw.minute();
    volume_bar(draw, "AM", window, out);
}

/// The bar of options and of Launchpad: a stock bar without its newest fields.
pub(super) fn volume_bar(
    draw: &mut Draw<'_>,
    ev: &str,
    (start, end): (u64, u64),
    out: &mut String,
) {
    let (prices, volume) = (draw.bar(), draw.traded(300));
    let mut event = draw.object(ev, out);
    event.text("sym", symbol_of_bar(draw)).int("v", volume).int("av", draw.instrument.volume);
    event.price("op", draw.instrument.open).price("vw", prices.mean);
    event.price("o", prices.open).price("c", prices.close);
    event.price("h", prices.high).price("l", prices.low);
    event.price("a", i64::midpoint(prices.mean, draw.instrument.open));
    event.int("z", 1 + draw.below(20)).int("s", start).int("e", end).close();
}

/// Only on Launchpad do pairs have bars of this form, and there they have a prefix.
fn symbol_of_bar<'a>(draw: &'a Draw<'_>) -> &'a str {
    &draw.instrument.prefixed
}

pub(crate) fn future_trade(draw: &mut Draw<'_>, out: &mut String) {
    let sequence = draw.sequence();
    let mut event = draw.object("T", out);
    event.text("sym", &draw.instrument.symbol).price("p", draw.instrument.price);
    event.int("s", 1 + draw.below(12)).int("t", draw.now_ms()).int("q", sequence).close();
}

pub(crate) fn future_quote(draw: &mut Draw<'_>, out: &mut String) {
    let now = draw.now_ms();
    let (bid, ask) = draw.spread();
    let mut event = draw.object("Q", out);
    event.text("sym", &draw.instrument.symbol);
    event.price("bp", bid).int("bs", 1 + draw.below(30)).int("bt", now);
    event.price("ap", ask).int("as", 1 + draw.below(30));
    event.int("at", now.saturating_sub(draw.below(9))).int("t", now).close();
}

pub(crate) fn future_second_bar(draw: &mut Draw<'_>, out: &mut String) {
    let window = draw.second();
    future_bar(draw, "A", window, out);
}

pub(crate) fn future_minute_bar(draw: &mut Draw<'_>, out: &mut String) {
    let window = draw.minute();
    future_bar(draw, "AM", window, out);
}

/// Prices and dollar value are strings, as measured on the live feed. The documentation differs.
fn future_bar(draw: &mut Draw<'_>, ev: &str, (start, end): (u64, u64), out: &mut String) {
    let (prices, volume) = (draw.bar(), draw.traded(400));
    let dollars = prices.mean.saturating_mul(i64::try_from(volume).unwrap_or(1));
    let mut event = draw.object(ev, out);
    event.text("sym", &draw.instrument.symbol).int("v", volume).price_text("dv", dollars);
    event.price_text("o", prices.open).price_text("c", prices.close);
    event.price_text("h", prices.high).price_text("l", prices.low);
    event.int("n", 1 + draw.below(volume)).int("s", start).int("e", end).close();
}
