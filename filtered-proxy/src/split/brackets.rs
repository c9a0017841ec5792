//! Finds the brackets of a text that are not part of its strings: 64 bytes at a time, by masks with
//! one bit for each byte.

use multiversion::multiversion;
use wide::u8x16;

/// Bytes inspected together.
pub(super) const BLOCK: usize = 64;
/// Blocks whose brackets are found before they are followed. The more, the fewer branches the
/// processor predicts wrongly, as long as the list stays in its nearest cache.
pub(super) const GROUP: usize = 16;
/// Positions stored at once. A block seldom has more.
const STORED: usize = 4;

/// Finds brackets, from the beginning of a text to its end.
pub(super) struct Brackets {
    positions: [u32; GROUP * BLOCK + STORED],
    strings: Strings,
}

impl Brackets {
    /// Starts at the beginning of a text.
    pub(super) fn new() -> Self {
        Self { positions: [0; GROUP * BLOCK + STORED], strings: Strings::default() }
    }

    /// Finds the brackets of the next blocks, [`GROUP`] at most. The first of them begins at
    /// `base`.
    #[inline(always)]
    pub(super) fn find(&mut self, blocks: &[[u8; BLOCK]], base: u32) -> &[u32] {
        let count = find(self, blocks, base);
        &self.positions[..count]
    }
}

/// Returns how many positions it stored. Compiled twice, for processors with wide registers and for
/// any.
#[multiversion(targets("x86_64+avx2+bmi1+bmi2+lzcnt+popcnt"))]
fn find(brackets: &mut Brackets, blocks: &[[u8; BLOCK]], mut base: u32) -> usize {
    let mut count = 0;
    for block in blocks {
        let mask = brackets.strings.outside(&Masks::of(block));
        count = store(&mut brackets.positions, count, base, mask);
        base = base.wrapping_add(BLOCK as u32);
    }
    count
}

/// Adds the positions of a block's mask to a list that holds `count` of them. The list has room for
/// [`STORED`] more than there can be.
#[inline(always)]
fn store(positions: &mut [u32], count: usize, base: u32, mut mask: u64) -> usize {
    let end = count + mask.count_ones() as usize;
    let mut at = count;
    // A fixed number of stores, some of them useless, costs less than a branch on how many there
    // are.
    loop {
        let room: &mut [u32; STORED] =
            positions[at..].first_chunk_mut().expect("room for a block's positions");
        for position in room {
            *position = base.wrapping_add(mask.trailing_zeros());
            mask &= mask.wrapping_sub(1);
        }
        if mask == 0 {
            return end;
        }
        at += STORED;
    }
}

/// The longest text that [`quotes`] searches.
pub(super) const MAX_QUOTED: usize = 8 * BLOCK;
/// Room for the positions of its quotes.
pub(super) type QuotePositions = [u32; MAX_QUOTED + STORED];

/// The positions of the quotes of a text; `None` if it has a backslash or is too long.
#[multiversion(targets("x86_64+avx2+bmi1+bmi2+lzcnt+popcnt"))]
pub(super) fn quotes<'a>(text: &[u8], positions: &'a mut QuotePositions) -> Option<&'a [u32]> {
    if text.len() > MAX_QUOTED {
        return None;
    }
    let (blocks, rest) = text.as_chunks();
    let mut last = [b' '; BLOCK];
    last[..rest.len()].copy_from_slice(rest);
    let mut count = 0;
    let mut base = 0;
    for block in blocks.iter().chain([&last]) {
        let masks = Masks::of(block);
        if masks.backslashes != 0 {
            return None;
        }
        count = store(positions, count, base, masks.quotes);
        base += BLOCK as u32;
    }
    Some(&positions[..count])
}

/// Which of 64 bytes are quotes, backslashes and brackets; the first byte is the lowest bit.
#[derive(Debug, PartialEq, Eq)]
struct Masks {
    quotes: u64,
    backslashes: u64,
    brackets: u64,
}

impl Masks {
    #[inline(always)]
    fn of(block: &[u8; 64]) -> Self {
        let mut masks = Self { quotes: 0, backslashes: 0, brackets: 0 };
        let mut backslashes = [u8x16::ZERO; 4];
        for (i, lane) in block.as_chunks::<16>().0.iter().enumerate() {
            let bytes = u8x16::new(*lane);
            // `[` and `{`, and `]` and `}`, differ in this bit alone.
            let folded = bytes | u8x16::splat(0x20);
            let brackets = folded.simd_eq(u8x16::splat(b'{')) | folded.simd_eq(u8x16::splat(b'}'));
            masks.quotes |= bits(bytes.simd_eq(u8x16::splat(b'"')), i);
            masks.brackets |= bits(brackets, i);
            backslashes[i] = bytes.simd_eq(u8x16::splat(b'\\'));
        }
        let [a, b, c, d] = backslashes;
        // Backslashes are rare.
        if (a | b | c | d).any() {
            for (i, lane) in backslashes.into_iter().enumerate() {
                masks.backslashes |= bits(lane, i);
            }
        }
        masks
    }
}

