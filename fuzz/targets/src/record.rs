//! Files of recorded frames, read again and compared with a model on a JSON parser.

use std::io::{ErrorKind, Read, Write};

use polygon_sim::replay::record::{Recorded, read_lines};
use serde_json::{Value, value::RawValue};
use zstd::{Decoder, Encoder};

use crate::members::Members;

/// Checks that a file is read as in the model: the bytes as they stand, and as the content of a
/// file that is whole, still being written, or cut off.
///
/// # Panics
///
/// If it is not.
pub fn as_a_parser_would(input: &[u8]) {
    check(input);
    let mut encoder = Encoder::new(Vec::new(), 1).expect("make an encoder");
    for part in input.chunks(100) {
        encoder.write_all(part).expect("memory takes everything");
        // As the firehose does once a second.
        encoder.flush().expect("memory takes everything");
    }
    let written = encoder.get_ref().clone();
    assert!(decompressed(&written).0 == input, "what was flushed can be read");
    check(&written);
    let whole = encoder.finish().expect("memory takes everything");
    check(&whole);
    let sum: usize = input.iter().map(|&byte| usize::from(byte)).sum();
    check(&whole[..sum % whole.len()]);
}

fn check(file: &[u8]) {
    let mut found = Vec::new();
    let read = read_lines(file, |recorded| {
        found.push(recorded);
        true
    });
    let (content, end) = decompressed(file);
    let (mut expected, mut rest, mut all_are_frames) = (Vec::new(), &content[..], true);
    while all_are_frames && let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
        let (line, after) = rest.split_at(end + 1);
        let recorded = frame(line);
        all_are_frames = recorded.is_some();
        expected.extend(recorded);
        rest = after;
    }
    if end == End::Damaged {
        // The reader takes larger pieces than the model, and loses the one with the damage.
        assert_eq!(found, expected[..found.len()]);
        assert!(read.is_err(), "damage went unnoticed");
    } else {
        assert_eq!(found, expected);
        assert_eq!(read.is_ok(), all_are_frames, "{read:?}");
    }
}

/// How a compressed file ends.
#[derive(PartialEq, Eq)]
enum End {
    Whole,
    CutOff,
    Damaged,
}

/// The content of a file, as far as it can be decompressed.
fn decompressed(file: &[u8]) -> (Vec<u8>, End) {
    let mut decoder = Decoder::new(file).expect("make a decoder");
    let (mut content, mut piece) = (Vec::new(), [0; 64]);
    loop {
        match decoder.read(&mut piece) {
            Ok(0) => return (content, End::Whole),
            Ok(length) => content.extend_from_slice(&piece[..length]),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                return (content, End::CutOff);
            }
            Err(_) => return (content, End::Damaged),
        }
    }
}

/// The frame of a line: an object with a whole number as `t`, and with any value as `frame` or a
/// string as `text`. Each stands at most once, `null` is none, and `frame` goes first.
fn frame(line: &[u8]) -> Option<Recorded> {
    let members = Members::read(str::from_utf8(line).ok()?)?;
    let t = members.only("t")??.as_u64()?;
    let frame = members.only_raw("frame")?.map(RawValue::get).filter(|frame| *frame != "null");
    let text = match members.only("text")? {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text),
        Some(_) => return None,
    };
    Some(Recorded { t, text: frame.map(str::to_owned).or(text)? })
}
