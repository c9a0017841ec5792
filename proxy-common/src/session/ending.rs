//! The end of a session: what is queued leaves first, then the close frame, then the peer.

use std::time::Duration;

use tokio::{
    task::yield_now,
    time::{Instant, timeout},
};

use super::{
    close::CloseReason,
    config::SessionConfig,
    inbound::{ClientMessage, Inbound, discard},
    outbound::Outbound,
};
use crate::protocol::Status;

/// How long a client may take to answer our close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// When a session ends because the program stops.
#[derive(Debug, Clone, Copy)]
pub struct DrainSchedule {
    /// When the session is closed. Until then it is served as before.
    pub close_at: Instant,
    /// The same for a session that holds nothing yet, later than all others: the vendor's Python
    /// client forgets what it is about to subscribe to.
    pub close_at_if_empty: Instant,
    /// When what is still queued is given up.
    flush_deadline: Instant,
    /// When the session is over, whatever the client does.
    hard_deadline: Instant,
}

impl DrainSchedule {
    /// The schedule of a session in a program that stops now. `chance` is evenly spread over
    /// `0.0..1.0`.
    pub fn new(now: Instant, config: &SessionConfig, chance: f64) -> Self {
        // The rest is for ending the program.
        let whole = config.drain_timeout.mul_f64(0.95);
        let hard_deadline = now + whole;
        let spread = config.drain_spread.min(whole);
        Self {
            close_at: now + spread.mul_f64(chance),
            close_at_if_empty: now + spread,
            flush_deadline: hard_deadline - CLOSE_TIMEOUT.min(whole / 5),
            hard_deadline,
        }
    }
}

/// Ends a session as the reason demands: sends `closing_status` and the close frame, lets the peer
/// read what is queued, and waits for its close frame. Afterwards nothing more is sent.
pub async fn close_session(
    outbound: &Outbound,
    inbound: &mut Inbound,
    reason: CloseReason,
    closing_status: Option<&Status>,
    schedule: Option<&DrainSchedule>,
) {
    outbound.finish(reason, closing_status);
    if reason.frame().is_some() {
        let now = Instant::now();
        let (flush_deadline, hard_deadline) = match schedule {
            Some(schedule) => (schedule.flush_deadline, schedule.hard_deadline),
            None => (now + CLOSE_TIMEOUT, now + 2 * CLOSE_TIMEOUT),
        };
        if keep_writing(outbound, inbound, flush_deadline - now, Until::Written).await {
            let limit = CLOSE_TIMEOUT.min(hard_deadline - Instant::now());
            keep_writing(outbound, inbound, limit, Until::PeerClosed).await;
        }
    }
    outbound.abandon(reason);
}

/// The event that an ending session waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Everything is written.
    Written,
    /// The peer has closed.
    PeerClosed,
}

/// Keeps writing, and reads and drops commands, until the limit or `until`. Closing a socket with
/// unread input would reset the connection and could destroy the last data sent. Returns whether
/// the peer is still there.
pub async fn keep_writing(
    outbound: &Outbound,
    inbound: &mut Inbound,
    limit: Duration,
    until: Until,
) -> bool {
    let writing = async {
        loop {
            if until == Until::Written && outbound.is_idle() {
                return true;
            }
            tokio::select! {
                written = outbound.run_writer() => if written.is_err() { return false },
                message = inbound.next(outbound) => match message {
                    Ok(ClientMessage::Close) | Err(CloseReason::ClientGone) => return false,
                    Ok(_) => yield_now().await,
                    Err(_) => {
                        discard(outbound).await;
                        return false;
                    }
                },
            }
        }
    };
    timeout(limit, writing).await.unwrap_or(false)
}
