//! The PROXY protocol, versions 1 and 2: the header in which a load balancer names the client whose
//! bytes it passes on.

use std::{io, net::SocketAddr};

use proxy_header::{ParseConfig, ProxyHeader};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt};

/// The first bytes of a header of version 2.
const V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest header of version 2 accepted. Addresses need 52 bytes. The rest are extensions,
/// which we ignore.
const MAX_V2: usize = 4_096;
/// The longest line of version 1 (source: the specification).
const MAX_V1: usize = 107;

/// Why no header could be read from a connection.
#[derive(Debug, Error)]
pub enum BadHeader {
    /// The connection ended before the header did.
    #[error("no PROXY header: {0}")]
    Lost(#[from] io::Error),
    /// The bytes received are not a header.
    #[error("no PROXY header")]
    Malformed,
}

/// Reads a header and not a byte more. Returns the client's address, or `None` if the connection is
/// the proxy's own, such as a health check.
///
/// # Errors
///
/// There is no header, or it breaks the protocol.
pub async fn read_header(
    socket: &mut (impl AsyncRead + Unpin),
) -> Result<Option<SocketAddr>, BadHeader> {
    let mut header = vec![0; V2.len()];
    socket.read_exact(&mut header).await?;
    if header == V2 {
        header.resize(16, 0);
        socket.read_exact(&mut header[12..]).await?;
        let rest = usize::from(u16::from_be_bytes([header[14], header[15]]));
        if header.len() + rest > MAX_V2 {
            return Err(BadHeader::Malformed);
        }
        header.resize(16 + rest, 0);
        socket.read_exact(&mut header[16..]).await?;
    } else if header.starts_with(b"PROXY ") {
        // Byte by byte, because the bytes after the line belong to the next reader. This is
        // affordable once for each connection.
        while !header.ends_with(b"\r\n") {
            if header.len() == MAX_V1 {
                return Err(BadHeader::Malformed);
            }
            header.push(socket.read_u8().await?);
        }
    } else {
        return Err(BadHeader::Malformed);
    }
    match ProxyHeader::parse(&header, ParseConfig::default()) {
        Ok((parsed, length)) if length == header.len() => {
            Ok(parsed.proxied_address().map(|address| address.source))
        }
        Ok(_) | Err(_) => Err(BadHeader::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a header from these bytes. Returns it, and how many bytes are left.
    async fn read(mut bytes: &[u8]) -> (Result<Option<SocketAddr>, BadHeader>, usize) {
        let header = read_header(&mut bytes).await;
        (header, bytes.len())
    }

    /// A header of version 2, written out by hand: version and command, family, payload.
    fn v2(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [&V2[..], &[command, family], &length, payload].concat()
    }

    const IPV4: [u8; 12] = [203, 0, 113, 7, 127, 0, 0, 1, 0x12, 0x67, 0x22, 0x3d];

    #[tokio::test]
    async fn both_versions_name_the_client_and_leave_the_rest() {
        let client: SocketAddr = "203.0.113.7:4711".parse().unwrap();
        let with_extension = [&IPV4[..], &[0x04, 0, 2, 0, 0]].concat();
        for header in [
            v2(0x21, 0x11, &IPV4),
            v2(0x21, 0x11, &with_extension),
            b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 8765\r\n".to_vec(),
        ] {
            let (read, left) = read(&[&header[..], b"GET /"].concat()).await;
            assert_eq!(read.unwrap(), Some(client), "{header:?}");
            assert_eq!(left, 5);
        }
        let (read, _) = read(b"PROXY TCP6 2001:db8::7 ::1 4711 8765\r\n").await;
        assert_eq!(read.unwrap(), Some("[2001:db8::7]:4711".parse().unwrap()));
    }

    #[tokio::test]
    async fn a_proxys_own_connections_name_no_client() {
        for header in [v2(0x20, 0x00, &[]), b"PROXY UNKNOWN\r\n".to_vec()] {
            let (read, left) = read(&header).await;
            assert_eq!(read.unwrap(), None, "{header:?}");
            assert_eq!(left, 0);
        }
    }

    #[tokio::test]
    async fn anything_else_is_refused() {
        let long = [&V2[..], &[0x21, 0x11, 0xff, 0xff]].concat();
        for bad in [
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.7 127.0.0.1 4711\r\n".to_vec(),
            b"PROXY TCP4 nonsense 127.0.0.1 4711 8765\r\n".to_vec(),
            [b"PROXY TCP4 ".as_slice(), &[b'1'; 200], b"\r\n"].concat(),
            v2(0x31, 0x11, &IPV4),
            v2(0x2f, 0x11, &IPV4),
            v2(0x21, 0x11, &IPV4[..4]),
            [long, vec![0; 70_000]].concat(),
        ] {
            assert!(matches!(read(&bad).await.0, Err(BadHeader::Malformed)), "{bad:?}");
        }
        for short in
            [&b""[..], b"PROXY", b"PROXY TCP4 203.0.113.7", &V2[..], &v2(0x21, 0x11, &IPV4)[..20]]
        {
            assert!(matches!(read(short).await.0, Err(BadHeader::Lost(_))), "{short:?}");
        }
    }
}
