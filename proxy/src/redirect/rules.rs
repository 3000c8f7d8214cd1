//! Which connections are captured, as data: chains and rules that `netlink` encodes and `as_text` shows.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::str::FromStr;

/// Our table's name, in the `inet` family.
pub const TABLE: &str = "postern";
/// Both chains sit where destination NAT belongs (`dstnat`).
pub const PRIORITY: i32 = -100;

/// What to capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    /// Whose own connections are left alone.
    pub proxy_uid: u32,
    /// Where inbound goes.
    pub inbound_port: u16,
    /// Where outbound goes.
    pub outbound_port: u16,
    /// Left alone.
    pub skip_inbound_ports: BTreeSet<u16>,
    /// Left alone.
    pub skip_outbound_ports: BTreeSet<u16>,
    /// Left alone.
    pub skip_outbound_cidrs: Vec<Cidr>,
}

/// An address range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

/// A chain with its rules, in order; what no rule decides is accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: &'static str,
    /// Which hook it sits on.
    pub hook: Hook,
    /// First match wins.
    pub rules: Vec<Rule>,
}

/// Where in the kernel's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// What arrives.
    Prerouting,
    /// What local processes send.
    Output,
}

/// All conditions, then the verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// All must hold.
    pub conditions: Vec<Condition>,
    /// Then this.
    pub verdict: Verdict,
}

/// One condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// TCP at all.
    Tcp,
    /// TCP to this port (implies [`Condition::Tcp`] before it).
    DestinationPort(u16),
    /// To an address in this range.
    Destination(Cidr),
    /// Sent by a socket of this user.
    User(u32),
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Left alone.
    Accept,
    /// To this local port.
    Redirect(u16),
}

impl Cidr {
    /// The network address; bits past the prefix are zero.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }
    /// How many leading bits count.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }
    /// The mask, as long as the address.
    #[must_use]
    pub fn mask(&self) -> Vec<u8> {
        let bytes = if self.address.is_ipv4() { 4 } else { 16 };
        (0..bytes)
            .map(|i| {
                let bits = u32::from(self.prefix).saturating_sub(i * 8).min(8);
                u8::try_from(0xff00_u32 >> bits & 0xff).unwrap_or(0xff)
            })
            .collect()
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address
            .parse()
            .map_err(|_| format!("`{text}`: `{address}` is no IPv4 or IPv6 address"))?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => longest,
            Some(prefix) => prefix
                .parse::<u8>()
                .ok()
                .filter(|p| *p <= longest)
                .ok_or_else(|| format!("`{text}`: the prefix must be 0 to {longest}, not `{prefix}`"))?,
        };
        let cidr = Self { address, prefix };
        let network = masked(address, &cidr.mask());
        if network != address {
            return Err(format!(
                "`{text}` has bits past its prefix; did you mean `{network}/{prefix}`?"
            ));
        }
        Ok(cidr)
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

fn masked(address: IpAddr, mask: &[u8]) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mut octets = v4.octets();
            octets.iter_mut().zip(mask).for_each(|(octet, mask)| *octet &= mask);
            octets.into()
        }
        IpAddr::V6(v6) => {
            let mut octets = v6.octets();
            octets.iter_mut().zip(mask).for_each(|(octet, mask)| *octet &= mask);
            octets.into()
        }
    }
}

/// The chains that make up the capture.
#[must_use]
pub fn program(capture: &Capture) -> Vec<Chain> {
    let accept = |conditions: Vec<Condition>| Rule {
        conditions,
        verdict: Verdict::Accept,
    };
    let to = |port| Rule {
        conditions: vec![Condition::Tcp],
        verdict: Verdict::Redirect(port),
    };
    let port = |port: &u16| accept(vec![Condition::Tcp, Condition::DestinationPort(*port)]);
    let range = |cidr: &Cidr| accept(vec![Condition::Destination(*cidr)]);

    let mut inbound: Vec<Rule> = capture.skip_inbound_ports.iter().map(port).collect();
    inbound.push(to(capture.inbound_port));

    // The loop breaker first: what the proxy itself sends is final. A hop of the proxy to its own workload never takes
    // this way (it is handed over in process), so the exemption opens no door.
    let mut outbound = vec![accept(vec![Condition::User(capture.proxy_uid)])];
    // An app's own loopback traffic never left it; its own pod address and its own Service do go through the proxy.
    outbound.extend(
        [
            Cidr {
                address: [127, 0, 0, 0].into(),
                prefix: 8,
            },
            LOOPBACK_V6,
        ]
        .iter()
        .map(range),
    );
    outbound.extend(capture.skip_outbound_cidrs.iter().map(range));
    outbound.extend(capture.skip_outbound_ports.iter().map(port));
    outbound.push(to(capture.outbound_port));

    vec![
        Chain {
            name: "inbound",
            hook: Hook::Prerouting,
            rules: inbound,
        },
        Chain {
            name: "outbound",
            hook: Hook::Output,
            rules: outbound,
        },
    ]
}

