//! Rows 53 to 60 over handshakes of rustls with the configs that the mesh runs with.

use std::sync::Arc;

use arc_swap::ArcSwap;
use postern_identity::svid::SvidError;
use postern_identity::tls::{
    ClientAuth, client_config, peer_fingerprint, peer_of, pinned_bundle, pinned_client_config, server_config,
    verify_error_in,
};
use postern_identity::{Role, SharedTrust, SpiffeId, Svid, Trust, VerifyError, bundle};
use rustls::client::Resumption;
use rustls::server::ServerSessionMemoryCache;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{AlertDescription, ClientConfig, ClientConnection, Error, HandshakeKind, ServerConfig, ServerConnection};
use rustls_pki_types::ServerName;

use super::shake::{Shaken, read, shake, shake_as};
use super::{WEB, World, chain};
use crate::mint::der::{self, uri, usage};
use crate::mint::{self, DIGITAL_SIGNATURE, Form, KEY_CERT_SIGN, SAN, Signer, USAGE};

const LEDGER: &str = "spiffe://cluster.local/ns/shop/sa/ledger";

impl World {
    fn shared(&self) -> SharedTrust {
        Arc::new(ArcSwap::from_pointee(self.trust.clone()))
    }
    fn svid(&self, id: &str) -> Svid {
        let leaf = self.issuer.sign(&mint::leaf(id));
        Svid::new(chain(&[&leaf, &self.issuer]), leaf.private_key()).unwrap()
    }
    fn client(&self, trust: &SharedTrust) -> Arc<ClientConfig> {
        client_config(Some(&self.svid(WEB)), Arc::clone(trust), &[]).unwrap()
    }
    fn server(&self, trust: &SharedTrust) -> Arc<ServerConfig> {
        server_config(&self.svid(LEDGER), Arc::clone(trust), ClientAuth::Required, &[]).unwrap()
    }
    /// Both sides with a certificate of this form, which no [`Svid`] could be.
    fn hostile(&self, form: &Form, trust: &SharedTrust) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
        let leaf = self.issuer.sign(form);
        present(chain(&[&leaf, &self.issuer]), &leaf, self, trust)
    }
}

/// Both sides with this chain, signing with the key of `signer`.
fn present(
    chain: Vec<rustls_pki_types::CertificateDer<'static>>,
    signer: &Signer,
    world: &World,
    trust: &SharedTrust,
) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let provider = postern_identity::tls::provider();
    let key = provider.key_provider.load_private_key(signer.private_key()).unwrap();
    let shown = Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key)));
    let mut client = (*world.client(trust)).clone();
    client.client_auth_cert_resolver = Arc::clone(&shown) as _;
    let mut server = (*world.server(trust)).clone();
    server.cert_resolver = shown;
    (Arc::new(client), Arc::new(server))
}

#[test]
fn spec_034_each_side_learns_the_identity_of_the_other() {
    let world = World::new();
    let trust = world.shared();
    let (client, server) = shake(&world.client(&trust), &world.server(&trust)).good();
    let callee = peer_of(&client, Role::Server, &world.trust, mint::now()).unwrap();
    let caller = peer_of(&server, Role::Client, &world.trust, mint::now()).unwrap();
    assert_eq!((callee.id().as_str(), caller.id().as_str()), (LEDGER, WEB));
    let leaf = &client.peer_certificates().unwrap()[0];
    assert_eq!(peer_fingerprint(&client), Some(bundle::fingerprint(leaf)));
    for group in [
        client.negotiated_key_exchange_group(),
        server.negotiated_key_exchange_group(),
    ] {
        assert_eq!(group.unwrap().name(), rustls::NamedGroup::X25519MLKEM768);
    }
    assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
}

