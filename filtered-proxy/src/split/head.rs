//! Reads the kind and symbol of one event, which are its head: directly if the event begins as the
//! feed writes it, and by walking its keys otherwise.

use std::borrow::Cow;

use proxy_common::protocol::{Kind, SymbolField};

use super::{
    brackets::{QuotePositions, quotes},
    event::EventKind,
};

/// The head of an event that begins as the feed writes most events: `ev`, then the symbol. `None`
/// for any other.
#[inline(always)]
pub(super) fn feed_head(text: &[u8]) -> Option<(EventKind, Option<&[u8]>)> {
    let rest = text.strip_prefix(br#"{"ev":""#)?;
    let (kind, field, rest) = match rest {
        [b'T', b'"', rest @ ..] => (Kind::T, SymbolField::Sym, rest),
        [b'Q', b'"', rest @ ..] => (Kind::Q, SymbolField::Sym, rest),
        _ => {
            let end = rest.iter().take(5).position(|&byte| byte == b'"')?;
            let kind = Kind::named(&rest[..end])?;
            (kind, kind.symbol_field()?, &rest[end + 1..])
        }
    };
    let rest = match field {
        SymbolField::Sym => rest.strip_prefix(br#","sym":""#)?,
        SymbolField::Pair => rest.strip_prefix(br#","pair":""#)?,
        SymbolField::T => rest.strip_prefix(br#","T":""#)?,
        SymbolField::P => rest.strip_prefix(br#","p":""#)?,
    };
    let end = string_end(rest)?;
    (rest[end] == b'"').then(|| (EventKind::Known(kind), Some(&rest[..end])))
}

/// The position of the first quote or backslash.
#[inline(always)]
fn string_end(text: &[u8]) -> Option<usize> {
    const LOW: u64 = 0x0101_0101_0101_0101;
    // Exact for the lowest zero byte. A borrow may change the bytes above it, which do not matter.
    const fn zero_bytes(word: u64) -> u64 {
        word.wrapping_sub(LOW) & !word & (LOW << 7)
    }
    if let Some(first) = text.first_chunk() {
        let word = u64::from_le_bytes(*first);
        let found =
            zero_bytes(word ^ (LOW * b'"' as u64)) | zero_bytes(word ^ (LOW * b'\\' as u64));
        if found != 0 {
            return Some(found.trailing_zeros() as usize / 8);
        }
    }
    text.iter().position(|&byte| matches!(byte, b'"' | b'\\'))
}

/// The head of an event with no object inside it, for any order of its keys and any blanks between
/// them. Goes from quote to quote. `None` if the event has escapes or is too long. The first of
/// equal keys counts.
pub(super) fn flat_head<'a>(
    text: &'a [u8],
    positions: &mut QuotePositions,
) -> Option<(EventKind, Option<&'a [u8]>)> {
    let mut quotes = quotes(text, positions)?;
    let mut kind = None;
    let mut symbols = [None; 4];
    // The two quotes of one string, and those after it.
    while let [opening, closing, following @ ..] = quotes {
        quotes = following;
        let (key, rest) = (&text[*opening as usize + 1..*closing as usize], *closing as usize + 1);
        let field = SymbolField::of_key(key);
        if field.is_none() && key != b"ev" {
            continue;
        }
        // Only a key has a colon after it; strings inside arrays, and values, have none.
        let [b':', value @ ..] = trim_start(&text[rest..]) else { continue };
        let mut string = None;
        if trim_start(value).first() == Some(&b'"')
            && let [opening, closing, following @ ..] = quotes
        {
            string = Some(&text[*opening as usize + 1..*closing as usize]);
            quotes = following;
        }
        match field {
            Some(field) => _ = symbols[field as usize].get_or_insert(string),
            None if kind.is_some() => {}
            None => match string.map(Kind::from_code) {
                Some(Some(known)) => kind = Some(known),
                Some(None) => return Some((EventKind::Unknown, None)),
                None => return Some((EventKind::Missing, None)),
            },
        }
        if let Some(kind) = kind
            && let Some(symbol) = settled(kind, &symbols)
        {
            return Some((EventKind::Known(kind), symbol));
        }
    }
    Some(without_more_keys(kind, &symbols))
}

/// The head of an event of any form. The first of equal keys counts.
pub(super) fn any_head(text: &[u8]) -> (EventKind, Option<Cow<'_, [u8]>>) {
    let mut fields = Fields { rest: &text[1..] };
    let mut kind = None;
    let mut symbols = [None; 4];
    while let Some((key, value)) = fields.next() {
        let Some(key) = key.decode() else { continue };
        if let Some(field) = SymbolField::of_key(&key) {
            let text = || value.filter(|string| string.decode().is_some());
            symbols[field as usize].get_or_insert_with(text);
        } else if *key == *b"ev" && kind.is_none() {
            match value.and_then(Quoted::decode).map(|code| Kind::from_code(&code)) {
                Some(Some(known)) => kind = Some(known),
                Some(None) => return (EventKind::Unknown, None),
                None => return (EventKind::Missing, None),
            }
        }
        if let Some(kind) = kind
            && let Some(symbol) = settled(kind, &symbols)
        {
            return (EventKind::Known(kind), symbol.and_then(Quoted::decode));
        }
    }
    let (kind, symbol) = without_more_keys(kind, &symbols);
    (kind, symbol.and_then(Quoted::decode))
}

/// For each field that may hold a symbol, whether it was read, and its text if it is a string.
type Symbols<S> = [Option<Option<S>>; 4];

/// The symbol of an event of this kind, if no key that follows can change it.
#[inline(always)]
fn settled<S: Copy>(kind: Kind, symbols: &Symbols<S>) -> Option<Option<S>> {
    match kind.symbol_field() {
        Some(field) => symbols[field as usize],
        None => symbols[SymbolField::Sym as usize].filter(Option::is_some),
    }
}

/// The head of an event whose symbol the last key has not settled.
fn without_more_keys<S: Copy>(kind: Option<Kind>, symbols: &Symbols<S>) -> (EventKind, Option<S>) {
    let Some(kind) = kind else { return (EventKind::Missing, None) };
    let symbol = match kind.symbol_field() {
        Some(_) => None,
        None => symbols.iter().flatten().flatten().next().copied(),
    };
    (EventKind::Known(kind), symbol)
}

/// The text without the blanks that JSON allows before it.
#[inline(always)]
pub(super) fn trim_start(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t' | b'\n' | b'\r', rest @ ..] = text {
        text = rest;
    }
    text
}

/// The text between two quotes.
#[derive(Clone, Copy)]
struct Quoted<'a> {
    text: &'a [u8],
    escapes: bool,
}

impl<'a> Quoted<'a> {
    /// The decoded string; `None` if that is no text, as with half of a surrogate pair.
    #[inline]
    fn decode(self) -> Option<Cow<'a, [u8]>> {
        if !self.escapes {
            return Some(Cow::Borrowed(self.text));
        }
        let quoted = [b"\"", self.text, b"\""].concat();
        let decoded: String = serde_json::from_slice(&quoted).ok()?;
        Some(Cow::Owned(decoded.into_bytes()))
    }
}

/// The members of an object: keys, and values where they are strings.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// The next key and its value. `None` at the end, or if the text is no object.
    #[inline]
    fn next(&mut self) -> Option<(Quoted<'a>, Option<Quoted<'a>>)> {
        self.skip_blanks();
        if let [b',', rest @ ..] = self.rest {
            self.rest = rest;
            self.skip_blanks();
        }
        let key = self.string()?;
        self.skip_blanks();
        self.rest = self.rest.strip_prefix(b":")?;
        self.skip_blanks();
        if self.rest.first() == Some(&b'"') {
            return Some((key, Some(self.string()?)));
        }
        self.skip_value();
        Some((key, None))
    }

    #[inline(always)]
    fn skip_blanks(&mut self) {
        self.rest = trim_start(self.rest);
    }

    /// Takes the string at the start of the rest.
    #[inline(always)]
    fn string(&mut self) -> Option<Quoted<'a>> {
        let text = self.rest.strip_prefix(b"\"")?;
        let mut end = string_end(text)?;
        let escapes = text[end] == b'\\';
        while text[end] == b'\\' {
            // Skips the escaped byte.
            end += 2;
            end += string_end(text.get(end..)?)?;
        }
        self.rest = &text[end + 1..];
        Some(Quoted { text: &text[..end], escapes })
    }

    /// Skips a value that is no string, up to the comma or bracket that ends it.
    #[inline(always)]
    fn skip_value(&mut self) {
        let mut depth = 0_usize;
        while let Some(next) = self
            .rest
            .iter()
            .position(|byte| matches!(byte, b'"' | b',' | b'[' | b']' | b'{' | b'}'))
        {
            self.rest = &self.rest[next..];
            match self.rest[0] {
                b'"' => {
                    if self.string().is_none() {
                        break;
                    }
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b',' if depth > 0 => {}
                _ if depth == 0 => return,
                _ => depth -= 1,
            }
            self.rest = &self.rest[1..];
        }
        self.rest = &[];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_readers_find_the_same_head() {
        let kinds = ["T", "LULD", "XT", "C", "V", "status", "ZZ", "NEW9"];
        let keys = ["ev", "sym", "T", "pair", "p", "t"];
        let values = [r#""A""#, r#""""#, "7", "-1.5e3", "null", r#"["x",7]"#];
        let mut random = fastrand::Rng::with_seed(3);
        let mut direct = 0;
        for _ in 0..20_000 {
            let colon = random.choice([":", " : ", ":\t"]).unwrap();
            let comma = random.choice([",", " ,\r\n"]).unwrap();
            let mut members: Vec<String> = (0..random.usize(0..6))
                .map(|_| {
                    let key = random.choice(keys).unwrap();
                    let value = random.choice(values).unwrap();
                    format!("\"{key}\"{colon}{value}")
                })
                .collect();
            let kind = random.choice(kinds).unwrap();
            let position = if random.bool() { 0 } else { random.usize(0..=members.len()) };
            members.insert(position, format!("\"ev\"{colon}\"{kind}\""));
            let event = format!("{{{}}}", members.join(comma));
            let (kind, symbol) = any_head(event.as_bytes());
            let expected = (kind, symbol.as_deref());
            assert_eq!(flat_head(event.as_bytes(), &mut [0; _]), Some(expected), "{event}");
            if let Some(head) = feed_head(event.as_bytes()) {
                assert_eq!(head, expected, "{event}");
                direct += 1;
            }
        }
        assert!(direct > 30, "{direct}");
    }
}
