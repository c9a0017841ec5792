//! One event of the load: its text, the stamp that the sender writes into it, and the mark that a
//! client reads.

/// Bytes of one event.
pub const EVENT_BYTES: usize = 148;

/// Where the patch of an event begins: `t`, `pt` and the lap, written in one piece.
pub(crate) const PATCH_AT: usize = EVENT_BYTES - 56;
pub(crate) const PATCH_BYTES: usize = 43;
pub(crate) const SLOT_AT: usize = EVENT_BYTES - 13;
const STAMP_DIGITS: usize = 13;
const STAMP_BASE: u64 = 1_000_000_000_000;
const LAP_BASE: u64 = 100_000;

/// What an event is about: the rank of its symbol by activity, and whether it is a trade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Topic {
    /// 0 is the most active symbol, AAPL.
    pub rank: u16,
    /// Whether it is a trade. If not, it is a quote.
    pub trade: bool,
}

/// The bytes that the sender writes into every event of a frame.
pub(crate) fn patch(now_ns: u64, lap: u64) -> [u8; PATCH_BYTES] {
    let stamp = STAMP_BASE + now_ns;
    let text = format!("{stamp},\"pt\":{stamp},\"q\":{}", LAP_BASE + lap);
    text.as_bytes().try_into().expect("a run is shorter than two hours and 900,000 laps")
}

/// The symbol of this rank: AAPL, then made-up ones of four letters.
pub fn symbol(rank: usize) -> String {
    if rank == 0 {
        return "AAPL".to_owned();
    }
    let letter = |n: usize| char::from(b'A' + (n % 26) as u8);
    // "B" first, so that none of them is AAPL.
    let n = rank;
    ['B', letter(n / 676), letter(n / 26), letter(n)].iter().collect()
}

/// Appends the event of this slot of the ring, without a stamp.
pub(crate) fn append_event(
    out: &mut Vec<u8>,
    topic: Topic,
    slot: usize,
    random: &mut fastrand::Rng,
) {
    let sym = symbol(topic.rank as usize);
    let tail =
        format!("\"t\":{STAMP_BASE},\"pt\":{STAMP_BASE},\"q\":{LAP_BASE}{slot:06},\"z\":3}}");
    let dollars = random.u32(100..1_000);
    let start = out.len();
    if topic.trade {
        let head = format!("{{\"ev\":\"T\",\"sym\":\"{sym}\",\"i\":\"");
        let rest = format!(
            "\",\"x\":4,\"p\":{dollars}.{:04},\"s\":{},\"c\":[12,37],",
            random.u32(1_000..10_000),
            random.u32(10..100)
        );
        let digits = EVENT_BYTES - head.len() - rest.len() - tail.len();
        out.extend_from_slice(head.as_bytes());
        out.extend((0..digits).map(|_| random.u8(b'1'..=b'9')));
        out.extend_from_slice(rest.as_bytes());
    } else {
        let head = format!(
            "{{\"ev\":\"Q\",\"sym\":\"{sym}\",\"bx\":12,\"ax\":11,\"bp\":{dollars}.2100,\"ap\":{dollars}.2300,\"bs\":{},\"as\":",
            random.u32(100..1_000)
        );
        let digits = EVENT_BYTES - head.len() - 1 - tail.len();
        out.extend_from_slice(head.as_bytes());
        out.extend((0..digits).map(|_| random.u8(b'1'..=b'9')));
        out.push(b',');
    }
    out.extend_from_slice(tail.as_bytes());
    debug_assert_eq!(out.len() - start, EVENT_BYTES);
}

/// The time at which an event was sent, and its number in the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Time of sending.
    pub stamp_ns: u64,
    /// Complete laps around the ring before it.
    pub lap: u64,
    /// Its slot in the ring.
    pub slot: u32,
}

/// Reads the mark of an event. `None` if a digit is missing where one should stand.
#[inline(always)]
pub fn mark(event: &[u8; EVENT_BYTES]) -> Option<Mark> {
    let (stamp, ok1) = digits13(&event[PATCH_AT..PATCH_AT + STAMP_DIGITS]);
    let (sequence, ok2) = digits12(&event[SLOT_AT - 6..SLOT_AT + 6]);
    let (lap, slot) = (sequence / 1_000_000, sequence % 1_000_000);
    let ok = ok1 & ok2 & (stamp >= STAMP_BASE) & (lap >= LAP_BASE);
    ok.then(|| Mark { stamp_ns: stamp - STAMP_BASE, lap: lap - LAP_BASE, slot: slot as u32 })
}

#[inline(always)]
fn digits13(text: &[u8]) -> (u64, bool) {
    let (high, a) = digits8(&text[..8]);
    // The last eight digits, of which three are read already.
    let (low, b) = digits8(&text[5..13]);
    (high * 100_000 + low % 100_000, a & b)
}

#[inline(always)]
fn digits12(text: &[u8]) -> (u64, bool) {
    let (high, a) = digits8(&text[..8]);
    let (low, b) = digits8(&text[4..12]);
    (high * 10_000 + low % 10_000, a & b)
}

/// Reads eight digits at once by multiplying neighbours.
#[inline(always)]
fn digits8(text: &[u8]) -> (u64, bool) {
    let word = u64::from_le_bytes(text.try_into().expect("eight bytes"));
    let ok = word & 0xf0f0_f0f0_f0f0_f0f0 == 0x3030_3030_3030_3030;
    let digits = word & 0x0f0f_0f0f_0f0f_0f0f;
    let pairs = (digits.wrapping_mul(10) + (digits >> 8)) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs.wrapping_mul(100) + (pairs >> 16)) & 0x0000_ffff_0000_ffff;
    ((fours.wrapping_mul(10_000) + (fours >> 32)) & 0xffff_ffff, ok)
}
