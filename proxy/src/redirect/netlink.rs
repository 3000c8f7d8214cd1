//! The nf_tables netlink protocol, as much of it as the capture needs (linux/netfilter/nf_tables.h).
//!
//! One batch replaces the table: add (so that it exists), delete, add with chains and rules. The kernel commits a batch
//! whole or not at all.

use std::io;

use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::rules::{Chain, Condition, Hook, PRIORITY, Rule, TABLE, Verdict};

// netlink
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLMSG_ERROR: u16 = 2;
const HEADER: usize = 16;
// nfnetlink
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
// nf_tables messages
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
// attributes are numbered per message; these are the ones used
const NESTED: u16 = 0x8000;
const LIST_ELEMENT: u16 = 1;
const REGISTER: u32 = 1;
const VERDICT_REGISTER: u32 = 0;
const NF_ACCEPT: u32 = 1;
const META_SKUID: u32 = 10;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const PAYLOAD_NETWORK: u32 = 1;
const PAYLOAD_TRANSPORT: u32 = 2;
const IPPROTO_TCP: u8 = 6;

/// Why the capture is not in place.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket failed.
    #[error("cannot {attempted} the kernel's netfilter socket")]
    Socket {
        /// `open`, `write to`, `read from`.
        attempted: &'static str,
        /// Why.
        #[source]
        source: rustix::io::Errno,
    },
    /// The kernel refused one message, and with it all.
    #[error("the kernel refused to {message}{}", hint(source))]
    Refused {
        /// Which step.
        message: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The answer is not netlink.
    #[error("the kernel's answer is cut short")]
    Malformed,
}

impl NetlinkError {
    /// Was the kernel asked without the capability?
    #[must_use]
    pub fn is_lack_of_permission(&self) -> bool {
        match self {
            Self::Socket { source, .. } => *source == rustix::io::Errno::PERM || *source == rustix::io::Errno::ACCESS,
            Self::Refused { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
            Self::Malformed => false,
        }
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => " (is the nf_tables NAT module available?)",
        _ => "",
    }
}

/// Bytes of the one message that [`apply`] sends.
#[cfg(test)]
pub(super) fn size(program: &[Chain]) -> usize {
    encode(program).bytes.len()
}

/// Replaces our table with `program`; an empty program removes it.
pub fn apply(program: &[Chain]) -> Result<(), NetlinkError> {
    let at = |attempted| move |source| NetlinkError::Socket { attempted, source };
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(NETFILTER),
    )
    .map_err(at("open"))?;
    let batch = encode(program);
    rustix::net::sendto(&socket, &batch.bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))
        .map_err(at("write to"))?;
    let mut unanswered: Vec<&(u32, String)> = batch.acknowledged.iter().collect();
    let mut buffer = vec![0u8; 32 * 1024];
    while !unanswered.is_empty() {
        let (_, length) =
            rustix::net::recv(&socket, buffer.as_mut_slice(), RecvFlags::empty()).map_err(at("read from"))?;
        let mut rest = buffer.get(..length).ok_or(NetlinkError::Malformed)?;
        while !rest.is_empty() {
            let (answer, next) = Answer::split(rest).ok_or(NetlinkError::Malformed)?;
            rest = next;
            if answer.kind == NLMSG_ERROR && answer.error != 0 {
                let message = batch
                    .acknowledged
                    .iter()
                    .find(|(sequence, _)| *sequence == answer.sequence)
                    .map_or_else(|| "take the batch".to_owned(), |(_, message)| message.clone());
                return Err(NetlinkError::Refused {
                    message,
                    source: io::Error::from_raw_os_error(-answer.error),
                });
            }
            unanswered.retain(|(sequence, _)| *sequence != answer.sequence);
        }
    }
    Ok(())
}

/// One netlink answer's facts.
struct Answer {
    kind: u16,
    sequence: u32,
    error: i32,
}

impl Answer {
    fn split(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let sequence = u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?);
        let body = bytes.get(HEADER..length)?;
        let error = if kind == NLMSG_ERROR {
            i32::from_ne_bytes(body.get(..4)?.try_into().ok()?)
        } else {
            0
        };
        let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((Self { kind, sequence, error }, next))
    }
}

/// The messages of one batch.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
    acknowledged: Vec<(u32, String)>,
}

fn encode(program: &[Chain]) -> Batch {
    let mut batch = Batch::default();
    batch.message(BATCH_BEGIN, NLM_F_REQUEST, 0, SUBSYSTEM, None, |_| {});
    let table = |body: &mut Attributes| body.text(1, TABLE);
    batch.nf(NEW_TABLE, NLM_F_CREATE, "make the table", table);
    batch.nf(DELETE_TABLE, 0, "delete the old table", table);
    if !program.is_empty() {
        batch.nf(NEW_TABLE, NLM_F_CREATE, "make the table", table);
    }
    for chain in program {
        batch.nf(NEW_CHAIN, NLM_F_CREATE, &format!("make chain {}", chain.name), |body| {
            encode_chain(body, chain)
        });
        for (i, rule) in chain.rules.iter().enumerate() {
            let what = format!("add rule {} of chain {}", i + 1, chain.name);
            batch.nf(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, &what, |body| {
                encode_rule(body, chain.name, rule)
            });
        }
    }
    batch.message(BATCH_END, NLM_F_REQUEST, 0, SUBSYSTEM, None, |_| {});
    batch
}