#[test]
fn spec_036_to_045_both_directions_refuse_alike() {
    let world = World::new();
    let trust = world.shared();
    let spoilt = [
        mint::leaf(WEB).named(&[uri(WEB), uri(LEDGER)]),
        mint::leaf(WEB).named(&[uri(WEB), der::tlv(der::URI, b"\xff")]),
        mint::leaf("spiffe://cluster.local"),
        mint::leaf("spiffe://elsewhere.example/ns/shop/sa/web"),
        mint::leaf(WEB).with(USAGE, true, usage(DIGITAL_SIGNATURE | KEY_CERT_SIGN)),
        mint::leaf(WEB).with(mint::EXTENDED, false, der::extended(&[der::SERVER_AUTH])),
        mint::leaf(WEB).with(mint::EXTENDED, false, der::extended(&[der::CLIENT_AUTH])),
        mint::leaf(WEB).valid(-60, -1),
        mint::leaf(WEB).valid(600, 3_600),
        mint::authority("issuer", None).with(SAN, true, der::san(&[uri(WEB)])),
    ];
    for form in &spoilt {
        let (client, server) = world.hostile(form, &trust);
        let of_client = shake(&client, &world.server(&trust));
        let of_server = shake(&world.client(&trust), &server);
        // Word by word the same, but for the clock, which may tick between.
        assert_eq!(of_client.of_client().reason(), of_server.of_server().reason());
    }
    let (client, server) = world.hostile(&mint::leaf(WEB), &trust);
    shake(&client, &server).good();
}

#[test]
fn spec_053_the_name_that_was_dialled_plays_no_part_and_is_not_told() {
    let world = World::new();
    let trust = world.shared();
    for name in [
        "127.0.0.1",
        "::1",
        "localhost",
        "ledger.shop.svc.cluster.local",
        "elsewhere.example",
    ] {
        let (client, server) = shake_as(name, &world.client(&trust), &world.server(&trust)).good();
        assert_eq!(server.server_name(), None);
        peer_of(&client, Role::Server, &world.trust, mint::now()).unwrap();
    }
    // Nor does a DNS name help a server that has no identity.
    let form = mint::leaf(LEDGER).named(&[der::dns("localhost")]);
    let (_, server) = world.hostile(&form, &trust);
    assert_eq!(
        shake_as("localhost", &world.client(&trust), &server)
            .of_server()
            .reason(),
        "leaf_san"
    );
}

#[test]
fn spec_054_a_pinned_client_accepts_one_identity_under_one_root() {
    let world = World::new();
    let trust = world.shared();
    let leaf = world.issuer.sign(&mint::leaf(LEDGER));
    let sends_root = chain(&[&leaf, &world.issuer, &world.root]);
    let (_, shown) = present(sends_root, &leaf, &world, &trust);
    // As the CA is: a caller may have no certificate yet.
    let optional = server_config(&world.svid(LEDGER), Arc::clone(&trust), ClientAuth::Optional, &[]).unwrap();
    let mut server = (*optional).clone();
    server.cert_resolver = Arc::clone(&shown.cert_resolver);
    let server = Arc::new(server);
    let (pin, ledger) = (bundle::fingerprint(&world.root.der), SpiffeId::parse(LEDGER).unwrap());
    let pinned = |pin, expected: &SpiffeId| pinned_client_config(pin, expected.clone(), &[]).unwrap();

    let (client, _) = shake(&pinned(pin, &ledger), &server).good();
    let first = pinned_bundle(&client, &ledger, pin, mint::now()).unwrap();
    assert_eq!((first.sequence(), first.roots()), (0, &[world.root.der.clone()][..]));

    let web = SpiffeId::parse(WEB).unwrap();
    assert_eq!(
        shake(&pinned(pin, &web), &server).of_server().reason(),
        "wrong_identity"
    );
    assert_eq!(
        shake(&pinned([0; 32], &ledger), &server).of_server(),
        &VerifyError::NotPinned
    );
    // A foreign chain with the pinned root sent along.
    let mallory = World::new();
    let leaf = mallory.issuer.sign(&mint::leaf(LEDGER));
    let (_, forged) = present(
        chain(&[&leaf, &mallory.issuer, &mallory.root, &world.root]),
        &leaf,
        &world,
        &trust,
    );
    shake(&pinned(pin, &ledger), &forged).of_server();
    // The root not sent.
    let (_, silent) = world.hostile(&mint::leaf(LEDGER), &trust);
    assert_eq!(
        shake(&pinned(pin, &ledger), &silent).of_server(),
        &VerifyError::NotPinned
    );
}

