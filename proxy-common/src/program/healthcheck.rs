//! The subcommand `healthcheck`: asks the program that runs beside it whether it is alive. Images
//! of the programs hold nothing else that could ask.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs},
    process::ExitCode,
    time::Duration,
};

use super::wiring::ServerConfig;
use crate::transport::ListenConfig;

/// Most time for each step of a question.
const STEP: Duration = Duration::from_secs(2);
/// The start of the answer of a program that is alive.
const ALIVE: &[u8] = b"HTTP/1.1 200 ";

/// Asks the program with these settings for `/livez`, on its admin port if it has one. The code is
/// 0 if it is alive. Otherwise it is 1, and a line on standard error says why.
#[expect(clippy::print_stderr, reason = "the reason, for the service that asks")]
pub(super) fn run(config: &ServerConfig) -> ExitCode {
    let alive = match &config.admin {
        Some(admin) => ask(admin),
        None if config.certificate.is_some() => {
            Err(io::Error::other("a port that speaks TLS cannot be asked: set ADMIN_PORT"))
        }
        None => ask(&config.listen),
    };
    match alive {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("not alive: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Asks at each address of the host, until one answers that the program is alive.
fn ask(port: &ListenConfig) -> io::Result<()> {
    let mut last = io::Error::other("the host has no address");
    for address in (port.host.as_str(), port.port).to_socket_addrs()?.map(reachable) {
        match ask_at(address) {
            Ok(()) => return Ok(()),
            Err(error) => last = io::Error::other(format!("{address}: {error}")),
        }
    }
    Err(last)
}

/// The address at which a program of this machine is reached that listens on `address`.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    address
}

fn ask_at(address: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, STEP)?;
    stream.set_read_timeout(Some(STEP))?;
    stream.set_write_timeout(Some(STEP))?;
    write!(stream, "GET /livez HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = [0; ALIVE.len()];
    stream.read_exact(&mut answer)?;
    if answer == ALIVE {
        return Ok(());
    }
    Err(io::Error::other(format!("answered {:?}", String::from_utf8_lossy(&answer))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_on_all_addresses_is_asked_on_loopback() {
        for (listens, asked) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:2", "[::1]:2"),
            ("127.0.0.9:3", "127.0.0.9:3"),
            ("10.0.0.1:4", "10.0.0.1:4"),
        ] {
            let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
            assert_eq!(reachable(address(listens)), address(asked));
        }
    }
}
