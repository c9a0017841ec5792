//! Event kinds: the vendor's codes, and the field that holds the symbol of an event.

use std::fmt::{self, Write};

/// The field of an event that holds its symbol (source: the vendor's documentation, confirmed by
/// captures). In the order in which they count for a kind without a field of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SymbolField {
    /// `sym`: most kinds.
    Sym,
    /// `pair`: crypto, and the aggregates of forex.
    Pair,
    /// `T`: LULD, NOI and V.
    T,
    /// `p`: forex quotes only; elsewhere `p` is a price or a quantity.
    P,
}

impl SymbolField {
    /// The field with this key in the event's object.
    #[inline(always)]
    pub const fn of_key(key: &[u8]) -> Option<Self> {
        match key {
            b"sym" => Some(Self::Sym),
            b"pair" => Some(Self::Pair),
            b"T" => Some(Self::T),
            b"p" => Some(Self::P),
            _ => None,
        }
    }
}

/// Writes the table of kinds as an enum with its conversions.
macro_rules! kinds {
    ($count:literal: $($kind:ident $code:literal $field:ident,)*) => {
        /// The kind of an event: the value of its `ev` field and the part of a channel before the
        /// first dot. The named variants are the vendor's documented codes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[expect(missing_docs, reason = "the vendor's codes; docs/WIRE.md lists them")]
        pub enum Kind {
            $($kind,)*
            /// A kind that this version does not know, such as one that the vendor has added since.
            Other(OtherCode),
        }

        impl Kind {
            /// How many named kinds there are.
            pub const COUNT: usize = $count;

            /// The named kinds, in the order of their numbers.
            pub const NAMED: [Self; Self::COUNT] = [$(Self::$kind,)*];

            /// The number of a named kind, below [`COUNT`](Self::COUNT). All other kinds have the
            /// number `COUNT`.
            #[inline]
            pub const fn number(self) -> usize {
                // No `Option`: that compiles to a jump for each kind, and the lookup of an event
                // takes a third longer.
                #[expect(clippy::upper_case_acronyms, reason = "the vendor's codes")]
                enum Number {
                    $($kind,)*
                }
                match self {
                    $(Self::$kind => Number::$kind as usize,)*
                    Self::Other(_) => Self::COUNT,
                }
            }

            /// The named kind with this code, of any market.
            #[inline]
            pub const fn named(code: &[u8]) -> Option<Self> {
                match code {
                    $($code => Some(Self::$kind),)*
                    _ => None,
                }
            }

            /// The kind with this code, of any market. `None` if no channel can name it: a code has
            /// one to nine capital letters and digits, and begins with a letter.
            #[inline]
            pub fn from_code(code: &[u8]) -> Option<Self> {
                Self::named(code).or_else(|| OtherCode::of(code).map(Self::Other))
            }

            /// The field of an event that holds its symbol. `None` for a kind without a name: its
            /// symbol is the first of the fields, in their order, that is a string.
            #[inline]
            pub const fn symbol_field(self) -> Option<SymbolField> {
                match self {
                    $(Self::$kind => Some(SymbolField::$field),)*
                    Self::Other(_) => None,
                }
            }
        }

        impl fmt::Display for Kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$kind => f.write_str(stringify!($kind)),)*
                    Self::Other(code) => code.fmt(f),
                }
            }
        }
    };
}

kinds! { 17:
    T b"T" Sym,
    Q b"Q" Sym,
    A b"A" Sym,
    AM b"AM" Sym,
    LULD b"LULD" T,
    NOI b"NOI" T,
    FMV b"FMV" Sym,
    LV b"LV" Sym,
    C b"C" P,
    CA b"CA" Pair,
    CAS b"CAS" Pair,
    XT b"XT" Pair,
    XQ b"XQ" Pair,
    XA b"XA" Pair,
    XAS b"XAS" Pair,
    XL2 b"XL2" Pair,
    V b"V" T,
}

/// The code of a kind without a name.
///
/// Each character takes six bits, so that a channel takes no more memory than without such kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OtherCode([u8; 7]);

impl OtherCode {
    /// The most characters that fit.
    const MAX: usize = 9;

    fn of(code: &[u8]) -> Option<Self> {
        if code.len() > Self::MAX || !code.first()?.is_ascii_uppercase() {
            return None;
        }
        let mut packed = 0;
        for n in 0..Self::MAX {
            let six_bits = match code.get(n) {
                Some(byte @ (b'A'..=b'Z' | b'0'..=b'9')) => byte - b' ',
                Some(_) => return None,
                None => 0,
            };
            packed = packed << 6 | u64::from(six_bits);
        }
        let [_, bytes @ ..] = packed.to_be_bytes();
        Some(Self(bytes))
    }
}

impl fmt::Display for OtherCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [0; 8];
        bytes[1..].copy_from_slice(&self.0);
        let packed = u64::from_be_bytes(bytes);
        let characters = (0..Self::MAX).rev().map(|n| (packed >> (6 * n)) as u8 & 0x3f);
        for six_bits in characters.take_while(|six_bits| *six_bits != 0) {
            f.write_char(char::from(six_bits + b' '))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Channel;

    #[test]
    fn a_named_kind_is_found_by_its_code_alone() {
        for (number, kind) in Kind::NAMED.into_iter().enumerate() {
            assert_eq!(Kind::from_code(kind.to_string().as_bytes()), Some(kind));
            assert_eq!(kind.number(), number);
        }
    }

    #[test]
    fn any_code_of_capitals_and_digits_is_a_kind() {
        let mut found = Vec::new();
        for code in ["B", "NEW9", "TT", "TTT", "X9999", "Z0", "ZZZZZZZZ", "ZZZZZZZZZ"] {
            let kind = Kind::from_code(code.as_bytes()).unwrap();
            assert!(matches!(kind, Kind::Other(_)), "{code}");
            assert_eq!((kind.to_string().as_str(), kind.number()), (code, Kind::COUNT));
            found.push(kind);
        }
        assert!(found.is_sorted(), "{found:?}");
        let odd = ["", "t", "status", "am", "*", "9NEW", "NEW_9", "NEW 9", "NÉW", "NEW9\0"];
        for code in odd.into_iter().chain(["ZZZZZZZZZZ"]) {
            assert_eq!(Kind::from_code(code.as_bytes()), None, "{code:?}");
        }
    }

    #[test]
    fn other_kinds_cost_no_memory() {
        assert_eq!((size_of::<Kind>(), size_of::<Option<Kind>>()), (8, 8));
        assert_eq!(size_of::<Channel>(), size_of::<Box<str>>() + 8);
    }
}
