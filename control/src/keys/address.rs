//! Where control may call for keys. A document names the address, and whoever writes documents must not make control call
//! what only control can reach (server-side request forgery): the machine itself, the cluster, the cloud's metadata.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A range of addresses, such as `10.96.0.0/12`; a bare address is a range of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    network: IpAddr,
    prefix: u8,
}

/// Never called unless a range of the command line says so (RFC 6890, and what leads into such networks by translation).
const SPECIAL: [(IpAddr, u8); 22] = [
    v4(0, 0, 0, 0, 8),
    v4(10, 0, 0, 0, 8),
    v4(100, 64, 0, 0, 10),
    v4(127, 0, 0, 0, 8),
    v4(169, 254, 0, 0, 16),
    v4(172, 16, 0, 0, 12),
    v4(192, 0, 0, 0, 24),
    v4(192, 0, 2, 0, 24),
    v4(192, 88, 99, 0, 24),
    v4(192, 168, 0, 0, 16),
    v4(198, 18, 0, 0, 15),
    v4(198, 51, 100, 0, 24),
    v4(203, 0, 113, 0, 24),
    // Multicast, reserved, and broadcast.
    v4(224, 0, 0, 0, 3),
    // Unspecified, loopback, and IPv4 in old forms.
    v6([0; 8], 96),
    // NAT64: its IPv4 part may be anything.
    v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96),
    v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48),
    v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64),
    // Teredo, ORCHID, documentation.
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23),
    v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32),
    // 6to4.
    v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16),
    // Unique local, link-local, site-local and multicast.
    v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 6),
];

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> (IpAddr, u8) {
    (IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix)
}

const fn v6(s: [u16; 8], prefix: u8) -> (IpAddr, u8) {
    let [a, b, c, d, e, f, g, h] = s;
    (IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h)), prefix)
}

/// How far an address is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Named on the command line: also without TLS.
    Allowed,
    /// Of the internet: over TLS.
    Public,
    /// Not to be called.
    Special,
}

/// Says how far `ip` is trusted.
pub(super) fn standing(ip: IpAddr, allowed: &[Cidr]) -> Standing {
    // ::ffff:10.0.0.1 is 10.0.0.1.
    let ip = ip.to_canonical();
    if allowed.iter().any(|cidr| cidr.contains(ip)) {
        Standing::Allowed
    } else if SPECIAL
        .into_iter()
        .any(|(network, prefix)| Cidr { network, prefix }.contains(ip))
    {
        Standing::Special
    } else {
        Standing::Public
    }
}

impl Cidr {
    fn contains(self, ip: IpAddr) -> bool {
        let bits = |ip: IpAddr| match ip {
            IpAddr::V4(v4) => u128::from(u32::from(v4)) << 96,
            IpAddr::V6(v6) => u128::from(v6),
        };
        let differ = bits(self.network) ^ bits(ip);
        self.network.is_ipv4() == ip.is_ipv4() && differ.leading_zeros() >= u32::from(self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is no range of addresses, such as 10.96.0.0/12");
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let network: IpAddr = address.parse().map_err(|_| bad())?;
        let most = if network.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => most,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().map_err(|_| bad())?,
            Some(_) => return Err(bad()),
        };
        if prefix > most {
            Err(bad())
        } else {
            Ok(Self { network, prefix })
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn t_ssrf_what_only_control_can_reach_is_not_called() {
        for ip in [
            "127.0.0.1",
            "127.1.2.3",
            "0.0.0.0",
            "10.96.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.100.100.200",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "fe80::1",
            "fd00:ec2::254",
            "fc00::1",
            "ff02::1",
        ] {
            assert_eq!(standing(ip.parse().unwrap(), &[]), Standing::Special, "{ip}");
        }
        for ip in ["1.1.1.1", "172.32.0.1", "2606:4700::1111", "::ffff:1.1.1.1"] {
            assert_eq!(standing(ip.parse().unwrap(), &[]), Standing::Public, "{ip}");
        }
    }

    #[test]
    fn a_range_of_the_command_line_is_what_it_says() {
        let allowed = ["10.96.0.0/12".parse().unwrap(), "::1".parse().unwrap()];
        assert_eq!(standing("10.96.0.1".parse().unwrap(), &allowed), Standing::Allowed);
        assert_eq!(
            standing("::ffff:10.100.0.1".parse().unwrap(), &allowed),
            Standing::Allowed
        );
        assert_eq!(standing("::1".parse().unwrap(), &allowed), Standing::Allowed);
        assert_eq!(standing("10.112.0.1".parse().unwrap(), &allowed), Standing::Special);
        for bad in [
            "",
            "10.0.0.0/33",
            "10.0.0/8",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "::/129",
            "sso.test",
        ] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }
}
