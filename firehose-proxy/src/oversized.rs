//! Splits arrays that are too long for one message to clients.

use proxy_common::{
    protocol::{MAX_MESSAGE_BYTES, elements},
    websocket::Frame,
};

/// An oversized array, split into arrays that fit a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fitting {
    /// The arrays and how many events each holds.
    pub arrays: Vec<(Frame, u32)>,
    /// Events left out, because each of them alone is longer than a message may be.
    pub oversize: u64,
}

/// Splits an array between its events into arrays of at most [`MAX_MESSAGE_BYTES`].
pub fn split_oversized(text: &[u8]) -> Fitting {
    let mut arrays = Vec::new();
    let mut oversize = 0;
    let mut array = Vec::new();
    let mut events = 0;
    let mut finish = |array: &mut Vec<u8>, events: &mut u32| {
        if !array.is_empty() {
            array.push(b']');
            arrays.push((Frame::new(array), std::mem::take(events)));
            array.clear();
        }
    };
    elements(text, |element| {
        let object = element.text;
        if object.len() + 2 > MAX_MESSAGE_BYTES {
            oversize += 1;
            return;
        }
        if array.len() + object.len() + 2 > MAX_MESSAGE_BYTES {
            finish(&mut array, &mut events);
        }
        array.push(if array.is_empty() { b'[' } else { b',' });
        array.extend_from_slice(object);
        events += 1;
    });
    finish(&mut array, &mut events);
    Fitting { arrays, oversize }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_arrays_are_split_between_events() {
        let event =
            |n: usize| format!("{{\"ev\":\"T\",\"n\":{n},\"x\":\"{}\"}}", "],".repeat(1_000));
        let mut events: Vec<String> = (0..1_000).map(event).collect();
        let expected = events.join(",");
        events.insert(7, format!("{{\"ev\":\"{}\"}}", "x".repeat(MAX_MESSAGE_BYTES)));
        let Fitting { arrays, oversize } =
            split_oversized(format!("[{}]", events.join(" , ")).as_bytes());
        assert_eq!(oversize, 1);
        assert!(arrays.iter().all(|(frame, _)| frame.text().len() <= MAX_MESSAGE_BYTES));
        assert_eq!(arrays.iter().map(|(_, events)| events).sum::<u32>(), 1_000);
        let inner = |text: &[u8]| String::from_utf8(text[1..text.len() - 1].to_vec()).unwrap();
        let joined: Vec<String> = arrays.iter().map(|(frame, _)| inner(frame.text())).collect();
        assert_eq!(joined.join(","), expected);
    }

    #[test]
    fn an_array_may_be_exactly_as_long_as_the_limit() {
        let split_of = |lengths: &[usize]| {
            let object = |length: &usize| format!("{{\"ev\":\"{}\"}}", "x".repeat(length - 9));
            let objects: Vec<String> = lengths.iter().map(object).collect();
            let Fitting { arrays, oversize } =
                split_oversized(format!("[{}]", objects.join(",")).as_bytes());
            let lengths = arrays.iter().map(|(frame, events)| (frame.text().len(), *events));
            (lengths.collect::<Vec<_>>(), oversize)
        };
        // Brackets, and a comma between two.
        let most = MAX_MESSAGE_BYTES - 2;
        assert_eq!(split_of(&[most]), (vec![(MAX_MESSAGE_BYTES, 1)], 0));
        assert_eq!(split_of(&[most + 1]), (vec![], 1));
        assert_eq!(split_of(&[1_000, most - 1_001]), (vec![(MAX_MESSAGE_BYTES, 2)], 0));
        assert_eq!(split_of(&[1_000, most - 1_000]), (vec![(1_002, 1), (most - 998, 1)], 0));
    }
}
