//! Other trust domains: their bundles are read or fetched here, and told to proxies.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use postern_api::control::v1 as wire;
use postern_control::{BundleEndpoint, EndpointProof, FederationConfig, ServeConfig};
use postern_identity::{TrustBundle, TrustDomain, federation, tls};
use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, UnixTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::world::{Authority, Held, PATIENCE, Proxy, SHOP, World, hello, id, named};

const PARTNER: &str = "partner.example";
const SERVER: &str = "spiffe://partner.example/ns/mesh/sa/server";

fn partner() -> Authority {
    Authority::of(TrustDomain::parse(PARTNER).unwrap())
}

/// A bundle endpoint, and what it shows and says at the moment.
struct Endpoint {
    address: std::net::SocketAddr,
    says: Arc<Mutex<(Arc<ServerConfig>, String)>>,
    asked: Arc<AtomicUsize>,
}

impl Endpoint {
    async fn start(proof: Arc<ServerConfig>, says: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let says = Arc::new(Mutex::new((proof, says)));
        let asked = Arc::new(AtomicUsize::new(0));
        let (serving, counted) = (Arc::clone(&says), Arc::clone(&asked));
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (proof, answer) = serving.lock().unwrap().clone();
                counted.fetch_add(1, Ordering::Relaxed);
                let Ok(mut stream) = tokio_rustls::TlsAcceptor::from(proof).accept(tcp).await else {
                    continue;
                };
                let mut head = [0; 1024];
                let _ = stream.read(&mut head).await;
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        Self { address, says, asked }
    }

    fn now(&self, proof: Arc<ServerConfig>, says: String) {
        *self.says.lock().unwrap() = (proof, says);
    }

    /// Asked so often again.
    async fn asked_again(&self, times: usize) {
        let wanted = self.asked.load(Ordering::Relaxed) + times;
        let waiting = async {
            while self.asked.load(Ordering::Relaxed) < wanted {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("it is asked");
    }
}

fn by_svid(authority: &Authority, id: &str) -> Arc<ServerConfig> {
    tls::anonymous_server_config(&authority.svid(id, None, 3600), &[]).unwrap()
}

/// A server of the web named `localhost`, and its root in a file.
fn by_web(directory: &tempfile::TempDir, name: &str) -> (Arc<ServerConfig>, PathBuf) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![name.to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let path = directory.path().join("web.pem");
    std::fs::write(&path, certificate.pem()).unwrap();
    std::fs::write(directory.path().join("web.key"), key.serialize_pem()).unwrap();
    let config = ServerConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        );
    (Arc::new(config.unwrap()), path)
}

fn ok(bundle: &TrustBundle) -> String {
    let document = String::from_utf8(bundle.to_document()).unwrap();
    format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{document}",
        document.len()
    )
}

fn redirect(to: &str) -> String {
    format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n")
}

fn relationship(rest: &str) -> String {
    format!(
        "apiVersion: postern.dev/v1alpha1\nkind: ClusterFederatedTrustDomain\nmetadata: {{name: partner}}\n\
         spec: {{trustDomain: {PARTNER}, {rest}}}\n"
    )
}

fn given(bundle: &TrustBundle) -> String {
    let document = String::from_utf8(bundle.to_document()).unwrap();
    format!("trustDomainBundle: '{document}'")
}

fn spiffe(url: &str, bootstrap: &TrustBundle) -> String {
    let profile = format!("bundleEndpointProfile: {{type: https_spiffe, endpointSPIFFEID: '{SERVER}'}}");
    relationship(&format!("bundleEndpointURL: '{url}', {profile}, {}", given(bootstrap)))
}

/// Control with a federation file, and one proxy.
struct Federated {
    world: World,
    files: tempfile::TempDir,
}

impl Federated {
    async fn start(text: &str) -> Self {
        Self::configured(text, |_, _| {}).await
    }

    async fn configured(text: &str, change: impl FnOnce(&mut ServeConfig, &tempfile::TempDir)) -> Self {
        let files = tempfile::tempdir().unwrap();
        std::fs::write(files.path().join("federation.yaml"), text).unwrap();
        Self::in_files(files, change).await
    }