const LOOPBACK_V6: Cidr = Cidr {
    address: IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
    prefix: 128,
};

/// The program in the words of nft, for people and for `--print`.
#[must_use]
pub fn as_text(program: &[Chain]) -> String {
    let mut text = String::new();
    if program.is_empty() {
        let _ = writeln!(text, "delete table inet {TABLE}");
        return text;
    }
    let _ = writeln!(text, "table inet {TABLE} {{");
    for chain in program {
        let hook = match chain.hook {
            Hook::Prerouting => "prerouting",
            Hook::Output => "output",
        };
        let _ = writeln!(
            text,
            "  chain {} {{\n    type nat hook {hook} priority dstnat; policy accept;",
            chain.name
        );
        for rule in &chain.rules {
            text.push_str("   ");
            let ports = rule
                .conditions
                .iter()
                .any(|c| matches!(c, Condition::DestinationPort(_)));
            for condition in &rule.conditions {
                let _ = match condition {
                    Condition::Tcp if ports => Ok(()),
                    Condition::Tcp => write!(text, " meta l4proto tcp"),
                    Condition::DestinationPort(port) => write!(text, " tcp dport {port}"),
                    Condition::Destination(cidr) if cidr.address.is_ipv4() => write!(text, " ip daddr {cidr}"),
                    Condition::Destination(cidr) => write!(text, " ip6 daddr {cidr}"),
                    Condition::User(uid) => write!(text, " meta skuid {uid}"),
                };
            }
            let _ = match rule.verdict {
                Verdict::Accept => writeln!(text, " accept"),
                Verdict::Redirect(port) => writeln!(text, " redirect to :{port}"),
            };
        }
        text.push_str("  }\n");
    }
    text.push_str("}\n");
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn capture() -> Capture {
        Capture {
            proxy_uid: 15_371,
            inbound_port: 15_006,
            outbound_port: 15_001,
            skip_inbound_ports: [15_020].into(),
            skip_outbound_ports: [3_306].into(),
            skip_outbound_cidrs: vec!["10.1.0.0/16".parse().unwrap()],
        }
    }

    #[test]
    fn the_proxys_own_connections_are_exempt_before_anything_else() {
        let outbound = &program(&capture())[1];
        assert_eq!(
            outbound.rules[0],
            Rule {
                conditions: vec![Condition::User(15_371)],
                verdict: Verdict::Accept
            }
        );
    }

    #[test]
    fn everything_tcp_that_is_not_exempt_is_captured_both_ways() {
        for (chain, port) in program(&capture()).iter().zip([15_006, 15_001]) {
            let last = chain.rules.last().unwrap();
            assert_eq!(
                *last,
                Rule {
                    conditions: vec![Condition::Tcp],
                    verdict: Verdict::Redirect(port)
                }
            );
        }
    }

    #[test]
    fn a_range_with_bits_past_its_prefix_is_refused_with_the_one_that_was_meant() {
        assert_eq!(
            "10.1.2.3/16".parse::<Cidr>().unwrap_err(),
            "`10.1.2.3/16` has bits past its prefix; did you mean `10.1.0.0/16`?"
        );
        assert!("fd00::/8".parse::<Cidr>().is_ok());
        assert!("10.0.0.0/33".parse::<Cidr>().unwrap_err().contains("0 to 32"));
        assert!("ten/8".parse::<Cidr>().unwrap_err().contains("no IPv4 or IPv6 address"));
    }

    #[test]
    fn masks_cover_exactly_the_prefix() {
        for (text, mask) in [
            ("0.0.0.0/0", vec![0, 0, 0, 0]),
            ("128.0.0.0/1", vec![0x80, 0, 0, 0]),
            ("10.1.128.0/17", vec![255, 255, 128, 0]),
            ("1.2.3.4", vec![255, 255, 255, 255]),
        ] {
            assert_eq!(text.parse::<Cidr>().unwrap().mask(), mask, "{text}");
        }
    }
}
