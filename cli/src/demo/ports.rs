//! Free loopback ports for programs that must know them before they start.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// Below the ports that Linux gives to outgoing connections (32768 and up), so that none of our own connections takes
/// a port between the moment it is found free and the moment that its program binds it.
const RANGE: std::ops::Range<u16> = 18_000..32_000;
/// Attempts before we believe that the machine has no free port.
const ATTEMPTS: usize = 1_000;

/// `N` distinct ports that nobody listens on now.
pub(super) fn free<const N: usize>() -> io::Result<[u16; N]> {
    // Held until all are found: no port is found twice.
    let mut held = Vec::with_capacity(N);
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = one()?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}

fn one() -> io::Result<TcpListener> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..ATTEMPTS {
        let port = fastrand::u16(RANGE);
        match TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ports_are_distinct_and_can_be_bound() {
        let ports = free::<6>().unwrap();
        for (i, port) in ports.iter().enumerate() {
            assert!(RANGE.contains(port));
            assert!(!ports[..i].contains(port));
            TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).unwrap();
        }
    }
}
