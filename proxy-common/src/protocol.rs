//! The vendor's protocol: markets, channels, commands and statuses. Our own notices are here too.

mod channel;
mod channel_set;
mod coverage;
mod demux;
mod feed;
mod hint;
mod kind;
mod market;
mod messages;
mod notice;
mod position;

pub use self::{
    channel::{Channel, ChannelError, ExtraKinds, MAX_SYMBOL_BYTES, channel_items},
    channel_set::ChannelSet,
    coverage::{Coverage, Unavailable, newly_unavailable, summarize_channels, truncate_reason},
    demux::{Demuxed, FrameStatus, NotAnArray, demux, elements},
    feed::Feed,
    hint::hint,
    kind::{Kind, SymbolField},
    market::{Market, without_separator},
    messages::{
        Command, CommandError, Items, MAX_MESSAGE_BYTES, OnBehalfOf, Status, UpstreamStatus,
        command_text, object_frames, refused_contract, status_frame, status_frames, subscribe_text,
    },
    notice::{Gone, Notice, NoticePolicy, Outage, TierName, millis},
    position::{MarkKind, Position, PositionMark, Start, gap_begins},
};
