//! The sockets of clients: listeners, PROXY headers, TLS, and reads and writes that never wait.

mod certificate;
mod listener;
mod proxy_protocol;
mod socket;

pub use self::{
    certificate::Certificate,
    listener::{ListenConfig, Listeners, concerns_one_connection, prepare_accepted},
    proxy_protocol::read_header,
    socket::{EarlySocket, Socket, TlsStream, limit_early_bytes},
};
