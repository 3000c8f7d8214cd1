//! As much DER as is needed to see what a lenient parser hides: tag, length, value.

/// SEQUENCE, constructed.
pub(crate) const SEQUENCE: u8 = 0x30;
/// OBJECT IDENTIFIER.
pub(crate) const OID: u8 = 0x06;
/// UTF8String.
pub(crate) const UTF8_STRING: u8 = 0x0c;

/// One element.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tlv<'a> {
    /// The identifier octet; multi-byte tags are refused.
    pub(crate) tag: u8,
    /// The contents.
    pub(crate) value: &'a [u8],
}

impl<'a> Tlv<'a> {
    /// The first element and what follows it. DER: definite, minimal lengths.
    pub(crate) fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (&tag, rest) = bytes.split_first()?;
        if tag & 0x1f == 0x1f {
            return None;
        }
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x83 => {
                let (octets, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                let length = octets
                    .iter()
                    .fold(0usize, |length, octet| length << 8 | usize::from(*octet));
                if length < 0x80 || octets.first() == Some(&0) {
                    return None;
                }
                (length, rest)
            }
            _ => return None,
        };
        let (value, rest) = rest.split_at_checked(length)?;
        Some((Self { tag, value }, rest))
    }

    /// The one element that the bytes are.
    pub(crate) fn only(bytes: &'a [u8]) -> Option<Self> {
        Self::split(bytes)
            .filter(|(_, rest)| rest.is_empty())
            .map(|(tlv, _)| tlv)
    }

    /// The elements inside; `None` where they cannot be read, and then no more.
    pub(crate) fn children(self) -> impl Iterator<Item = Option<Self>> {
        let mut rest = self.value;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let child = Self::split(rest);
            rest = child.map_or(&[], |(_, after)| after);
            Some(child.map(|(tlv, _)| tlv))
        })
    }

    /// Context-specific tag `number`, primitive or constructed.
    pub(crate) fn is_context(self, number: u8) -> bool {
        self.tag & 0xc0 == 0x80 && self.tag & 0x1f == number
    }

    /// One of the nine kinds of GeneralName (RFC 5280 4.2.1.6): context-specific, 0 to 8.
    pub(crate) fn is_general_name(&self) -> bool {
        self.tag & 0xc0 == 0x80 && self.tag & 0x1f <= 8
    }

    /// Does it hold elements rather than a value?
    pub(crate) fn is_constructed(self) -> bool {
        self.tag & 0x20 != 0
    }
}

/// An empty Name.
pub(crate) fn is_empty_sequence(bytes: &[u8]) -> bool {
    bytes == [SEQUENCE, 0]
}