fn encode_chain(body: &mut Attributes, chain: &Chain) {
    let hook: u32 = match chain.hook {
        Hook::Prerouting => 0,
        Hook::Output => 3,
    };
    body.text(1, TABLE);
    body.text(3, chain.name);
    body.nested(4, |body| {
        body.be32(1, hook);
        body.bytes(2, &PRIORITY.to_be_bytes());
    });
    body.be32(5, NF_ACCEPT);
    body.text(7, "nat");
}

fn encode_rule(body: &mut Attributes, chain: &str, rule: &Rule) {
    body.text(1, TABLE);
    body.text(2, chain);
    body.nested(4, |body| {
        for condition in &rule.conditions {
            encode_condition(body, *condition);
        }
        match rule.verdict {
            Verdict::Accept => body.expression("immediate", |body| {
                body.be32(1, VERDICT_REGISTER);
                body.nested(2, |body| body.nested(2, |body| body.be32(1, NF_ACCEPT)));
            }),
            Verdict::Redirect(port) => {
                body.expression("immediate", |body| {
                    body.be32(1, REGISTER);
                    body.nested(2, |body| body.bytes(1, &port.to_be_bytes()));
                });
                body.expression("redir", |body| body.be32(1, REGISTER));
            }
        }
    });
}

fn encode_condition(body: &mut Attributes, condition: Condition) {
    match condition {
        Condition::Tcp => {
            body.meta(META_L4PROTO);
            body.equals(&[IPPROTO_TCP]);
        }
        Condition::DestinationPort(port) => {
            body.payload(PAYLOAD_TRANSPORT, 2, 2);
            body.equals(&port.to_be_bytes());
        }
        // The kernel keeps the user in its own byte order.
        Condition::User(uid) => {
            body.meta(META_SKUID);
            body.equals(&uid.to_ne_bytes());
        }
        Condition::Destination(cidr) => {
            let (protocol, offset, octets) = match cidr.address() {
                std::net::IpAddr::V4(v4) => (NFPROTO_IPV4, 16, v4.octets().to_vec()),
                std::net::IpAddr::V6(v6) => (NFPROTO_IPV6, 24, v6.octets().to_vec()),
            };
            body.meta(META_NFPROTO);
            body.equals(&[protocol]);
            body.payload(PAYLOAD_NETWORK, offset, octets.len());
            body.expression("bitwise", |body| {
                body.be32(1, REGISTER);
                body.be32(2, REGISTER);
                body.bytes(3, &u32::try_from(octets.len()).unwrap_or(16).to_be_bytes());
                body.nested(4, |body| body.bytes(1, &cidr.mask()));
                body.nested(5, |body| body.bytes(1, &vec![0; octets.len()]));
            });
            body.equals(&octets);
        }
    }
}

impl Batch {
    /// An acknowledged nf_tables message in the inet family.
    fn nf(&mut self, kind: u16, flags: u16, what: &str, fill: impl FnOnce(&mut Attributes)) {
        let kind = SUBSYSTEM << 8 | kind;
        self.message(
            kind,
            NLM_F_REQUEST | NLM_F_ACK | flags,
            NFPROTO_INET,
            0,
            Some(what),
            fill,
        );
    }

    fn message(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        resource: u16,
        acknowledged: Option<&str>,
        fill: impl FnOnce(&mut Attributes),
    ) {
        let start = self.bytes.len();
        self.sequence += 1;
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        let mut attributes = Attributes(std::mem::take(&mut self.bytes));
        fill(&mut attributes);
        self.bytes = attributes.0;
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        if let Some(what) = acknowledged {
            self.acknowledged.push((self.sequence, what.to_owned()));
        }
    }
}

/// Type-length-value attributes, each padded to four bytes.
struct Attributes(Vec<u8>);

impl Attributes {
    fn attribute(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        fill(self);
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        self.attribute(kind | NESTED, fill);
    }
    fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.attribute(kind, |a| a.0.extend(value));
    }
    fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }
    fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, |a| {
            a.0.extend(value.as_bytes());
            a.0.push(0);
        });
    }
    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Self)) {
        self.nested(LIST_ELEMENT, |a| {
            a.text(1, name);
            a.nested(2, fill);
        });
    }
    fn meta(&mut self, key: u32) {
        self.expression("meta", |a| {
            a.be32(1, REGISTER);
            a.be32(2, key);
        });
    }
    fn payload(&mut self, base: u32, offset: u32, length: usize) {
        self.expression("payload", |a| {
            a.be32(1, REGISTER);
            a.be32(2, base);
            a.be32(3, offset);
            a.be32(4, u32::try_from(length).unwrap_or(16));
        });
    }
    fn equals(&mut self, value: &[u8]) {
        self.expression("cmp", |a| {
            a.be32(1, REGISTER);
            a.be32(2, 0);
            a.nested(3, |a| a.bytes(1, value));
        });
    }
}
