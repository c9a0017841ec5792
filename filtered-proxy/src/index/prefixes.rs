//! The prefixes of one kind, looked up once for each length in use, however many there are.

use super::table::{CohortId, HolderLists, Holders, SymbolTable};

/// The cohorts that hold prefixes of one kind.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    table: SymbolTable,
    /// The lengths in use, the shortest first.
    lengths: Vec<Length>,
}

#[derive(Debug)]
struct Length {
    bytes: usize,
    /// How many prefixes have this length.
    prefixes: usize,
}

impl Prefixes {
    /// The holders of each prefix of this symbol.
    #[inline]
    pub(super) fn of<'a>(&'a self, symbol: &'a [u8]) -> impl Iterator<Item = &'a Holders> {
        let prefixes = self.lengths.iter().map_while(|length| symbol.get(..length.bytes));
        prefixes.filter_map(|prefix| self.table.get(prefix))
    }

    /// Adds a cohort to the holders of a prefix. It must not be one of them yet.
    pub(super) fn insert(&mut self, prefix: &str, id: CohortId, lists: &mut HolderLists) {
        let before = self.table.len();
        self.table.insert(prefix, id, lists);
        if self.table.len() == before {
            return;
        }
        match self.find(prefix.len()) {
            Ok(at) => self.lengths[at].prefixes += 1,
            Err(at) => self.lengths.insert(at, Length { bytes: prefix.len(), prefixes: 1 }),
        }
    }

    /// Removes a cohort from the holders of a prefix, and the prefix with its last holder.
    pub(super) fn remove(&mut self, prefix: &str, id: CohortId, lists: &mut HolderLists) {
        let before = self.table.len();
        self.table.remove(prefix, id, lists);
        if self.table.len() == before {
            return;
        }
        if let Ok(at) = self.find(prefix.len()) {
            self.lengths[at].prefixes -= 1;
            if self.lengths[at].prefixes == 0 {
                self.lengths.remove(at);
            }
        }
    }

    /// How many prefixes and lengths there are.
    pub(super) fn entries(&self) -> usize {
        self.table.len() + self.lengths.len()
    }

    /// The place of a length among those in use.
    fn find(&self, bytes: usize) -> Result<usize, usize> {
        self.lengths.binary_search_by_key(&bytes, |length| length.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symbol_is_looked_up_once_for_each_length_in_use_that_it_has() {
        let (mut prefixes, mut lists) = (Prefixes::default(), HolderLists::default());
        for (id, prefix) in ["O:SPY", "A", "AAPL", "B", "A"].into_iter().enumerate() {
            prefixes.insert(prefix, id, &mut lists);
        }
        let lengths = |prefixes: &Prefixes| -> Vec<(usize, usize)> {
            prefixes.lengths.iter().map(|length| (length.bytes, length.prefixes)).collect()
        };
        assert_eq!(lengths(&prefixes), [(1, 2), (4, 1), (5, 1)]);
        let found = |symbol: &str| -> Vec<u32> {
            let holders = prefixes.of(symbol.as_bytes());
            holders.flat_map(|holders| lists.get(holders)).copied().collect()
        };
        assert_eq!(found("AAPL"), [1, 4, 2]);
        assert_eq!(found("AAP"), [1, 4]);
        assert_eq!(found("O:SPY251219C00650000"), [0]);
        assert!(found("").is_empty());
        prefixes.remove("A", 1, &mut lists);
        assert_eq!(lengths(&prefixes), [(1, 2), (4, 1), (5, 1)], "another cohort holds it");
        prefixes.remove("A", 4, &mut lists);
        prefixes.remove("O:SPY", 0, &mut lists);
        assert_eq!((lengths(&prefixes), prefixes.entries()), (vec![(1, 1), (4, 1)], 4));
    }
}
