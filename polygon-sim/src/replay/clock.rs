//! When a recorded frame is due: the speed, and the part of the day that is played.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use jiff::{
    Timestamp,
    civil::Time,
    tz::{self, TimeZone},
};

/// How fast a recording is played.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Speed {
    /// So many times as fast as it was recorded.
    Times(f64),
    /// As fast as the clients read.
    Max,
}

impl Speed {
    /// Reads a factor such as `10` or `0.5`, or `max`.
    ///
    /// # Errors
    /// When the text is neither.
    pub fn parse(text: &str) -> Result<Self> {
        if text == "max" {
            return Ok(Self::Max);
        }
        let expected = || anyhow!("speed {text:?} must be a factor such as 10 or 0.5, or max");
        let times: f64 = text.parse().map_err(|_| expected())?;
        ensure!(times.is_finite() && times > 0.0, expected());
        Ok(Self::Times(times))
    }

    /// How long a recorded time takes; `None` for no time.
    pub(super) fn apply(self, recorded: Duration) -> Option<Duration> {
        match self {
            Self::Times(times) => Some(
                Duration::try_from_secs_f64(recorded.as_secs_f64() / times)
                    .unwrap_or(Duration::MAX),
            ),
            Self::Max => None,
        }
    }
}

/// The part of each day that is played, in New York's time. Without a bound the whole day.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Window {
    /// The first moment.
    pub from: Option<Time>,
    /// The first moment that is not played any more.
    pub until: Option<Time>,
}

impl Window {
    /// Reads a time of day such as `09:29` or `15:59:30`.
    ///
    /// # Errors
    /// When the text has another form.
    pub fn parse_time(text: &str) -> Result<Time> {
        let format = if text.len() > 5 { "%H:%M:%S" } else { "%H:%M" };
        Time::strptime(format, text)
            .with_context(|| format!("{text:?} is not a time of day like 09:29 or 15:59:30"))
    }

    /// Whether a moment, in nanoseconds since 1970, is played.
    pub(super) fn holds(self, ns: u64) -> bool {
        if self == Self::default() {
            return true;
        }
        static NEW_YORK: TimeZone = tz::get!("America/New_York");
        let Ok(moment) = Timestamp::from_nanosecond(ns.into()) else { return false };
        let time = NEW_YORK.to_datetime(moment).time();
        self.from.is_none_or(|from| time >= from) && self.until.is_none_or(|until| time < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_is_a_factor_or_max() {
        assert_eq!(Speed::parse("10").unwrap(), Speed::Times(10.0));
        assert_eq!(Speed::parse("max").unwrap(), Speed::Max);
        for bad in ["0", "-1", "fast", "", "inf", "nan"] {
            assert!(Speed::parse(bad).is_err(), "{bad}");
        }
        let second = Duration::from_secs(1);
        assert_eq!(Speed::Times(4.0).apply(second), Some(second / 4));
        assert_eq!(Speed::Max.apply(second), None);
    }

    #[test]
    fn a_window_is_in_new_yorks_time_summer_and_winter() {
        let window = Window {
            from: Some(Window::parse_time("09:29").unwrap()),
            until: Some(Window::parse_time("16:00:30").unwrap()),
        };
        let at = |text: &str| {
            let moment: Timestamp = text.parse().unwrap();
            window.holds(u64::try_from(moment.as_nanosecond()).unwrap())
        };
        assert!(!at("2026-07-01T13:28:59.999Z") && at("2026-07-01T13:29:00Z"));
        assert!(!at("2026-11-27T13:30:00Z") && at("2026-11-27T14:29:00Z"));
        assert!(at("2026-11-27T21:00:29Z") && !at("2026-11-27T21:00:30Z"));
        assert!(Window::parse_time("9.30").is_err() && Window::parse_time("25:00").is_err());
    }
}