    async fn in_files(files: tempfile::TempDir, change: impl FnOnce(&mut ServeConfig, &tempfile::TempDir)) -> Self {
        let world = World::configured(&[("shop.yaml", SHOP)], |config| {
            config.federation = FederationConfig {
                file: Some(files.path().join("federation.yaml")),
                cache: Some(files.path().join("cache")),
                longest_poll: Duration::from_millis(300),
                ..FederationConfig::default()
            };
            change(config, &files);
        })
        .await;
        Self { world, files }
    }

    fn write(&self, text: &str) {
        let new = self.files.path().join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.files.path().join("federation.yaml")).unwrap();
    }

    async fn proxy(&self) -> Proxy {
        self.world.proxy("cart").await
    }
}

/// The sequence of the partner's bundle as the proxy was told of it; 0: there is none, `None`: nothing was told.
fn sequence(held: &Held) -> Option<u64> {
    let told = held.federation.as_ref()?;
    let partner = told.trust_domains.iter().find(|entry| entry.trust_domain == PARTNER);
    let document = partner.filter(|entry| !entry.document.is_empty());
    Some(document.map_or(0, |entry| {
        federation::parse_document(&entry.document).unwrap().sequence()
    }))
}

/// The same after everything that is in force by now was told: answers come after bundles.
async fn now(proxy: &mut Proxy) -> Option<u64> {
    let question = proxy.held.destinations.len() as u64 + 1;
    proxy.send(named(question, "cart.shop", 80)).await;
    proxy.until(|held| held.destinations.contains_key(&question)).await;
    sequence(&proxy.held)
}

#[tokio::test]
async fn a_bundle_in_a_file_is_told_to_proxies_and_so_is_its_end_and_a_bad_file_changes_nothing() {
    let authority = partner();
    let federated = Federated::start(&relationship(&given(&authority.bundle_beside(4, &[])))).await;
    let mut proxy = federated.proxy().await;
    proxy.until(|held| sequence(held) == Some(4)).await;
    let mut viewer = federated.world.viewer().await;
    federated.write("apiVersion: v1\n");
    let picture = viewer.until(|picture| !picture.bad_files.is_empty()).await;
    assert!(picture.bad_files[0].file.ends_with("federation.yaml"));
    assert_eq!(now(&mut proxy).await, Some(4));
    federated.write(&relationship(&given(&authority.bundle_beside(5, &[]))));
    proxy.until(|held| sequence(held) == Some(5)).await;
    viewer.until(|picture| picture.bad_files.is_empty()).await;
    // An older one as well: the file is the operator's word.
    federated.write(&relationship(&given(&authority.bundle_beside(2, &[]))));
    proxy.until(|held| sequence(held) == Some(2)).await;
    let versions = proxy.held.versions(wire::Kind::Federation);
    assert!(versions.is_sorted(), "{versions:?}");
    federated.write("");
    proxy
        .until(|held| {
            held.federation
                .as_ref()
                .is_some_and(|told| told.trust_domains.is_empty())
        })
        .await;
}

/// It was told that nobody else is believed.
fn nobody(held: &Held) -> bool {
    let told = held.federation.as_ref();
    told.is_some_and(|told| told.trust_domains.is_empty())
}

/// The proxy of before calls again, with what it holds.
async fn again(world: &World, version: u64) -> Proxy {
    let held = wire::Held {
        kind: wire::Kind::Federation as i32,
        version,
    };
    let hello = wire::Hello {
        held: vec![held],
        ..hello()
    };
    world.caller(&id("cart"), Some("cart"), hello).await
}

#[tokio::test]
async fn a_control_that_starts_without_a_file_ends_the_relationships_of_the_one_before_it() {
    let federated = Federated::start(&relationship(&given(&partner().bundle_beside(4, &[])))).await;
    let mut proxy = federated.proxy().await;
    proxy.until(|held| sequence(held) == Some(4)).await;
    let version = *proxy.held.versions(wire::Kind::Federation).last().unwrap();
    drop(proxy);
    federated.world.running.stop().await;
    let without = World::configured(&[("shop.yaml", SHOP)], |_| {}).await;
    let mut proxy = again(&without, version).await;
    proxy.until(nobody).await;
    assert!(proxy.held.versions(wire::Kind::Federation)[0] > version);
}

