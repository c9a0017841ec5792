//! Computes when markets are open, by pure rules on the time in New York.
//!
//! US stocks, options and indices follow the calendar of the New York Stock Exchange. The rules
//! yield its published list (NYSE, "Holidays & Trading Hours",
//! <https://www.nyse.com/markets/hours-calendars>). They do not know closures that no rule
//! foresees, such as a day of mourning. The hours of the other markets are simplified, and err on
//! the closed side: a market that the rules call open is open, but the edges of holidays count as
//! closed.

use std::time::SystemTime;

use jiff::{
    Timestamp,
    civil::{Date, Time, Weekday, date, time},
    tz::{self, TimeZone},
};
use proxy_common::protocol::Market;

static NEW_YORK: TimeZone = tz::get!("America/New_York");

/// How a market trades at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hours {
    /// No trading.
    Closed,
    /// Before or after the regular session, with thin trading.
    Extended,
    /// The regular session; in a market without sessions, all its open hours.
    Regular,
}

/// How this market trades at this time.
pub fn hours(market: Market, at: SystemTime) -> Hours {
    // A time outside the calendar's range has no trading.
    let Ok(at) = Timestamp::try_from(at) else { return Hours::Closed };
    let at = NEW_YORK.to_datetime(at);
    let (day, clock) = (at.date(), at.time());
    let open = |open| if open { Hours::Regular } else { Hours::Closed };
    match market {
        Market::Stocks | Market::Options | Market::Indices => us_hours(day, clock),
        Market::Forex => open(forex_open(day, clock)),
        Market::Futures => open(futures_open(day, clock)),
        Market::Crypto => Hours::Regular,
    }
}

const fn hm(hour: i8, minute: i8) -> Time {
    time(hour, minute, 0, 0)
}

fn us_hours(day: Date, clock: Time) -> Hours {
    let (close, end) = match session(day) {
        Session::None => return Hours::Closed,
        Session::Short => (hm(13, 0), hm(17, 0)),
        Session::Full => (hm(16, 0), hm(20, 0)),
    };
    if clock < hm(4, 0) || clock >= end {
        Hours::Closed
    } else if clock < hm(9, 30) || clock >= close {
        Hours::Extended
    } else {
        Hours::Regular
    }
}

/// Open from Sunday 17:00 to Friday 17:00, except on Christmas and New Year's Day.
fn forex_open(day: Date, clock: Time) -> bool {
    let five = hm(17, 0);
    if matches!((day.month(), day.day()), (1, 1) | (12, 25)) {
        return false;
    }
    match day.weekday() {
        Weekday::Sunday => clock >= five,
        Weekday::Friday => clock < five,
        Weekday::Saturday => false,
        Weekday::Monday | Weekday::Tuesday | Weekday::Wednesday | Weekday::Thursday => true,
    }
}

/// Open from Sunday 18:00 to Friday 17:00, except for the hour from 17:00 each day. Closed on
/// weekdays on which stocks are closed or close early, and on the evening before a stock holiday.
fn futures_open(day: Date, clock: Time) -> bool {
    let (five, six) = (hm(17, 0), hm(18, 0));
    let holiday = |day: Date| !is_weekend(day) && session(day) == Session::None;
    let evening = clock >= six && !day.tomorrow().is_ok_and(holiday);
    match (day.weekday(), session(day)) {
        (Weekday::Sunday, _) => evening,
        (Weekday::Friday, Session::Full) => clock < five,
        (_, Session::Full) => clock < five || evening,
        (_, Session::None | Session::Short) => false,
    }
}

/// The stock exchange's session of a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Session {
    None,
    /// Until 13:00.
    Short,
    Full,
}

fn session(day: Date) -> Session {
    if is_weekend(day) || is_holiday(day) {
        Session::None
    } else if is_short(day) {
        Session::Short
    } else {
        Session::Full
    }
}

fn is_weekend(day: Date) -> bool {
    matches!(day.weekday(), Weekday::Saturday | Weekday::Sunday)
}

/// Whether stocks are closed on a weekday. A holiday on a Sunday moves to Monday, one on a Saturday
/// to Friday. New Year's Day does not move to Friday, because that Friday ends the old year.
fn is_holiday(day: Date) -> bool {
    let fixed =
        |day: Date| matches!((day.month(), day.day()), (1, 1) | (6, 19) | (7, 4) | (12, 25));
    let moved = match day.weekday() {
        Weekday::Monday => day.yesterday().is_ok_and(fixed),
        Weekday::Friday => day.tomorrow().is_ok_and(|day| fixed(day) && day.month() != 1),
        _ => false,
    };
    let nth = |nth, weekday| day.nth_weekday_of_month(nth, weekday).is_ok_and(|found| found == day);
    let floating = match day.month() {
        1 | 2 => nth(3, Weekday::Monday),
        5 => nth(-1, Weekday::Monday),
        9 => nth(1, Weekday::Monday),
        11 => nth(4, Weekday::Thursday),
        _ => false,
    };
    fixed(day) || moved || floating || is_good_friday(day)
}

/// Whether stocks close early: on the day after Thanksgiving, and on Christmas Eve and the eve of
/// Independence Day if the holiday itself is a weekday.
fn is_short(day: Date) -> bool {
    let before_weekday = !matches!(day.weekday(), Weekday::Friday);
    match (day.month(), day.day()) {
        (7, 3) | (12, 24) => before_weekday,
        (11, _) => day.yesterday().is_ok_and(|thursday| {
            thursday.nth_weekday_of_month(4, Weekday::Thursday).is_ok_and(|found| found == thursday)
        }),
        _ => false,
    }
}

