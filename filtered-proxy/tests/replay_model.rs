//! Replays against a model: random frames, subscriptions, starts and sizes of the history. Together
//! with what the gap declares lost, a client gets exactly the events of the list.

mod cases;

use std::time::Instant;

use filtered_proxy::{
    coverage::KnownCoverage,
    replay::{Output, Part, Replay},
};
use proptest::{collection::vec, prelude::*};
use proxy_common::{
    history::{History, Lookup},
    protocol::{Channel, ChannelSet, Gone, Market, Position},
    websocket::Frame,
};

use self::cases::cases;

const EPOCH: u64 = 1_764_000_000_000_000;

/// An event: its kind, its symbol, and how much longer than usual it is.
type Event = (&'static str, &'static str, usize);

fn event() -> impl Strategy<Value = Event> {
    let kind = prop_oneof![Just("T"), Just("Q"), Just("A")];
    let symbol = prop_oneof![Just("A"), Just("AB"), Just("B")];
    (kind, symbol, prop_oneof![9 => Just(0_usize), 1 => 0..40_000_usize])
}

/// A frame of events, or a notice.
fn message() -> impl Strategy<Value = Vec<Event>> {
    prop_oneof![1 => Just(Vec::new()), 9 => vec(event(), 1..6)]
}

fn channels() -> impl Strategy<Value = Vec<&'static str>> {
    let channel = prop_oneof![
        Just("*"),
        Just("T.*"),
        Just("T.A"),
        Just("Q.A*"),
        Just("Q.B"),
        Just("A.AB"),
        Just("A.*"),
    ];
    vec(channel, 1..4)
}

/// Whether a channel includes an event, as the documents of the wire say.
fn includes(channel: &str, (kind, symbol, _): Event) -> bool {
    match channel.split_once('.') {
        None => true,
        Some((of_kind, name)) => {
            kind == of_kind
                && match name.strip_suffix('*') {
                    Some(prefix) => symbol.starts_with(prefix),
                    None => symbol == name,
                }
        }
    }
}