#[test]
fn spec_055_without_a_client_certificate_there_is_no_handshake() {
    let world = World::new();
    let trust = world.shared();
    let anonymous = client_config(None, Arc::clone(&trust), &[]).unwrap();
    let shaken = shake(&anonymous, &world.server(&trust));
    assert_eq!(shaken.of_client(), &VerifyError::NoCertificate);
    let wrapped = std::io::Error::new(std::io::ErrorKind::InvalidData, shaken.server_error.unwrap());
    assert_eq!(verify_error_in(&wrapped), Some(&VerifyError::NoCertificate));
}

#[test]
fn spec_055_where_a_certificate_is_optional_a_bad_one_is_still_refused() {
    let world = World::new();
    let trust = world.shared();
    let optional = server_config(&world.svid(LEDGER), Arc::clone(&trust), ClientAuth::Optional, &[]).unwrap();
    let anonymous = client_config(None, Arc::clone(&trust), &[]).unwrap();
    let (_, server) = shake(&anonymous, &optional).good();
    assert_eq!(
        peer_of(&server, Role::Client, &world.trust, mint::now()),
        Err(VerifyError::NoCertificate)
    );
    let (expired, _) = world.hostile(&mint::leaf(WEB).valid(-60, -1), &trust);
    assert_eq!(shake(&expired, &optional).of_client().reason(), "expired");
}

/// A handshake message in a record.
fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    let [_, high, middle, low] = u32::try_from(body.len()).unwrap().to_be_bytes();
    let message = [&[kind, high, middle, low], body].concat();
    let [high, low] = u16::try_from(message.len()).unwrap().to_be_bytes();
    [&[22, 3, 1, high, low], &message[..]].concat()
}

#[test]
fn spec_055_tls_1_2_is_refused_on_both_sides() {
    let world = World::new();
    let trust = world.shared();
    // Version, random, no session, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, no compression.
    let random = [7; 32];
    let groups_and_signatures = [0, 10, 0, 4, 0, 2, 0, 23, 0, 13, 0, 4, 0, 2, 4, 3];
    let hello = [
        &[3, 3],
        &random[..],
        &[0, 0, 2, 0xc0, 0x2b, 1, 0, 0, 16],
        &groups_and_signatures,
    ]
    .concat();
    let mut server = ServerConnection::new(world.server(&trust)).unwrap();
    let error = read(&mut server, &record(1, &hello)).unwrap();
    assert!(matches!(error, Error::PeerIncompatible(_)), "{error:?}");

    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut client = ClientConnection::new(world.client(&trust), name).unwrap();
    client.write_tls(&mut Vec::new()).unwrap();
    let hello = [&[3, 3], &random[..], &[0, 0xc0, 0x2b, 0]].concat();
    let error = read(&mut client, &record(2, &hello)).unwrap();
    assert!(matches!(error, Error::PeerIncompatible(_)), "{error:?}");
}

#[test]
fn spec_055_plaintext_is_refused() {
    let world = World::new();
    let mut server = ServerConnection::new(world.server(&world.shared())).unwrap();
    let error = read(&mut server, b"GET / HTTP/1.1\r\nhost: ledger.shop\r\n\r\n").unwrap();
    assert!(matches!(error, Error::InvalidMessage(_)), "{error:?}");
}

/// Two connections, then one after the trust is gone.
fn never_resumes(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>, trust: &SharedTrust) -> Shaken {
    for _ in 0..2 {
        let (client, server) = shake(client, server).good();
        assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(server.handshake_kind(), Some(HandshakeKind::Full));
    }
    trust.store(Arc::default());
    shake(client, server)
}

