//! A client that sends exactly what a test says, and reads answers without mercy.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::soon;

pub trait Io: AsyncRead + AsyncWrite {}
impl<T: AsyncRead + AsyncWrite> Io for T {}

/// One connection.
pub struct Conn {
    pub io: Pin<Box<dyn Io>>,
    read: Vec<u8>,
    /// The ALPN that was agreed on.
    pub alpn: Option<Vec<u8>>,
}

/// One answer.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub version: String,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
}

impl Answer {
    pub fn field(&self, name: &str) -> Option<&str> {
        field(&self.fields, name)
    }
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
    /// Does it say that the connection ends with it?
    pub fn closes(&self) -> bool {
        self.field("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

pub fn field<'a>(fields: &'a [(String, String)], name: &str) -> Option<&'a str> {
    fields
        .iter()
        .find(|(n, _)| n.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
}

pub fn handshake_name() -> ServerName<'static> {
    ServerName::try_from("nobody.invalid").unwrap()
}

impl Conn {
    pub fn over(io: impl Io + 'static) -> Self {
        Self {
            io: Box::pin(io),
            read: Vec::new(),
            alpn: None,
        }
    }

    pub async fn plain(address: SocketAddr) -> Self {
        let tcp = TcpStream::connect(address).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        Self::over(tcp)
    }

