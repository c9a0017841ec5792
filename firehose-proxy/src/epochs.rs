//! How others ask the publisher of a market to begin a new epoch. Only the publisher writes into
//! the ring, so a new epoch begins between two of its messages.

use tokio::sync::{mpsc, oneshot};

/// How many requests may wait. Whoever asks waits for an answer, so there are few at a time; one
/// more waits for room.
const MAX_WAITING: usize = 4;

/// Asks the publisher of one market for a new epoch. Can be cloned.
#[derive(Debug, Clone)]
pub struct Epochs(mpsc::Sender<EpochRequest>);

/// The requests, for the publisher.
pub type EpochRequests = mpsc::Receiver<EpochRequest>;

/// One request.
#[derive(Debug)]
pub struct EpochRequest {
    /// The epoch to begin.
    pub epoch: u64,
    answer: oneshot::Sender<u64>,
}

impl Epochs {
    /// Somebody who asks, and the other end.
    pub fn new() -> (Self, EpochRequests) {
        let (requests, receiver) = mpsc::channel(MAX_WAITING);
        (Self(requests), receiver)
    }

    /// Begins this epoch. Does nothing if the current one is as late, since positions grow. Returns
    /// the epoch in force: everything published from now on belongs to it. `None` if the publisher
    /// has ended.
    ///
    /// Waits for the publisher, which never waits for anybody but may be given no time: set a
    /// deadline.
    pub async fn begin(&self, epoch: u64) -> Option<u64> {
        let (answer, answered) = oneshot::channel();
        self.0.send(EpochRequest { epoch, answer }).await.ok()?;
        answered.await.ok()
    }
}

impl EpochRequest {
    /// Answers with the epoch in force. Whoever asked may be gone.
    pub fn answer(self, in_force: u64) {
        let _ = self.answer.send(in_force);
    }
}
