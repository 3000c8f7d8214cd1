//! Extension values, as bytes.

pub const SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
pub const CLIENT_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];
pub const CODE_SIGNING: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 3];
/// anyExtendedKeyUsage.
pub const ANY: &[u8] = &[0x55, 0x1d, 0x25, 0];

/// uniformResourceIdentifier, [6] IMPLICIT IA5String.
pub const URI: u8 = 0x86;
/// dNSName, [2].
pub const DNS: u8 = 0x82;

/// Tag, length, value.
pub fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).unwrap();
    let [high, low] = length.to_be_bytes();
    let mut der = match length {
        0..=0x7f => vec![tag, low],
        0x80..=0xff => vec![tag, 0x81, low],
        0x100.. => vec![tag, 0x82, high, low],
    };
    der.extend_from_slice(value);
    der
}

pub fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    tlv(0x30, &parts.concat())
}

pub fn uri(text: &str) -> Vec<u8> {
    tlv(URI, text.as_bytes())
}

pub fn dns(name: &str) -> Vec<u8> {
    tlv(DNS, name.as_bytes())
}

/// GeneralNames.
pub fn san(names: &[Vec<u8>]) -> Vec<u8> {
    sequence(names)
}

pub fn basic(ca: bool, path_len: Option<u8>) -> Vec<u8> {
    let ca = if ca { tlv(1, &[0xff]) } else { Vec::new() };
    let path_len = path_len.map_or_else(Vec::new, |length| tlv(2, &[length]));
    sequence(&[ca, path_len])
}

/// A BIT STRING whose last set bit is its last bit, as DER demands.
pub fn usage(bits: u8) -> Vec<u8> {
    let unused = u8::try_from(bits.trailing_zeros().min(7)).unwrap();
    tlv(3, &[unused, bits])
}

pub fn extended(purposes: &[&[u8]]) -> Vec<u8> {
    let purposes: Vec<_> = purposes.iter().map(|oid| tlv(6, oid)).collect();
    sequence(&purposes)
}

/// NameConstraints: one permitted ([0]) or excluded ([1]) URI subtree.
pub fn uri_constraint(excluded: bool, host: &str) -> Vec<u8> {
    let subtree = sequence(&[uri(host)]);
    sequence(&[tlv(if excluded { 0xa1 } else { 0xa0 }, &subtree)])
}
