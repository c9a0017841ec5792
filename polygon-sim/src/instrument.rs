//! One symbol of a market, with its prices and volumes.

/// One symbol, with the prices and volumes that change from event to event.
#[derive(Debug, Clone)]
pub(crate) struct Instrument {
    /// As events spell it.
    pub(crate) symbol: String,
    /// As FMV and LV events spell it: with a prefix for currencies (`C:EURUSD`, `X:BTC-USD`).
    pub(crate) prefixed: String,
    /// Decimals of the price unit.
    pub(crate) decimals: u8,
    /// Smallest step of the quoted price, in price units.
    pub(crate) tick: i64,
    /// Official open of the day, in price units.
    pub(crate) open: i64,
    /// Price now, in price units.
    pub(crate) price: i64,
    /// Volume of the day.
    pub(crate) volume: u64,
    /// Whether it trades over the counter.
    pub(crate) otc: bool,
}
