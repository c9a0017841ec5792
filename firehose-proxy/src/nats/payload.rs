//! The payload of a message: whole frames, one or several.

use bytes::{Bytes, BytesMut};
use proxy_common::{history::Entry, protocol::demux, websocket::frames};

/// Most bytes of a payload of several frames.
pub(super) const MAX_JOINED: usize = 64 << 10;

/// How many of the first entries make a payload: as many as fit, at least one.
pub(super) fn joined(entries: &[Entry]) -> usize {
    let mut bytes = 0;
    let fit = entries.iter().take_while(|entry| {
        bytes += entry.frame.bytes().len();
        bytes <= MAX_JOINED
    });
    fit.count().max(1).min(entries.len())
}

/// The payload of these entries.
pub(super) fn payload(entries: &[Entry]) -> Bytes {
    match entries {
        [entry] => entry.frame.bytes().clone(),
        _ => {
            let length = entries.iter().map(|entry| entry.frame.bytes().len()).sum();
            let mut payload = BytesMut::with_capacity(length);
            for entry in entries {
                payload.extend_from_slice(entry.frame.bytes());
            }
            payload.freeze()
        }
    }
}

/// How many frames of events a payload holds, and how many events. `None` if it is no payload of
/// ours.
pub(super) fn count(payload: &Bytes) -> Option<(u64, u64)> {
    let (mut of_events, mut events) = (0, 0);
    for frame in frames(payload.clone()) {
        let demuxed = demux(frame.ok()?).ok()?;
        of_events += u64::from(demuxed.data.is_some());
        events += demuxed.events;
    }
    Some((of_events, events))
}

#[cfg(test)]
mod tests {
    use proxy_common::{protocol::Position, websocket::Frame};

    use super::*;

    fn entry(text: &[u8]) -> Entry {
        Entry {
            frame: Frame::new(text),
            position: Position::default(),
            time: 0,
            events: 1,
            notice: false,
        }
    }

    #[test]
    fn frames_are_joined_while_they_fit_and_counted_again() {
        let event = br#"[{"ev":"T","sym":"A"},{"ev":"T","sym":"B"}]"#;
        let notice = br#"[{"ev":"status","status":"gap","message":"m"}]"#;
        let entries = [entry(event), entry(notice), entry(event)];
        assert_eq!(joined(&entries), 3);
        assert_eq!(count(&payload(&entries)), Some((2, 4)));
        assert_eq!(count(&payload(&entries[1..2])), Some((0, 0)));
        assert_eq!(count(&Bytes::from_static(b"")), Some((0, 0)));
        assert_eq!(count(&Bytes::from_static(b"\x81\x05[]")), None, "cut off");
        assert_eq!(count(&Bytes::from_static(b"hello")), None);
        let long = entry(&vec![b' '; MAX_JOINED]);
        assert_eq!(joined(&[long.clone(), entry(event)]), 1);
        assert_eq!(joined(&[entry(event), long]), 1);
        assert_eq!(joined(&[]), 0);
    }
}
