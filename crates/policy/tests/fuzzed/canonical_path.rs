//! A request target and a host from the wire: what passes is a fixed point, holds nothing that a server could resolve or
//! cut, and the two readers (with and without a copy) agree.

use postern_policy::canonical::{CanonicalHost, CanonicalPath, CanonicalPathRef, split_target};

/// Panics where it does not hold.
pub fn check(text: &str) {
    if let Ok((path, query)) = split_target(text) {
        assert_eq!(path.len() + query.map_or(0, |query| query.len() + 1), text.len());
        check_path(path);
    }
    if let Ok(host) = CanonicalHost::parse(text) {
        let again = CanonicalHost::parse(host.as_str()).expect("a canonical host is a host");
        assert_eq!(again, host, "{text:?}");
    }
}

fn check_path(raw: &str) {
    let parsed = CanonicalPath::parse(raw);
    match (CanonicalPathRef::check(raw), &parsed) {
        (Ok(Some(same)), Ok(path)) => assert_eq!((same.as_str(), path.as_str()), (raw, raw)),
        (Ok(None), Ok(path)) => assert_ne!(path.as_str(), raw),
        (Err(checked), Err(parsed)) => assert_eq!(checked, *parsed, "{raw:?}"),
        (checked, parsed) => panic!("{raw:?}: {checked:?} and {parsed:?}"),
    }
    let Ok(path) = parsed else { return };
    let text = path.as_str();
    assert_eq!(
        CanonicalPath::parse(text),
        Ok(path.clone()),
        "{raw:?}: not a fixed point"
    );
    assert!(
        text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic()),
        "{text:?}"
    );
    for segment in text.split('/') {
        let name = segment.split(';').next().unwrap_or_default();
        assert!(!matches!(name, "." | ".."), "{text:?}");
    }
    for piece in ["//", "\\", "#", "?", "%2E", "%2F", "%5C", "%00", "%7F"] {
        assert!(!text.contains(piece), "{text:?} holds {piece}");
    }
}
