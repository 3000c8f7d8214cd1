//! The service on a real socket, over offers made by hand.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::time::Duration;

use postern_api::transport::connect_unix;
use postern_api::workload_api::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use postern_api::workload_api::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, X509BundlesRequest, X509svidRequest,
};
use postern_identity::bundle::JwtKey;
use postern_identity::{Trust, TrustBundle};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use rcgen::{Issuer, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tonic::transport::Channel;
use tonic::{Code, Request};

use super::socket::Caller;
use super::*;
use crate::drain::Drain;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

struct Root {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

fn root(trust_domain: &str) -> Root {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into().unwrap())];
    let certificate = params.self_signed(&key).unwrap().der().clone();
    Root {
        certificate,
        issuer: Issuer::new(params, key),
    }
}

impl Root {
    fn svid(&self, id: &str) -> (Svid, Zeroizing<Vec<u8>>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let der = key.serialize_der();
        let svid = Svid::new(vec![leaf], PrivateKeyDer::Pkcs8(der.clone().into())).unwrap();
        (svid, Zeroizing::new(der))
    }
}

fn bundle(trust_domain: &str, sequence: u64, roots: &[&Root]) -> TrustBundle {
    let roots = roots.iter().map(|root| root.certificate.clone()).collect();
    TrustBundle::new(domain(trust_domain), sequence, roots, UnixTime::now())
}

fn held((svid, key): &(Svid, Zeroizing<Vec<u8>>), bundles: &[TrustBundle]) -> Arc<Offer> {
    let bundles = bundles
        .iter()
        .fold(BundleSet::default(), |set, bundle| set.with(bundle.clone()));
    Arc::new(Offer::Held(Material {
        svid: svid.clone(),
        key: key.clone(),
        bundles,
        quarantined: HashSet::new(),
    }))
}

/// A server, and what it offers.
struct World {
    offers: watch::Sender<Arc<Offer>>,
    directory: tempfile::TempDir,
}

impl World {
    fn with(first: Arc<Offer>, callers: Callers) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (offers, offered) = watch::channel(first);
        let listener = bind(&directory.path().join("w.sock"), &callers).unwrap();
        let shared = Arc::new(Shared::new(tokio::sync::mpsc::channel(1).0));
        tokio::spawn(serve(
            listener,
            callers,
            offered,
            Tokens::new("127.0.0.1:1".into(), shared),
        ));
        Self { offers, directory }
    }

    fn new(first: Arc<Offer>) -> Self {
        Self::with(first, Callers::Uids(vec![]))
    }

    async fn client(&self) -> SpiffeWorkloadApiClient<Channel> {
        SpiffeWorkloadApiClient::new(connect_unix(&self.directory.path().join("w.sock")).await.unwrap())
    }
}

fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("workload.spiffe.io", "true".parse().unwrap());
    request.set_timeout(Duration::from_secs(20));
    request
}

/// Of the one message that ends a stream.
async fn code_of<T>(stream: &mut tonic::Streaming<T>) -> Code {
    stream.message().await.err().unwrap().code()
}

#[tokio::test]
async fn spec_084_neither_tls_nor_credentials_are_asked_for() {
    let ours = root("cluster.local");
    let world = World::new(held(&ours.svid(WEB), &[bundle("cluster.local", 1, &[&ours])]));
    // Plain HTTP/2 on the socket, and nothing in it but the security header.
    let mut stream = world
        .client()
        .await
        .fetch_x509svid(with_header(X509svidRequest {}))
        .await
        .unwrap()
        .into_inner();
    assert!(stream.message().await.unwrap().is_some());
}

#[tokio::test]
async fn spec_091_there_is_one_svid_and_it_needs_no_hint() {
    let ours = root("cluster.local");
    let world = World::new(held(&ours.svid(WEB), &[bundle("cluster.local", 1, &[&ours])]));
    let mut client = world.client().await;
    let mut stream = client
        .fetch_x509svid(with_header(X509svidRequest {}))
        .await
        .unwrap()
        .into_inner();
    let svids = stream.message().await.unwrap().unwrap().svids;
    assert_eq!((svids.len(), svids[0].hint.as_str()), (1, ""));
}

