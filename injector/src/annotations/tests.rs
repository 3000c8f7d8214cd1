#![allow(clippy::unwrap_used)]
use super::*;

fn read(pairs: &[(&str, &str)]) -> Result<Wishes, String> {
    let map = pairs.iter().map(|(k, v)| (format!("{OURS}{k}"), (*v).to_owned()));
    Wishes::read(&map.collect(), true)
}

#[test]
fn each_annotation_is_read() {
    let wishes = read(&[
        ("skip-inbound-ports", "80, 443"),
        ("skip-outbound-ports", "25"),
        ("skip-outbound-cidrs", "169.254.169.254/32,fd00::/8,10.0.0.1"),
        ("opaque-ports", "6379"),
        ("proxy-cpu-request", "100m"),
        ("proxy-memory-limit", "256Mi"),
        ("log-level", "warn,postern_proxy=debug"),
        ("access-log", "all"),
        ("drain-seconds", "3600"),
        ("workload-api", "enabled"),
    ])
    .unwrap();
    assert_eq!(wishes.skip_inbound_ports, [80, 443].into());
    assert_eq!(wishes.skip_outbound_ports, [25].into());
    assert_eq!(
        wishes.skip_outbound_cidrs,
        ["169.254.169.254/32", "fd00::/8", "10.0.0.1/32"]
    );
    assert_eq!(wishes.opaque_ports, [6379].into());
    assert_eq!(wishes.resources.len(), 2);
    assert_eq!(wishes.access_log, Some(AccessLog::All));
    assert_eq!(wishes.drain_seconds, Some(3600));
    assert!(wishes.workload_api && !read(&[("workload-api", "disabled")]).unwrap().workload_api);
}

#[test]
fn a_bad_or_unknown_annotation_is_refused_with_the_nearest_valid_one() {
    for (name, value, says) in [
        ("skip-inbound-port", "80", "did you mean `skip-inbound-ports`?"),
        ("workload-api", "true", "enabled and disabled are possible"),
        ("proxy-image", "evil", "does not choose its proxy's image"),
        ("inject", "enabled", "it is a label"),
        ("allow-loosening", "true", "the namespace's"),
        ("skip-outbound-ports", "0", "`0` is no port number"),
        ("skip-outbound-ports", "65536", "`65536` is no port number"),
        ("skip-outbound-ports", "+80", "no port number"),
        ("skip-outbound-ports", "http", "no port number"),
        ("skip-inbound-ports", "15006", "the proxy's own"),
        ("skip-outbound-cidrs", "10.0.0.1/8", "did you mean `10.0.0.0/8`?"),
        ("skip-outbound-cidrs", "fd00::1/64", "did you mean `fd00::/64`?"),
        ("skip-outbound-cidrs", "10.0.0.0/33", "0 to 32"),
        ("skip-outbound-cidrs", "example.com", "no address range"),
        ("proxy-cpu-limit", "0", "no quantity"),
        ("proxy-cpu-limit", "1 core", "no quantity"),
        ("log-level", "inof", "did you mean `info`?"),
        ("log-level", "info\nx", "no log filter"),
        ("access-log", "deny", "did you mean `denied`?"),
        ("drain-seconds", "3601", "0 to 3600"),
        ("drain-seconds", "-1", "0 to 3600"),
    ] {
        let error = read(&[(name, value)]).unwrap_err();
        assert!(error.starts_with(&format!("annotation {OURS}{name}: ")), "{error}");
        assert!(error.contains(says), "{name}={value}: {error}");
    }
}

#[test]
fn inbound_ports_are_skipped_only_where_the_namespace_allows_it() {
    let map = BTreeMap::from([(format!("{OURS}skip-inbound-ports"), "80".to_owned())]);
    assert!(Wishes::read(&map, false).unwrap_err().contains(ALLOW_LOOSENING));
    assert!(Wishes::read(&map, true).is_ok());
}

#[test]
fn a_list_has_at_most_127_entries() {
    let list = |n: usize| (1..=n).map(|p| p.to_string()).collect::<Vec<_>>().join(",");
    assert!(read(&[("opaque-ports", &list(MAX_ENTRIES))]).is_ok());
    assert!(
        read(&[("opaque-ports", &list(MAX_ENTRIES + 1))])
            .unwrap_err()
            .contains("127")
    );
}

#[test]
fn quantities_are_compared_by_size() {
    assert_eq!(thousandths("0.5"), thousandths("500m"));
    assert_eq!(thousandths("1Ki"), Some(1_024_000));
    assert!(thousandths("999999999999999.999Ei").is_some());
    for bad in [
        "",
        "m",
        ".",
        "1.",
        "-1",
        "1e3",
        "1Kib",
        "1 ",
        "1.2345",
        "1000000000000000",
    ] {
        assert_eq!(thousandths(bad), None, "{bad}");
    }
}
