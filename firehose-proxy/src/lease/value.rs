//! What stands in a lease: who holds it. Pure.

use std::{fmt, num::ParseIntError, str::FromStr};

/// The value of a lease: `HOLDER TERM N EPOCH ADDRESS`, or `free TERM N EPOCH` once its holder has
/// released it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// The name of the run of a program, without blanks. `None` if nobody holds it.
    pub holder: Option<String>,
    /// How often the lease has passed from one program to another. Grows.
    pub term: u64,
    /// How often the holder has written it in this term.
    pub n: u64,
    /// The epoch of what the holder publishes. Grows.
    pub epoch: u64,
    /// Where the holder listens.
    pub address: String,
}

/// The word of a released lease. No run of a program bears that name.
const FREE: &str = "free";

impl Value {
    /// The value that releases this lease.
    pub fn released(&self) -> Self {
        Self { holder: None, n: self.n + 1, ..self.clone() }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let holder = self.holder.as_deref().unwrap_or(FREE);
        write!(f, "{holder} {} {} {}", self.term, self.n, self.epoch)?;
        match self.address.is_empty() {
            true => Ok(()),
            false => write!(f, " {}", self.address),
        }
    }
}

impl FromStr for Value {
    type Err = ParseIntError;

    /// Reads a value. A later version may add more behind it.
    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        let mut fields = text.split_ascii_whitespace();
        let holder = fields.next().filter(|&holder| holder != FREE).map(str::to_owned);
        let mut number = || fields.next().unwrap_or_default().parse();
        let (term, n, epoch) = (number()?, number()?, number()?);
        let address = fields.next().unwrap_or_default().to_owned();
        Ok(Self { holder, term, n, epoch, address })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_read_as_it_is_written() {
        let held = Value {
            holder: Some("host-7f".to_owned()),
            term: 7,
            n: 42,
            epoch: 1_764_000_000_000_000,
            address: "10.0.0.1:8767".to_owned(),
        };
        assert_eq!(held.to_string(), "host-7f 7 42 1764000000000000 10.0.0.1:8767");
        assert_eq!(held.to_string().parse(), Ok(held.clone()));
        assert_eq!(format!("{held} later").parse(), Ok(held.clone()));
        let free = held.released();
        assert_eq!(free.to_string(), "free 7 43 1764000000000000 10.0.0.1:8767");
        assert_eq!(free.to_string().parse(), Ok(free));
        for text in ["", "x", "x 1 2", "x 1 2 -3", "x a 2 3"] {
            assert!(text.parse::<Value>().is_err(), "{text:?}");
        }
    }
}
