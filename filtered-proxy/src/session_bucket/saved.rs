//! What the bucket holds of a name. Pure.

use std::{fmt, str::FromStr};

use proxy_common::{nats::Names, protocol::Position};
use sha2::{Digest, Sha256};

/// A name, as the bucket holds it: `PROXY EPOCH-SEQ`, or `PROXY -` if nothing is confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Saved {
    /// The run of the proxy that has the name.
    pub(crate) proxy: String,
    /// The last position that its client has confirmed.
    pub(crate) confirmed: Option<Position>,
}

/// A value that no version of this program has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected PROXY EPOCH-SEQ")]
pub(crate) struct NotSaved;

impl fmt::Display for Saved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.confirmed {
            Some(position) => write!(f, "{} {position}", self.proxy),
            None => write!(f, "{} -", self.proxy),
        }
    }
}

impl FromStr for Saved {
    type Err = NotSaved;

    /// Reads both fields. A later version may add more behind them.
    fn from_str(text: &str) -> Result<Self, NotSaved> {
        let mut fields = text.split(' ');
        let (Some(proxy), Some(position)) = (fields.next(), fields.next()) else {
            return Err(NotSaved);
        };
        let confirmed = match position {
            "-" => None,
            position => Some(position.parse().map_err(|_| NotSaved)?),
        };
        Ok(Self { proxy: proxy.to_owned(), confirmed })
    }
}

/// The key of a name in the bucket: the market, and a digest of the label and the name. A bucket
/// takes few letters, and shows its keys to whoever may read it.
pub(crate) fn bucket_key(names: &Names, key: &str, name: &str) -> String {
    // Neither holds a zero byte.
    let digest = Sha256::new().chain_update(key).chain_update([0]).chain_update(name).finalize();
    let hex = base16ct::lower::encode_string(&digest[..16]);
    format!("{}.{hex}", names.market().name())
}

#[cfg(test)]
mod tests {
    use proxy_common::protocol::Market;

    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_written() {
        let position = Position { epoch: 1_764_000_000_000_000, seq: 42 };
        for (confirmed, text) in [(Some(position), "7f 1764000000000000-42"), (None, "7f -")] {
            let saved = Saved { proxy: "7f".to_owned(), confirmed };
            assert_eq!(saved.to_string(), text);
            assert_eq!(text.parse(), Ok(saved.clone()));
            assert_eq!(format!("{text} later").parse(), Ok(saved));
        }
        for text in ["", "7f", "7f x", "7f 1-x"] {
            assert_eq!(text.parse::<Saved>(), Err(NotSaved), "{text:?}");
        }
    }

    #[test]
    fn a_key_holds_no_letter_of_the_name() {
        let names = Names::new("POLYGON", Market::Stocks);
        let key = bucket_key(&names, "team-a", "Zoë's *bot* > 1");
        let digest = key.strip_prefix("stocks.").unwrap();
        assert!(digest.len() == 32 && digest.chars().all(|c| c.is_ascii_hexdigit()), "{key}");
        assert_ne!(key, bucket_key(&names, "team-az", "oë's *bot* > 1"));
        assert_ne!(key, bucket_key(&names, "team-b", "Zoë's *bot* > 1"));
    }
}
