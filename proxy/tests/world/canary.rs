//! The app: it keeps every byte it was sent, reads requests by the letter of RFC 9112, and answers as it is told.

use std::cell::RefCell;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::client::{field, find};

/// One request as the app saw it.
#[derive(Debug, Clone, Default)]
pub struct Received {
    pub connection: usize,
    pub method: String,
    pub target: String,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// The head, byte for byte.
    pub head: String,
    /// Did all of it come?
    pub whole: bool,
}

#[derive(Debug, Default)]
struct Seen {
    connections: usize,
    closed: usize,
    bytes: usize,
    requests: Vec<Received>,
}

#[derive(Clone)]
pub struct Canary {
    pub address: SocketAddr,
    seen: Rc<RefCell<Seen>>,
}

/// What the app answers; the second says whether it closes then.
pub type Reply = (Vec<u8>, bool);

impl Canary {
    /// Answers 200 with the request's path.
    pub async fn start() -> Self {
        Self::answering(|request| (ok(&request.target), false)).await
    }

    pub async fn answering(reply: impl Fn(&Received) -> Reply + 'static) -> Self {
        let reply = Rc::new(reply);
        Self::serving(move |stream, canary, connection| {
            let reply = Rc::clone(&reply);
            async move { canary.serve(stream, connection, &*reply).await }
        })
        .await
    }

    /// Speaks whatever `serve` says.
    pub async fn serving<F>(serve: impl Fn(TcpStream, Canary, usize) -> F + 'static) -> Self
    where
        F: Future<Output = ()> + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let canary = Self {
            address: listener.local_addr().unwrap(),
            seen: Rc::default(),
        };
        let served = canary.clone();
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let connection = served.seen.borrow().connections;
                served.seen.borrow_mut().connections += 1;
                let serving = serve(stream, served.clone(), connection);
                let of = served.clone();
                tokio::task::spawn_local(async move {
                    serving.await;
                    of.seen.borrow_mut().closed += 1;
                });
            }
        });
        canary
    }

    pub fn requests(&self) -> Vec<Received> {
        self.seen.borrow().requests.clone()
    }
    /// How many requests there were.
    pub fn count(&self) -> usize {
        self.seen.borrow().requests.len()
    }
    /// Those after the first `count`.
    pub fn since(&self, count: usize) -> Vec<Received> {
        self.seen.borrow().requests[count..].to_vec()
    }
    pub fn connections(&self) -> usize {
        self.seen.borrow().connections
    }
    /// Connections that are open now.
    pub fn open(&self) -> usize {
        let seen = self.seen.borrow();
        seen.connections - seen.closed
    }
    pub fn bytes(&self) -> usize {
        self.seen.borrow().bytes
    }
    pub fn saw(&self, request: Received) {
        self.seen.borrow_mut().requests.push(request);
    }
    pub fn counted(&self, bytes: usize) {
        self.seen.borrow_mut().bytes += bytes;
    }

    /// The only request, whole.
    pub fn only(&self) -> Received {
        let mut requests = self.requests();
        assert_eq!(requests.len(), 1, "{requests:#?}");
        let only = requests.remove(0);
        assert!(only.whole, "{only:#?}");
        only
    }

    /// HTTP/1.1, one request after the other.
    pub async fn serve(
        &self,
        mut stream: impl AsyncRead + AsyncWrite + Unpin,
        connection: usize,
        reply: &dyn Fn(&Received) -> Reply,
    ) {
        let mut read = Vec::new();
        while let Some(request) = self.read(&mut stream, &mut read, connection).await {
            let whole = request.whole;
            let (bytes, close) = reply(&request);
            self.saw(request);
            if !whole || stream.write_all(&bytes).await.is_err() || close {
                return;
            }
        }
    }

    /// The next request; `None` at the end.
    pub async fn read(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        read: &mut Vec<u8>,
        connection: usize,
    ) -> Option<Received> {
        let mut request = self.read_head(stream, read, connection).await?;
        if field(&request.fields, "expect") == Some("100-continue") && read.is_empty() {
            // As servers do: the proxy passes the expectation on, and leave comes from whoever will read the body.
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.ok()?;
        }
        request.whole = !request.method.is_empty() && self.read_body(stream, read, &mut request).await.is_some();
        Some(request)
    }

    /// The next request's head.
    pub async fn read_head(
        &self,
        stream: &mut (impl AsyncRead + Unpin),
        read: &mut Vec<u8>,
        connection: usize,
    ) -> Option<Received> {
        let head_end = loop {
            if let Some(end) = find(read, b"\r\n\r\n") {
                break end + 4;
            }
            if !self.more(stream, read).await {
                if read.is_empty() {
                    return None;
                }
                let broken = Received {
                    connection,
                    head: String::from_utf8_lossy(read).into_owned(),
                    ..Received::default()
                };
                read.clear();
                return Some(broken);
            }
        };
        let head: Vec<u8> = read.drain(..head_end).collect();
        let mut request = parse(&head);
        request.connection = connection;
        Some(request)
    }

    /// Its body, into it.
    pub async fn read_body(
        &self,
        stream: &mut (impl AsyncRead + Unpin),
        read: &mut Vec<u8>,
        request: &mut Received,
    ) -> Option<()> {
        if field(&request.fields, "transfer-encoding").is_some() {
            loop {
                let line = self.line(stream, read).await?;
                let size = usize::from_str_radix(&line, 16).unwrap_or_else(|_| panic!("chunk size {line:?}"));
                if size == 0 {
                    break;
                }
                while read.len() < size + 2 {
                    if !self.more(stream, read).await {
                        return None;
                    }
                }
                request.body.extend(read.drain(..size));
                assert_eq!(read.drain(..2).collect::<Vec<_>>(), b"\r\n");
            }
            loop {
                let line = self.line(stream, read).await?;
                let Some((name, value)) = line.split_once(':') else {
                    assert_eq!(line, "");
                    return Some(());
                };
                request.trailers.push((name.to_lowercase(), value.trim().to_owned()));
            }
        }
        if let Some(length) = field(&request.fields, "content-length") {
            let length: usize = length.parse().unwrap();
            while read.len() < length {
                if !self.more(stream, read).await {
                    request.body = std::mem::take(read);
                    return None;
                }
            }
            request.body = read.drain(..length).collect();
        }
        Some(())
    }

    async fn line(&self, stream: &mut (impl AsyncRead + Unpin), read: &mut Vec<u8>) -> Option<String> {
        loop {
            if let Some(end) = find(read, b"\r\n") {
                let line: Vec<u8> = read.drain(..end + 2).collect();
                return Some(String::from_utf8(line[..end].to_vec()).unwrap());
            }
            if !self.more(stream, read).await {
                return None;
            }
        }
    }

    async fn more(&self, stream: &mut (impl AsyncRead + Unpin), read: &mut Vec<u8>) -> bool {
        read.reserve(16 * 1024);
        match stream.read_buf(read).await {
            Ok(0) | Err(_) => false,
            Ok(n) => {
                self.counted(n);
                true
            }
        }
    }
}