#[tokio::test]
async fn spec_085_calls_without_the_security_header_are_invalid_arguments() {
    let world = World::new(Arc::new(Offer::Denied("nobody".into())));
    let mut client = world.client().await;
    let wrong: [&[&'static str]; 6] = [&[], &["TRUE"], &["1"], &["false"], &["true", "true"], &["true "]];
    for values in wrong {
        let mut request = Request::new(X509svidRequest {});
        for value in values {
            request
                .metadata_mut()
                .append("workload.spiffe.io", value.parse().unwrap());
        }
        let refused = client.fetch_x509svid(request).await;
        // White space around a field's value is not part of it (RFC 9110 section 5.5): some stacks drop it, none adds it.
        let allowed = *values == ["true "] && refused.is_ok();
        let code = refused.err().map(|status| status.code());
        assert!(allowed || code == Some(Code::InvalidArgument), "{values:?}: {code:?}");
    }
    let bundles = client.fetch_x509_bundles(Request::new(X509BundlesRequest {})).await;
    assert_eq!(bundles.err().unwrap().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn spec_087_the_first_message_comes_at_once_and_each_change_is_the_full_state() {
    let (old, new) = (root("cluster.local"), root("cluster.local"));
    let (first, second) = (old.svid(WEB), new.svid(WEB));
    let world = World::new(held(&first, &[bundle("cluster.local", 1, &[&old])]));
    let mut client = world.client().await;
    let mut svids = client
        .fetch_x509svid(with_header(X509svidRequest {}))
        .await
        .unwrap()
        .into_inner();
    let mut bundles = client
        .fetch_x509_bundles(with_header(X509BundlesRequest {}))
        .await
        .unwrap()
        .into_inner();
    let message = svids.message().await.unwrap().unwrap();
    assert_eq!(message.svids[0].bundle, old.certificate.to_vec());
    assert_eq!(
        bundles.message().await.unwrap().unwrap().bundles["spiffe://cluster.local"],
        old.certificate.to_vec()
    );

    // A new root beside the old: both streams hear of it.
    let both = [old.certificate.to_vec(), new.certificate.to_vec()].concat();
    world
        .offers
        .send_replace(held(&first, &[bundle("cluster.local", 2, &[&old, &new])]));
    let message = svids.message().await.unwrap().unwrap();
    assert_eq!(
        (&message.svids[0].bundle, &message.svids[0].x509_svid_key),
        (&both, &first.1.to_vec())
    );
    assert_eq!(
        bundles.message().await.unwrap().unwrap().bundles["spiffe://cluster.local"],
        both
    );

    // A new SVID: who asked for bundles alone hears nothing until they change.
    world
        .offers
        .send_replace(held(&second, &[bundle("cluster.local", 2, &[&old, &new])]));
    let message = svids.message().await.unwrap().unwrap();
    assert_eq!(
        (&message.svids[0].bundle, &message.svids[0].x509_svid_key),
        (&both, &second.1.to_vec())
    );
    world
        .offers
        .send_replace(held(&second, &[bundle("cluster.local", 3, &[&new])]));
    assert_eq!(
        bundles.message().await.unwrap().unwrap().bundles["spiffe://cluster.local"],
        new.certificate.to_vec()
    );
}

#[tokio::test]
async fn spec_088_a_message_has_id_chain_pkcs8_key_and_bundle_and_others_bundles_by_their_ids() {
    let (ours, theirs) = (root("cluster.local"), root("example.org"));
    let svid = ours.svid(WEB);
    let own = bundle("cluster.local", 1, &[&ours]);
    let world = World::new(held(&svid, &[own.clone(), bundle("example.org", 7, &[&theirs])]));
    let mut client = world.client().await;
    let mut stream = client
        .fetch_x509svid(with_header(X509svidRequest {}))
        .await
        .unwrap()
        .into_inner();
    let message = stream.message().await.unwrap().unwrap();
    assert!(message.crl.is_empty());
    let [told] = message.svids.as_slice() else {
        panic!("{} SVIDs", message.svids.len())
    };
    assert_eq!((told.spiffe_id.as_str(), told.hint.as_str()), (WEB, ""));
    assert_eq!(told.x509_svid, svid.0.chain()[0].to_vec());
    assert_eq!(told.bundle, ours.certificate.to_vec(), "roots are never pooled");
    let federated: Vec<_> = message.federated_bundles.iter().collect();
    assert_eq!(
        federated,
        [(&"spiffe://example.org".to_owned(), &theirs.certificate.to_vec())]
    );
    // The key is unencrypted PKCS#8 that signs for the leaf.
    let key = PrivateKeyDer::Pkcs8(told.x509_svid_key.clone().into());
    let again = Svid::new(vec![told.x509_svid.clone().into()], key).unwrap();
    assert_eq!(again.id().as_str(), WEB);
}

#[tokio::test]
async fn spec_089_a_bundle_that_is_withdrawn_is_not_in_the_next_message() {
    let (ours, theirs) = (root("cluster.local"), root("example.org"));
    let svid = ours.svid(WEB);
    let own = bundle("cluster.local", 1, &[&ours]);
    let world = World::new(held(&svid, &[own.clone(), bundle("example.org", 7, &[&theirs])]));
    let mut client = world.client().await;
    let mut stream = client
        .fetch_x509svid(with_header(X509svidRequest {}))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().federated_bundles.len(), 1);
    world.offers.send_replace(held(&svid, &[own]));
    assert!(stream.message().await.unwrap().unwrap().federated_bundles.is_empty());
}

#[tokio::test]
async fn spec_090_who_is_entitled_to_nothing_is_denied_and_a_loss_ends_the_stream() {
    let ours = root("cluster.local");
    let world = World::new(Arc::new(Offer::Unavailable("starting".into())));
    let mut client = world.client().await;
    let mut stream = client
        .fetch_x509svid(with_header(X509svidRequest {}))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(code_of(&mut stream).await, Code::Unavailable, "while starting");
    world
        .offers
        .send_replace(held(&ours.svid(WEB), &[bundle("cluster.local", 1, &[&ours])]));
    let mut stream = client
        .fetch_x509svid(with_header(X509svidRequest {}))
        .await
        .unwrap()
        .into_inner();
    let mut bundles = client
        .fetch_x509_bundles(with_header(X509BundlesRequest {}))
        .await
        .unwrap()
        .into_inner();
    assert!(stream.message().await.unwrap().is_some() && bundles.message().await.unwrap().is_some());
    world.offers.send_replace(Arc::new(Offer::Denied("quarantined".into())));
    assert_eq!(code_of(&mut stream).await, Code::PermissionDenied);
    assert_eq!(code_of(&mut bundles).await, Code::PermissionDenied);
    let mut stream = client
        .fetch_x509svid(with_header(X509svidRequest {}))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(code_of(&mut stream).await, Code::PermissionDenied);
}

#[test]
fn spec_095_a_caller_is_known_by_the_kernels_word_alone() {
    let request = |caller: Option<Caller>| {
        let mut request = with_header(());
        // Whatever a caller says of itself is not looked at.
        request.metadata_mut().insert("uid", "0".parse().unwrap());
        if let Some(caller) = caller {
            request.extensions_mut().insert(caller);
        }
        serve::admitted(request)
            .map(drop)
            .map_err(|status| (status.code(), status.message().to_owned()))
    };
    assert_eq!(request(Some(Caller { admitted: Ok(()) })), Ok(()));
    let (code, says) = request(Some(Caller { admitted: Err(1000) })).unwrap_err();
    assert!(
        code == Code::PermissionDenied && says.contains("1000") && says.contains("--workload-api-uid"),
        "{says}"
    );
    assert_eq!(request(None).unwrap_err().0, Code::PermissionDenied);
}

#[tokio::test]
async fn spec_094_methods_that_are_not_of_the_profiles_are_unimplemented() {
    let world = World::new(Arc::new(Offer::Denied("nobody".into())));
    let channel = connect_unix(&world.directory.path().join("w.sock")).await.unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<X509svidRequest, X509svidRequest>::default();
    let path = http::uri::PathAndQuery::from_static("/SpiffeWorkloadAPI/FetchWITSVID");
    let refused = grpc.unary(with_header(X509svidRequest {}), path, codec).await;
    assert_eq!(refused.err().unwrap().code(), Code::Unimplemented);
}

#[tokio::test]
async fn spec_092_jwt_bundles_have_the_keys_of_jwts_alone_for_each_trust_domain() {
    let (ours, theirs) = (root("cluster.local"), root("example.org"));
    let svid = ours.svid(WEB);
    let key = |n: u8| JwtKey::es256(&format!("key-{n}"), &[&[4][..], &[n; 64]].concat()).unwrap();
    let own = |keys: Vec<JwtKey>| bundle("cluster.local", 1, &[&ours]).with_jwt_keys(keys);
    let world = World::new(held(&svid, &[own(vec![key(1)]), bundle("example.org", 1, &[&theirs])]));
    let mut client = world.client().await;
    let mut stream = client
        .fetch_jwt_bundles(with_header(JwtBundlesRequest {}))
        .await
        .unwrap()
        .into_inner();
    let message = stream.message().await.unwrap().unwrap();
    let keys = |text: &[u8]| -> Vec<serde_json::Value> {
        let set: serde_json::Value = serde_json::from_slice(text).unwrap();
        set["keys"].as_array().unwrap().clone()
    };
    let told = keys(&message.bundles["spiffe://cluster.local"]);
    assert_eq!(
        (told.len(), told[0]["kid"].as_str(), told[0]["use"].as_str()),
        (1, Some("key-1"), Some("jwt-svid"))
    );
    assert!(told[0].get("x5c").is_none() && told[0].get("d").is_none());
    assert!(keys(&message.bundles["spiffe://example.org"]).is_empty());
    // A new SVID is no news here; a new key is.
    world.offers.send_replace(held(&ours.svid(WEB), &[own(vec![key(1)])]));
    world.offers.send_replace(held(&svid, &[own(vec![key(1), key(2)])]));
    let message = stream.message().await.unwrap().unwrap();
    assert_eq!(
        (
            message.bundles.len(),
            keys(&message.bundles["spiffe://cluster.local"]).len()
        ),
        (1, 2)
    );
}

#[tokio::test]
async fn spec_093_a_token_is_for_an_audience_and_of_our_own_identity() {
    let ours = root("cluster.local");
    let world = World::new(held(&ours.svid(WEB), &[bundle("cluster.local", 1, &[&ours])]));
    let mut client = world.client().await;
    let ask = |audience: &[&str], id: &str| {
        with_header(JwtsvidRequest {
            audience: audience.iter().map(ToString::to_string).collect(),
            spiffe_id: id.to_owned(),
        })
    };
    for (audience, id, code) in [
        (&[][..], "", Code::InvalidArgument),
        (&[""], "", Code::InvalidArgument),
        (
            &["db"],
            "spiffe://cluster.local/ns/shop/sa/cart",
            Code::PermissionDenied,
        ),
        // There is no CA here.
        (&["db"], "", Code::Unavailable),
        (&["db"], WEB, Code::Unavailable),
    ] {
        let refused = client.fetch_jwtsvid(ask(audience, id)).await.err().unwrap();
        assert_eq!(refused.code(), code, "{audience:?} {id}: {refused}");
    }
    for (audience, svid) in [("", "a.b.c"), ("db", ""), ("db", "a.b.c")] {
        let (audience, svid) = (audience.to_owned(), svid.to_owned());
        let request = with_header(ValidateJwtsvidRequest { audience, svid });
        let refused = client.validate_jwtsvid(request).await.err().unwrap();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    world.offers.send_replace(Arc::new(Offer::Denied("quarantined".into())));
    let refused = client.fetch_jwtsvid(ask(&["db"], "")).await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

fn keeper(shared: Arc<Shared>) -> Keeper {
    let metrics = Arc::new(Metrics::default());
    let (_phase, drain) = Drain::new();
    Keeper {
        ca: "127.0.0.1:1".into(),
        source: Source::JoinToken("/none".into()),
        trust_domain: domain("cluster.local"),
        status: Arc::new(Status::new(Arc::clone(&shared), domain("cluster.local"), drain)),
        shared,
        metrics,
    }
}

#[test]
fn an_svid_is_offered_only_with_bundles_under_which_it_verifies_and_never_from_quarantine() {
    let (ours, other) = (root("cluster.local"), root("cluster.local"));
    let shared = Arc::new(Shared::new(tokio::sync::mpsc::channel(1).0));
    let keeper = keeper(Arc::clone(&shared));
    let (svid, key) = ours.svid(WEB);
    let id = svid.id().clone();
    let standing = Standing::Issued(AppSvid { svid, key });
    let trust = |roots: &[&Root], quarantined: bool| {
        let mut trust = Trust {
            bundles: BundleSet::default().with(bundle("cluster.local", 1, roots)),
            ..Trust::default()
        };
        trust.quarantined_ids.extend(quarantined.then(|| id.clone()));
        shared.trust.store(Arc::new(trust));
        keeper.offer(&standing)
    };
    assert!(matches!(trust(&[&ours], false), Offer::Held(_)));
    assert!(matches!(trust(&[&other, &ours], false), Offer::Held(_)));
    let cart = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/cart").unwrap();
    shared.change_trust(|trust| {
        let mut next = trust.clone();
        next.quarantined_ids.insert(cart.clone());
        Some(next)
    });
    let Offer::Held(material) = keeper.offer(&standing) else {
        panic!("another's quarantine");
    };
    assert!(material.quarantined.contains(&cart), "whose tokens are refused");
    assert!(matches!(trust(&[&other], false), Offer::Unavailable(why) if why.contains("does not hold")));
    assert!(matches!(trust(&[&ours], true), Offer::Denied(why) if why.contains("quarantined")));
    assert!(matches!(
        keeper.offer(&Standing::Refused("no".into())),
        Offer::Denied(_)
    ));
    // Its proxy alone, by the serial number of its certificate.
    shared.cut_off.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(matches!(trust(&[&ours], false), Offer::Denied(why) if why.contains("quarantine")));
    shared.cut_off.store(false, std::sync::atomic::Ordering::Relaxed);
    assert!(
        !format!("{:?}", trust(&[&ours], false)).contains("key"),
        "Debug shows no key"
    );
}
