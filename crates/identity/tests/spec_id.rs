//! The SPIFFE checklist, rows 1 to 16: what is a SPIFFE ID, and what only looks like one.
#![allow(clippy::unwrap_used)]

use postern_identity::id::{MAX_ID_LEN, MAX_INSTANCE_LEN, MAX_TRUST_DOMAIN_LEN};
use postern_identity::{Instance, SpiffeId, TrustDomain};
use proptest::prelude::*;

fn why(text: &str) -> &'static str {
    match SpiffeId::parse(text) {
        Err(error) => error.why,
        Ok(id) => panic!("{text:?} was taken for {id}"),
    }
}

fn refuses(texts: &[&str]) {
    for text in texts {
        why(text);
    }
}

/// Each byte, as the one character that it is in Latin-1; past ASCII that is UTF-8 of two bytes.
fn every_byte() -> impl Iterator<Item = char> {
    (0..=u8::MAX).map(char::from)
}

#[test]
fn spec_001_trust_domain_and_path_are_kept_verbatim() {
    let id = SpiffeId::parse("spiffe://example.org/ns/a/sa/b").unwrap();
    assert_eq!(id.trust_domain(), "example.org");
    assert_eq!(id.path(), "/ns/a/sa/b");
    assert_eq!(id.as_str(), "spiffe://example.org/ns/a/sa/b");
    assert_eq!(id.workload(), Some(("a", "b")));
}

#[test]
fn spec_001_only_our_own_shape_of_path_names_a_workload() {
    let td = TrustDomain::parse("example.org").unwrap();
    let id = SpiffeId::for_workload(&td, "shop", "web").unwrap();
    assert_eq!(id.as_str(), "spiffe://example.org/ns/shop/sa/web");
    for text in [
        "spiffe://td/ns/a/sa/b/c",
        "spiffe://td/ns/a/b/sa/c",
        "spiffe://td/ns/a",
        "spiffe://td/x/ns/a/sa/b",
        "spiffe://td/NS/a/sa/b",
    ] {
        assert_eq!(SpiffeId::parse(text).unwrap().workload(), None, "{text}");
    }
    for (namespace, account) in [
        ("", "web"),
        ("shop", ""),
        ("..", "web"),
        ("shop/sa/x", ""),
        ("shop", "w b"),
    ] {
        SpiffeId::for_workload(&td, namespace, account).unwrap_err();
    }
}

#[test]
fn spec_002_a_trust_domain_alone_is_no_workload() {
    assert_eq!(
        why("spiffe://example.org"),
        "has no path: it names a trust domain, not a workload"
    );
    assert_eq!(TrustDomain::parse("example.org").unwrap().as_str(), "example.org");
}

#[test]
fn spec_003_another_scheme_or_none_is_refused() {
    refuses(&[
        "",
        "http://x/y",
        "spiffe:/x",
        "spiffe:x/y",
        "//x/y",
        "s",
        "spiffe",
        "spiffe://",
        " spiffe://td/p",
        "\u{feff}spiffe://td/p",
        "xspiffe://td/p",
        "spiffe+http://td/p",
    ]);
}

#[test]
fn spec_004_an_empty_trust_domain_is_refused() {
    assert_eq!(why("spiffe://"), "the trust domain is empty");
    assert_eq!(why("spiffe:///path"), "the trust domain is empty");
    TrustDomain::parse("").unwrap_err();
}

#[test]
fn spec_005_userinfo_and_port_are_refused() {
    assert_eq!(why("spiffe://u@td/p"), "userinfo is not allowed");
    assert_eq!(why("spiffe://td:8080/p"), "a port is not allowed");
    refuses(&[
        "spiffe://u:p@td/p",
        "spiffe://td:/p",
        "spiffe://@td/p",
        "spiffe://:@td/p",
    ]);
}

#[test]
fn spec_006_query_and_fragment_are_refused_also_empty_ones() {
    for tail in ["?q", "?", "?q#f"] {
        assert_eq!(why(&format!("spiffe://td/p{tail}")), "a query is not allowed");
        assert_eq!(why(&format!("spiffe://td{tail}")), "a query is not allowed");
    }
    for tail in ["#f", "#", "#f?q"] {
        assert_eq!(why(&format!("spiffe://td/p{tail}")), "a fragment is not allowed");
        assert_eq!(why(&format!("spiffe://td{tail}")), "a fragment is not allowed");
    }
}

#[test]
fn spec_007_a_trust_domain_holds_lower_case_digits_dot_dash_and_underscore_only() {
    for c in every_byte() {
        let allowed = matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_');
        let name = format!("t{c}d");
        assert_eq!(TrustDomain::parse(&name).is_ok(), allowed, "{name:?}");
        // A slash ends the trust domain and begins the path.
        let id = SpiffeId::parse(&format!("spiffe://{name}/p"));
        assert_eq!(id.is_ok(), allowed || c == '/', "{name:?}");
    }
    refuses(&[
        "spiffe://t%41d/p",
        "spiffe://[::1]/p",
        "spiffe://t d/p",
        "spiffe://tд/p",
    ]);
}

#[test]
fn spec_008_no_rule_of_dns_or_ip_applies_to_a_trust_domain() {
    for name in ["1.2.3.4", "a_b", "-x", "x-", "a..b", ".a", "a.", "_", "."] {
        let id = SpiffeId::parse(&format!("spiffe://{name}/p")).unwrap();
        assert_eq!(id.trust_domain(), name);
    }
}

#[test]
fn spec_009_upper_case_in_scheme_and_trust_domain_is_refused_and_said() {
    assert_eq!(why("spiffe://Example.org/x"), "the trust domain must be lower case");
    assert_eq!(why("SPIFFE://example.org/x"), "the scheme must be lower case");
    assert_eq!(why("Spiffe://example.org/x"), "the scheme must be lower case");
}

