//! Connections that go on: an app of each kind that answers for ever, and clients that note when the last answer came and how
//! it ended. What streams is numbered: a client notices what is missing.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _, stream};
use http_body_util::{BodyExt as _, Either, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// Between two answers of an app, and two requests of a client.
pub const BEAT: Duration = Duration::from_millis(20);
/// Whoever does not connect within this does not.
const OPENING: Duration = Duration::from_secs(10);
/// Before a gRPC message: not compressed, four bytes long.
const PREFIX: [u8; 5] = [0, 0, 0, 0, 4];

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// What is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Requests, one after the other, on one HTTP/1.1 connection.
    Http1,
    /// The same on one HTTP/2 connection.
    Http2,
    /// One gRPC call with messages that never end.
    Grpc,
    /// Bytes that never end.
    Opaque,
    /// A WebSocket with messages that never end.
    WebSocket,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Http1, Self::Http2, Self::Grpc, Self::Opaque, Self::WebSocket];
    /// Those of which a connection is one long stream.
    pub const STREAMS: [Self; 3] = [Self::Grpc, Self::Opaque, Self::WebSocket];

    /// Its port's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Http1 => "h1",
            Self::Http2 => "h2",
            Self::Grpc => "grpc",
            Self::Opaque => "tcp",
            Self::WebSocket => "ws",
        }
    }
    /// As a Workload document spells it.
    #[must_use]
    pub fn protocol(self) -> &'static str {
        match self {
            Self::Http1 | Self::WebSocket => "HTTP1",
            Self::Http2 => "HTTP2",
            Self::Grpc => "GRPC",
            Self::Opaque => "TCP",
        }
    }
    /// What its Service calls the port.
    #[must_use]
    pub fn number(self) -> u16 {
        match self {
            Self::Http1 => 8_001,
            Self::Http2 => 8_002,
            Self::Grpc => 8_003,
            Self::Opaque => 8_004,
            Self::WebSocket => 8_005,
        }
    }
    /// Where the proxy listens.
    #[must_use]
    pub fn listen(self) -> u16 {
        self.number() + 1_000
    }
    /// Where the app listens.
    #[must_use]
    pub fn app(self) -> u16 {
        self.number() + 2_000
    }
}

/// The apps of all workloads, and a thread that serves them and all clients.
#[derive(Debug)]
pub struct Apps {
    handle: Handle,
    /// Dropped, the thread ends.
    _end: oneshot::Sender<Infallible>,
}

impl Apps {
    /// One of each kind at each of these addresses.
    ///
    /// # Panics
    /// If a port is taken.
    #[must_use]
    pub fn serve(addresses: impl Iterator<Item = Ipv4Addr>) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let handle = runtime.handle().clone();
        for address in addresses {
            for kind in Kind::ALL {
                let at = SocketAddr::from((address, kind.app()));
                let bound = runtime.block_on(TcpListener::bind(at));
                let listener = bound.unwrap_or_else(|error| panic!("cannot listen on {at}: {error}"));
                runtime.spawn(accept(listener, kind));
            }
        }
        let (end, ended) = oneshot::channel::<Infallible>();
        std::thread::spawn(move || {
            // An error is the end.
            let _ = runtime.block_on(ended);
        });
        Self { handle, _end: end }
    }

    /// A client of an app at `host`, through the explicit port of a proxy.
    #[must_use]
    pub fn line(&self, proxy: SocketAddr, host: &str, kind: Kind) -> Line {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let line = Line {
            kind,
            host: host.to_owned(),
            seen: Arc::clone(&seen),
        };
        let host = host.to_owned();
        self.handle.spawn(async move {
            let ended = ask(proxy, &host, kind, &seen).await;
            let why = ended.map_or_else(|error| error.to_string(), |()| "the end".to_owned());
            lock(&seen).ended = Some(why);
        });
        line
    }
}

/// A client's connection.
#[derive(Debug, Clone)]
pub struct Line {
    /// What is spoken.
    pub kind: Kind,
    /// Whom it leads to.
    pub host: String,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    answers: u64,
    last: Option<Instant>,
    ended: Option<String>,
}

