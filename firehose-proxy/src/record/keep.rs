//! Which of the recorded files stay. Pure.

use std::{path::PathBuf, time::Duration};

/// How long files stay, and how many bytes of them. Without a bound all files stay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keep {
    /// The age at which a file goes.
    pub age: Option<Duration>,
    /// Most bytes of all files of a market together.
    pub bytes: Option<u64>,
}

/// A file that is not written any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// How long ago it was written last.
    pub age: Duration,
}

impl Keep {
    /// Parses a time, a number of bytes, or both with a comma between: `30d`, `200000000000`.
    ///
    /// # Errors
    ///
    /// The text has another form, names one of them twice, or a number is 0.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut keep = Self::default();
        for part in text.split(',').map(str::trim) {
            let is_new = match (part.parse::<u64>(), humantime::parse_duration(part)) {
                (Ok(bytes), _) if bytes > 0 => keep.bytes.replace(bytes).is_none(),
                (_, Ok(age)) if !age.is_zero() => keep.age.replace(age).is_none(),
                _ => false,
            };
            if !is_new {
                return Err(
                    "expected a time such as 30d, a number of bytes, or both with a comma \
                            between"
                        .to_owned(),
                );
            }
        }
        Ok(keep)
    }

    /// The files that go, of all that are not written any more, oldest first.
    pub fn superfluous(&self, stored: Vec<Stored>) -> Vec<PathBuf> {
        let mut total: u64 = stored.iter().map(|file| file.bytes).sum();
        let mut superfluous = Vec::new();
        for file in stored {
            let is_old = self.age.is_some_and(|age| file.age > age);
            let is_too_much = self.bytes.is_some_and(|most| total > most);
            if !is_old && !is_too_much {
                break;
            }
            total -= file.bytes;
            superfluous.push(file.path);
        }
        superfluous
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn a_time_and_a_number_of_bytes_are_told_apart() {
        let keep = |age, bytes| Ok(Keep { age, bytes });
        assert_eq!(Keep::parse("30d"), keep(Some(30 * DAY), None));
        assert_eq!(Keep::parse("200000"), keep(None, Some(200_000)));
        assert_eq!(Keep::parse("200000, 12h"), keep(Some(DAY / 2), Some(200_000)));
        for bad in ["", "0", "0s", "5,6", "1h,2h", "1h,", "many"] {
            assert!(Keep::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_oldest_files_go_until_the_rest_is_young_and_small_enough() {
        let stored: Vec<Stored> = (1..=5)
            .rev()
            .map(|days| Stored { path: format!("{days}").into(), bytes: 10, age: DAY * days })
            .collect();
        let left_out = |keep: Keep| {
            let paths = keep.superfluous(stored.clone());
            paths.iter().map(|path| path.display().to_string()).collect::<String>()
        };
        assert_eq!(left_out(Keep::default()), "");
        assert_eq!(left_out(Keep { age: Some(3 * DAY), bytes: None }), "54");
        assert_eq!(left_out(Keep { age: None, bytes: Some(25) }), "543");
        assert_eq!(left_out(Keep { age: Some(DAY / 2), bytes: Some(25) }), "54321");
        assert_eq!(left_out(Keep { age: Some(9 * DAY), bytes: Some(50) }), "");
    }
}
