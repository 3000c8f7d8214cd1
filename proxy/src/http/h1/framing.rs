//! Where a message's body ends, and its bytes in our own framing: what is ambiguous is refused, what is understood is
//! written anew, so that nobody behind us can understand it otherwise (RFC 9112 sections 6 and 7).

use std::io::Write as _;

use crate::http::headers;
use crate::limits::{MAX_CHUNK_LINE, MAX_TRAILER_BYTES, MAX_TRAILERS};

/// A body that breaks the rules of its framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// What is left of a body.
#[derive(Debug)]
pub enum Body {
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked(Chunked),
    /// Everything until the sender closes (answers only). Goes on as chunks, so that its end is told from a break.
    UntilClose,
}

impl Body {
    /// No body.
    #[must_use]
    pub fn none() -> Self {
        Self::Length(0)
    }

    /// Its trailers are read, and not written on.
    #[must_use]
    pub fn without_trailers(mut self) -> Self {
        if let Self::Chunked(chunked) = &mut self {
            chunked.drops_trailers = true;
        }
        self
    }

    /// Is it whole?
    #[must_use]
    pub fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunked) => chunked.state == State::Done,
            Self::UntilClose => false,
        }
    }

    /// How many of `input`'s bytes may go on as they are; `None` where they must be framed anew.
    #[must_use]
    pub fn plain(&self, input: usize) -> Option<usize> {
        match self {
            Self::Length(left) => Some(usize::try_from(*left).unwrap_or(usize::MAX).min(input)),
            Self::Chunked(_) | Self::UntilClose => None,
        }
    }

    /// The sender has closed: true if that is the body's end, which is then written.
    pub fn close(&mut self, out: &mut Vec<u8>) -> bool {
        let ends = matches!(self, Self::UntilClose);
        if ends {
            out.extend_from_slice(b"0\r\n\r\n");
            *self = Self::none();
        }
        ends
    }

    /// Takes note of bytes that went on as they are.
    pub fn passed(&mut self, bytes: usize) {
        if let Self::Length(left) = self {
            *left = left.saturating_sub(bytes as u64);
        }
    }

    /// Takes what belongs to this body from the front of `input` into `out`; returns how much it took. What is left of
    /// `input` after the body is done belongs to the next message.
    pub fn take(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, Malformed> {
        match self {
            Self::UntilClose => {
                write_chunk(out, input);
                Ok(input.len())
            }
            Self::Length(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                out.extend_from_slice(input.get(..taken).unwrap_or_default());
                self.passed(taken);
                Ok(taken)
            }
            Self::Chunked(chunked) => chunked.take(input, out),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// In the line that says a chunk's size.
    #[default]
    Size,
    Data(u64),
    /// Before the CR, then the LF, behind a chunk's data.
    DataCr,
    DataLf,
    /// In the trailer section, up to its empty line.
    Trailers,
    Done,
}

/// A chunked body on its way: decoded, and encoded again without extensions and with trailers that may stand there.
#[derive(Debug, Default)]
pub struct Chunked {
    state: State,
    drops_trailers: bool,
    /// The line or section that is not complete yet.
    held: Vec<u8>,
}

impl Chunked {
    fn take(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, Malformed> {
        let mut at = 0;
        while let Some(rest) = input.get(at..).filter(|rest| !rest.is_empty()) {
            at += match self.state {
                State::Size => self.size_line(rest, out)?,
                State::Data(left) => {
                    let n = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                    let data = rest.get(..n).unwrap_or_default();
                    // Each piece becomes a chunk of its own: nothing waits for the rest of a large one.
                    write_chunk(out, data);
                    self.state = match left - n as u64 {
                        0 => State::DataCr,
                        left => State::Data(left),
                    };
                    n
                }
                State::DataCr => self.expect(rest, b'\r', State::DataLf)?,
                State::DataLf => self.expect(rest, b'\n', State::Size)?,
                State::Trailers => self.trailers(rest, out)?,
                State::Done => break,
            };
        }
        Ok(at)
    }

    fn expect(&mut self, rest: &[u8], byte: u8, next: State) -> Result<usize, Malformed> {
        if rest.first() != Some(&byte) {
            return Err(Malformed);
        }
        self.state = next;
        Ok(1)
    }

    fn size_line(&mut self, rest: &[u8], out: &mut Vec<u8>) -> Result<usize, Malformed> {
        let (line, taken) = match rest.iter().position(|byte| *byte == b'\n') {
            Some(end) => (rest.get(..=end).unwrap_or_default(), end + 1),
            None => (rest, rest.len()),
        };
        if self.held.len() + line.len() > MAX_CHUNK_LINE {
            return Err(Malformed);
        }
        self.held.extend_from_slice(line);
        if self.held.last() == Some(&b'\n') {
            let size = size_of(&self.held).ok_or(Malformed)?;
            self.held.clear();
            if size == 0 {
                out.extend_from_slice(b"0\r\n");
                self.state = State::Trailers;
            } else {
                self.state = State::Data(size);
            }
        }
        Ok(taken)
    }

    fn trailers(&mut self, rest: &[u8], out: &mut Vec<u8>) -> Result<usize, Malformed> {
        let mut taken = 0;
        for byte in rest {
            taken += 1;
            self.held.push(*byte);
            if self.held.len() > MAX_TRAILER_BYTES {
                return Err(Malformed);
            }
            if *byte != b'\n' {
                continue;
            }
            if !self.held.ends_with(b"\r\n") {
                return Err(Malformed);
            }
            if self.held == b"\r\n" || self.held.ends_with(b"\r\n\r\n") {
                write_trailers(&self.held, self.drops_trailers, out)?;
                self.held = Vec::new();
                self.state = State::Done;
                break;
            }
        }
        Ok(taken)
    }
}

fn write_chunk(out: &mut Vec<u8>, data: &[u8]) {
    // Writing into memory does not fail. An empty chunk would end the body.
    if !data.is_empty() {
        let _ = write!(out, "{:x}\r\n", data.len());
        out.extend_from_slice(data);
        out.extend_from_slice(b"\r\n");
    }
}

/// `chunk-size [ chunk-ext ] CRLF`; an extension may hold what a field's value may, and is dropped.
fn size_of(line: &[u8]) -> Option<u64> {
    let line = line.strip_suffix(b"\r\n")?;
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (size, extension) = line.split_at_checked(digits)?;
    // Sixteen digits would fit as well; no honest chunk has more than fifteen.
    if size.is_empty() || size.len() > 15 {
        return None;
    }
    let extension = extension.trim_ascii_start();
    let well_formed = match extension.first() {
        None => extension.is_empty() && line.len() == digits,
        Some(b';') => extension.len() > 1 && extension.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~')),
        Some(_) => false,
    };
    if !well_formed {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()
}

/// Writes the section anew, without what may not stand there, or without all of them.
fn write_trailers(section: &[u8], drop_all: bool, out: &mut Vec<u8>) -> Result<(), Malformed> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_TRAILERS];
    match httparse::parse_headers(section, &mut fields) {
        Ok(httparse::Status::Complete((_, fields))) => {
            for field in fields {
                if !drop_all && !headers::is_forbidden_trailer(&field.name.to_ascii_lowercase()) {
                    super::fields::write(out, field.name.as_bytes(), field.value);
                }
            }
            out.extend_from_slice(b"\r\n");
            Ok(())
        }
        Ok(httparse::Status::Partial) | Err(_) => Err(Malformed),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn chunked(pieces: &[&[u8]]) -> Result<(Vec<u8>, usize, bool), Malformed> {
        let mut body = Body::Chunked(Chunked::default());
        let (mut out, mut taken) = (Vec::new(), 0);
        for piece in pieces {
            taken += body.take(piece, &mut out)?;
        }
        Ok((out, taken, body.is_done()))
    }

    #[test]
    fn h1_07_chunks_are_written_anew_without_extensions_and_the_next_message_is_left() {
        let input = b"5;x=\"y z\"\r\nhello\r\n0\r\n\r\nGET / HTTP/1.1\r\n";
        let (out, taken, done) = chunked(&[input]).unwrap();
        assert_eq!(out, b"5\r\nhello\r\n0\r\n\r\n");
        assert!(done);
        assert_eq!(&input[taken..], b"GET / HTTP/1.1\r\n");
    }

    #[test]
    fn h1_07_anomalous_chunk_framing_is_refused() {
        for input in [
            &b"+5\r\nhello\r\n"[..],
            b"-5\r\nhello\r\n",
            b"0x5\r\nhello\r\n",
            b"5 \r\nhello\r\n",
            b" 5\r\nhello\r\n",
            b"5;\r\nhello\r\n",
            b"5\nhello\r\n",
            b"5;a\x0bb\r\nhello\r\n",
            b"5\r\nhelloX\r\n",
            b"5\r\nhello\n",
            b"\r\n",
            b"g\r\n",
            b"1234567890abcdef\r\n",
            b"0\r\n\n",
            b"0\r\nbad name: 1\r\n\r\n",
            b"0\r\nx: 1\n\r\n",
        ] {
            assert_eq!(
                chunked(&[input]).map(|_| ()),
                Err(Malformed),
                "{:?}",
                String::from_utf8_lossy(input)
            );
        }
        let long = [b"5;".as_slice(), &vec![b'x'; MAX_CHUNK_LINE], b"\r\n"].concat();
        assert_eq!(chunked(&[&long]).map(|_| ()), Err(Malformed));
    }

    #[test]
    fn h1_08_trailers_lose_what_may_not_stand_there() {
        let input = b"0\r\nGrpc-Status: 0\r\nHost: evil\r\nX_Postern_Source: evil\r\nContent-Length: 5\r\n\r\n";
        let (out, _, done) = chunked(&[input]).unwrap();
        assert!(done);
        assert_eq!(out, b"0\r\nGrpc-Status: 0\r\n\r\n");
    }

    #[test]
    fn what_ends_with_the_connection_becomes_chunks() {
        let mut body = Body::UntilClose;
        let mut out = Vec::new();
        assert_eq!(body.take(b"old but whole", &mut out), Ok(13));
        assert_eq!(body.take(b"", &mut out), Ok(0));
        assert!(!body.is_done() && body.close(&mut out) && body.is_done());
        assert_eq!(out, b"d\r\nold but whole\r\n0\r\n\r\n");
        assert!(
            !Body::Length(1).close(&mut out),
            "a length that was not reached is a break"
        );
    }

    proptest! {
        #[test]
        fn chunks_cut_anywhere_hold_the_same_bytes(
            data in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..6),
            cuts in proptest::collection::vec(0_usize..400, 0..12),
        ) {
            let mut input = Vec::new();
            for chunk in &data {
                input.extend_from_slice(format!("{:X};ext\r\n", chunk.len()).as_bytes());
                input.extend_from_slice(chunk);
                input.extend_from_slice(b"\r\n");
            }
            input.extend_from_slice(b"0\r\na: b\r\n\r\nrest");
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % input.len()).collect();
            cuts.push(0);
            cuts.push(input.len());
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &input[pair[0]..pair[1]]).collect();
            let mut body = Body::Chunked(Chunked::default());
            let mut out = Vec::new();
            let mut left = Vec::new();
            for piece in pieces {
                let taken = body.take(piece, &mut out).unwrap();
                left.extend_from_slice(&piece[taken..]);
            }
            prop_assert!(body.is_done());
            prop_assert_eq!(left, b"rest");
            // Our own output is understood the same way, and is a fixed point but for how data is cut.
            let mut again = Body::Chunked(Chunked::default());
            let mut same = Vec::new();
            prop_assert_eq!(again.take(&out, &mut same).unwrap(), out.len());
            prop_assert_eq!(same, out);
        }
    }
}