impl Line {
    /// Answers so far.
    #[must_use]
    pub fn answers(&self) -> u64 {
        lock(&self.seen).answers
    }
    /// When the last one came.
    #[must_use]
    pub fn last(&self) -> Option<Instant> {
        lock(&self.seen).last
    }
    /// Why it ended, if it did.
    #[must_use]
    pub fn ended(&self) -> Option<String> {
        lock(&self.seen).ended.clone()
    }
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    // Whole at every instant.
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What comes after what came before?
struct Counting(u32);

impl Counting {
    fn next(&mut self, number: u32) -> Result<(), Failed> {
        if number != self.0 {
            return Err(format!("number {number} came where {} was due", self.0).into());
        }
        self.0 = number.wrapping_add(1);
        Ok(())
    }
}

fn answered(seen: &Mutex<Seen>) {
    let mut seen = lock(seen);
    seen.answers += 1;
    seen.last = Some(Instant::now());
}

async fn ask(proxy: SocketAddr, host: &str, kind: Kind, seen: &Mutex<Seen>) -> Result<(), Failed> {
    let opening = tokio::time::timeout(OPENING, tunnel(proxy, host, kind));
    let mut stream = opening.await??;
    match kind {
        Kind::Opaque => {
            let mut counting = Counting(0);
            while let Ok(number) = stream.read_u32().await {
                counting.next(number)?;
                answered(seen);
            }
            Ok(())
        }
        Kind::WebSocket => {
            let opening = tokio_tungstenite::client_async(format!("ws://{host}/ticks"), stream);
            let (mut socket, _) = opening.await?;
            let mut counting = Counting(0);
            while let Some(message) = socket.next().await {
                let message = message?.into_data();
                counting.next(u32::from_be_bytes(message.as_ref().try_into()?))?;
                answered(seen);
            }
            Ok(())
        }
        Kind::Http1 => {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            loop {
                sender.ready().await?;
                let answer = sender.send_request(ping(host)).await?;
                whole(answer, seen).await?;
            }
        }
        Kind::Http2 => {
            let io = TokioIo::new(stream);
            let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            loop {
                sender.ready().await?;
                let answer = sender.send_request(ping(host)).await?;
                whole(answer, seen).await?;
            }
        }
        Kind::Grpc => {
            let io = TokioIo::new(stream);
            let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            let request = Request::post(format!("http://{host}/lab.Ticks/Watch"))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(Empty::<Bytes>::new())?;
            let mut answer = sender.send_request(request).await?;
            let (mut counting, mut unread) = (Counting(0), Vec::new());
            // A refusal is a status without a message (200 in HTTP).
            while let Some(frame) = answer.body_mut().frame().await {
                unread.extend(frame?.into_data().unwrap_or_default());
                while let Some((message, rest)) = unread.split_first_chunk::<9>() {
                    let number = message.strip_prefix(&PREFIX).ok_or("no message")?;
                    counting.next(u32::from_be_bytes(number.try_into()?))?;
                    answered(seen);
                    unread = rest.to_vec();
                }
            }
            Err(format!("{} {:?}", answer.status(), answer.headers()).into())
        }
    }
}

fn ping(host: &str) -> Request<Empty<Bytes>> {
    let request = Request::get(format!("http://{host}/ping")).header("host", host);
    request.body(Empty::new()).expect("a request")
}

async fn whole(answer: Response<Incoming>, seen: &Mutex<Seen>) -> Result<(), Failed> {
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    if status != 200 {
        return Err(format!("{status}: {}", String::from_utf8_lossy(&body)).into());
    }
    answered(seen);
    tokio::time::sleep(BEAT).await;
    Ok(())
}

async fn tunnel(proxy: SocketAddr, host: &str, kind: Kind) -> Result<TcpStream, Failed> {
    let mut stream = TcpStream::connect(proxy).await?;
    let target = format!("{host}:{}", kind.number());
    let head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await?);
    }
    let answer = String::from_utf8_lossy(&answer);
    match answer.starts_with("HTTP/1.1 200") {
        true => Ok(stream),
        false => Err(answer.into_owned().into()),
    }
}

async fn accept(listener: TcpListener, kind: Kind) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            // Whoever called is gone.
            let _ = serve(stream, kind).await;
        });
    }
}

async fn serve(mut stream: TcpStream, kind: Kind) -> Result<(), Failed> {
    match kind {
        Kind::Opaque => {
            for number in 0_u32.. {
                stream.write_u32(number).await?;
                tokio::time::sleep(BEAT).await;
            }
            Ok(())
        }
        Kind::WebSocket => {
            let mut socket = tokio_tungstenite::accept_async(stream).await?;
            for number in 0_u32.. {
                let message = number.to_be_bytes().to_vec();
                socket
                    .send(tokio_tungstenite::tungstenite::Message::binary(message))
                    .await?;
                tokio::time::sleep(BEAT).await;
            }
            Ok(())
        }
        Kind::Http1 => {
            let connection = hyper::server::conn::http1::Builder::new();
            Ok(connection
                .serve_connection(TokioIo::new(stream), service_fn(answer))
                .await?)
        }
        Kind::Http2 | Kind::Grpc => {
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            Ok(connection
                .serve_connection(TokioIo::new(stream), service_fn(answer))
                .await?)
        }
    }
}

type Body = Either<Full<Bytes>, StreamBody<std::pin::Pin<Box<dyn stream::Stream<Item = Beat> + Send>>>>;
type Beat = Result<Frame<Bytes>, Infallible>;

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    if request.uri().path() == "/ping" {
        return Ok(Response::new(Either::Left(Full::from("pong"))));
    }
    let beats = stream::unfold(0_u32, |number| async move {
        tokio::time::sleep(BEAT).await;
        let message = [&PREFIX[..], &number.to_be_bytes()].concat();
        Some((Ok(Frame::data(Bytes::from(message))), number.wrapping_add(1)))
    });
    let mut answer = Response::new(Either::Right(StreamBody::new(Box::pin(beats) as _)));
    let grpc = hyper::header::HeaderValue::from_static("application/grpc");
    answer.headers_mut().insert("content-type", grpc);
    Ok(answer)
}
