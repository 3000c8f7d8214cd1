//! Every bound of the data path, with its reason. Tests at and one past each bound name the constant.

use std::time::Duration;

/// Two signatures and two round trips; a peer that takes longer is stalling. Also bounds a dribbled ClientHello.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// A client that speaks first has spoken by then; past it the stream is opaque (or refused where rules need HTTP).
pub const DETECT_DEADLINE: Duration = Duration::from_millis(1_000);
/// Enough for a TLS record header, the HTTP/2 preface (24 bytes) or an HTTP/1 request line's method.
pub const DETECT_BYTES: usize = 64;
/// From the first byte of a request head to its last (slowloris).
pub const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// Between two reads of a body, or two writes that make progress.
pub const BODY_PROGRESS_DEADLINE: Duration = Duration::from_secs(30);
/// An HTTP connection without a request.
pub const IDLE_DEADLINE: Duration = Duration::from_secs(300);
/// An opaque stream on which nothing moves either way.
pub const OPAQUE_IDLE_DEADLINE: Duration = Duration::from_secs(3_600);
/// An opaque stream of which one side is closed and the other silent.
pub const HALF_CLOSE_DEADLINE: Duration = Duration::from_secs(60);
/// TCP connect to an app (our own host) or an endpoint.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// From the last byte of a request to the first of its answer. Streams and long polls live on the body deadline.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(300);
/// From a change of rules to the end of a stream of which CUSTOM policies do not agree any more: within the second that every
/// change has, with what the waking takes.
pub const RECHECK_DEADLINE: Duration = Duration::from_millis(900);
/// How often whom CUSTOM policies ask may change while one request is asked about.
pub const MAX_CUSTOM_ROUNDS: usize = 8;
/// Control answers a first Resolve from memory.
pub const RESOLVE_DEADLINE: Duration = Duration::from_secs(3);
/// Request and answer heads: 100 fields within 32 KiB (Envoy allows 60 KiB; no service of ours needs more).
pub const MAX_HEAD_BYTES: usize = 32 * 1024;
/// See [`MAX_HEAD_BYTES`].
pub const MAX_HEADERS: usize = 100;
/// Concurrent streams of one HTTP/2 connection (Envoy's edge value).
pub const MAX_STREAMS: u32 = 100;
/// HTTP/2 windows: a stream may have this much in flight, a connection 16 times it.
pub const STREAM_WINDOW: u32 = 64 * 1024;
/// See [`STREAM_WINDOW`].
pub const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Connections of one worker; past it new sockets are closed at once and counted.
pub const MAX_CONNECTIONS: usize = 10_000;
/// Handshakes in progress on one worker: they cost CPU before anyone is known.
pub const MAX_HANDSHAKES: usize = 256;
/// Idle pooled connections per key and worker.
pub const MAX_IDLE_PER_KEY: usize = 64;
/// How long a pooled connection may idle; shorter than common app keep-alives (75 s nginx, 60 s others; Node 5 s is
/// survived by safe retry).
pub const POOL_IDLE: Duration = Duration::from_secs(50);
/// Destinations that one proxy holds; past it the least recently used are released.
pub const MAX_DESTINATIONS: usize = 4_096;
/// Distinct routes in metrics and flows; past it they are summed as `other`.
pub const MAX_ROUTES: usize = 1_024;
/// Copy buffer of an opaque stream's reads: one per thread, four TLS records.
pub const COPY_BUFFER: usize = 64 * 1024;
/// A read of at least this much is likely followed by more: gather it for the same write.
pub const COPY_ENOUGH: usize = 4 * 1024;
/// Client-chosen text in logs and reports, in bytes.
pub const MAX_LOGGED_TEXT: usize = 128;
/// Access log lines waiting for the writer; past it they are dropped and counted.
pub const LOG_QUEUE: usize = 4_096;
/// Grace for what is in flight at SIGTERM before it is cut.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(25);
/// Connections end this long before what they were admitted on expires, so that the other side never has to cut.
pub const EXPIRY_MARGIN: Duration = Duration::from_millis(500);
/// What lives as long may live longer than the SVIDs that it began under; nearly every request is over by then.
pub const LONG_LIVED: Duration = Duration::from_secs(1);
/// Of the time that a connection was admitted for, the part after which its client asks for more: our own renewals (at half,
/// give or take a tenth) are over then. Where in between is random, so that streams that began together do not ask together.
pub const READMIT_FROM: f64 = 0.60;
/// See [`READMIT_FROM`]; the rest is for further tries.
pub const READMIT_BY: f64 = 0.75;
/// The part after which a server knows the connection by name: before any client asks, also with clocks that differ a little.
pub const READMISSIBLE_FROM: f64 = 0.50;
/// After a try in vain, the next comes within this share of the time that is left (half to one and a half of it).
pub const READMIT_PAUSE: f64 = 0.25;
/// When our own root is another, within which time we ask: a root that was given away leaves a minute later.
pub const READMIT_HURRY: Duration = Duration::from_secs(5);
/// And between two tries, as long as the peer is likely to renew under the new root any moment.
pub const READMIT_HURRY_MOST: Duration = Duration::from_secs(10);
/// For so long: the minute in which everybody renews, and that in which the old root leaves. Whoever has not renewed then may
/// not for long, and is asked ever more seldom.
pub const READMIT_HURRY_FOR: Duration = Duration::from_secs(120);
/// One readmission, from the connect to the answer, and how long a server waits for the name.
pub const READMIT_DEADLINE: Duration = Duration::from_secs(5);
/// Readmissions of one worker under way: each is a handshake. With a tick's worth of them at a time, ten thousand streams move to
/// another root in the minute that there is for it.
pub const MAX_READMISSIONS: usize = 64;
/// Connections that all workers together know by name: a few hundred bytes each. What finds no room ends at its expiry.
pub const MAX_READMISSIBLE: usize = 16_384;
/// How often live connections are looked at: the deadlines of this file hold to within it.
pub const SUPERVISE_TICK: Duration = Duration::from_millis(250);
/// What is told to end (a stream reset, an answer) has this long before its connection is cut.
pub const CUT_GRACE: Duration = Duration::from_millis(400);
/// HTTP/2 streams reset by the peer before we looked at them (h2's default; CVE-2023-44487).
pub const MAX_PENDING_RESETS: usize = 20;
/// Resets of ours that one HTTP/2 peer may provoke by bad frames (CVE-2025-8671); h2's default is 1,024.
pub const MAX_LOCAL_RESETS: usize = 256;
/// HTTP/2 answer bytes buffered per stream before the app is slowed down.
pub const SEND_BUFFER: usize = 64 * 1024;
/// HTTP/2 pings on a busy connection: with [`PING_DEADLINE`] a dead peer is found within 60 s.
pub const PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long a ping's answer may take.
pub const PING_DEADLINE: Duration = Duration::from_secs(20);
/// A ClientHello with post-quantum key shares takes 2 KiB; a whole record is the most that is looked at.
pub const MAX_CLIENT_HELLO: usize = 16 * 1024 + 5;
/// Descriptors kept for the admin socket, probes, CA, control, logs and listeners, however many connections there are.
pub const RESERVED_FDS: usize = 256;
/// A new peer connection needs this much life left in both SVIDs, and a resting one is not used past it: more than
/// [`EXPIRY_MARGIN`] and a [`SUPERVISE_TICK`], so that the other side never closes under a request.
pub const USE_MARGIN: Duration = Duration::from_millis(1_000);
/// A resting connection that can be readmitted is not used past this: what begins on it may live long, and must find the time
/// to be readmitted. That takes [`LONG_LIVED`], and [`EXPIRY_MARGIN`] at the end; the two ends look once each in a
/// [`SUPERVISE_TICK`], the one that is asked perhaps after the other, and a try in vain costs one more.
pub const RIDE_MARGIN: Duration = LONG_LIVED
    .saturating_add(EXPIRY_MARGIN)
    .saturating_add(SUPERVISE_TICK.saturating_mul(4));