#[inline(always)]
fn bits(found: u8x16, lane: usize) -> u64 {
    u64::from(found.to_bitmask()) << (16 * lane)
}

/// The state of strings that one block passes to the next.
#[derive(Debug, Default)]
struct Strings {
    /// All ones if the previous block ended inside a string.
    inside: u64,
    /// 1 if the previous block ended with a backslash that escapes the next byte.
    escaping: u64,
}

impl Strings {
    /// The brackets outside strings.
    #[inline(always)]
    fn outside(&mut self, masks: &Masks) -> u64 {
        let mut quotes = masks.quotes;
        if masks.backslashes | self.escaping != 0 {
            quotes &= !self.escaped(masks.backslashes);
        }
        // Bit i of the running xor is set if an odd number of quotes stands at or before byte i.
        let mut inside = quotes;
        for shift in [1, 2, 4, 8, 16, 32] {
            inside ^= inside << shift;
        }
        inside ^= self.inside;
        self.inside = ((inside as i64) >> 63) as u64;
        masks.brackets & !inside
    }

    /// The bytes that a backslash before them escapes: those after an odd run of backslashes.
    fn escaped(&mut self, backslashes: u64) -> u64 {
        const EVEN: u64 = 0x5555_5555_5555_5555;
        let active = backslashes & !self.escaping;
        let follows = (active << 1) | self.escaping;
        let odd_starts = active & !EVEN & !follows;
        // Adding a run's start to the run carries just past its end. So an even or odd end shows
        // whether the run's length is even or odd.
        let (ends, carry) = odd_starts.overflowing_add(active);
        self.escaping = u64::from(carry);
        (EVEN ^ (ends << 1)) & follows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_show_each_byte_where_it_stands() {
        for shift in 0..=255_u8 {
            let block: [u8; 64] = std::array::from_fn(|i| shift.wrapping_add((i * 37) as u8));
            let find = |wanted: fn(u8) -> bool| {
                (0..64).fold(0, |mask, i| mask | (u64::from(wanted(block[i])) << i))
            };
            let expected = Masks {
                quotes: find(|byte| byte == b'"'),
                backslashes: find(|byte| byte == b'\\'),
                brackets: find(|byte| matches!(byte, b'[' | b']' | b'{' | b'}')),
            };
            assert_eq!(Masks::of(&block), expected);
        }
    }

    #[test]
    fn two_backslashes_show_wherever_they_stand() {
        for (i, j) in (0..64).flat_map(|i| (0..64).map(move |j| (i, j))) {
            let mut block = [b'x'; BLOCK];
            (block[i], block[j]) = (b'\\', b'\\');
            assert_eq!(Masks::of(&block).backslashes, (1 << i) | (1 << j));
        }
    }

    #[test]
    fn brackets_are_those_of_a_walk_byte_by_byte() {
        let mut random = fastrand::Rng::with_seed(5);
        for _ in 0..5_000 {
            // Backslashes and quotes are frequent where blocks meet, and rare elsewhere.
            let text: [[u8; BLOCK]; 4] = std::array::from_fn(|_| {
                std::array::from_fn(|at| match (random.u8(..), at) {
                    (..128, 0 | 63) | (..4, _) => b'\\',
                    (..200, 0 | 1) | (..16, _) => b'"',
                    (..32, _) => *random.choice(b"[]{}").unwrap(),
                    _ => b'x',
                })
            });
            let (mut inside, mut escaping) = (false, false);
            let mut expected = Vec::new();
            for (at, byte) in (0..).zip(text.as_flattened()) {
                let escaped = std::mem::take(&mut escaping);
                match byte {
                    b'\\' => escaping = !escaped,
                    b'"' if !escaped => inside = !inside,
                    b'[' | b']' | b'{' | b'}' if !inside => expected.push(at),
                    _ => {}
                }
            }
            assert_eq!(Brackets::new().find(&text, 0), expected);
        }
    }

    #[test]
    fn quotes_are_found_in_texts_of_any_length() {
        for length in [0, 1, 63, 64, 65, 128, MAX_QUOTED - 1, MAX_QUOTED] {
            let text: Vec<u8> = (0..length).map(|i| if i % 3 == 0 { b'"' } else { b'x' }).collect();
            let mut positions = [0; _];
            let expected: Vec<u32> = (0..length as u32).step_by(3).collect();
            assert_eq!(quotes(&text, &mut positions), Some(&expected[..]), "{length}");
        }
        let mut positions = [0; _];
        assert_eq!(quotes(&[b'"'; MAX_QUOTED], &mut positions).map(<[u32]>::len), Some(MAX_QUOTED));
        assert_eq!(quotes(&[b'x'; MAX_QUOTED + 1], &mut positions), None);
        assert_eq!(quotes(br#""\""#, &mut positions), None);
    }
}