#[tokio::test]
async fn a_control_does_not_start_with_a_file_that_may_have_a_bundle_for_us_and_starts_with_another_bad_one() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("federation.yaml");
    let partner_is_us = |config: &mut ServeConfig| {
        config.mesh.trust_domain_alias = vec![TrustDomain::parse(PARTNER).unwrap()];
    };
    let federation = FederationConfig {
        file: Some(path.clone()),
        ..FederationConfig::default()
    };
    let of_partner = relationship(&given(&partner().bundle_beside(4, &[])));
    // A name of ours is added while proxies hold its bundle; with a name of ours nobody knows what a bad file says of it.
    for text in [&*of_partner, "apiVersion: v1\n"] {
        std::fs::write(&path, text).unwrap();
        let why = World::does_not_start(|config| {
            config.federation = federation.clone();
            partner_is_us(config);
        })
        .await;
        assert!(why.contains("federation.yaml is refused"), "{why}");
    }
    std::fs::write(&path, of_partner.replace(PARTNER, "cluster.local")).unwrap();
    let why = World::does_not_start(|config| config.federation = federation.clone()).await;
    assert!(why.contains("is our own trust domain"), "{why}");

    // What is wrong otherwise leaves proxies with what they hold, until it is mended.
    let federated = Federated::start("apiVersion: v1\n").await;
    let mut viewer = federated.world.viewer().await;
    viewer.until(|picture| !picture.bad_files.is_empty()).await;
    let mut proxy = again(&federated.world, 1).await.started().await;
    assert_eq!(now(&mut proxy).await, None);
    federated.write(&of_partner);
    proxy.until(|held| sequence(held) == Some(4)).await;
}

#[tokio::test]
async fn a_control_that_starts_without_a_cache_says_that_its_bundle_is_only_to_begin_with() {
    let [first, second] = [partner(), partner()];
    let to_begin_with = first.bundle_beside(0, &[]);
    let endpoint = Endpoint::start(by_svid(&first, SERVER), ok(&first.bundle_beside(0, &[&second]))).await;
    let url = format!("https://{}/", endpoint.address);
    let text = spiffe(&url, &to_begin_with);
    let without_cache = |config: &mut ServeConfig, _: &tempfile::TempDir| config.federation.cache = None;
    let told = |held: &Held| {
        let partner = held.federation.as_ref()?.trust_domains.first()?;
        let document = federation::parse_document(&partner.document).ok()?;
        let bundle = document.into_bundle(TrustDomain::parse(PARTNER).ok()?, UnixTime::now());
        Some((bundle.roots().len(), partner.bootstrap))
    };
    let federated = Federated::configured(&text, without_cache).await;
    let mut viewer = federated.world.viewer().await;
    viewer.event("--federation-cache").await;
    let mut proxy = federated.proxy().await;
    proxy.until(|held| told(held) == Some((2, false))).await;
    let Federated { world, files } = federated;
    drop((proxy, viewer));
    world.running.stop().await;
    // Nobody can be asked any more: the proxy keeps what was fetched.
    endpoint.now(by_svid(&partner(), SERVER), String::new());
    let federated = Federated::in_files(files, without_cache).await;
    let mut proxy = federated.proxy().await;
    proxy.until(|held| told(held) == Some((1, true))).await;
    // What was only to begin with is what is served as well.
    endpoint.now(by_svid(&first, SERVER), ok(&to_begin_with));
    proxy.until(|held| told(held) == Some((1, false))).await;
}

#[tokio::test]
async fn an_answer_that_nobody_can_be_followed_from_is_told_with_what_to_do() {
    let (authority, stranger) = (partner(), partner());
    let proof = by_svid(&authority, SERVER);
    // A bundle without the root of whoever serves it.
    let endpoint = Endpoint::start(Arc::clone(&proof), ok(&stranger.bundle_beside(2, &[]))).await;
    let url = format!("https://{}/", endpoint.address);
    let federated = Federated::start(&spiffe(&url, &authority.bundle())).await;
    let mut proxy = federated.proxy().await;
    proxy.until(|held| sequence(held) == Some(2)).await;
    let mut viewer = federated.world.viewer().await;
    viewer.event("a fresh `trustDomainBundle`").await;
    endpoint.now(proof, ok(&authority.bundle_beside(3, &[])));
    endpoint.asked_again(2).await;
    assert_eq!(now(&mut proxy).await, Some(2));
    federated.write(&spiffe(&url, &authority.bundle_beside(0, &[])));
    proxy.until(|held| sequence(held) == Some(3)).await;
}

