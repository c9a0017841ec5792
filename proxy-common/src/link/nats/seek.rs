//! Finds where in the stream a session begins.

use super::{
    follow::{Begin, Message, Reached, reached_behind},
    stream::{Failure, Stream},
};
use crate::protocol::{Gone, Position, Start};

/// Finds where a session begins that starts so. `last` is the last message that an earlier session
/// took. `None` if the stream holds no state: no firehose has used it yet.
pub(super) async fn seek(
    stream: &Stream,
    start: Start,
    marks: bool,
    last: Option<Message>,
) -> Result<Option<Begin>, Failure> {
    let Some(state) = stream.last_state().await? else { return Ok(None) };
    let at_state = |state: Message| {
        let reached = reached_behind(&state);
        let (time, next) = (state.head.time, state.seq + 1);
        Begin { marks, reached, gone: None, time, next, passes: false, state }
    };
    let begin = match start {
        Start::Live | Start::Since(_) | Start::Newest(0) => at_state(state),
        Start::Newest(bytes) => {
            let extent = stream.info().await?.state;
            let each = (extent.bytes / extent.messages.max(1)).max(1);
            let first = state.seq.saturating_sub(bytes / each).max(extent.first_seq);
            match stream.at_or_after(first).await? {
                Some(first) if first.seq <= state.seq => from(&first, marks, state),
                _ => at_state(state),
            }
        }
        Start::From(position, _) => match last {
            Some(last) if is_there(stream, &last, position).await? => {
                let reached = reached_behind(&last);
                let (time, next) = (last.head.time, last.seq + 1);
                Begin { marks, reached, gone: None, time, next, passes: false, state }
            }
            _ => search(stream, position, marks, state).await?,
        },
    };
    Ok(Some(begin))
}

/// With this message, and all that it holds.
fn from(first: &Message, marks: bool, state: Message) -> Begin {
    let head = &first.head;
    let reached = Reached { position: head.position, events: Some(head.events + head.lost) };
    let (time, next) = (head.time, first.seq);
    Begin { marks, reached, gone: None, time, next, passes: false, state }
}

/// Whether the stream still holds this message, and the feed stands at this position behind it.
async fn is_there(stream: &Stream, last: &Message, position: Position) -> Result<bool, Failure> {
    if reached_behind(last).position != position {
        return Ok(false);
    }
    let found = stream.at_or_after(last.seq).await?;
    Ok(found.is_some_and(|found| found.seq == last.seq && found.head == last.head))
}

/// Searches a position. Positions grow with the stream.
async fn search(
    stream: &Stream,
    position: Position,
    marks: bool,
    state: Message,
) -> Result<Begin, Failure> {
    let extent = stream.info().await?.state;
    let first = stream.at_or_after(extent.first_seq).await?.unwrap_or_else(|| state.clone());
    if first.head.position > position {
        let known = first.head.position;
        let gone = match known.epoch == position.epoch {
            true => Gone::TooOld(Some(known.seq - position.seq)),
            false => Gone::OtherEpoch,
        };
        return Ok(Begin { gone: Some((gone, position)), ..from(&first, marks, state) });
    }
    if state.head.position.epoch < position.epoch {
        let reached = reached_behind(&state);
        let (time, next, gone) = (state.head.time, state.seq + 1, Gone::OtherEpoch);
        let gone = Some((gone, position));
        return Ok(Begin { marks, reached, gone, time, next, passes: false, state });
    }
    // The last message that begins before the position, so that no notice there is missed.
    let (mut begin, mut end) = (first, extent.last_seq);
    while begin.seq < end {
        let middle = begin.seq + (end - begin.seq).div_ceil(2);
        match stream.at_or_after(middle).await? {
            Some(found) if found.seq <= end && found.head.position < position => begin = found,
            _ => end = middle - 1,
        }
    }
    let reached = Reached { position, events: None };
    let (time, next) = (begin.head.time, begin.seq);
    Ok(Begin { marks, reached, gone: None, time, next, passes: true, state })
}
