//! Where a captured connection was meant to go, and whether an address is our own.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use socket2::SockRef;

/// Addresses of a host are few; more are asked about only by a scan.
const MAX_REMEMBERED: usize = 64;
/// Addresses come and go rarely.
const REMEMBERED_FOR: Duration = Duration::from_secs(30);

/// The destination before the kernel redirected the connection (conntrack's `SO_ORIGINAL_DST`). For a connection that was
/// not redirected this is the listener itself, or an error.
pub(crate) fn original_dst(socket: &TcpStream) -> io::Result<SocketAddr> {
    let reference = SockRef::from(socket);
    let address = if socket.local_addr()?.is_ipv4() {
        reference.original_dst_v4()?
    } else {
        reference.original_dst_v6()?
    };
    address
        .as_socket()
        .map(|address| SocketAddr::new(address.ip().to_canonical(), address.port()))
        .ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// Remembers for a while which addresses are this host's own.
#[derive(Debug, Default)]
pub(crate) struct OwnAddresses {
    known: HashMap<IpAddr, (bool, Instant)>,
}

impl OwnAddresses {
    /// Only an address of our own can be bound.
    pub(crate) fn contains(&mut self, ip: IpAddr, now: Instant) -> bool {
        if ip.is_loopback() {
            return true;
        }
        if let Some((own, until)) = self.known.get(&ip)
            && now < *until
        {
            return *own;
        }
        let own = !ip.is_unspecified() && !ip.is_multicast() && UdpSocket::bind((ip, 0)).is_ok();
        if self.known.len() >= MAX_REMEMBERED {
            self.known.clear();
        }
        self.known.insert(ip, (own, now + REMEMBERED_FOR));
        own
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn loopback_is_ours_and_documentation_addresses_are_not() {
        let mut own = OwnAddresses::default();
        let now = Instant::now();
        assert!(own.contains("127.0.0.1".parse().unwrap(), now));
        assert!(own.contains("::1".parse().unwrap(), now));
        for foreign in ["192.0.2.1", "2001:db8::1", "0.0.0.0", "224.0.0.1"] {
            assert!(!own.contains(foreign.parse().unwrap(), now), "{foreign}");
        }
    }

    #[test]
    fn what_is_remembered_of_addresses_is_bounded() {
        let mut own = OwnAddresses::default();
        for n in 0..u32::try_from(MAX_REMEMBERED).unwrap() + 1 {
            own.contains(std::net::Ipv4Addr::from(0xC000_0200 + n).into(), Instant::now());
        }
        assert!(own.known.len() <= MAX_REMEMBERED);
    }
}