#[test]
fn spec_056_a_withdrawn_trust_is_felt_at_the_next_connection_by_the_server() {
    let world = World::new();
    let (of_client, of_server) = (world.shared(), world.shared());
    let server = world.server(&of_server);
    // It would use any ticket, and early data.
    let mut client = (*world.client(&of_client)).clone();
    client.resumption = Resumption::in_memory_sessions(8);
    client.enable_early_data = true;
    let client = Arc::new(client);
    let (shaken, _) = shake(&client, &server).good();
    assert_eq!(shaken.tls13_tickets_received(), 0);
    let refused = never_resumes(&client, &server, &of_server);
    assert_eq!(refused.of_client().reason(), "unknown_trust_domain");
}

#[test]
fn spec_056_a_withdrawn_trust_is_felt_at_the_next_connection_by_the_client() {
    let world = World::new();
    let (of_client, of_server) = (world.shared(), world.shared());
    let client = world.client(&of_client);
    // It gives tickets, and would take them.
    let mut server = (*world.server(&of_server)).clone();
    server.session_storage = ServerSessionMemoryCache::new(8);
    server.send_tls13_tickets = 4;
    let server = Arc::new(server);
    let refused = never_resumes(&client, &server, &of_client);
    assert_eq!(refused.of_server().reason(), "unknown_trust_domain");
}

#[test]
fn spec_058_new_trust_is_used_by_configs_that_were_there_before() {
    let (old, new) = (World::new(), World::new());
    let trust = old.shared();
    let (client, server) = (old.client(&trust), old.server(&trust));
    let (new_client, new_server) = (new.client(&trust), new.server(&trust));
    shake(&new_client, &server).of_client();
    shake(&client, &new_server).of_server();
    let both = mint::trust(&[("cluster.local", &[&old.root, &new.root])]);
    trust.store(Arc::new(both));
    for client in [&client, &new_client] {
        for server in [&server, &new_server] {
            shake(client, server).good();
        }
    }
    trust.store(Arc::new(Trust::clone(&new.trust)));
    shake(&client, &new_server).of_client();
    shake(&new_client, &server).of_server();
    shake(&new_client, &new_server).good();
}

#[test]
fn spec_059_a_key_that_is_not_the_leafs_makes_no_svid() {
    let world = World::new();
    let (leaf, other) = (world.issuer.sign(&mint::leaf(WEB)), world.issuer.sign(&mint::leaf(WEB)));
    let chain = chain(&[&leaf, &world.issuer]);
    let make = |chain: &[_], signer: &Signer| Svid::new(chain.to_vec(), signer.private_key());
    assert!(matches!(make(&chain, &other), Err(SvidError::Key(_))));
    assert!(matches!(make(&[], &leaf), Err(SvidError::EmptyChain)));
    assert!(matches!(make(&chain[1..], &world.issuer), Err(SvidError::Leaf(_))));
    let svid = make(&chain, &leaf).unwrap();
    assert_eq!((svid.id().as_str(), svid.not_after()), (WEB, mint::at(3_600)));
    // What is logged of it is not its key.
    assert!(!format!("{svid:?}").to_lowercase().contains("key"));
}

#[test]
fn spec_059_a_certificate_without_its_key_is_worth_nothing_in_a_handshake() {
    let world = World::new();
    let trust = world.shared();
    let thief = world.issuer.sign(&mint::leaf(LEDGER));
    let stolen = chain(&[&world.issuer.sign(&mint::leaf(WEB)), &world.issuer]);
    let (client, server) = present(stolen, &thief, &world, &trust);
    let bad_signature = Error::InvalidCertificate(rustls::CertificateError::BadSignature);
    assert_eq!(
        shake(&client, &world.server(&trust)).server_error,
        Some(bad_signature.clone())
    );
    assert_eq!(shake(&world.client(&trust), &server).client_error, Some(bad_signature));
}

#[test]
fn spec_060_a_refused_client_believes_in_its_handshake_until_its_first_read() {
    let world = World::new();
    let trust = world.shared();
    let anonymous = client_config(None, Arc::clone(&trust), &[]).unwrap();
    let shaken = shake(&anonymous, &world.server(&trust));
    assert!(!shaken.client.is_handshaking());
    let alert = Error::AlertReceived(AlertDescription::CertificateRequired);
    assert_eq!(shaken.client_error, Some(alert));
}