#[test]
fn spec_010_a_trust_domain_of_255_bytes_is_the_longest() {
    let longest = "t".repeat(MAX_TRUST_DOMAIN_LEN);
    assert_eq!(longest.len(), 255);
    assert_eq!(
        SpiffeId::parse(&format!("spiffe://{longest}/p"))
            .unwrap()
            .trust_domain(),
        longest
    );
    TrustDomain::parse(&longest).unwrap();
    let longer = format!("{longest}t");
    assert_eq!(
        why(&format!("spiffe://{longer}/p")),
        "the trust domain is longer than 255 bytes"
    );
    TrustDomain::parse(&longer).unwrap_err();
}

#[test]
fn spec_011_empty_segments_and_a_trailing_slash_are_refused() {
    for path in ["/", "//", "/a/", "/a//b", "//a"] {
        assert_eq!(
            why(&format!("spiffe://td{path}")),
            "a path segment is empty, or the path ends in a slash"
        );
    }
}

#[test]
fn spec_012_dot_segments_are_refused_and_only_they() {
    for path in ["/.", "/..", "/a/.", "/a/..", "/./a", "/../a", "/a/../b"] {
        assert_eq!(why(&format!("spiffe://td{path}")), "dot segments are not allowed");
    }
    for path in ["/...", "/.a", "/..a", "/a.", "/a.."] {
        SpiffeId::parse(&format!("spiffe://td{path}")).unwrap();
    }
}

#[test]
fn spec_013_a_segment_holds_letters_digits_dot_dash_and_underscore_only() {
    for c in every_byte() {
        let allowed = matches!(c, 'A'..='Z' | 'a'..='z' | '0'..='9' | '.' | '-' | '_');
        let id = SpiffeId::parse(&format!("spiffe://td/a{c}b"));
        // A slash makes two segments of one.
        assert_eq!(id.is_ok(), allowed || c == '/', "{c:?}");
    }
    refuses(&[
        "spiffe://td/a%2Fb",
        "spiffe://td/%61",
        "spiffe://td/a~",
        "spiffe://td/a\0",
    ]);
    refuses(&[
        "spiffe://td/é",
        "spiffe://td/e\u{301}",
        "spiffe://td/\u{ff0e}",
        "spiffe://td/a\\b",
    ]);
}

#[test]
fn spec_014_paths_are_compared_byte_by_byte() {
    let upper = SpiffeId::parse("spiffe://td/A").unwrap();
    let lower = SpiffeId::parse("spiffe://td/a").unwrap();
    assert_ne!(upper, lower);
    assert_eq!(lower, SpiffeId::parse("spiffe://td/a").unwrap());
}

#[test]
fn spec_015_2048_bytes_are_supported_and_no_more() {
    let head = "spiffe://td/";
    let longest = format!("{head}{}", "p".repeat(MAX_ID_LEN - head.len()));
    assert_eq!(longest.len(), 2048);
    assert_eq!(SpiffeId::parse(&longest).unwrap().as_str(), longest);
    let error = SpiffeId::parse(&format!("{longest}p")).unwrap_err();
    assert_eq!(error.why, "is longer than 2048 bytes");
    // The message does not carry a peer's two kilobytes into a log.
    assert_eq!(error.text.len(), 128);
}

#[test]
fn spec_016_a_trust_domain_is_a_bare_name() {
    for text in [
        "spiffe://td",
        "spiffe://td/x",
        "td:/",
        "http://td",
        "td/",
        "/td",
        "td/x",
        "td:443",
    ] {
        TrustDomain::parse(text).unwrap_err();
    }
}

#[test]
fn an_instance_is_one_segment_of_at_most_253_bytes() {
    let longest = "i".repeat(MAX_INSTANCE_LEN);
    assert_eq!(Instance::parse(&longest).unwrap().as_str(), longest);
    Instance::parse(&format!("{longest}i")).unwrap_err();
    Instance::parse("").unwrap_err();
    Instance::parse("0d1c0e0a-5f3e-4b6e-9d4e-1f2a3b4c5d6e").unwrap();
    for c in every_byte() {
        let allowed = matches!(c, 'A'..='Z' | 'a'..='z' | '0'..='9' | '.' | '-' | '_');
        assert_eq!(Instance::parse(&format!("a{c}")).is_ok(), allowed, "{c:?}");
    }
}

/// Mostly almost an ID: what a random string never is.
fn almost_an_id() -> impl Strategy<Value = String> {
    prop_oneof![
        "spiffe://[a-z0-9._-]{0,9}(/[A-Za-z0-9._-]{0,5}){0,4}",
        "[sS]piffe:/{0,3}[ -~é]{0,9}(/[ -~é]{0,5}){0,4}",
        any::<String>(),
    ]
}

proptest! {
    #[test]
    fn spec_016_what_is_parsed_is_displayed_as_it_was(text in almost_an_id()) {
        if let Ok(id) = SpiffeId::parse(&text) {
            prop_assert_eq!(id.to_string(), &*text);
            prop_assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), text);
            prop_assert_eq!(SpiffeId::parse(&id.to_string()).unwrap(), id);
        }
    }

    /// Whatever we take, the spiffe crate takes, and reads alike; so nobody else reads another identity.
    #[test]
    fn spec_016_another_implementation_reads_the_same(text in almost_an_id()) {
        if let Ok(ours) = SpiffeId::parse(&text) {
            let theirs = spiffe::SpiffeId::new(&text).unwrap();
            prop_assert_eq!(theirs.trust_domain_name(), ours.trust_domain());
            prop_assert_eq!(theirs.path(), ours.path());
        }
    }
}
