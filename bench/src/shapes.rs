//! Frames and an index for measuring the code of the filtered proxy without sockets.

use filtered_proxy::index::Index;
use proxy_common::protocol::{Channel, Market};

use crate::{client::ClientPlan, feed::Feed};

/// The texts of the feed's frames, unchanged.
pub fn feed_shape(feed: &Feed) -> Vec<Vec<u8>> {
    (0..feed.frames()).map(|frame| feed.text(frame).to_vec()).collect()
}

/// The same events with their keys in any order and all kinds of white space between all parts.
///
/// # Panics
///
/// If a frame of the feed is not JSON.
pub fn any_shape(feed: &Feed) -> Vec<Vec<u8>> {
    let mut random = fastrand::Rng::with_seed(5);
    (0..feed.frames())
        .map(|frame| {
            let events: Vec<serde_json::Map<String, serde_json::Value>> =
                serde_json::from_slice(feed.text(frame)).expect("frames are JSON");
            let mut text = String::from(" [");
            for (i, event) in events.into_iter().enumerate() {
                text += if i == 0 { "\n" } else { " ,\r\n" };
                let mut members: Vec<_> = event.into_iter().collect();
                random.shuffle(&mut members);
                let members: Vec<String> =
                    members.iter().map(|(key, value)| format!("\t\"{key}\" : {value}")).collect();
                text += "{ ";
                text += &members.join(" , ");
                text += " }";
            }
            text += " ] ";
            text.into_bytes()
        })
        .collect()
}

/// This many prefixes of trades: one that gets events, and others that never do. With 1, 100 and
/// 10,000 of them, one, two and four lengths are in use; symbols have four letters.
pub fn prefixes(count: usize) -> String {
    let quiet = (1..count).map(|n| format!("T.Z{n}*"));
    let all: Vec<String> = std::iter::once("T.BAB*".to_owned()).chain(quiet).collect();
    all.join(",")
}

/// An index of sessions with these plans.
///
/// # Panics
///
/// If a plan names a channel that the market does not have.
pub fn index_of(clients: &[ClientPlan]) -> Index<usize> {
    let mut index = Index::default();
    for (i, client) in clients.iter().enumerate() {
        let channels = client.channels.split(',').map(|item| {
            Channel::parse(item, Market::Stocks).expect("plans name channels of the market")
        });
        index.join(i as u64, i);
        index.change(i as u64, channels, true);
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{feed::FRAME_EVENTS, scenario::s3};
    use filtered_proxy::split::{event::EventKind, split};

    #[test]
    fn both_shapes_hold_the_same_events_for_the_same_sessions() {
        let feed = Feed::new(FRAME_EVENTS);
        let index = index_of(&s3::clients(&feed, 100));
        let found = |frame: &[u8]| {
            let mut found = Vec::new();
            split(frame, |event| {
                let EventKind::Known(kind) = event.kind else { panic!("{:?}", event.kind) };
                index.lookup(kind, event.symbol, |cohort| found.push((kind, cohort)));
            });
            found
        };
        let shapes = feed_shape(&feed).into_iter().zip(any_shape(&feed));
        for (feed_shape, any_shape) in shapes.take(20) {
            let wanted = found(&feed_shape);
            assert_eq!(wanted.len(), FRAME_EVENTS);
            assert_eq!(wanted, found(&any_shape));
        }
    }
}
