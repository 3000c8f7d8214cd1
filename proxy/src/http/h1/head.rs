//! An HTTP/1 message's head, strictly: what two readers could understand in two ways is refused (RFC 9112, and the
//! smuggling rows H1-1 to H1-6 and H1-12 of the adversarial catalogue).

use std::mem::MaybeUninit;

use super::fields::{Class, Connection};
use super::framing::{Body, Chunked};
use crate::limits::MAX_HEADERS;
use crate::outcome::{BadRequest, Failure};

/// Where the fields of a head are parsed into; on the stack, never across an await.
pub type Room<'a> = [MaybeUninit<httparse::Header<'a>>; MAX_HEADERS];

/// An empty [`Room`].
#[must_use]
pub fn room<'a>() -> Room<'a> {
    [const { MaybeUninit::uninit() }; MAX_HEADERS]
}

/// How far a head has been looked through for its end.
#[derive(Debug, Default, Clone, Copy)]
pub struct Scanned(usize);

impl Scanned {
    /// The length of the head at the front of `bytes`, once its empty line is there. Lines end with CRLF and nothing else;
    /// CR and LF stand nowhere else.
    pub fn end(&mut self, bytes: &[u8]) -> Result<Option<usize>, Failure> {
        let malformed = Err(Failure::BadRequest(BadRequest::Framing));
        loop {
            let rest = bytes.get(self.0..).unwrap_or_default();
            let Some(found) = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
                self.0 = bytes.len();
                return Ok(None);
            };
            let at = self.0 + found;
            match (bytes.get(at), bytes.get(at + 1)) {
                (Some(b'\r'), Some(b'\n')) => {}
                // The LF may still come.
                (Some(b'\r'), None) => {
                    self.0 = at;
                    return Ok(None);
                }
                _ => return malformed,
            }
            self.0 = at + 2;
            match at.checked_sub(1).and_then(|before| bytes.get(before)) {
                // An empty line before anything else.
                None => return malformed,
                Some(b'\n') => return Ok(Some(at + 2)),
                Some(_) => {}
            }
        }
    }
}

/// A request's head.
#[derive(Debug)]
pub struct RequestHead<'h, 'b> {
    /// As sent.
    pub method: &'b str,
    /// As sent.
    pub target: &'b str,
    /// HTTP/1.1 (otherwise 1.0).
    pub is_1_1: bool,
    /// In their order.
    pub fields: &'h [httparse::Header<'b>],
    /// What each field is.
    pub classes: [Class; MAX_HEADERS],
    /// `Connection`.
    pub connection: Connection<'b>,
    /// The one `Host`.
    pub host: Option<&'b str>,
    /// `te: trailers`.
    pub te_trailers: bool,
    /// `Upgrade` is there.
    pub has_upgrade: bool,
    /// `content-length`, or whether it is chunked.
    pub length: Length,
    /// The content is gRPC.
    pub is_grpc: bool,
}

/// What a head says of its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// Nothing.
    Unsaid,
    /// So many bytes.
    Bytes(u64),
    /// Chunks.
    Chunked,
}

impl Length {
    /// A request's body.
    #[must_use]
    pub fn of_request(self) -> Body {
        match self {
            Self::Unsaid => Body::none(),
            Self::Bytes(n) => Body::Length(n),
            Self::Chunked => Body::Chunked(Chunked::default()),
        }
    }
}

/// Facts that both kinds of heads share.
struct Common<'b> {
    classes: [Class; MAX_HEADERS],
    connection: Connection<'b>,
    host: Option<&'b str>,
    te_trailers: bool,
    has_upgrade: bool,
    length: Length,
    is_grpc: bool,
}