#[tokio::test]
async fn a_proxy_that_does_not_know_of_federation_is_told_nothing_of_it() {
    let federated = Federated::start(&relationship(&given(&partner().bundle()))).await;
    let mut knowing = federated.proxy().await;
    knowing.until(|held| sequence(held) == Some(1)).await;
    let older = wire::Hello {
        federation: false,
        ..hello()
    };
    let mut older = federated
        .world
        .caller(&id("web"), Some("web"), older)
        .await
        .started()
        .await;
    federated.write(&relationship(&given(&partner().bundle_beside(2, &[]))));
    knowing.until(|held| sequence(held) == Some(2)).await;
    // What is asked for after it is answered, and nothing came in between.
    older.send(named(1, "cart.shop", 80)).await;
    older.until(|held| held.destinations.contains_key(&1)).await;
    assert!(older.held.federation.is_none(), "{:?}", older.held.heard);
}

#[tokio::test]
async fn spec_071_an_endpoint_proves_the_identity_that_is_configured_under_its_own_bundle() {
    let (authority, stranger) = (partner(), partner());
    let next = ok(&authority.bundle_beside(2, &[]));
    let endpoint = Endpoint::start(
        by_svid(&authority, "spiffe://partner.example/ns/mesh/sa/other"),
        next.clone(),
    )
    .await;
    let url = format!("https://{}/", endpoint.address);
    let federated = Federated::start(&spiffe(&url, &authority.bundle())).await;
    let mut proxy = federated.proxy().await;
    proxy.until(|held| sequence(held) == Some(1)).await;
    let web = by_web(&federated.files, "localhost").0;
    for wrong in [
        by_svid(&authority, "spiffe://partner.example/ns/mesh/sa/other"),
        // The right name under another root.
        by_svid(&stranger, SERVER),
        // The same of our own trust domain, whose bundle is not for that.
        by_svid(&federated.world.authority, SERVER),
        web,
    ] {
        endpoint.now(wrong, next.clone());
        endpoint.asked_again(2).await;
        assert_eq!(now(&mut proxy).await, Some(1));
    }
    endpoint.now(by_svid(&authority, SERVER), next);
    proxy.until(|held| sequence(held) == Some(2)).await;
}

#[tokio::test]
async fn spec_072_each_fetch_is_verified_by_the_one_before_and_the_first_bundle_is_not_believed_for_ever() {
    let [first, second, third] = [partner(), partner(), partner()];
    let endpoint = Endpoint::start(by_svid(&first, SERVER), ok(&first.bundle_beside(2, &[&second]))).await;
    let url = format!("https://{}/", endpoint.address);
    let federated = Federated::start(&spiffe(&url, &first.bundle())).await;
    let mut proxy = federated.proxy().await;
    proxy.until(|held| sequence(held) == Some(2)).await;
    endpoint.now(by_svid(&second, SERVER), ok(&second.bundle_beside(3, &[&third])));
    proxy.until(|held| sequence(held) == Some(3)).await;
    endpoint.now(by_svid(&third, SERVER), ok(&third.bundle_beside(4, &[])));
    proxy.until(|held| sequence(held) == Some(4)).await;
    // Whoever still has the key of the bundle that is in the file is nobody.
    endpoint.now(by_svid(&first, SERVER), ok(&first.bundle_beside(9, &[])));
    endpoint.asked_again(2).await;
    assert_eq!(now(&mut proxy).await, Some(4));
    // A new process goes on from the last one.
    let Federated { world, files } = federated;
    drop(proxy);
    world.running.stop().await;
    endpoint.now(by_svid(&third, SERVER), ok(&third.bundle_beside(5, &[])));
    let again = Federated::in_files(files, |_, _| {}).await;
    let mut proxy = again.proxy().await;
    proxy.until(|held| sequence(held) == Some(5)).await;
    // Where the operator gives another bundle, that one counts.
    endpoint.now(by_svid(&first, SERVER), ok(&first.bundle_beside(6, &[])));
    again.write(&spiffe(&url, &first.bundle_beside(1, &[&second])));
    proxy.until(|held| sequence(held) == Some(6)).await;
}

