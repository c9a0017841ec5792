//! A link that sends back what comes, in place of logging in. What connects, reads, answers and writes is what does so in every
//! link, and can so be put to the test of the Autobahn cases; no tier has links of this kind.

use super::{LinkConfig, LinkError, client_socket::Message, login};

/// Connects, sends back every message until the upstream closes, and yields the last text that came.
///
/// # Errors
///
/// There was no connection, or it ended otherwise than by a close frame of the upstream.
pub async fn echo(config: &LinkConfig) -> Result<String, LinkError> {
    let mut socket = login::connect(config).await?;
    let mut last = String::new();
    loop {
        match socket.next().await.map_err(|error| LinkError::Closed(error.to_string()))? {
            // A link passes over what is no text.
            Message::Text(frame) => {
                if let Ok(text) = str::from_utf8(frame.text()) {
                    text.clone_into(&mut last);
                    socket.send_text(text);
                }
            }
            Message::Binary(payload) => socket.send_binary(&payload),
            Message::Control => {}
            Message::Close(_) => return Ok(last),
        }
    }
}