fn common<'b>(fields: &[httparse::Header<'b>], is_1_1: bool) -> Result<Common<'b>, BadRequest> {
    let mut common = Common {
        classes: [Class::Plain; MAX_HEADERS],
        connection: Connection::default(),
        host: None,
        te_trailers: false,
        has_upgrade: false,
        length: Length::Unsaid,
        is_grpc: false,
    };
    let mut bytes = None;
    let mut chunked = false;
    for (field, class) in fields.iter().zip(common.classes.iter_mut()) {
        *class = Class::of(field.name);
        match *class {
            Class::Plain | Class::HopByHop | Class::Ours | Class::Trailer => {}
            Class::FramingAlias => return Err(BadRequest::Field),
            Class::Host => {
                let host = std::str::from_utf8(field.value).map_err(|_| BadRequest::Host)?;
                if common.host.replace(host).is_some() {
                    return Err(BadRequest::Host);
                }
            }
            Class::ContentLength => {
                let length = number(field.value).ok_or(BadRequest::Framing)?;
                if bytes.replace(length).is_some() {
                    return Err(BadRequest::Framing);
                }
            }
            Class::TransferEncoding => {
                // HTTP/1.0 has no chunks (RFC 9112 section 6.1); any coding but one `chunked` is not ours to undo.
                if chunked || !is_1_1 || !field.value.eq_ignore_ascii_case(b"chunked") {
                    return Err(BadRequest::Framing);
                }
                chunked = true;
            }
            Class::Connection => {
                if !common.connection.read(field.value) {
                    return Err(BadRequest::TooLarge);
                }
            }
            Class::Upgrade => common.has_upgrade = true,
            Class::Te => {
                common.te_trailers |= field
                    .value
                    .split(|byte| *byte == b',')
                    .any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"));
            }
            Class::Expect => {
                if !field.value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(BadRequest::Framing);
                }
            }
            Class::ContentType => common.is_grpc = field.value.starts_with(b"application/grpc"),
        }
    }
    common.length = match (bytes, chunked) {
        (None, false) => Length::Unsaid,
        (Some(n), false) => Length::Bytes(n),
        (None, true) => Length::Chunked,
        // The classic of smuggling: never guessed.
        (Some(_), true) => return Err(BadRequest::Framing),
    };
    Ok(common)
}

/// Digits only; what does not fit in 64 bits is no length.
fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 19 || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

impl<'h, 'b> RequestHead<'h, 'b> {
    /// Reads a whole head.
    pub fn parse(bytes: &'b [u8], room: &'h mut Room<'b>) -> Result<Self, Failure> {
        let mut request = httparse::Request::new(&mut []);
        let parsed = request.parse_with_uninit_headers(bytes, room);
        let framing = Failure::BadRequest(BadRequest::Framing);
        match parsed {
            Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
            Ok(_) => return Err(framing),
            Err(httparse::Error::TooManyHeaders) => return Err(Failure::BadRequest(BadRequest::TooLarge)),
            Err(_) => return Err(framing),
        }
        let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
            return Err(framing);
        };
        if !target.is_ascii() {
            return Err(Failure::BadRequest(BadRequest::Target));
        }
        let is_1_1 = version == 1;
        let fields: &'h [httparse::Header<'b>] = request.headers;
        let common = common(fields, is_1_1).map_err(Failure::BadRequest)?;
        Ok(Self {
            method,
            target,
            is_1_1,
            fields,
            classes: common.classes,
            connection: common.connection,
            host: common.host,
            te_trailers: common.te_trailers,
            has_upgrade: common.has_upgrade,
            length: common.length,
            is_grpc: common.is_grpc,
        })
    }

    /// The path, without the query.
    #[must_use]
    pub fn path(&self) -> &'b str {
        self.target.split_once('?').map_or(self.target, |(path, _)| path)
    }

    /// What follows the path: empty, or `?` and the query.
    #[must_use]
    pub fn query(&self) -> &'b str {
        self.target.get(self.path().len()..).unwrap_or("")
    }

    /// May it be sent again, if no answer came (RFC 9110 section 9.2.2)? Only without a body, which is not kept.
    #[must_use]
    pub fn is_repeatable(&self) -> bool {
        let idempotent = matches!(self.method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE");
        idempotent && self.length.of_request().is_done()
    }
}