fn text((kind, symbol, padding): Event, number: usize) -> String {
    let padding = "x".repeat(padding);
    format!(r#"{{"ev":"{kind}","sym":"{symbol}","n":{number},"x":"{padding}"}}"#)
}

fn at(seq: usize) -> Position {
    Position { epoch: EPOCH, seq: seq as u64 }
}

fn parse(channels: &[&str]) -> Vec<Channel> {
    channels.iter().map(|item| Channel::parse(item, Market::Stocks).expect("a channel")).collect()
}

/// The stream, as the history keeps it and as a list of what came behind each position.
struct Stream {
    history: History,
    /// The events of each message, with their texts.
    messages: Vec<Vec<(Event, String)>>,
    /// For each notice, the position at which it stands, and its text.
    notices: Vec<(usize, String)>,
}

fn stream(frames: &[Vec<Event>], history_bytes: usize) -> Stream {
    let history = History::new(history_bytes);
    history.begin(at(0), 0);
    let (mut messages, mut notices, mut number) = (Vec::new(), Vec::new(), 0);
    for (n, frame) in frames.iter().enumerate() {
        let time = n as u64;
        if frame.is_empty() {
            let text = format!(r#"[{{"ev":"status","n":{n}}}]"#);
            history.push_notice(&Frame::new(text.as_bytes()), at(messages.len()));
            notices.push((messages.len(), text));
            continue;
        }
        let of = |event: &Event| {
            number += 1;
            (*event, text(*event, number))
        };
        let events: Vec<(Event, String)> = frame.iter().map(of).collect();
        let texts: Vec<&str> = events.iter().map(|(_, text)| &**text).collect();
        let whole = format!("[{}]", texts.join(","));
        let count = u32::try_from(texts.len()).expect("few events");
        messages.push(events);
        history.push(&Frame::new(whole.as_bytes()), count, at(messages.len()), time);
    }
    Stream { history, messages, notices }
}

/// All that a replay yields until it has come to the end.
fn replayed(replay: &mut Replay, history: &History) -> (Vec<String>, Vec<String>) {
    let (mut events, mut notices) = (Vec::new(), Vec::new());
    while replay.next() != history.end() {
        replay.step(history, u64::MAX, |output| match output {
            Output::Events(chunks) => {
                for chunk in chunks {
                    let array = [b"[", chunk.text(), b"]"].concat();
                    let objects: Vec<&serde_json::value::RawValue> =
                        serde_json::from_slice(&array).expect("an array");
                    assert_eq!(objects.len(), chunk.events() as usize);
                    events.extend(objects.iter().map(|object| object.get().to_owned()));
                }
            }
            Output::Notice(frame) => {
                notices.push(String::from_utf8(frame.text().to_vec()).expect("text"));
            }
        });
    }
    (events, notices)
}

fn short(texts: &[String]) -> Vec<String> {
    texts.iter().map(|text| text.chars().take(40).collect()).collect()
}

proptest! {
    #![proptest_config(cases("replay_model", 300))]

    /// From any position, with any history, after any number of events.
    #[test]
    fn a_client_gets_each_event_behind_its_position_once(
        frames in vec(message(), 0..60),
        held in channels(),
        bytes in prop_oneof![Just(usize::MAX), 1..200_000_usize],
        (after, skip) in (any::<prop::sample::Index>(), 0..9_u64),
    ) {
        let stream = stream(&frames, bytes);
        let after = after.index(stream.messages.len() + 1);
        let (from, gone) = match stream.history.find(at(after)) {
            Lookup::At(from) => (from, 0),
            Lookup::Gone(from, Gone::TooOld(Some(frames))) => (from, frames as usize),
            other => panic!("{other:?}"),
        };
        let (_, position, _) = stream.history.place(from);
        prop_assert_eq!(position, at(after + gone));
        let skip = if gone == 0 { skip } else { 0 };
        let mut replay = Replay::new(Market::Stocks, from, position, KnownCoverage::default(), Instant::now());
        let channels: ChannelSet = parse(&held).into_iter().collect();
        replay.add([Part::new(from, channels.clone()).without(skip, position, channels)]);
        let (events, notices) = replayed(&mut replay, &stream.history);
        let wanted = |event: Event| held.iter().any(|channel| includes(channel, event));
        let expected: Vec<String> = stream.messages[after + gone..]
            .iter()
            .flatten()
            .filter(|(event, _)| wanted(*event))
            .skip(skip as usize)
            .map(|(_, text)| text.clone())
            .collect();
        prop_assert!(events == expected, "{:?} instead of {:?}", short(&events), short(&expected));
        prop_assert_eq!(replay.position(), at(stream.messages.len()));
        let kept = stream.notices.iter().filter(|(position, _)| *position >= after + gone);
        let kept: Vec<String> = kept.map(|(_, text)| text.clone()).collect();
        // Of those at the first position that there is, some may be gone.
        prop_assert!(kept.ends_with(&notices), "{notices:?} of {kept:?}");
        prop_assert!(gone > 0 || notices == kept, "{notices:?} of {kept:?}");
    }

    /// Channels that begin at different places, some of them before the first.
    #[test]
    fn each_channel_begins_where_it_was_asked_for(
        frames in vec(message(), 1..60),
        parts in vec((channels(), any::<prop::sample::Index>()), 1..4),
    ) {
        let stream = stream(&frames, usize::MAX);
        let places: Vec<(Vec<&str>, usize)> = parts
            .into_iter()
            .map(|(channels, after)| (channels, after.index(stream.messages.len() + 1)))
            .collect();
        let entry = |after: usize| match stream.history.find(at(after)) {
            Lookup::At(from) => from,
            other => panic!("{other:?}"),
        };
        let coverage = KnownCoverage::default();
        let first = places.iter().map(|(_, after)| *after).min().expect("a part");
        let mut replay = Replay::new(Market::Stocks, entry(first), at(first), coverage, Instant::now());
        let part = |(channels, after): &(Vec<&str>, usize)| {
            Part::new(entry(*after), parse(channels).into_iter().collect::<ChannelSet>())
        };
        replay.add(places.iter().map(part));
        let (events, _) = replayed(&mut replay, &stream.history);
        let mut expected = Vec::new();
        for (n, message) in stream.messages.iter().enumerate() {
            let held = || places.iter().filter(|(_, after)| n >= *after).flat_map(|(held, _)| held);
            let wanted = message.iter().filter(|(e, _)| held().any(|channel| includes(channel, *e)));
            expected.extend(wanted.map(|(_, text)| text.clone()));
        }
        prop_assert!(events == expected, "{:?} instead of {:?}", short(&events), short(&expected));
    }

    /// Each part leaves out its own first events.
    #[test]
    fn each_part_counts_what_the_client_has_of_it(
        frames in vec(message(), 1..60),
        parts in vec((channels(), any::<prop::sample::Index>(), 0..12_u64), 1..4),
    ) {
        let stream = stream(&frames, usize::MAX);
        let count = stream.messages.len() + 1;
        let coverage = KnownCoverage::default();
        let first = parts.iter().map(|(_, after, _)| after.index(count)).min().expect("a part");
        let entry = |after: usize| match stream.history.find(at(after)) {
            Lookup::At(from) => from,
            other => panic!("{other:?}"),
        };
        let mut replay = Replay::new(Market::Stocks, entry(first), at(first), coverage, Instant::now());
        replay.add(parts.iter().map(|(channels, after, has)| {
            let after = after.index(count);
            let channels: ChannelSet = parse(channels).into_iter().collect();
            Part::new(entry(after), channels.clone()).without(*has, at(after), channels)
        }));
        let (events, _) = replayed(&mut replay, &stream.history);
        let mut has: Vec<u64> = parts.iter().map(|(.., has)| *has).collect();
        let mut expected = Vec::new();
        for (n, message) in stream.messages.iter().enumerate() {
            for (event, text) in message {
                let mut wanted = false;
                for ((channels, after, _), has) in parts.iter().zip(&mut has) {
                    if n >= after.index(count) && channels.iter().any(|c| includes(c, *event)) {
                        wanted |= *has == 0;
                        *has = has.saturating_sub(1);
                    }
                }
                if wanted {
                    expected.push(text.clone());
                }
            }
        }
        prop_assert!(events == expected, "{:?} instead of {:?}", short(&events), short(&expected));
        prop_assert_eq!(replay.is_skipping(), has.iter().any(|has| *has > 0));
    }

    /// Changes of subscriptions take effect where the replay stands.
    #[test]
    fn a_change_takes_effect_at_the_cursor(
        frames in vec(message(), 1..80),
        (held, added, removed) in (channels(), channels(), channels()),
        steps in 0..4_usize,
    ) {
        let stream = stream(&frames, usize::MAX);
        let mut replay = Replay::new(Market::Stocks, 0, at(0), KnownCoverage::default(), Instant::now());
        replay.add_next(parse(&held));
        let mut got = Vec::new();
        for _ in 0..steps {
            let mut events = 0;
            replay.step(&stream.history, u64::MAX, |output| {
                if let Output::Events(chunks) = output {
                    events += chunks.iter().map(|chunk| chunk.events()).sum::<u32>();
                }
            });
            got.push((events, replay.position().seq as usize));
        }
        let place = replay.position().seq as usize;
        replay.add_next(parse(&added));
        let gone = parse(&removed);
        replay.remove(&gone);
        let (events, _) = replayed(&mut replay, &stream.history);
        let kept: Vec<&str> =
            held.iter().chain(&added).filter(|channel| !removed.contains(channel)).copied().collect();
        let expected: Vec<String> = stream.messages[place..]
            .iter()
            .flatten()
            .filter(|(event, _)| kept.iter().any(|channel| includes(channel, *event)))
            .map(|(_, text)| text.clone())
            .collect();
        prop_assert!(events == expected, "{:?} instead of {:?}", short(&events), short(&expected));
        let before = stream.messages[..place].iter().flatten();
        let wanted = before.filter(|(e, _)| held.iter().any(|channel| includes(channel, *e)));
        let events_before: u32 = got.iter().map(|(events, _)| events).sum();
        prop_assert_eq!(events_before as usize, wanted.count());
    }
}
