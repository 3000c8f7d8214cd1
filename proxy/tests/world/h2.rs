//! HTTP/2: an honest client over a [`Conn`]'s stream, and frames as no honest client sends them.

use super::client::Conn;
use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request, Response};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::soon;

/// An honest client.
pub struct Client {
    pub send: SendRequest<Bytes>,
    /// How the connection ended, once it has.
    pub ended: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

/// A whole answer.
#[derive(Debug)]
pub struct Whole {
    pub status: u16,
    pub fields: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
}

impl Client {
    pub async fn over(conn: Conn) -> Self {
        Self::with(conn, &mut h2::client::Builder::new()).await
    }

    pub async fn with(conn: Conn, builder: &mut h2::client::Builder) -> Self {
        let io = soon("HTTP/2", builder.handshake::<_, Bytes>(conn.io)).await;
        let (send, connection) = io.unwrap();
        Self {
            send,
            ended: tokio::task::spawn_local(connection),
        }
    }

    /// A request without body; its answer, whole.
    pub async fn get(&mut self, path: &str) -> Result<Whole, h2::Error> {
        self.request(get(path)).await
    }

    pub async fn request(&mut self, request: Request<()>) -> Result<Whole, h2::Error> {
        let (answer, _) = self.send.send_request(request, true)?;
        whole(soon("an answer", answer).await?).await
    }

    /// With a body and trailers.
    pub async fn post(
        &mut self,
        request: Request<()>,
        body: &[u8],
        trailers: Option<HeaderMap>,
    ) -> Result<Whole, h2::Error> {
        let (answer, mut stream) = self.send.send_request(request, false)?;
        stream.send_data(Bytes::copy_from_slice(body), trailers.is_none())?;
        if let Some(trailers) = trailers {
            stream.send_trailers(trailers)?;
        }
        whole(soon("an answer", answer).await?).await
    }
}

pub fn get(path: &str) -> Request<()> {
    request(Method::GET, path)
}

pub fn request(method: Method, path: &str) -> Request<()> {
    Request::builder()
        .method(method)
        .version(http::Version::HTTP_2)
        .uri(format!("http://cart{path}"))
        .body(())
        .unwrap()
}

pub async fn whole(answer: Response<h2::RecvStream>) -> Result<Whole, h2::Error> {
    let (parts, mut stream) = answer.into_parts();
    let mut body = Vec::new();
    while let Some(data) = soon("a body", stream.data()).await {
        let data = data?;
        let _ = stream.flow_control().release_capacity(data.len());
        body.extend_from_slice(&data);
    }
    let trailers = soon("trailers", stream.trailers()).await?;
    Ok(Whole {
        status: parts.status.as_u16(),
        fields: parts.headers,
        body,
        trailers,
    })
}

// -- frames by hand

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// A header block without any compression: HPACK literals, never indexed.
pub fn block(fields: &[(&str, &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0x10);
        text(&mut block, name.as_bytes());
        text(&mut block, value);
    }
    block
}

fn text(block: &mut Vec<u8>, text: &[u8]) {
    // RFC 7541 section 5.1: an integer with a 7-bit prefix.
    let mut left = text.len();
    if left < 127 {
        block.push(left as u8);
    } else {
        block.push(127);
        left -= 127;
        while left >= 128 {
            block.push((left % 128 + 128) as u8);
            left /= 128;
        }
        block.push(left as u8);
    }
    block.extend_from_slice(text);
}

/// The four pseudo-fields of an honest request.
pub fn pseudo(path: &'static str) -> Vec<(&'static str, &'static [u8])> {
    vec![
        (":method", b"GET"),
        (":scheme", b"http"),
        (":authority", b"cart"),
        (":path", path.as_bytes()),
    ]
}

/// A frame that was received.
#[derive(Debug, Clone)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// Of a RST_STREAM (its payload) or a GOAWAY (past the last stream's ID).
    pub fn error_code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// The next frame; `None` at the end.
pub async fn read_frame(io: &mut (impl AsyncRead + Unpin)) -> Option<Frame> {
    let mut head = [0; 9];
    io.read_exact(&mut head).await.ok()?;
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    let mut payload = vec![0; length];
    io.read_exact(&mut payload).await.ok()?;
    Some(Frame {
        kind: head[3],
        flags: head[4],
        stream: u32::from_be_bytes(head[5..9].try_into().unwrap()) & 0x7fff_ffff,
        payload,
    })
}

/// A gRPC server of sorts: echoes the body, and says in its trailers what it saw.
pub async fn grpc_app() -> super::Canary {
    super::Canary::serving(|stream, canary, connection| async move {
        let mut connection_of_app = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection_of_app.accept().await {
            let canary = canary.clone();
            tokio::task::spawn_local(async move {
                let (parts, mut stream) = request.into_parts();
                let answer = Response::builder()
                    .header("content-type", "application/grpc")
                    .body(())
                    .unwrap();
                let Ok(mut send) = respond.send_response(answer, false) else {
                    return;
                };
                let mut body = Vec::new();
                while let Some(Ok(data)) = stream.data().await {
                    let _ = stream.flow_control().release_capacity(data.len());
                    body.extend_from_slice(&data);
                    let _ = send.send_data(data, false);
                }
                let of_client = stream.trailers().await.ok().flatten().unwrap_or_default();
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().unwrap());
                let echo = |value: Option<&http::HeaderValue>| value.cloned().unwrap_or("none".parse().unwrap());
                trailers.insert("seen-te", echo(parts.headers.get("te")));
                trailers.insert("seen-trailer", echo(of_client.get("x-of-client")));
                canary.saw(super::Received {
                    connection,
                    method: parts.method.to_string(),
                    target: parts.uri.path().to_owned(),
                    fields: parts
                        .headers
                        .iter()
                        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
                        .collect(),
                    body,
                    whole: true,
                    ..Default::default()
                });
                let _ = send.send_trailers(trailers);
            });
        }
    })
    .await
}
