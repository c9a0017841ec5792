//! Keys and lists of the index, small enough that a busy market's whole table stays in the
//! processor's caches.

use std::{
    hash::{Hash, Hasher},
    slice,
};

use foldhash::fast::RandomState;
use hashbrown::{HashMap, hash_map::Entry};
use slab::Slab;

/// Identifies a cohort. Numbers are dense from 0: those of cohorts that ended are used again.
pub type CohortId = usize;

/// A symbol of up to [`ShortSymbol::MAX`] bytes as one number, which is compared and hashed without
/// following a pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ShortSymbol(u64);

impl ShortSymbol {
    /// The longest symbol that fits beside its length.
    const MAX: usize = 7;

    /// The number, or `None` for a symbol that is too long.
    #[inline(always)]
    fn of(symbol: &[u8]) -> Option<Self> {
        let length = symbol.len();
        // Two overlapping reads, instead of one for each byte.
        let word = match length {
            4..=Self::MAX => {
                let first = u32::from_le_bytes(*symbol.first_chunk()?);
                let last = u32::from_le_bytes(*symbol.last_chunk()?);
                u64::from(first) | (u64::from(last) << (8 * (length - 4)))
            }
            2..4 => {
                let first = u16::from_le_bytes(*symbol.first_chunk()?);
                let last = u16::from_le_bytes(*symbol.last_chunk()?);
                u64::from(first) | (u64::from(last) << (8 * (length - 2)))
            }
            0..2 => u64::from(symbol.first().copied().unwrap_or(0)),
            _ => return None,
        };
        Some(Self(word | ((length as u64) << (8 * Self::MAX))))
    }
}

impl Hash for ShortSymbol {
    #[inline(always)]
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0);
    }
}

/// The holders of symbols, or of prefixes.
#[derive(Debug, Default)]
pub(super) struct SymbolTable {
    short: HashMap<ShortSymbol, Holders, RandomState>,
    /// The same for symbols too long for a [`ShortSymbol`].
    long: HashMap<Box<[u8]>, Holders, RandomState>,
}

impl SymbolTable {
    /// The holders of a symbol.
    #[inline(always)]
    pub(super) fn get(&self, symbol: &[u8]) -> Option<&Holders> {
        match ShortSymbol::of(symbol) {
            Some(short) => self.short.get(&short),
            None => self.long.get(symbol),
        }
    }

    /// Adds a cohort to the holders of a symbol. It must not be one of them yet.
    pub(super) fn insert(&mut self, symbol: &str, id: CohortId, lists: &mut HolderLists) {
        match ShortSymbol::of(symbol.as_bytes()) {
            Some(short) => lists.insert(self.short.entry(short), id),
            None => lists.insert(self.long.entry(symbol.as_bytes().into()), id),
        }
    }

    /// Removes a cohort from the holders of a symbol, and the symbol with its last holder.
    pub(super) fn remove(&mut self, symbol: &str, id: CohortId, lists: &mut HolderLists) {
        match ShortSymbol::of(symbol.as_bytes()) {
            Some(short) => lists.remove(self.short.entry(short), id),
            None => lists.remove(self.long.entry(symbol.as_bytes().into()), id),
        }
    }

    /// How many symbols have holders.
    pub(super) fn len(&self) -> usize {
        self.short.len() + self.long.len()
    }
}

/// The cohorts that hold a channel: the only one, or the number of a list of several.
#[derive(Debug, Clone, Copy)]
pub(super) struct Holders(u32);

/// Marks the number of a list.
const LISTED: u32 = 1 << 31;

/// The lists of holders, for channels that several cohorts hold.
#[derive(Debug, Default)]
pub(super) struct HolderLists(Slab<Vec<u32>>);

impl HolderLists {
    /// Holders with one cohort.
    fn one(id: CohortId) -> Holders {
        let id = u32::try_from(id).ok().filter(|id| id & LISTED == 0);
        Holders(id.expect("fewer cohorts than 2^31"))
    }

    /// The cohorts, in no particular order.
    #[inline(always)]
    pub(super) fn get<'a>(&'a self, holders: &'a Holders) -> &'a [u32] {
        if holders.0 & LISTED == 0 {
            slice::from_ref(&holders.0)
        } else {
            &self.0[(holders.0 ^ LISTED) as usize]
        }
    }

    /// Adds a cohort to the holders of a channel. It must not be one of them yet.
    fn insert<K: Hash>(&mut self, entry: Entry<'_, K, Holders, RandomState>, id: CohortId) {
        match entry {
            Entry::Occupied(mut entry) => self.add(entry.get_mut(), id),
            Entry::Vacant(entry) => _ = entry.insert(Self::one(id)),
        }
    }

    /// Removes a cohort from the holders of a channel, and the channel with its last holder.
    fn remove<K>(&mut self, entry: Entry<'_, K, Holders, RandomState>, id: CohortId) {
        if let Entry::Occupied(mut entry) = entry
            && !self.remove_from(entry.get_mut(), id)
        {
            entry.remove();
        }
    }

    fn add(&mut self, holders: &mut Holders, id: CohortId) {
        let Holders(added) = Self::one(id);
        if holders.0 & LISTED == 0 {
            let number = self.0.insert(vec![holders.0, added]);
            holders.0 = Self::one(number).0 | LISTED;
        } else {
            self.0[(holders.0 ^ LISTED) as usize].push(added);
        }
    }

    /// Removes a cohort. Returns false if none is left, so that the caller removes the channel.
    fn remove_from(&mut self, holders: &mut Holders, id: CohortId) -> bool {
        if holders.0 & LISTED == 0 {
            return holders.0 as CohortId != id;
        }
        let number = (holders.0 ^ LISTED) as usize;
        let list = &mut self.0[number];
        list.retain(|&other| other as CohortId != id);
        if let [last] = list[..] {
            self.0.remove(number);
            holders.0 = last;
        }
        true
    }

    /// How many lists there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, hash::BuildHasher};

    use super::*;

    #[test]
    fn different_symbols_are_different_numbers() {
        let (mut seen, mut hashes) = (HashSet::new(), HashSet::new());
        let hasher = RandomState::default();
        for symbol in ["", "\0", "\0\0", "A", "A\0", "AB", "BA", "ABC", "ABCD", "ABCDE", "ABCDEFG"]
        {
            let short = ShortSymbol::of(symbol.as_bytes()).unwrap();
            assert!(seen.insert(short), "{symbol:?}");
            assert!(hashes.insert(hasher.hash_one(short)), "{symbol:?}");
            assert_eq!(&short.0.to_le_bytes()[..symbol.len()], symbol.as_bytes());
        }
        assert_eq!(ShortSymbol::of(b"ABCDEFGH"), None);
    }

    #[test]
    fn holders_come_and_go() {
        let mut lists = HolderLists::default();
        let mut holders = HolderLists::one(7);
        assert_eq!(lists.get(&holders), [7]);
        lists.add(&mut holders, 9);
        lists.add(&mut holders, 0);
        assert_eq!(lists.get(&holders), [7, 9, 0]);
        assert!(lists.remove_from(&mut holders, 7));
        assert!(lists.remove_from(&mut holders, 9));
        assert_eq!((lists.get(&holders), lists.len()), (&[0][..], 0));
        assert!(!lists.remove_from(&mut holders, 0));
    }
}
