//! Forex and crypto events.

use super::draw::Draw;

/// The deepest book rendered, in levels per side. The vendor's goes to 100.
const DEPTH: u64 = 10;

pub(crate) fn forex_quote(draw: &mut Draw<'_>, out: &mut String) {
    let (bid, ask) = draw.spread();
    let mut event = draw.object("C", out);
    event.text("p", &draw.instrument.symbol).int("x", 48);
    event.price("a", ask).price("b", bid).int("t", draw.now_ms()).close();
}

pub(crate) fn forex_second_bar(draw: &mut Draw<'_>, out: &mut String) {
    let window = draw.second();
    forex_bar(draw, "CAS", window, out);
}

pub(crate) fn forex_minute_bar(draw: &mut Draw<'_>, out: &mut String) {
    let window = draw.minute();
    forex_bar(draw, "CA", window, out);
}

fn forex_bar(draw: &mut Draw<'_>, ev: &str, (start, end): (u64, u64), out: &mut String) {
    let (prices, quotes) = (draw.bar(), draw.traded(400));
    let mut event = draw.object(ev, out);
    event.text("pair", &draw.instrument.symbol).price("o", prices.open).price("c", prices.close);
    event.price("h", prices.high).price("l", prices.low);
    event.int("v", quotes).int("s", start).int("e", end).close();
}

pub(crate) fn crypto_trade(draw: &mut Draw<'_>, out: &mut String) {
    let (now, size) = (draw.now_ms(), amount(draw, 500_000_000));
    let id = uuid(draw);
    let mut event = draw.object("XT", out);
    event.text("pair", &draw.instrument.symbol).price("p", draw.instrument.price);
    event.int("t", now).fixed("s", size, 8).ints("c", &[draw.below(3)]);
    if draw.chance(90) {
        event.text("i", &id);
    }
    event.int("x", draw.pick(&[1, 2, 6, 23])).int("r", now + draw.below(40)).close();
}

pub(crate) fn crypto_quote(draw: &mut Draw<'_>, out: &mut String) {
    let now = draw.now_ms();
    let (bid, ask) = draw.spread();
    let (bid_size, ask_size) = (amount(draw, 40_000), amount(draw, 40_000));
    let mut event = draw.object("XQ", out);
    event.text("pair", &draw.instrument.symbol);
    // Captures of 2023 carry both, as zeros.
    if draw.chance(20) {
        event.int("lp", 0).int("ls", 0);
    }
    event.price("bp", bid).fixed("bs", bid_size, 4).price("ap", ask).fixed("as", ask_size, 4);
    event.int("t", now).int("x", draw.pick(&[1, 2, 6, 23])).int("r", now + draw.below(40)).close();
}

pub(crate) fn crypto_second_bar(draw: &mut Draw<'_>, out: &mut String) {
    let window = draw.second();
    crypto_bar(draw, "XAS", window, out);
}

pub(crate) fn crypto_minute_bar(draw: &mut Draw<'_>, out: &mut String) {
    let window = draw.minute();
    crypto_bar(draw, "XA", window, out);
}

fn crypto_bar(draw: &mut Draw<'_>, ev: &str, (start, end): (u64, u64), out: &mut String) {
    let (prices, volume) = (draw.bar(), amount(draw, 40_000_000));
    let mut event = draw.object(ev, out);
    event.text("pair", &draw.instrument.symbol).fixed("v", volume, 4).price("vw", prices.mean);
    event.int("z", draw.below(5)).price("o", prices.open).price("c", prices.close);
    event.price("h", prices.high).price("l", prices.low).int("s", start).int("e", end).close();
}

pub(crate) fn book(draw: &mut Draw<'_>, out: &mut String) {
    let now = draw.now_ms();
    let (bid, ask) = draw.spread();
    let bids = side(draw, bid, -1);
    let asks = side(draw, ask, 1);
    let mut event = draw.object("XL2", out);
    event.text("pair", &draw.instrument.symbol).int("t", now).int("r", now + draw.below(50));
    event.int("x", 1).levels("b", &bids).levels("a", &asks).close();
}

/// One side of the book, from its best price away.
fn side(draw: &mut Draw<'_>, best: i64, away: i64) -> Vec<(i64, i64)> {
    let depth = i64::try_from(1 + draw.below(DEPTH)).unwrap_or(1);
    let tick = draw.instrument.tick;
    (0..depth).map(|level| ((best + away * level * tick).max(1), amount(draw, 40_000))).collect()
}

fn amount(draw: &mut Draw<'_>, bound: u64) -> i64 {
    i64::try_from(1 + draw.below(bound)).unwrap_or(1)
}

/// A random UUID. Its last part is the trade's number, so no UUID comes twice.
fn uuid(draw: &mut Draw<'_>) -> String {
    let (a, b, c, d) =
        (draw.below(1 << 32), draw.below(1 << 16), draw.below(1 << 12), draw.below(1 << 14));
    format!("{a:08x}-{b:04x}-4{c:03x}-{:04x}-{:012x}", 0x8000 + d, draw.trade_id())
}
