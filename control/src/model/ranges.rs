//! The addresses that control answers for: a proxy asks once about each that an app dials, and passes others through.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Model;

/// Addresses that begin alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Range {
    pub(crate) ip: IpAddr,
    pub(crate) prefix: u8,
}

/// Where clusters have their pods and Services (RFC 1918, RFC 6598, RFC 4193). The list is fixed, so that a pod that is new
/// is asked about, and not passed by because its proxy's list is a moment old.
const OF_CLUSTERS: [Range; 5] = [
    Range::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)), 8),
    Range::new(IpAddr::V4(Ipv4Addr::new(100, 64, 0, 0)), 10),
    Range::new(IpAddr::V4(Ipv4Addr::new(172, 16, 0, 0)), 12),
    Range::new(IpAddr::V4(Ipv4Addr::new(192, 168, 0, 0)), 16),
    Range::new(IpAddr::V6(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0)), 7),
];

impl Range {
    const fn new(ip: IpAddr, prefix: u8) -> Self {
        Self { ip, prefix }
    }

    fn of_one(ip: IpAddr) -> Self {
        Self::new(ip, if ip.is_ipv4() { 32 } else { 128 })
    }

    fn contains(&self, ip: IpAddr) -> bool {
        match (self.ip, ip) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                net.to_bits() & mask == ip.to_bits() & mask
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                net.to_bits() & mask == ip.to_bits() & mask
            }
            _ => false,
        }
    }
}

impl Model {
    /// Of a directory: exactly the addresses that its documents name. Of a cluster: the usual ranges, and what lies outside.
    pub(super) fn all_ranges(&self) -> Vec<Range> {
        let usual: &[Range] = if self.cluster { &OF_CLUSTERS } else { &[] };
        let others = self
            .addresses()
            .filter(|ip| !usual.iter().any(|range| range.contains(*ip)));
        let mut ranges: Vec<Range> = others.map(Range::of_one).chain(usual.iter().copied()).collect();
        ranges.sort_unstable();
        ranges.dedup();
        ranges
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_range_ends_where_its_prefix_says() {
        for (inside, outside) in [
            ("10.255.255.255", "11.0.0.0"),
            ("172.31.255.255", "172.32.0.0"),
            ("192.168.0.1", "192.169.0.1"),
            ("100.127.255.255", "100.128.0.0"),
            ("fdff::1", "fe00::1"),
        ] {
            let within = |ip: &str| OF_CLUSTERS.iter().any(|range| range.contains(ip.parse().unwrap()));
            assert!(within(inside), "{inside}");
            assert!(!within(outside), "{outside}");
        }
        assert!(Range::of_one("8.8.8.8".parse().unwrap()).contains("8.8.8.8".parse().unwrap()));
        assert!(!Range::of_one("::1".parse().unwrap()).contains("::2".parse().unwrap()));
    }
}
