//! The writer's way back to the end of the stream, after a disturbance or at the beginning.

use proxy_common::{
    history::{History, Lookup},
    nats::Head,
    protocol::Position,
};
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::{
    connection::{Connection, Outgoing, Reply, TIMEOUT},
    payload::count,
    stream::NO_ANSWER,
    window::{Decision, From, OPENING, Progress, Subject, Tail, Window, decide},
    writer::{Trouble, Writer},
};

impl Writer {
    /// Looks at the end of the stream, and goes on from there.
    pub(super) async fn resume(
        &mut self,
        connection: &mut Connection,
        epoch: u64,
        window: &mut Option<Window>,
    ) -> Result<(), Trouble> {
        connection.begin_pass()?;
        let (tail, remarks) = connection.stream.tail().await?;
        self.status.remark(remarks);
        match decide(epoch, &tail, window.as_ref()) {
            Decision::Fenced(later) => Err(Trouble::Fenced(later)),
            Decision::GoOn(seq) => {
                let Some(window) = window else { return Ok(()) };
                self.on_stored(epoch, window, seq);
                let last = window.next_seq() - 1;
                for sent in window.sent() {
                    let asks = self.asks(sent.seq == last);
                    connection.publish(sent.outgoing(asks)).await?;
                }
                self.waiting_since = Instant::now();
                Ok(())
            }
            Decision::Open(from) => {
                let progress = self.start(connection, epoch, from, &tail, window.as_ref()).await?;
                let under_way =
                    window.as_ref().map_or(0, |window| window.next_seq().saturating_sub(tail.seq));
                let count = (under_way as usize).clamp(OPENING, 4 * OPENING);
                let end = tail.end();
                *window = Some(self.open(connection, epoch, progress, end, count).await?);
                Ok(())
            }
        }
    }

    /// Where to go on in the history.
    async fn start(
        &self,
        connection: &Connection,
        epoch: u64,
        from: From,
        tail: &Tail,
        window: Option<&Window>,
    ) -> Result<Progress, Trouble> {
        let history = self.parts.shared.ring.history();
        match from {
            From::Progress(progress) => return Ok(progress),
            From::Message(seq, head) => return behind(connection, history, seq, head).await,
            From::OwnLast => {
                if let Some(progress) = own_last(connection, tail, window).await? {
                    return Ok(progress);
                }
                let own = tail.data.and_then(|last| Some((last.seq, last.head?)));
                if let Some((seq, head)) = own
                    && head.position.epoch == epoch
                {
                    return behind(connection, history, seq, head).await;
                }
            }
            From::Beginning => {}
        }
        let (current, entry) = self.parts.shared.ring.epoch();
        if current != epoch {
            return Err("the feed has yet to begin its epoch".to_owned().into());
        }
        Ok(Progress { entry, position: Position { epoch, seq: 0 }, ..Progress::default() })
    }

    /// Opens the epoch behind `end` with states that are stored in any case: nothing that is under
    /// way fits any more behind them.
    async fn open(
        &mut self,
        connection: &mut Connection,
        epoch: u64,
        progress: Progress,
        end: u64,
        count: usize,
    ) -> Result<Window, Trouble> {
        let state = self.states.take(&self.parts.shared, &self.parts.wake);
        self.states.on_opening(&state);
        let head = progress.head(progress.time);
        for n in 1..=count {
            let message = Outgoing {
                subject: Subject::State,
                head: &head,
                payload: &state.frames,
                expected: None,
                asks: n == count,
            };
            connection.publish(message).await?;
        }
        match timeout(TIMEOUT, connection.replies.next()).await {
            // What came between may be ours, and then it is not known yet where to go on.
            Ok(Reply::Stored(seq)) if seq != end + count as u64 => Err(Trouble::Moved),
            Ok(Reply::Stored(seq)) => {
                debug!(epoch, seq, "opened the epoch in the stream");
                self.status.is_up(epoch);
                Ok(Window::new(seq, head, progress))
            }
            Ok(Reply::Moved) => Err(Trouble::Moved),
            Ok(Reply::Refused(reason)) => Err(reason.into()),
            Err(_) => Err(NO_ANSWER.to_owned().into()),
        }
    }
}

/// Where the history goes on behind this message of ours.
async fn behind(
    connection: &Connection,
    history: &History,
    seq: u64,
    head: Head,
) -> Result<Progress, Trouble> {
    let message = connection.stream.message(seq).await?;
    let message = message.ok_or_else(|| format!("message {seq} has just gone"))?;
    let (frames, events) =
        count(&message.payload).ok_or_else(|| format!("message {seq} is none of a firehose's"))?;
    let position = Position { seq: head.position.seq + frames, ..head.position };
    let entry = match history.find(position) {
        Lookup::At(entry) => entry,
        // One that is gone: the counts of what is lost follow from the positions.
        Lookup::Gone(first, _) => first.saturating_sub(1),
        Lookup::Ahead => {
            return Err(format!("the stream is ahead of the feed, at {position}").into());
        }
    };
    let (events, lost) = (head.events + events, head.lost);
    Ok(Progress { entry, position, events, lost, time: head.time })
}

/// Where the writer stands behind the last message of the window that is in the stream, if one is.
async fn own_last(
    connection: &Connection,
    tail: &Tail,
    window: Option<&Window>,
) -> Result<Option<Progress>, Trouble> {
    let Some(window) = window else { return Ok(None) };
    let sent = window.sent().rev().map(|sent| sent.seq);
    for seq in sent.chain([window.stored().0]).filter(|seq| *seq <= tail.seq) {
        let message = connection.stream.message(seq).await?;
        let head = message.and_then(|message| message.head);
        if let Some(progress) = head.and_then(|head| window.after(seq, &head)) {
            return Ok(Some(progress));
        }
    }
    Ok(None)
}