#[tokio::test]
async fn spec_073_https_web_goes_by_the_hosts_name_and_its_certificate_authority() {
    let authority = partner();
    let files = tempfile::tempdir().unwrap();
    let (proof, root) = by_web(&files, "localhost");
    let endpoint = Endpoint::start(proof, ok(&authority.bundle_beside(2, &[]))).await;
    let port = endpoint.address.port();
    let web = |host: &str| {
        relationship(&format!(
            "bundleEndpointURL: 'https://{host}:{port}/', bundleEndpointProfile: {{type: https_web}}"
        ))
    };
    std::fs::write(files.path().join("federation.yaml"), web("127.0.0.1")).unwrap();
    let federated = Federated::in_files(files, |config, _| config.federation.roots = Some(root)).await;
    let mut proxy = federated.proxy().await;
    // Its certificate is for another name.
    endpoint.asked_again(2).await;
    assert_eq!(now(&mut proxy).await, Some(0));
    federated.write(&web("localhost"));
    proxy.until(|held| sequence(held) == Some(2)).await;
    // An SVID is no certificate of the web.
    endpoint.now(by_svid(&authority, SERVER), ok(&authority.bundle_beside(3, &[])));
    endpoint.asked_again(2).await;
    assert_eq!(now(&mut proxy).await, Some(2));
}

#[tokio::test]
async fn spec_074_a_redirect_leads_to_https_under_the_same_identity_and_is_not_remembered() {
    let authority = partner();
    let proof = by_svid(&authority, SERVER);
    let other = Endpoint::start(Arc::clone(&proof), ok(&authority.bundle_beside(2, &[]))).await;
    let elsewhere = format!("https://{}/x", other.address);
    let endpoint = Endpoint::start(Arc::clone(&proof), redirect(&elsewhere)).await;
    let url = format!("https://{}/", endpoint.address);
    let federated = Federated::start(&spiffe(&url, &authority.bundle())).await;
    let mut proxy = federated.proxy().await;
    proxy.until(|held| sequence(held) == Some(2)).await;
    for to in [
        "http://127.0.0.1/",
        "https://user@127.0.0.1/",
        "",
        "//127.0.0.1/",
        "ftp://x/",
        &url,
    ] {
        endpoint.now(Arc::clone(&proof), redirect(to));
        endpoint.asked_again(2).await;
        assert_eq!(now(&mut proxy).await, Some(2), "{to}");
    }
    // Where it leads somebody else answers.
    other.now(
        by_svid(&authority, "spiffe://partner.example/ns/mesh/sa/other"),
        ok(&authority.bundle_beside(3, &[])),
    );
    endpoint.now(Arc::clone(&proof), redirect(&elsewhere));
    endpoint.asked_again(2).await;
    assert_eq!(now(&mut proxy).await, Some(2));
    // The next fetch begins where it is configured.
    endpoint.now(proof, ok(&authority.bundle_beside(4, &[])));
    proxy.until(|held| sequence(held) == Some(4)).await;
    let asked = other.asked.load(Ordering::Relaxed);
    endpoint.asked_again(2).await;
    assert_eq!(other.asked.load(Ordering::Relaxed), asked);
}

#[tokio::test]
async fn spec_075_what_cannot_be_fetched_leaves_the_old_bundle_until_the_relationship_ends() {
    let authority = partner();
    let proof = by_svid(&authority, SERVER);
    let endpoint = Endpoint::start(Arc::clone(&proof), ok(&authority.bundle_beside(7, &[]))).await;
    let url = format!("https://{}/", endpoint.address);
    let federated = Federated::start(&spiffe(&url, &authority.bundle())).await;
    let mut proxy = federated.proxy().await;
    proxy.until(|held| sequence(held) == Some(7)).await;
    let long = " ".repeat(300 * 1024);
    for bad in [
        "HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"keys\":[]".to_owned(),
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{long}", long.len()),
        "no HTTP".to_owned(),
        // Older than what is held.
        ok(&authority.bundle_beside(6, &[])),
    ] {
        endpoint.now(Arc::clone(&proof), bad);
        endpoint.asked_again(2).await;
        assert_eq!(now(&mut proxy).await, Some(7));
    }
    endpoint.now(proof, ok(&authority.bundle_beside(8, &[])));
    proxy.until(|held| sequence(held) == Some(8)).await;
    federated.write("");
    proxy
        .until(|held| {
            held.federation
                .as_ref()
                .is_some_and(|told| told.trust_domains.is_empty())
        })
        .await;
    let asked = endpoint.asked.load(Ordering::Relaxed);
    // As often as another is asked meanwhile, at the same pace.
    let another = Endpoint::start(by_svid(&authority, SERVER), ok(&authority.bundle_beside(9, &[]))).await;
    federated.write(&spiffe(&format!("https://{}/", another.address), &authority.bundle()));
    another.asked_again(3).await;
    assert_eq!(endpoint.asked.load(Ordering::Relaxed), asked, "nobody asks any more");
}

