//! Why a connection to an upstream, or an attempt at one, ended.

use std::time::Duration;

use thiserror::Error;

use crate::protocol::Position;

/// Why a connection or an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LinkError {
    /// No connection, no TLS, or no upgrade.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// No upgrade, and a time before which the upstream takes no other attempt.
    #[error("unreachable: {0}, try again in {time}", time = humantime::format_duration(*.1))]
    TryLater(String, Duration),
    /// A step of the login took too long.
    #[error("no {0} in time")]
    Timeout(&'static str),
    /// The upstream refused the key or the plan; the text is the upstream's.
    #[error("auth_failed: {0}")]
    AuthFailed(String),
    /// Another process took the account's connection; the text is the upstream's.
    #[error("max_connections: another process uses this account's connection: {0}")]
    MaxConnections(String),
    /// The upstream gave an unexpected answer.
    #[error("unexpected answer: {0}")]
    Protocol(String),
    /// The firehose and this link count its messages differently. That is a fault of ours.
    #[error("positions differ: counted {}, told {said}", counted.unwrap_or_default())]
    Positions {
        /// Where the feed stands by our count.
        counted: Option<Position>,
        /// Where it stands by the firehose's.
        said: Position,
    },
    /// Nothing arrived during two pings: the connection is half-open.
    #[error("half-open connection: nothing received during two pings")]
    Silent,
    /// The upstream closed with code 1008 and without a word.
    #[error("connection lost: closed with code 1008 and without a reason")]
    ClosedByPolicy,
    /// The connection ended.
    #[error("connection lost: {0}")]
    Closed(String),
    /// Another program may dial, and this one may not.
    #[error("{0}")]
    Standby(String),
}

impl LinkError {
    /// Every value of [`label`](Self::label).
    pub const LABELS: [&str; 9] = [
        "unreachable",
        "timeout",
        "auth_failed",
        "max_connections",
        "protocol",
        "silent",
        "closed",
        "positions",
        "standby",
    ];

    /// What the operator can do.
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "check that the upstream runs and that its URL is right",
            Self::TryLater(..) => "the upstream asked for this pause",
            Self::Timeout(_) => "check the network and the upstream",
            Self::AuthFailed(_) => {
                "correct the key or the plan, and restart or send SIGHUP to try again now"
            }
            Self::MaxConnections(_) => {
                "stop the other process that uses this key, and send SIGHUP to try again now"
            }
            Self::Protocol(_) => "check that the URL leads to Polygon, Massive or a firehose",
            Self::Positions { .. } => {
                "report this fault; the link starts anew, and what it may have missed is announced"
            }
            Self::Standby(_) => "nothing: the link waits until this program may dial",
            Self::Silent | Self::ClosedByPolicy | Self::Closed(_) => {
                "the link tries again by itself"
            }
        }
    }

    /// The value of the metric label `reason`.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Unreachable(_) | Self::TryLater(..) => Self::LABELS[0],
            Self::Timeout(_) => Self::LABELS[1],
            Self::AuthFailed(_) => Self::LABELS[2],
            Self::MaxConnections(_) => Self::LABELS[3],
            Self::Protocol(_) => Self::LABELS[4],
            Self::Silent => Self::LABELS[5],
            Self::ClosedByPolicy | Self::Closed(_) => Self::LABELS[6],
            Self::Positions { .. } => Self::LABELS[7],
            Self::Standby(_) => Self::LABELS[8],
        }
    }
}