/// Connections of one worker to one endpoint; past it requests wait for nobody and are refused.
pub const MAX_PEER_CONNECTIONS: usize = 1_024;
/// Connections of one worker to one port of our app for HTTP; past it requests are refused. HTTP/2 peers bring a hundred
/// requests on one connection, and each may need one to an HTTP/1 app.
pub const MAX_APP_CONNECTIONS: usize = 1_024;
/// Endpoints that one request is offered to, where not a byte of it was sent.
pub const MAX_TRIES: usize = 3;
/// A connection that rested longer may have been closed by the other side meanwhile: a copy of the head is kept, and
/// an idempotent request without a body goes out once more.
pub const COPY_AFTER_REST: Duration = Duration::from_millis(2);
/// Retries of sent requests stay below this share of requests.
pub const RETRY_SHARE: f32 = 0.2;
/// What a quiet worker may spend on retries at once.
pub const RETRY_BURST: f32 = 10.0;
/// Failures in a row before an endpoint is passed over.
pub const EJECT_AFTER: u32 = 5;
/// How long it is passed over the first time; doubled up to [`EJECT_MOST`].
pub const EJECT_FOR: Duration = Duration::from_secs(1);
/// See [`EJECT_FOR`].
pub const EJECT_MOST: Duration = Duration::from_secs(30);
/// Destinations that one connection of an app remembers; an explicit client names several.
pub const ROUTES_PER_CONNECTION: usize = 8;
/// Name lookups of destinations outside of the mesh (explicit mode).
pub const LOOKUP_DEADLINE: Duration = Duration::from_secs(5);
/// What an in-process hop buffers each way: two TLS records.
pub const IN_PROCESS_BUFFER: usize = 32 * 1024;
/// The line that says a chunk's size, with its extension, which nobody uses.
pub const MAX_CHUNK_LINE: usize = 256;
/// Trailer fields of a chunked body.
pub const MAX_TRAILERS: usize = 32;
/// Bytes of a trailer section.
pub const MAX_TRAILER_BYTES: usize = 8 * 1024;
/// Interim answers (1xx) to one request.
pub const MAX_INTERIM: u32 = 8;
/// After an answer that ends a connection with request bytes unread, so many are still read, lest a reset overtakes it.
pub const LINGER_BYTES: usize = 256 * 1024;
/// And for so long.
pub const LINGER_DEADLINE: Duration = Duration::from_secs(1);
/// One read of an HTTP/1 connection that waits for a head.
pub const HEAD_READ: usize = 16 * 1024;
/// Fields that `Connection` may name: each is compared with each field of the head.
pub const MAX_NOMINATED: usize = 32;
/// Addresses of one name outside of the mesh that are looked at and dialled.
pub const MAX_LOOKED_UP: usize = 8;
/// How long a request waits for the key of its end user's token: control's answer to a first question takes milliseconds,
/// and its next fetch comes within ten seconds.
pub const KEYS_DEADLINE: Duration = Duration::from_secs(2);
/// Told to whoever waited that long in vain.
pub const RETRY_AFTER_KEYS: Duration = Duration::from_secs(2);
/// Requests of one worker that wait for keys; past it they are told to come again.
pub const MAX_WAITING_FOR_KEYS: usize = 256;
/// For how long a token is refused without asking once a fetch has shown that its issuer has no such key: as often as
/// control fetches.
pub const KNOWN_ABSENT: Duration = Duration::from_secs(10);
/// Such tokens that one worker remembers.
pub const MAX_ABSENT_KEYS: usize = 1_024;
/// Verified tokens that one worker remembers: signatures cost a tenth of a millisecond.
pub const MAX_VERIFIED_TOKENS: usize = 4_096;
/// And their length together; claims take a few times that.
pub const MAX_VERIFIED_BYTES: usize = 4 * 1024 * 1024;
