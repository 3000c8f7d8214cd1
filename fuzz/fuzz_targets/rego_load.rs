//! A Rego module from a document, and the request of a stranger: loading and deciding neither panic nor run on.
#![no_main]

use std::time::{Duration, Instant, SystemTime};

use libfuzzer_sys::fuzz_target;
use postern_authorizer::rego::Source;
use postern_authorizer::{Check, Http, Peer, RegoPolicy};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let source = Source {
        modules: [("fuzz.rego".to_owned(), text.to_owned())].into(),
        ..Source::default()
    };
    let Ok(policy) = RegoPolicy::load(&source) else {
        return;
    };
    let mut http = Http {
        id: "1".into(),
        method: "GET".into(),
        headers: Default::default(),
        path: "/a/b?c=d".into(),
        host: "h".into(),
        scheme: "https",
        protocol: "HTTP/1.1",
        size: -1,
        body: None,
    };
    http.add_header("x-a", data);
    http.finish();
    let check = Check {
        source: Peer::default(),
        destination: Peer::default(),
        time: SystemTime::UNIX_EPOCH,
        http: Some(http),
        sni: None,
        context: Default::default(),
        facts: Default::default(),
    };
    let mut evaluator = policy.evaluator();
    let began = Instant::now();
    let _ = evaluator.decide(&check);
    // One built-in may run past the limit, but not for long; sanitizers slow everything down.
    assert!(began.elapsed() < Duration::from_secs(2), "ran on for {:?}", began.elapsed());
});