    /// An error is a handshake that failed on our side. (A server's refusal of our certificate comes with the first
    /// read, in TLS 1.3.)
    pub async fn tls(address: SocketAddr, config: Arc<ClientConfig>) -> io::Result<Self> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let connecting = TlsConnector::from(config).connect(handshake_name(), tcp);
        let stream = soon("a handshake", connecting).await?;
        let alpn = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        let mut conn = Self::over(stream);
        conn.alpn = alpn;
        Ok(conn)
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.try_send(bytes).await;
    }

    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.io.write_all(bytes.as_ref()).await?;
        self.io.flush().await
    }

    /// Half-closes.
    pub async fn finish(&mut self) {
        let _ = self.io.shutdown().await;
    }

    async fn more(&mut self) -> bool {
        self.read.reserve(16 * 1024);
        matches!(self.io.read_buf(&mut self.read).await, Ok(1..))
    }

    /// The next answer; the connection must not end before it is whole.
    pub async fn answer(&mut self) -> Answer {
        soon("an answer", self.next_answer("GET"))
            .await
            .expect("closed instead of an answer")
    }

    pub async fn answer_to(&mut self, method: &str) -> Answer {
        soon("an answer", self.next_answer(method))
            .await
            .expect("closed instead of an answer")
    }

    /// The head of the next answer; its body is left to [`Conn::exactly`] and the like.
    pub async fn head(&mut self) -> Answer {
        soon("an answer's head", self.next_head())
            .await
            .expect("closed instead of an answer")
    }

    /// `None`: the connection ended before an answer was whole.
    pub async fn try_answer(&mut self) -> Option<Answer> {
        soon("an answer or the end", self.next_answer("GET")).await
    }

    async fn next_head(&mut self) -> Option<Answer> {
        loop {
            if let Some(end) = find(&self.read, b"\r\n\r\n") {
                let head: Vec<u8> = self.read.drain(..end + 4).collect();
                return Some(parse_head(&head));
            }
            if !self.more().await {
                return None;
            }
        }
    }

    async fn next_answer(&mut self, method: &str) -> Option<Answer> {
        let mut answer = self.next_head().await?;
        let bodiless = matches!(answer.status, 100..=199 | 204 | 304) || method == "HEAD";
        if bodiless {
            return Some(answer);
        }
        if answer.field("transfer-encoding").is_some() {
            loop {
                let size = self.line().await?;
                let size = usize::from_str_radix(size.split(';').next().unwrap(), 16).unwrap();
                if size == 0 {
                    break;
                }
                let chunk = self.take(size + 2).await?;
                answer.body.extend_from_slice(&chunk[..size]);
            }
            loop {
                let line = self.line().await?;
                let Some((name, value)) = line.split_once(':') else {
                    return Some(answer);
                };
                answer.trailers.push((name.to_lowercase(), value.trim().to_owned()));
            }
        }
        if let Some(length) = answer.field("content-length") {
            answer.body = self.take(length.parse().unwrap()).await?;
            return Some(answer);
        }
        // Delimited by its end.
        while self.more().await {}
        answer.body = std::mem::take(&mut self.read);
        Some(answer)
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = find(&self.read, b"\r\n") {
                let line: Vec<u8> = self.read.drain(..end + 2).collect();
                return Some(String::from_utf8(line[..end].to_vec()).unwrap());
            }
            if !self.more().await {
                return None;
            }
        }
    }

    async fn take(&mut self, n: usize) -> Option<Vec<u8>> {
        while self.read.len() < n {
            if !self.more().await {
                return None;
            }
        }
        Some(self.read.drain(..n).collect())
    }

    /// The next `n` bytes.
    pub async fn exactly(&mut self, n: usize) -> Vec<u8> {
        soon("bytes", self.take(n)).await.expect("closed too early")
    }

    /// One chunk of a chunked body.
    pub async fn chunk(&mut self) -> Vec<u8> {
        let reading = async {
            let size = usize::from_str_radix(&self.line().await?, 16).unwrap();
            let mut chunk = self.take(size + 2).await?;
            chunk.truncate(size);
            Some(chunk)
        };
        soon("a chunk", reading).await.expect("closed instead of a chunk")
    }

    /// Everything until the connection ends, which it must soon.
    pub async fn rest(&mut self) -> Vec<u8> {
        soon("the end of a connection", async { while self.more().await {} }).await;
        std::mem::take(&mut self.read)
    }

    /// Everything until it ends, or until it has been quiet for a moment after an answer that does not say `close`; and
    /// whether it ended.
    pub async fn until_quiet(&mut self) -> (Vec<u8>, bool) {
        let ended = loop {
            let read = String::from_utf8_lossy(&self.read).to_lowercase();
            let owed = read.is_empty() || read.contains("connection: close");
            let patience = if owed { super::SOON } else { Duration::from_millis(200) };
            match tokio::time::timeout(patience, self.more()).await {
                Ok(true) => {}
                Ok(false) => break true,
                Err(_) => break false,
            }
        };
        (std::mem::take(&mut self.read), ended)
    }

    /// It ends, and nothing more came.
    pub async fn ends(&mut self) {
        let rest = self.rest().await;
        assert!(rest.is_empty(), "more came: {:?}", String::from_utf8_lossy(&rest));
    }

    /// Nothing comes, and it does not end.
    pub async fn is_quiet(&mut self, span: Duration) -> bool {
        tokio::time::timeout(span, self.more()).await.is_err()
    }
}

/// Reads answers that stand one after the other.
pub async fn answers_in(bytes: &[u8]) -> Vec<Answer> {
    let mut conn = Conn::over(tokio::io::join(tokio::io::empty(), tokio::io::sink()));
    conn.read = bytes.to_vec();
    let mut answers = Vec::new();
    while let Some(answer) = conn.next_answer("GET").await {
        answers.push(answer);
    }
    answers
}

pub fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

fn parse_head(head: &[u8]) -> Answer {
    let mut fields = [httparse::EMPTY_HEADER; 200];
    let mut parsed = httparse::Response::new(&mut fields);
    let status = parsed.parse(head).unwrap();
    assert!(status.is_complete());
    Answer {
        status: parsed.code.unwrap(),
        version: format!("HTTP/1.{}", parsed.version.unwrap()),
        fields: parsed
            .headers
            .iter()
            .map(|field| {
                let value = String::from_utf8_lossy(field.value).into_owned();
                (field.name.to_lowercase(), value)
            })
            .collect(),
        ..Answer::default()
    }
}
