//! Address blocks: `10.0.0.0/8`, `fd00::/8`, or one address.

use std::fmt;
use std::net::IpAddr;

/// A network, without host bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IpBlock {
    network: IpAddr,
    prefix: u8,
}

impl IpBlock {
    /// A network; `None` if the prefix is longer than the address, or the address has bits past it.
    #[must_use]
    pub fn new(network: IpAddr, prefix: u8) -> Option<Self> {
        let length = if network.is_ipv4() { 32 } else { 128 };
        let block = Self { network, prefix };
        let host_bits = 128u8.checked_sub(prefix).filter(|_| prefix <= length)?;
        let rest = 1u128.checked_shl(host_bits.into()).map_or(u128::MAX, |bit| bit - 1);
        (bits(network) & rest == 0).then_some(block)
    }

    /// From text; the error says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let network: IpAddr = address
            .parse()
            .map_err(|_| "is no address and no block such as 10.0.0.0/8".to_owned())?;
        // `::ffff:10.0.0.1` would never be met: peers are known by the address inside.
        if network.to_canonical() != network {
            return Err(format!("is an IPv4 address in IPv6: write {}", network.to_canonical()));
        }
        let longest = if network.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => longest,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits
                .parse::<u8>()
                .ok()
                .filter(|prefix| *prefix <= longest)
                .ok_or_else(|| format!("has no prefix length: 0 to {longest}"))?,
            Some(_) => return Err(format!("has no prefix length: 0 to {longest}")),
        };
        Self::new(network, prefix).ok_or_else(|| {
            let kept = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            format!(
                "has bits past its prefix: write {}/{prefix}",
                address_of(bits(network) & kept, network)
            )
        })
    }

    /// The network's address.
    #[must_use]
    pub fn network(&self) -> IpAddr {
        self.network
    }

    /// The length of its prefix.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Is it in it? An IPv4 address in IPv6 is the IPv4 address.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        let differ = bits(self.network) ^ bits(ip);
        self.network.is_ipv4() == ip.is_ipv4() && differ.leading_zeros() >= u32::from(self.prefix)
    }
}

/// At the top, so that prefixes of both families are counted from there.
fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(u32::from(v4)) << 96,
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn address_of(bits: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::from(u32::try_from(bits >> 96).unwrap_or_default().to_be_bytes()),
        IpAddr::V6(_) => IpAddr::from(bits.to_be_bytes()),
    }
}

impl fmt::Display for IpBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_block_holds_its_own_family_up_to_its_prefix() {
        let holds = |block: &str, ip: &str| IpBlock::parse(block).unwrap().contains(ip.parse().unwrap());
        assert!(holds("10.0.0.0/8", "10.255.0.1") && !holds("10.0.0.0/8", "11.0.0.1"));
        assert!(holds("10.0.0.1", "10.0.0.1") && !holds("10.0.0.1", "10.0.0.2"));
        assert!(holds("0.0.0.0/0", "192.0.2.1") && !holds("0.0.0.0/0", "::1"));
        assert!(holds("::/0", "2001:db8::1") && !holds("::/0", "192.0.2.1"));
        assert!(holds("fd00::/8", "fd12::1") && !holds("fd00::/8", "fe80::1"));
        assert!(holds("10.0.0.0/8", "::ffff:10.1.2.3"), "IPv4 in IPv6 is IPv4");
        assert!(!holds("::/0", "::ffff:10.1.2.3"));
    }

    #[test]
    fn a_block_that_is_none_is_refused_with_what_was_meant() {
        for (text, why) in [
            ("10.0.0.0/33", "has no prefix length: 0 to 32"),
            ("10.0.0.0/", "has no prefix length: 0 to 32"),
            ("10.0.0.0/+8", "has no prefix length: 0 to 32"),
            ("fd00::/129", "has no prefix length: 0 to 128"),
            ("10.1.2.3/8", "has bits past its prefix: write 10.0.0.0/8"),
            ("fd12::1/8", "has bits past its prefix: write fd00::/8"),
            ("10.1.2.3/0", "has bits past its prefix: write 0.0.0.0/0"),
            ("::ffff:10.0.0.1", "is an IPv4 address in IPv6: write 10.0.0.1"),
            ("10.0.0", "is no address and no block such as 10.0.0.0/8"),
            ("*", "is no address and no block such as 10.0.0.0/8"),
            ("", "is no address and no block such as 10.0.0.0/8"),
        ] {
            assert_eq!(IpBlock::parse(text).unwrap_err(), why, "{text}");
        }
    }
}
