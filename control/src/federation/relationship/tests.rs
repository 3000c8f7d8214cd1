#![allow(clippy::unwrap_used)]
use super::*;

const EMPTY: &str = "{\"keys\":[]}";

fn mesh() -> Mesh {
    let mut mesh = Mesh::named(TrustDomain::parse("ours.example").unwrap());
    mesh.trust_domain_alias = vec![TrustDomain::parse("old.example").unwrap()];
    mesh
}

/// What a file of these specs says.
fn found(specs: &[&str]) -> Found {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("bundle.json"), EMPTY).unwrap();
    let document = |(n, spec): (usize, &&str)| {
        format!(
            "apiVersion: spire.spiffe.io/v1alpha1\nkind: ClusterFederatedTrustDomain\nmetadata: {{name: d{n}}}\nspec: {{{spec}}}\n---\n"
        )
    };
    let text: String = specs.iter().enumerate().map(document).collect();
    let path = directory.path().join("federation.yaml");
    std::fs::write(&path, text).unwrap();
    look(&path, &mesh(), None).unwrap().found
}

fn one(spec: &str) -> Relationship {
    found(&[spec]).unwrap().into_values().next().unwrap()
}

fn why(spec: &str) -> String {
    found(&[spec]).unwrap_err().errors.join("\n")
}

const WEB: &str = "bundleEndpointURL: 'https://b.example/', bundleEndpointProfile: {type: https_web}";

fn spiffe(id: &str) -> String {
    format!(
        "bundleEndpointURL: 'https://b.example:8443/x', bundleEndpointProfile: {{type: https_spiffe, endpointSPIFFEID: '{id}'}}"
    )
}

#[test]
fn a_relationship_is_a_file_or_an_endpoint_of_either_profile() {
    let given = format!("trustDomain: b.example, trustDomainBundle: '{EMPTY}'");
    assert_eq!(one(&given).endpoint, None);
    assert_eq!(
        one("trustDomain: b.example, trustDomainBundleFile: bundle.json").endpoint,
        None
    );
    let web = one(&format!("trustDomain: b.example, {WEB}, className: spire-mgmt"));
    assert_eq!(
        (web.endpoint.as_ref().unwrap().profile.clone(), web.given.clone()),
        (Profile::Web, None)
    );
    let id = "spiffe://b.example/spire/server";
    let by_id = one(&format!("{given}, {}", spiffe(id)));
    assert_eq!(
        by_id.endpoint.as_ref().unwrap().profile,
        Profile::Spiffe(SpiffeId::parse(id).unwrap())
    );
    assert_eq!(by_id.endpoint.as_ref().unwrap().url.port_u16(), Some(8443));
    // Somebody else's endpoint is verified under somebody else's bundle.
    one(&format!(
        "trustDomain: b.example, {}",
        spiffe("spiffe://c.example/server")
    ));
    // Whatever is configured otherwise is another relationship.
    let names: std::collections::BTreeSet<String> = [
        one(&given),
        one("trustDomain: b.example, trustDomainBundle: '{\"keys\": []}'"),
        web,
        by_id,
        one(&format!("{given}, {}", spiffe("spiffe://b.example/other"))),
    ]
    .iter()
    .map(Relationship::name)
    .collect();
    assert_eq!(names.len(), 5);
    assert_eq!(one(&given).name(), one(&given).name());
}

#[test]
fn spec_069_an_endpoint_is_https_without_a_user() {
    for bad in [
        "http://b.example/",
        "https://user@b.example/",
        "https://user:secret@b.example/",
        "b.example",
        "/bundle",
        "https:///bundle",
        "https://b.example:99999/",
        "https://b.example:0/",
        "https://b.example:/",
        "https://b.example:x/",
        "https://[::1]:65536/",
        "ftp://b.example/",
        "https://b.example/#part",
        "unix:///run/x",
    ] {
        let spec =
            format!("trustDomain: b.example, bundleEndpointURL: '{bad}', bundleEndpointProfile: {{type: https_web}}");
        let why = why(&spec);
        assert!(why.contains("bundleEndpointURL"), "{bad}: {why}");
        assert!(!why.contains("secret"), "{why}");
    }
    for good in ["https://b.example", "https://10.0.0.1:8443/x?y", "https://[::1]/"] {
        one(&format!(
            "trustDomain: b.example, bundleEndpointURL: '{good}', bundleEndpointProfile: {{type: https_web}}"
        ));
    }
}

#[test]
fn spec_070_trust_domain_url_and_profile_are_all_said_and_nothing_is_guessed() {
    let url = "bundleEndpointURL: 'https://b.example/'";
    for (spec, what) in [
        (WEB.to_owned(), "`trustDomain` is missing"),
        (
            format!("trustDomain: b.example, {url}"),
            "`bundleEndpointProfile` is missing",
        ),
        (
            "trustDomain: b.example, bundleEndpointProfile: {type: https_web}".to_owned(),
            "`bundleEndpointURL` is missing",
        ),
        (
            format!("trustDomain: b.example, {url}, bundleEndpointProfile: {{}}"),
            "`type` is missing",
        ),
        (
            format!("trustDomain: b.example, {url}, bundleEndpointProfile: {{type: https-spiffe}}"),
            "did you mean `https_spiffe`?",
        ),
        (
            format!("trustDomain: b.example, {url}, bundleEndpointProfile: {{type: https_spiffe}}"),
            "`endpointSPIFFEID` is missing",
        ),
        (
            format!(
                "trustDomain: b.example, {url}, bundleEndpointProfile: {{type: https_web, endpointSPIFFEID: 'spiffe://b.example/x'}}"
            ),
            "is for https_spiffe",
        ),
        (
            format!("trustDomain: b.example, {}", spiffe("spiffe://b.example")),
            "endpointSPIFFEID",
        ),
        ("trustDomain: b.example".to_owned(), "neither"),
        (
            format!("trustDomain: b.example, {}", spiffe("spiffe://b.example/x")),
            "the first answer",
        ),
        (format!("trustDomain: spiffe://b.example, {WEB}"), "spec.trustDomain"),
        (
            format!("trustDomain: b.example, {WEB}, trustDomainBundel: x"),
            "did you mean `trustDomainBundle`?",
        ),
        ("trustDomain: b.example, trustDomainBundle: '{}'".to_owned(), "keys"),
        (
            "trustDomain: b.example, trustDomainBundleFile: none.json".to_owned(),
            "`none.json` cannot be read",
        ),
        (
            format!("trustDomain: b.example, trustDomainBundle: '{EMPTY}', trustDomainBundleFile: bundle.json"),
            "stands beside",
        ),
    ] {
        let why = why(&spec);
        assert!(why.contains(what) && why.contains("federation.yaml:"), "{spec}\n{why}");
    }
}

