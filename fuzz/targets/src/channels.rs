//! Lists of channels as clients write them, checked against the documented rules.

use std::collections::BTreeSet;

use proxy_common::protocol::{Channel, ExtraKinds, MAX_SYMBOL_BYTES, Market, channel_items};

/// Checks every item of a list in every market. The parser accepts it if the rules do. Where
/// symbols have one spelling only, the channel keeps it. The displayed channel is read as the same
/// channel.
///
/// # Panics
///
/// If one of these does not hold.
pub fn of_every_market(list: &[u8]) {
    let Ok(list) = str::from_utf8(list) else { return };
    let found: Vec<&str> = channel_items(list).collect();
    assert!(found.iter().all(|item| !item.is_empty() && item.trim() == *item));
    let bare = |text: &str| text.chars().filter(|c| *c != ',' && !c.is_whitespace()).collect();
    let (before, after): (String, String) = (bare(list), bare(&found.concat()));
    assert_eq!(before, after, "nothing but blanks and commas is dropped");
    for &market in Market::ALL {
        for item in &found {
            read(item, market);
        }
    }
}

fn read(item: &str, market: Market) {
    let pairs = matches!(market, Market::Forex | Market::Crypto);
    let fits = fits(item, market, pairs);
    match Channel::parse(item, market) {
        Ok(channel) => {
            assert_ne!(fits, Some(false), "{item:?} is no channel of {market}");
            let shown = channel.to_string();
            assert_eq!(
                Channel::parse(&shown, market).as_ref(),
                Ok(&channel),
                "{item:?}, shown as {shown:?}"
            );
            if !pairs {
                assert_eq!(shown, item);
            }
            among(item, market, &channel);
        }
        Err(error) => {
            assert_ne!(fits, Some(true), "{item:?} of {market}: {error}");
            assert!(error.to_string().len() < 1_000, "{error}");
        }
    }
}

/// Checks that a channel of another kind than the market's needs that kind as an extra one.
fn among(item: &str, market: Market, channel: &Channel) {
    let own = channel.kind().is_none_or(|kind| market.kinds().contains(&kind));
    let among = |extra: BTreeSet<_>| {
        Channel::parse_among(item, market, &ExtraKinds::These(extra)).as_ref() == Ok(channel)
    };
    assert_eq!(among(BTreeSet::new()), own, "{item:?} of {market}");
    assert!(among(channel.kind().into_iter().collect()), "{item:?} of {market}");
}

/// The rules: `*`, `KIND.*`, `KIND.PREFIX*` or `KIND.SYMBOL`. A kind has up to nine capital letters
/// and digits, the first a letter. A symbol or prefix is short, has no blanks (but spaces, for
/// futures), control characters or other stars, and is more than the market of a pair. Only
/// `KIND.C:*` is not: it means all pairs. `None` for a pair that may be too long with its separator.
fn fits(item: &str, market: Market, pairs: bool) -> Option<bool> {
    let Some((kind, symbol)) = item.split_once('.') else { return Some(item == "*") };
    let is_kind = is_kind(kind);
    if symbol == "*" || !is_kind {
        return Some(is_kind);
    }
    let prefix = symbol.strip_suffix('*');
    let mut bare = prefix.unwrap_or(symbol);
    while pairs && (bare.starts_with("C:") || bare.starts_with("X:")) {
        bare = &bare[2..];
    }
    let space = |c: char| market == Market::Futures && c == ' ';
    let strange = |c: char| c == '*' || c.is_whitespace() && !space(c) || c.is_control();
    if bare.contains(strange) || bare.is_empty() && prefix.is_none() {
        return Some(false);
    }
    let exact = !pairs || prefix.is_some() || bare.len() != MAX_SYMBOL_BYTES;
    exact.then_some(bare.len() <= MAX_SYMBOL_BYTES)
}

/// Whether a channel can name this kind.
pub(crate) fn is_kind(code: &str) -> bool {
    code.len() <= 9
        && code.starts_with(|c: char| c.is_ascii_uppercase())
        && code.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit())
}