/// Whether Easter, by the Gregorian computus, is two days later.
fn is_good_friday(day: Date) -> bool {
    let year = i32::from(day.year());
    let (a, b, c) = (year % 19, year / 100, year % 100);
    let g = (8 * b + 13) / 25;
    let h = (19 * a + b - b / 4 - g + 15) % 30;
    let m = (a + 11 * h) / 319;
    let l = (2 * (b % 4) + 2 * (c / 4) - c % 4 - h + m + 32) % 7;
    let month = (h - m + l + 90) / 25;
    let sunday = (h - m + l + month + 19) % 32;
    let (Ok(month), Ok(sunday)) = (i8::try_from(month), i8::try_from(sunday)) else { return false };
    let easter = date(day.year(), month, sunday);
    easter.yesterday().and_then(Date::yesterday).is_ok_and(|friday| friday == day)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NYSE's published holidays and, after the semicolon, early closings.
    const PUBLISHED: [(i16, &str); 5] = [
        (2024, "01-01 01-15 02-19 03-29 05-27 06-19 07-04 09-02 11-28 12-25; 07-03 11-29 12-24"),
        (2025, "01-01 01-20 02-17 04-18 05-26 06-19 07-04 09-01 11-27 12-25; 07-03 11-28 12-24"),
        (2026, "01-01 01-19 02-16 04-03 05-25 06-19 07-03 09-07 11-26 12-25; 11-27 12-24"),
        (2027, "01-01 01-18 02-15 03-26 05-31 06-18 07-05 09-06 11-25 12-24; 11-26"),
        (2028, "01-17 02-21 04-14 05-29 06-19 07-04 09-04 11-23 12-25; 07-03 11-24"),
    ];

    #[test]
    fn holidays_and_early_closings_are_those_that_the_exchange_published() {
        for (year, published) in PUBLISHED {
            let days = date(year, 1, 1).series(jiff::Span::new().days(1));
            let days: Vec<Date> = days.take_while(|day| day.year() == year).collect();
            let of = |wanted| {
                let days = days.iter().filter(|day| !is_weekend(**day) && session(**day) == wanted);
                days.map(|day| day.strftime("%m-%d").to_string()).collect::<Vec<_>>().join(" ")
            };
            let computed = format!("{}; {}", of(Session::None), of(Session::Short));
            assert_eq!(computed, published, "{year}");
        }
    }

    #[track_caller]
    fn check(market: Market, times: &[(&str, Hours)]) {
        for (utc, expected) in times {
            let at: Timestamp = utc.parse().unwrap();
            let hours = hours(market, at.try_into().unwrap());
            assert_eq!(hours, *expected, "{market} at {utc}");
        }
    }

    #[test]
    fn stocks_follow_the_clock_of_new_york() {
        use Hours::{Closed, Extended, Regular};
        check(
            Market::Stocks,
            &[
                // A Tuesday in winter (UTC-5) and one in summer (UTC-4).
                ("2026-01-13T08:59:59Z", Closed),
                ("2026-01-13T09:00:00Z", Extended),
                ("2026-01-13T14:29:59Z", Extended),
                ("2026-01-13T14:30:00Z", Regular),
                ("2026-01-13T20:59:59Z", Regular),
                ("2026-01-13T21:00:00Z", Extended),
                ("2026-01-14T00:59:59Z", Extended),
                ("2026-01-14T01:00:00Z", Closed),
                ("2026-07-14T13:29:59Z", Extended),
                ("2026-07-14T13:30:00Z", Regular),
                ("2026-07-14T20:00:00Z", Extended),
                // Saturday, Sunday, Thanksgiving, the short day after it.
                ("2026-01-17T15:00:00Z", Closed),
                ("2026-01-18T15:00:00Z", Closed),
                ("2026-11-26T15:00:00Z", Closed),
                ("2026-11-27T17:59:59Z", Regular),
                ("2026-11-27T18:00:00Z", Extended),
                ("2026-11-27T22:00:00Z", Closed),
            ],
        );
    }

    #[test]
    fn the_other_markets_have_hours_of_their_own() {
        use Hours::{Closed, Regular};
        check(
            Market::Crypto,
            &[("2026-12-25T03:00:00Z", Regular), ("2026-01-17T15:00:00Z", Regular)],
        );
        check(
            Market::Forex,
            &[
                ("2026-01-11T21:59:59Z", Closed),
                ("2026-01-11T22:00:00Z", Regular),
                ("2026-01-14T22:30:00Z", Regular),
                ("2026-01-16T21:59:59Z", Regular),
                ("2026-01-16T22:00:00Z", Closed),
                ("2026-01-17T15:00:00Z", Closed),
                ("2026-12-25T15:00:00Z", Closed),
            ],
        );
        check(
            Market::Futures,
            &[
                ("2026-01-11T22:59:59Z", Closed),
                ("2026-01-11T23:00:00Z", Regular),
                ("2026-01-13T21:59:59Z", Regular),
                ("2026-01-13T22:00:00Z", Closed),
                ("2026-01-13T23:00:00Z", Regular),
                ("2026-01-16T22:00:00Z", Closed),
                ("2026-01-17T15:00:00Z", Closed),
                // Thanksgiving, its eve after the close, and the short day after it.
                ("2026-11-25T21:59:59Z", Regular),
                ("2026-11-25T23:30:00Z", Closed),
                ("2026-11-26T15:00:00Z", Closed),
                ("2026-11-27T15:00:00Z", Closed),
            ],
        );
    }
}