#[test]
fn spec_076_neither_our_own_name_nor_another_of_it_nor_one_name_twice_has_a_bundle() {
    let why_ours = why(&format!("trustDomain: ours.example, {WEB}"));
    assert!(why_ours.contains("our own trust domain"), "{why_ours}");
    let why_alias = why(&format!("trustDomain: old.example, {WEB}"));
    assert!(why_alias.contains("--trust-domain-alias"), "{why_alias}");
    let of = format!("trustDomain: b.example, {WEB}");
    for (specs, names_us) in [
        (&[format!("trustDomain: ours.example, {WEB}")][..], true),
        (&["trustDomain: old.example, nonsense: x".to_owned()], true),
        (
            &[
                format!("trustDomain: b.example, {WEB}"),
                format!("trustDomain: old.example, {WEB}"),
            ],
            true,
        ),
        (&["trustDomain: b.example".to_owned()], false),
    ] {
        let specs: Vec<&str> = specs.iter().map(String::as_str).collect();
        assert_eq!(found(&specs).unwrap_err().names_us, names_us, "{specs:?}");
    }
    let twice = found(&[&of, &of]).unwrap_err().errors.join("\n");
    assert!(twice.contains("has a relationship already"), "{twice}");
}

#[test]
fn a_file_that_is_none_of_this_is_refused_and_an_empty_one_has_no_relationships() {
    assert!(found(&[]).unwrap().is_empty());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("federation.yaml");
    assert!(look(&path, &mesh(), None).unwrap().found.unwrap_err().errors[0].contains("cannot be read"));
    std::fs::write(&path, "apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n").unwrap();
    assert!(
        look(&path, &mesh(), None).unwrap().found.unwrap_err().errors[0].contains("only ClusterFederatedTrustDomain")
    );
    let specs: Vec<String> = (0..=MAX_RELATIONSHIPS)
        .map(|n| format!("trustDomain: d{n}, {WEB}"))
        .collect();
    let specs: Vec<&str> = specs.iter().map(String::as_str).collect();
    assert_eq!(found(&specs[1..]).unwrap().len(), MAX_RELATIONSHIPS);
    found(&specs).unwrap_err();
}

#[test]
fn what_has_not_changed_is_not_read_anew() {
    let directory = tempfile::tempdir().unwrap();
    let (path, bundle) = (
        directory.path().join("federation.yaml"),
        directory.path().join("b.json"),
    );
    let text = "apiVersion: postern.dev/v1alpha1\nkind: ClusterFederatedTrustDomain\nmetadata: {name: b}\n\
                spec: {trustDomain: b.example, trustDomainBundleFile: b.json}\n";
    std::fs::write(&path, text).unwrap();
    let without = look(&path, &mesh(), None).unwrap();
    assert!(without.found.is_err());
    assert!(look(&path, &mesh(), Some(&without)).is_none());
    std::fs::write(&bundle, EMPTY).unwrap();
    let first = look(&path, &mesh(), Some(&without)).unwrap();
    assert!(first.found.is_ok() && look(&path, &mesh(), Some(&first)).is_none());
    std::fs::write(&bundle, "{\"keys\":[],\"spiffe_sequence\":2}").unwrap();
    let second = look(&path, &mesh(), Some(&first)).unwrap();
    assert_ne!(second.found, first.found);
    std::fs::write(&path, format!("{text}# more\n")).unwrap();
    assert_eq!(look(&path, &mesh(), Some(&second)).unwrap().found, second.found);
}

/// A bundle that we write in so many bytes.
fn of_length(length: usize) -> String {
    let with = |pad: usize| {
        let pad = "p".repeat(pad);
        format!(
            "{{\"keys\":[{{\"kid\":\"a\",\"kty\":\"EC\",\"pad\":\"{pad}\",\"use\":\"jwt-svid\"}}],\
             \"spiffe_refresh_hint\":300,\"spiffe_sequence\":1}}"
        )
    };
    let name = TrustDomain::parse("b.example").unwrap();
    let written = |text: &str| {
        let document = federation::parse_for(&name, text.as_bytes()).unwrap();
        document.into_bundle(name.clone(), UnixTime::now()).to_document().len()
    };
    let text = with(length - written(&with(0)));
    assert_eq!(written(&text), length);
    text
}

#[test]
fn a_given_bundle_is_one_that_proxies_are_told() {
    let given = |length: usize| format!("trustDomain: b.example, trustDomainBundle: '{}'", of_length(length));
    assert!(one(&given(MAX_CARRIED)).given_bundle().is_some());
    let why = why(&given(MAX_CARRIED + 1));
    assert!(
        why.contains("not carried to proxies")
            && why.contains("spec.trustDomainBundle")
            && why.contains("federation.yaml:"),
        "{why}"
    );
}
