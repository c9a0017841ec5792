//! What the end of an outage of the link still waits for, once the link is up again.

use std::time::Duration;

use proxy_common::protocol::Outage;
use tokio::time::Instant;

/// How long it waits for the firehose: first to say where the feed begins, then to answer for
/// contracts.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What the end of an outage waits for.
#[derive(Debug, Default)]
pub(super) enum OutageEnd {
    /// No outage is about to end.
    #[default]
    None,
    /// For everything that was missed. Until `start_due` it waits for the firehose to say where
    /// that begins.
    Missed { outage: Outage, start_due: Instant },
    /// For the firehose's answers for contracts, until `due`.
    Answers { outage: Outage, due: Instant, missed_nothing: bool },
}

impl OutageEnd {
    /// The link is up. `is_behind` says whether messages that were missed may come.
    pub(super) fn on_up(&mut self, outage: Outage, is_behind: bool, now: Instant) {
        let due = now + ANSWER_TIMEOUT;
        *self = match is_behind {
            true => Self::Missed { outage, start_due: due },
            false => Self::Answers { outage, due, missed_nothing: false },
        };
    }

    /// Everything that was missed has come, or will not. Returns the outage if its end has waited
    /// for it.
    pub(super) fn on_caught_up(&mut self, missed_nothing: bool, now: Instant) -> Option<Outage> {
        let Self::Missed { outage, .. } = self else { return None };
        let outage = outage.clone();
        let due = now + ANSWER_TIMEOUT;
        *self = Self::Answers { outage: outage.clone(), due, missed_nothing };
        Some(outage)
    }

    /// Ends the outage, if only answers are missing. Returns it, and whether nothing was missed.
    pub(super) fn end(&mut self) -> Option<(Outage, bool)> {
        let Self::Answers { outage, missed_nothing, .. } = self else { return None };
        let ended = (outage.clone(), *missed_nothing);
        *self = Self::None;
        Some(ended)
    }

    /// Whether it waits for what was missed.
    pub(super) fn waits_for_missed(&self) -> bool {
        matches!(self, Self::Missed { .. })
    }

    /// Until when it waits for the firehose to say where the feed begins.
    pub(super) fn start_due(&self) -> Option<Instant> {
        match self {
            Self::Missed { start_due, .. } => Some(*start_due),
            Self::None | Self::Answers { .. } => None,
        }
    }

    /// Until when it waits for answers.
    pub(super) fn answers_due(&self) -> Option<Instant> {
        match self {
            Self::Answers { due, .. } => Some(*due),
            Self::None | Self::Missed { .. } => None,
        }
    }
}
