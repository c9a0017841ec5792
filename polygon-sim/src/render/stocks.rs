//! Stock events, keys in the order of live frames of 2025 and 2026.

use super::draw::Draw;

const EXCHANGES: [u64; 8] = [1, 4, 8, 10, 11, 12, 19, 21];
/// The exchange number of trades reported off exchange.
const OFF_EXCHANGE: u64 = 4;
const CONDITIONS: [&[u64]; 6] = [&[12, 37], &[14, 41], &[37], &[12], &[10, 41], &[12, 14, 37, 41]];

pub(crate) fn trade(draw: &mut Draw<'_>, out: &mut String) {
    let (now, id, sequence) = (draw.now_ms(), draw.trade_id(), draw.sequence());
    let exchange = draw.pick(&EXCHANGES);
    let below_tick = if draw.chance(10) { draw.instrument.tick * 3 / 4 } else { 0 };
    let fraction = if draw.chance(8) { draw.below(1_000_000) } else { 0 };
    let size = if draw.chance(40) { 100 * (1 + draw.below(8)) } else { 1 + draw.below(150) };
    draw.instrument.volume += size;

    let mut event = draw.object("T", out);
    event.text("sym", &draw.instrument.symbol).int_text("i", id).int("x", exchange);
    event.price("p", draw.instrument.price + below_tick).int("s", size);
    if draw.chance(85) {
        event.ints("c", draw.pick(&CONDITIONS));
    }
    event.int("t", now).int("pt", now.saturating_sub(draw.below(12)));
    event.int("q", sequence).int("z", 1 + id % 3);
    if exchange == OFF_EXCHANGE {
        event.int("trfi", 201 + draw.below(3)).int("trft", now.saturating_sub(draw.below(6)));
    }
    if draw.chance(70) {
        let shares = i64::try_from(size * 1_000_000 + fraction).unwrap_or(0);
        event.fixed_text("ds", shares, 6);
    }
    event.close();
}

pub(crate) fn quote(draw: &mut Draw<'_>, out: &mut String) {
    let (now, sequence) = (draw.now_ms(), draw.sequence());
    let (bid, ask) = draw.spread();
    let mut event = draw.object("Q", out);
    event.text("sym", &draw.instrument.symbol);
    if draw.chance(20) {
        event.int("c", 1);
    }
    if draw.chance(10) {
        event.ints("i", &[604]);
    }
    event.int("bx", draw.pick(&EXCHANGES)).int("ax", draw.pick(&EXCHANGES));
    event.price("bp", bid).price("ap", ask);
    event.int("bs", 20 * (1 + draw.below(60))).int("as", 20 * (1 + draw.below(60)));
    event.int("t", now).int("pt", now.saturating_sub(draw.below(3)));
    event.int("q", sequence).int("z", 1 + sequence % 3).close();
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
    let (prices, volume) = (draw.bar(), draw.traded(20_000));
    let mut event = draw.object(ev, out);
    event.text("sym", &draw.instrument.symbol).int("v", volume).int("av", draw.instrument.volume);
    // The vendor leaves it out until the day's official open is known.
    if draw.chance(95) {
        event.price("op", draw.instrument.open);
    }
    event.price("vw", prices.mean).price("o", prices.open).price("c", prices.close);
    event.price("h", prices.high).price("l", prices.low);
    event.price("a", i64::midpoint(prices.mean, draw.instrument.open));
    event.int("z", 1 + draw.below(400)).int("s", start).int("e", end);
    if draw.instrument.otc {
        event.yes("otc");
    }
    let fraction = i64::try_from(draw.below(10_000)).unwrap_or(0);
    event.fixed_text("dv", i64::try_from(volume).unwrap_or(0) * 10_000 + fraction, 4);
    let day = i64::try_from(draw.instrument.volume).unwrap_or(0);
    event.fixed_text("dav", day * 10_000 + fraction, 4).close();
}

pub(crate) fn limit_bands(draw: &mut Draw<'_>, out: &mut String) {
    let sequence = draw.sequence();
    let price = draw.instrument.price;
    let mut event = draw.object("LULD", out);
    event.price("h", price + price / 20).price("l", price - price / 20);
    event.ints("i", &[16]).int("z", 1 + sequence % 3).text("T", &draw.instrument.symbol);
    event.int("t", draw.now_ns).int("q", sequence).close();
}

pub(crate) fn imbalance(draw: &mut Draw<'_>, out: &mut String) {
    let (auction, letter) = draw.pick(&[(930, "O"), (1600, "C"), (1600, "M"), (1000, "H")]);
    let sequence = draw.sequence();
    let mut event = draw.object("NOI", out);
    event.text("T", &draw.instrument.symbol).int("t", draw.now_ns).int("at", auction);
    event.text("a", letter).int("i", sequence).int("x", 10).int("o", 100 * draw.below(900));
    event.int("p", 100 * draw.below(9_000)).price("b", draw.instrument.price).close();
}

/// FMV of any market. The value stands before the symbol, which has a prefix for currencies.
pub(crate) fn fair_value(draw: &mut Draw<'_>, out: &mut String) {
    let mut event = draw.object("FMV", out);
    event.price("fmv", draw.instrument.price).text("sym", &draw.instrument.prefixed);
    event.int("t", draw.now_ns).close();
}