/// An answer's head.
#[derive(Debug)]
pub struct AnswerHead<'h, 'b> {
    /// 100 to 999.
    pub status: u16,
    /// As sent.
    pub reason: &'b str,
    /// In their order.
    pub fields: &'h [httparse::Header<'b>],
    /// What each field is.
    pub classes: [Class; MAX_HEADERS],
    /// `Connection`.
    pub connection: Connection<'b>,
    /// The connection may serve another request after it.
    pub keeps_alive: bool,
    /// What it says of its body.
    pub length: Length,
}

impl<'h, 'b> AnswerHead<'h, 'b> {
    /// Reads a whole head.
    pub fn parse(bytes: &'b [u8], room: &'h mut Room<'b>) -> Result<Self, Failure> {
        let mut answer = httparse::Response::new(&mut []);
        let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut answer, bytes, room);
        match parsed {
            Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
            Ok(_) | Err(_) => return Err(Failure::BadAnswer),
        }
        let (Some(status), Some(version)) = (answer.code, answer.version) else {
            return Err(Failure::BadAnswer);
        };
        let reason = answer.reason.unwrap_or("");
        let fields: &'h [httparse::Header<'b>] = answer.headers;
        let common = common(fields, version == 1).map_err(|_| Failure::BadAnswer)?;
        let keeps_alive = !common.connection.close && (version == 1 || common.connection.keep_alive);
        Ok(Self {
            status,
            reason,
            fields,
            classes: common.classes,
            connection: common.connection,
            keeps_alive,
            length: common.length,
        })
    }

    /// Its body (RFC 9112 section 6.3).
    #[must_use]
    pub fn body(&self, to_head: bool) -> Body {
        if to_head || self.status < 200 || matches!(self.status, 204 | 304) {
            return Body::none();
        }
        match self.length {
            Length::Bytes(n) => Body::Length(n),
            Length::Chunked => Body::Chunked(Chunked::default()),
            Length::Unsaid => Body::UntilClose,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn request(text: &str) -> Result<(Length, bool), Failure> {
        let bytes = text.as_bytes();
        let end = Scanned::default().end(bytes)?;
        assert_eq!(end, Some(bytes.len()), "{text:?}");
        let mut room = room();
        let head = RequestHead::parse(bytes, &mut room)?;
        Ok((head.length, head.is_1_1))
    }

    fn refused(text: &str) -> BadRequest {
        match request(text) {
            Err(Failure::BadRequest(why)) => why,
            other => panic!("{text:?}: {other:?}"),
        }
    }

    #[test]
    fn a_head_ends_at_its_empty_line_however_it_is_cut() {
        let bytes = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nrest";
        for cut in 0..bytes.len() {
            let mut scanned = Scanned::default();
            let first = scanned.end(&bytes[..cut]).unwrap();
            assert_eq!(first, (cut >= 27).then_some(27), "{cut}");
            if first.is_none() {
                assert_eq!(scanned.end(bytes).unwrap(), Some(27), "{cut}");
            }
        }
    }

    #[test]
    fn h1_06_a_bare_line_feed_ends_nothing() {
        for text in [
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
            "\r\nGET / HTTP/1.1\r\n\r\n",
        ] {
            assert!(Scanned::default().end(text.as_bytes()).is_err(), "{text:?}");
        }
        for text in [
            "GET / HTTP/1.1\rHost: a",
            "GET / HTTP/1.1\r\nHost: a\rb",
            "GET / HTTP/1.1\r\r\n",
        ] {
            assert!(Scanned::default().end(text.as_bytes()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn h1_01_length_and_chunks_together_are_refused_in_both_orders() {
        for fields in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        ] {
            let text = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
            assert_eq!(refused(&text), BadRequest::Framing);
        }
    }

    #[test]
    fn h1_02_any_coding_but_one_chunked_is_refused() {
        for value in [
            "xchunked",
            "chunked, identity",
            "identity",
            "gzip, chunked",
            "chunked,chunked",
            "chunked;q=1",
            "\u{b}chunked",
            "chunked x",
            "",
        ] {
            let text = format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: {value}\r\n\r\n");
            assert_eq!(refused(&text), BadRequest::Framing, "{value:?}");
        }
        let twice = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(refused(twice), BadRequest::Framing);
        let spaced = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n";
        assert_eq!(refused(spaced), BadRequest::Framing);
        assert_eq!(
            refused("POST / HTTP/1.1\r\nHost: a\r\ntransfer_encoding: chunked\r\n\r\n"),
            BadRequest::Field
        );
        let fine = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: ChUnKeD\r\n\r\n";
        assert_eq!(request(fine).unwrap(), (Length::Chunked, true));
    }

    #[test]
    fn h1_03_http_1_0_has_no_chunks() {
        let text = "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(refused(text), BadRequest::Framing);
    }

    #[test]
    fn h1_04_a_length_is_digits_once() {
        for value in [
            "+5",
            "-5",
            "0x5",
            "5,5",
            "5 5",
            "",
            "5;",
            "18446744073709551616",
            "99999999999999999999",
        ] {
            let text = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {value}\r\n\r\n");
            assert_eq!(refused(&text), BadRequest::Framing, "{value:?}");
        }
        let twice = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n";
        assert_eq!(refused(twice), BadRequest::Framing);
        let fine = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 005\r\n\r\n";
        assert_eq!(request(fine).unwrap(), (Length::Bytes(5), true));
    }

    #[test]
    fn h1_05_malformed_fields_are_refused() {
        for line in [
            " folded: 1",
            "Name : 1",
            ": 1",
            "Na\u{0}me: 1",
            "Name: a\u{0}b",
            "Na(me: 1",
            "Näme: 1",
        ] {
            let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{line}\r\n\r\n");
            assert_eq!(refused(&text), BadRequest::Framing, "{line:?}");
        }
    }

    #[test]
    fn h1_09_max_headers_pass_and_one_more_does_not() {
        let with = |n: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(n));
        assert!(request(&with(MAX_HEADERS)).is_ok());
        assert_eq!(refused(&with(MAX_HEADERS + 1)), BadRequest::TooLarge);
    }

    #[test]
    fn h1_12_a_second_host_is_refused() {
        assert_eq!(
            refused("GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n"),
            BadRequest::Host
        );
    }

    #[test]
    fn an_answer_says_whether_its_connection_serves_again_and_where_its_body_ends() {
        let parse = |text: &str, to_head: bool| {
            let mut room = room();
            let head = AnswerHead::parse(text.as_bytes(), &mut room).unwrap();
            (head.keeps_alive, format!("{:?}", head.body(to_head)))
        };
        let length = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n";
        assert_eq!(parse(length, false), (true, "Length(3)".to_owned()));
        assert_eq!(parse(length, true), (true, "Length(0)".to_owned()));
        assert_eq!(
            parse("HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n", false).1,
            "Length(0)"
        );
        assert_eq!(
            parse("HTTP/1.0 200 OK\r\n\r\n", false),
            (false, "UntilClose".to_owned())
        );
        assert!(!parse("HTTP/1.1 200 OK\r\nConnection: Close\r\n\r\n", false).0);
        assert!(
            parse(
                "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
                false
            )
            .0
        );
        for bad in [
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/2.0 200 OK\r\n\r\n",
        ] {
            let mut room = room();
            let parsed = AnswerHead::parse(bad.as_bytes(), &mut room);
            assert_eq!(parsed.map(|_| ()).unwrap_err(), Failure::BadAnswer, "{bad:?}");
        }
    }
}
