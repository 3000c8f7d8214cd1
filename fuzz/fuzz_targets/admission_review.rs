//! An AdmissionReview from the wire: nothing panics, and injecting twice is injecting once.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use postern_injector::inject::{Outcome, PodContext, Settings, inject};
use postern_injector::review::Request;
use postern_injector::verify_pod::{verify, verify_ephemeral};

const SETTINGS: &str = r#"{"ca":"ca:15012","control":"control:15010","image":"proxy:1","imagePullPolicy":"IfNotPresent",
"metrics":{"annotations":true,"mutualTls":false},"proxy":{"accessLog":"denied","drainSeconds":25,"logLevel":"info",
"resources":{"limits":{"memory":"128Mi"},"requests":{"cpu":"50m","memory":"32Mi"}}},"trustDomain":"cluster.local"}"#;

fuzz_target!(|data: &[u8]| {
    let Ok(request) = Request::parse(data) else {
        return;
    };
    let settings = Settings::parse(SETTINGS).expect("they are well-formed");
    let labels = BTreeMap::from([("postern.dev/inject".to_owned(), "enabled".to_owned())]);
    let none = BTreeMap::new();
    let roots = ["e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".to_owned()];
    let context = PodContext {
        namespace: "shop",
        labels: &labels,
        annotations: &none,
        roots_sha256: &roots,
        token: "0123456789abcdef0123456789abcdef",
    };
    let pod = &request.object;
    let _ = verify_ephemeral(pod, &context, &settings);
    let Outcome::Injected { patch, .. } = inject(pod, &context, &settings) else {
        return;
    };
    let mut once = pod.clone();
    json_patch::patch(&mut once, &patch).expect("the patch fits");
    match inject(&once, &context, &settings) {
        Outcome::Injected { patch, .. } => assert!(patch.is_empty(), "{patch:?}"),
        other => panic!("{other:?}"),
    }
    verify(&once, &context, &settings).expect("what was injected is whole");
});
