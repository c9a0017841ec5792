//! Events to publish, in the vendor's key order, each unique by its number.

/// A trade.
pub(crate) fn trade(symbol: &str, n: usize) -> String {
    format!(
        r#"{{"ev":"T","sym":"{symbol}","i":"{n}","x":4,"p":231.4175,"s":12,"c":[12,37],"t":1790604301417,"q":{n},"z":3}}"#
    )
}

/// The number of an event. `None` for a status.
pub(crate) fn number(object: &str) -> Option<usize> {
    object.split(r#""q":"#).nth(1)?.split(',').next()?.parse().ok()
}

/// The number of a trade of AAPL, byte by byte as it was published. `None` for a status.
///
/// # Panics
///
/// It is another event.
pub(crate) fn number_of_trade(object: &str) -> Option<usize> {
    let n = number(object)?;
    assert_eq!(object, trade("AAPL", n));
    Some(n)
}

/// A quote.
pub(crate) fn quote(symbol: &str, n: usize) -> String {
    format!(
        r#"{{"ev":"Q","sym":"{symbol}","c":1,"i":[604],"bx":12,"ax":11,"bp":498.21,"ap":498.4,"bs":80,"as":40,"t":1790604301533,"q":{n},"z":1}}"#
    )
}

/// A second's bar.
pub(crate) fn bar(symbol: &str, n: usize) -> String {
    format!(
        r#"{{"ev":"A","sym":"{symbol}","v":18422,"o":185.1,"c":185.12,"s":1790604301000,"e":{n}}}"#
    )
}

/// A minute's bar.
pub(crate) fn minute_bar(symbol: &str, n: usize) -> String {
    format!(
        r#"{{"ev":"AM","sym":"{symbol}","v":5100,"o":0.418,"c":0.419,"s":1790604240000,"e":{n}}}"#
    )
}
