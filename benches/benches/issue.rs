//! What a certificate costs: a renewal over a kept connection, recorded and on disk before it is answered; and what the
//! connection itself costs both sides.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use postern_api::ca::v1 as pb;
use postern_api::ca::v1::admin_client::AdminClient;
use postern_api::ca_client::JoinToken;
use postern_api::transport;
use postern_benches::callers::{Address, Caller, address_of};
use postern_benches::certificates::Authority;
use postern_ca::{InitConfig, LedgerConfig, ServeConfig, init, start};
use postern_identity::tls::{self, ClientAuth};
use postern_identity::{BundleSet, Svid, Trust, TrustBundle, TrustDomain};
use rustls_pki_types::{PrivateKeyDer, ServerName, UnixTime};
use tokio::runtime::{Builder, Runtime};

/// Each may have 256 certificates at once.
const IDENTITIES: usize = 64;

fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// A CA on a thread of its own, as long as the process runs.
fn ca(dir: &std::path::Path) -> (Address, Vec<JoinToken>) {
    let life = Duration::from_secs(30 * 24 * 3600);
    let making = InitConfig {
        store: dir.join("ca"),
        trust_domain: "cluster.local".to_owned(),
        root_life: life,
        issuer_life: life,
    };
    let root = init(&making, UnixTime::now()).unwrap().root_sha256;
    let config = ServeConfig {
        store: making.store,
        listen: ([127, 0, 0, 1], 0).into(),
        admin_socket: dir.join("admin.sock"),
        metrics_listen: ([127, 0, 0, 1], 0).into(),
        ready_file: None,
        svid_life: Duration::from_secs(3600),
        insecure_short_life: false,
        kek: None,
        migrate: false,
        ledger: LedgerConfig::default(),
        root_acknowledge: postern_ca::RootPace::ACKNOWLEDGE,
        root_retire: None,
        issuer_dir: None,
    };
    let socket = config.admin_socket.clone();
    let (told, listen) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        runtime().block_on(async {
            let running = start(config, postern_ca::clock::system()).await.unwrap();
            told.send(running.listen).unwrap();
            std::future::pending::<()>().await;
        });
    });
    let mut root_sha256 = [0; 32];
    for (at, byte) in root_sha256.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&root[2 * at..2 * at + 2], 16).unwrap();
    }
    let address = Address::new(listen.recv().unwrap(), root_sha256, &domain()).unwrap();
    let tokens = runtime().block_on(async {
        let mut admin = AdminClient::new(transport::connect_unix(&socket).await.unwrap());
        let mut tokens = Vec::new();
        for n in 0..IDENTITIES {
            let request = pb::CreateJoinTokenRequest {
                spiffe_id: format!("spiffe://cluster.local/ns/shop/sa/web-{n}"),
                instance: "web-0".to_owned(),
                life_seconds: 600,
            };
            let made = admin.create_join_token(request).await.unwrap().into_inner();
            tokens.push(JoinToken::parse(&made.token).unwrap());
        }
        tokens
    });
    (address, tokens)
}

fn issue(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let (address, tokens) = ca(dir.path());
    let runtime = runtime();
    let client = runtime.block_on(address.dial(address_of(0))).unwrap();
    let callers: Vec<Caller> = tokens
        .iter()
        .map(|token| runtime.block_on(Caller::join(client.clone(), token)).unwrap())
        .collect();
    let mut turn = 0;
    let mut group = criterion.benchmark_group("issue");
    group.bench_function("renewal_on_disk", |bench| {
        bench.iter_batched(
            || {
                turn += 1;
                callers[turn % IDENTITIES].next().unwrap().0
            },
            |request| {
                let mut client = client.clone();
                let answer = runtime.block_on(async move { client.issue(request).await });
                assert_eq!(answer.unwrap().into_inner().chain.len(), 2);
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn handshake(criterion: &mut Criterion) {
    let authority = Authority::new(&domain()).unwrap();
    let bundle = TrustBundle::new(domain(), 1, vec![authority.root()], authority.now());
    let trust = Arc::new(ArcSwap::from_pointee(Trust {
        bundles: BundleSet::default().with(bundle),
        ..Trust::default()
    }));
    let svid = |name: &str| {
        let leaf = authority
            .leaf(&format!("spiffe://cluster.local/ns/shop/sa/{name}"), None)
            .unwrap();
        Svid::new(leaf.chain(), PrivateKeyDer::Pkcs8(leaf.key_pkcs8().into())).unwrap()
    };
    let alpn: &[&[u8]] = &[b"postern/h1"];
    let server = tls::server_config(&svid("cart"), Arc::clone(&trust), ClientAuth::Required, alpn).unwrap();
    let client = tls::client_config(Some(&svid("web")), trust, alpn).unwrap();
    criterion
        .benchmark_group("handshake")
        .bench_function("mutual_both_sides", |bench| {
            bench.iter(|| {
                let name = ServerName::try_from("cart").unwrap();
                let mut client = rustls::ClientConnection::new(Arc::clone(&client), name).unwrap();
                let mut server = rustls::ServerConnection::new(Arc::clone(&server)).unwrap();
                let mut wire = Vec::new();
                while client.is_handshaking() || server.is_handshaking() {
                    wire.clear();
                    while client.wants_write() {
                        client.write_tls(&mut wire).unwrap();
                    }
                    let mut read = &wire[..];
                    while !read.is_empty() {
                        server.read_tls(&mut read).unwrap();
                        server.process_new_packets().unwrap();
                    }
                    wire.clear();
                    while server.wants_write() {
                        server.write_tls(&mut wire).unwrap();
                    }
                    let mut read = &wire[..];
                    while !read.is_empty() {
                        client.read_tls(&mut read).unwrap();
                        client.process_new_packets().unwrap();
                    }
                }
                assert!(server.peer_certificates().is_some());
            });
        });
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(50);
    targets = issue, handshake
}
criterion_main!(benches);