#[tokio::test]
async fn spec_069_our_own_bundle_is_served_by_both_profiles_to_another_mesh_and_asks_nobody_for_a_certificate() {
    let files = tempfile::tempdir().unwrap();
    let (_, root) = by_web(&files, "localhost");
    let ours = World::configured(&[("shop.yaml", SHOP)], |config| {
        config.bundle_endpoints = [
            EndpointProof::Svid,
            EndpointProof::Web {
                certificate: root.clone(),
                key: files.path().join("web.key"),
            },
        ]
        .map(|proof| BundleEndpoint {
            listen: ([127, 0, 0, 1], 0).into(),
            proof,
        })
        .to_vec();
    })
    .await;
    let [by_svid, by_web] = ours.running.bundle_endpoints[..] else {
        panic!("two endpoints")
    };
    // The other mesh is played by one of another name.
    let text = |endpoint: &str, beside: &str| {
        format!(
            "apiVersion: postern.dev/v1alpha1\nkind: ClusterFederatedTrustDomain\nmetadata: {{name: ours}}\n\
             spec: {{trustDomain: cluster.local, {endpoint}{beside}}}\n"
        )
    };
    let control = "spiffe://cluster.local/ns/postern-system/sa/postern-control";
    let bootstrap = given(&ours.authority.bundle_beside(0, &[]));
    for (endpoint, beside) in [
        (
            format!(
                "bundleEndpointURL: 'https://{by_svid}/', bundleEndpointProfile: {{type: https_spiffe, endpointSPIFFEID: '{control}'}}"
            ),
            format!(", {bootstrap}"),
        ),
        (
            format!(
                "bundleEndpointURL: 'https://localhost:{}/', bundleEndpointProfile: {{type: https_web}}",
                by_web.port()
            ),
            String::new(),
        ),
    ] {
        let other_files = tempfile::tempdir().unwrap();
        std::fs::write(other_files.path().join("federation.yaml"), text(&endpoint, &beside)).unwrap();
        let other = World::of(partner(), &[("shop.yaml", SHOP)], |config| {
            config.federation = FederationConfig {
                file: Some(other_files.path().join("federation.yaml")),
                roots: Some(root.clone()),
                ..FederationConfig::default()
            };
        })
        .await;
        let mut proxy = other
            .caller("spiffe://partner.example/ns/shop/sa/cart", Some("cart"), hello())
            .await;
        let fetched = |held: &Held| {
            let told = held.federation.as_ref()?.trust_domains.first()?;
            let document = federation::parse_document(&told.document).ok()?;
            Some(document.into_bundle(TrustDomain::parse("cluster.local").ok()?, UnixTime::now()))
        };
        proxy
            .until(|held| fetched(held).is_some_and(|bundle| bundle.sequence() == 1))
            .await;
        assert_eq!(fetched(&proxy.held).unwrap().roots(), ours.authority.bundle().roots());
    }
}

#[tokio::test]
async fn a_bundle_endpoint_answers_get_and_head_of_its_one_path_and_nothing_else() {
    let world = World::configured(&[("shop.yaml", SHOP)], |config| {
        config.bundle_endpoints = vec![BundleEndpoint {
            listen: ([127, 0, 0, 1], 0).into(),
            proof: EndpointProof::Svid,
        }];
    })
    .await;
    let address = world.running.bundle_endpoints[0];
    for (request, status) in [
        ("GET / HTTP/1.1", "200"),
        ("HEAD / HTTP/1.1", "200"),
        ("POST / HTTP/1.1", "405"),
        ("GET /metrics HTTP/1.1", "404"),
        ("nonsense", "400"),
    ] {
        let trust = crate::world::trust_of(world.authority.bundle());
        let client = tls::client_config(None, trust, &[]).unwrap();
        let mut stream = postern_api::transport::dial(&address.to_string(), client)
            .await
            .unwrap();
        let head = format!("{request}\r\nhost: x\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
        assert_eq!(answer.contains("x5c"), request.starts_with("GET / "), "{answer}");
    }
}
