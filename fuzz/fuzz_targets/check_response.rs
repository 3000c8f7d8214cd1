//! An ext_authz reply from the wire: nothing panics, only a status OK allows, and nothing guarded is touched.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postern_authorizer::envoy::service::auth::v3::CheckResponse;
use postern_authorizer::reply::read;
use postern_authorizer::Verdict;
use prost::Message as _;

fuzz_target!(|data: &[u8]| {
    if let Ok(Verdict::Allow(edits)) = read(data) {
        let parsed = CheckResponse::decode(data).expect("it was read");
        assert_eq!(parsed.status.map(|status| status.code), Some(0));
        for (name, _, _) in edits.request.iter().chain(&edits.answer) {
            let folded = name.as_str().replace(['_', '.'], "-");
            assert!(!folded.starts_with("x-postern-") && folded != "host" && folded != "content-length");
        }
    }
});
