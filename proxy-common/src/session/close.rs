//! Close reasons: why a session ended, and the close code, text, metric label and log level of
//! each.

use crate::{access::Abuse, named_enum::named_enum, websocket::Violation};

named_enum! {
    /// Every way in which a session ends.
    ///
    /// No code is 1000 or 1001: the vendor's Python client takes those as "finished for good" and
    /// stops silently (read in its source).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub enum CloseReason by
    /// The value of the metric label `reason`.
    label {
        /// The client closed, or its connection ended.
        ClientGone = "client_gone",
        /// The client broke the WebSocket protocol.
        Protocol = "protocol",
        /// The client sent a text message that is not UTF-8.
        NotText = "not_text",
        /// The client sent a message longer than the limit.
        TooBig = "too_big",
        /// No valid key came in time.
        AuthTimeout = "auth_timeout",
        /// The key was wrong.
        AuthFailed = "auth_failed",
        /// The key is for other markets.
        MarketRefused = "market_refused",
        /// The key was removed from the file of keys, or its limits there have changed.
        KeyRevoked = "key_revoked",
        /// The client read more slowly than its data came.
        SlowConsumer = "slow_consumer",
        /// The client sent nothing, not even a pong, for three ping intervals.
        Silent = "silent",
        /// The client sent pings without reading the pongs.
        ControlFlood = "control_flood",
        /// The client connected again under the session's name.
        TakenOver = "taken_over",
        /// This program is about to stop or restart.
        Drain = "drain",
        /// A fault of this program.
        Internal = "internal",
    }
}

impl From<Violation> for CloseReason {
    fn from(violation: Violation) -> Self {
        match violation {
            Violation::Protocol(_) => Self::Protocol,
            Violation::TooBig(_) => Self::TooBig,
        }
    }
}

/// The content of a close frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloseFrame {
    /// The WebSocket close code.
    pub code: u16,
    /// The reason as text, at most 123 bytes.
    pub text: &'static str,
}

impl CloseReason {
    /// The close frame to send. `None` if the peer has left already.
    pub const fn frame(self) -> Option<CloseFrame> {
        self.row().frame
    }

    /// Whether data still queued is written before the close frame. False for peers that do not
    /// read, or that may not read any more.
    pub const fn flushes(self) -> bool {
        self.row().flushes
    }

    /// The abuse for which the session was closed, if it was.
    pub const fn abuse(self) -> Option<Abuse> {
        self.row().abuse
    }

    /// Whether the log line is a warning for the operator. The other ends are routine, and abuse
    /// has its own log lines.
    pub const fn is_notable(self) -> bool {
        matches!(self, Self::SlowConsumer | Self::Internal)
    }

    /// The table.
    const fn row(self) -> Row {
        use Abuse as A;
        match self {
            Self::ClientGone => Row { frame: None, flushes: false, abuse: None },
            Self::Protocol => row(1002, "protocol error", true, Some(A::Protocol)),
            Self::NotText => row(1007, "text that is not UTF-8", true, Some(A::Protocol)),
            Self::TooBig => row(1009, "message too big", true, Some(A::TooBig)),
            Self::AuthTimeout => row(1008, "authentication timeout", true, Some(A::AuthTimeout)),
            Self::AuthFailed => row(1008, "authentication failed", true, Some(A::AuthFailed)),
            Self::MarketRefused => row(1008, "authentication failed", true, Some(A::MarketRefused)),
            Self::KeyRevoked => row(1008, "key revoked", false, None),
            Self::SlowConsumer => row(1008, "slow consumer", false, None),
            Self::Silent => row(1008, "no answer to pings", false, None),
            Self::ControlFlood => row(1008, "answers are not read", false, Some(A::ControlFlood)),
            Self::TakenOver => row(1008, "another connection took over this session", false, None),
            Self::Drain => row(1012, "service restart", true, None),
            Self::Internal => row(1011, "internal error", false, None),
        }
    }
}

/// How a session ends for a reason.
struct Row {
    frame: Option<CloseFrame>,
    flushes: bool,
    abuse: Option<Abuse>,
}

const fn row(code: u16, text: &'static str, flushes: bool, abuse: Option<Abuse>) -> Row {
    Row { frame: Some(CloseFrame { code, text }), flushes, abuse }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_close_code_keeps_a_client_from_coming_back() {
        for &reason in CloseReason::ALL {
            if let Some(frame) = reason.frame() {
                assert!(!matches!(frame.code, 1000 | 1001), "{reason:?}");
                assert!(frame.text.len() <= 123);
            }
        }
    }

    #[test]
    fn each_reason_ends_a_session_in_its_way() {
        let rows = CloseReason::ALL.iter().map(|reason| {
            let code = reason.frame().map_or(0, |frame| frame.code);
            (reason.label(), code, reason.flushes(), reason.is_notable())
        });
        let expected = [
            ("client_gone", 0, false, false),
            ("protocol", 1002, true, false),
            ("not_text", 1007, true, false),
            ("too_big", 1009, true, false),
            ("auth_timeout", 1008, true, false),
            ("auth_failed", 1008, true, false),
            ("market_refused", 1008, true, false),
            ("key_revoked", 1008, false, false),
            ("slow_consumer", 1008, false, true),
            ("silent", 1008, false, false),
            ("control_flood", 1008, false, false),
            ("taken_over", 1008, false, false),
            ("drain", 1012, true, false),
            ("internal", 1011, false, true),
        ];
        assert_eq!(rows.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn labels_are_distinct() {
        let labels: std::collections::BTreeSet<_> =
            CloseReason::ALL.iter().map(|reason| reason.label()).collect();
        assert_eq!(labels.len(), CloseReason::ALL.len());
    }
}