/// A peer that speaks TLS by itself: `serve` gets what is inside.
pub async fn tls_peer<F>(
    config: Arc<rustls::ServerConfig>,
    serve: impl Fn(TlsStream<TcpStream>, Canary, usize) -> F + 'static,
) -> Canary
where
    F: Future<Output = ()> + 'static,
{
    let serve = Rc::new(serve);
    Canary::serving(move |stream, canary, connection| {
        let accepting = TlsAcceptor::from(Arc::clone(&config)).accept(stream);
        let serve = Rc::clone(&serve);
        async move {
            if let Ok(stream) = accepting.await {
                serve(stream, canary, connection).await;
            }
        }
    })
    .await
}

/// 200 with a text.
pub fn ok(text: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()).into_bytes()
}

fn parse(head: &[u8]) -> Received {
    let text = std::str::from_utf8(head).expect("the app was sent a head that is not UTF-8");
    for (at, _) in text.match_indices('\n') {
        assert!(text[..at].ends_with('\r'), "a bare LF reached the app: {text:?}");
    }
    for (at, _) in text.match_indices('\r') {
        assert!(text[at..].starts_with("\r\n"), "a bare CR reached the app: {text:?}");
    }
    let mut lines = text.trim_end_matches("\r\n").split("\r\n");
    let line: Vec<&str> = lines.next().unwrap().split(' ').collect();
    assert_eq!(line.len(), 3, "{text:?}");
    assert_eq!(line[2], "HTTP/1.1", "{text:?}");
    let fields: Vec<(String, String)> = lines
        .map(|line| {
            let (name, value) = line.split_once(':').unwrap();
            assert!(!name.is_empty() && name.trim() == name, "{text:?}");
            (name.to_lowercase(), value.trim().to_owned())
        })
        .collect();
    let request = Received {
        method: line[0].to_owned(),
        target: line[1].to_owned(),
        fields,
        head: text.to_owned(),
        ..Received::default()
    };
    request.assert_canonical();
    request
}

impl Received {
    pub fn all(&self, name: &str) -> Vec<&str> {
        let named = self.fields.iter().filter(|(n, _)| n == name);
        named.map(|(_, value)| value.as_str()).collect()
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        field(&self.fields, name)
    }

    /// One framing, one host: nothing that two readers could read differently.
    fn assert_canonical(&self) {
        let framing = self.all("content-length").len() + self.all("transfer-encoding").len();
        assert!(framing <= 1, "{self:#?}");
        assert!(
            self.all("transfer-encoding").iter().all(|value| *value == "chunked"),
            "{self:#?}"
        );
        assert_eq!(self.all("host").len(), 1, "{self:#?}");
    }
}
