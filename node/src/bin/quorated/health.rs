//! Asks a node's own HTTP listener how it is, for whoever watches over it and has no other means to ask.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 4096;

/// Whether the answer is a good one, and what it says.
///
/// # Errors
///
/// If nobody listens, nobody answers in time, or it is no HTTP.
pub(crate) fn ask(listener: SocketAddr, path: &str, timeout: Duration) -> io::Result<(bool, String)> {
    let late = Instant::now() + timeout;
    let mut stream = TcpStream::connect_timeout(&reachable(listener), timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {listener}\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut part = [0; 512];
    let mut limited = stream.take(ANSWER_BYTES_MAX);
    loop {
        match limited.read(&mut part) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&part[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(error) => return Err(error),
        }
        if Instant::now() >= late {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    parsed(&String::from_utf8_lossy(&answer))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is no HTTP"))
}

/// Where a listener of all addresses can be reached.
fn reachable(listener: SocketAddr) -> SocketAddr {
    let address = match listener.ip() {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    };
    SocketAddr::new(address, listener.port())
}

fn parsed(answer: &str) -> Option<(bool, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let mut status = head.lines().next()?.split(' ');
    let is_http = status.next()?.starts_with("HTTP/1.");
    let code: u16 = status.next()?.parse().ok()?;
    is_http.then(|| (code == 200, body.trim_end().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_by_their_status() {
        let (no, yes) = (
            "HTTP/1.1 503 Service Unavailable\r\nx: y\r\n\r\nno document\n",
            "HTTP/1.0 200 OK\r\n\r\nready\n",
        );
        assert_eq!(parsed(no), Some((false, "no document".to_owned())));
        assert_eq!(parsed(yes), Some((true, "ready".to_owned())));
        for nonsense in ["", "HTTP/1.1 200 OK\r\n", "SSH-2.0 200 OK\r\n\r\n", "HTTP/1.1 ok\r\n\r\n"] {
            assert_eq!(parsed(nonsense), None, "{nonsense:?}");
        }
    }

    #[test]
    fn a_listener_of_all_addresses_is_asked_on_the_loopback() {
        let reached = |listener: &str| reachable(listener.parse().unwrap()).to_string();
        assert_eq!(reached("0.0.0.0:7500"), "127.0.0.1:7500");
        assert_eq!(reached("[::]:7500"), "[::1]:7500");
        assert_eq!(reached("10.1.2.3:7500"), "10.1.2.3:7500");
    }
}
