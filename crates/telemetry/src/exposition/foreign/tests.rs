#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;

fn text(body: &str) -> Result<Adopted, Malformed> {
    adopt(body, Format::Text, Format::Text)
}

fn open_metrics(body: &str) -> Result<Adopted, Malformed> {
    adopt(body, Format::OpenMetrics, Format::OpenMetrics)
}

#[test]
fn an_apps_samples_are_passed_on_with_help_type_labels_and_timestamps() {
    let body = "# a remark\n# HELP http_requests_total Requests \\n served.\n# TYPE http_requests_total counter\n\
                http_requests_total{method=\"post\",path=\"C:\\\\DIR\\\"}{,\"} 1027 1395066363000\n\n\
                up 1\nworst NaN\ncold -Inf\nrpc:rate5m{quantile = \"0.5\" , } 4.7e+01\n";
    let adopted = text(body).unwrap();
    assert_eq!(
        adopted.text,
        "# HELP http_requests_total Requests \\n served.\n# TYPE http_requests_total counter\n\
         http_requests_total{method=\"post\",path=\"C:\\\\DIR\\\"}{,\"} 1027 1395066363000\n\
         up 1\nworst NaN\ncold -Inf\nrpc:rate5m{quantile = \"0.5\" , } 4.7e+01\n"
    );
    assert_eq!(adopted.dropped, 0);
}

#[test]
fn families_that_look_like_ours_are_left_out_and_counted() {
    let body = "# HELP postern_proxy_requests_total Forged\n# TYPE postern_proxy_requests_total counter\n\
                postern_proxy_requests_total{outcome=\"denied\"} 0\npostern_x 1\n postern_y 1\nposternx 1\n";
    let adopted = text(body).unwrap();
    assert_eq!((adopted.text.as_str(), adopted.dropped), ("posternx 1\n", 3));
}

#[test]
fn one_bad_line_is_enough_to_refuse_all_since_a_scraper_would_refuse_ours_with_it() {
    for (line, bad) in [
        (1, "<html>"),
        (1, "9lives 1"),
        (1, "up"),
        (1, "up one"),
        (1, "up 1 1.5"),
        (1, "up 1 2 3"),
        (1, "up{a=\"b} 1"),
        (1, "up{a=\"\\x\"} 1"),
        (1, "up{a=b} 1"),
        (1, "up{1a=\"b\"} 1"),
        (1, "up{a=\"b\" c=\"d\"} 1"),
        (1, "up 1 # {trace_id=\"x\"} 1"),
        (2, "up 1\n{} 1"),
        (2, "up 1\nübung 1"),
    ] {
        assert_eq!(text(bad), Err(Malformed { line }), "{bad}");
    }
}

#[test]
fn open_metrics_ends_with_eof_which_is_ours_to_write() {
    let body = "# TYPE a counter\n# UNIT wait_seconds seconds\n# UNIT wait_ms seconds\n# TYPE b odd\n\
                a_total{x=\"1\"}  5  1.5  # {trace_id=\"KOO5S4vxi0o\"} 0.67 1.2\n# EOF\n";
    let adopted = open_metrics(body).unwrap();
    assert_eq!(
        adopted.text,
        "# TYPE a counter\n# UNIT wait_seconds seconds\n\
         a_total{x=\"1\"} 5 1.5 # {trace_id=\"KOO5S4vxi0o\"} 0.67 1.2\n"
    );
    assert_eq!(open_metrics("a 1\n"), Err(Malformed { line: 2 }), "cut short");
    assert_eq!(
        open_metrics("# EOF\na 1\n"),
        Err(Malformed { line: 2 }),
        "after the end"
    );
    assert_eq!(
        open_metrics("a 1 # {x=\"y\" 1\n# EOF\n"),
        Err(Malformed { line: 1 }),
        "half an exemplar"
    );
}

#[test]
fn open_metrics_becomes_text_for_a_scraper_that_wants_text_and_text_stays_text() {
    let body = "# HELP a Things\n# TYPE a counter\na_total 5 1.5 # {t=\"x\"} 1\n# EOF\n";
    let adopted = adopt(body, Format::OpenMetrics, Format::Text).unwrap();
    assert_eq!(
        adopted.text,
        "# HELP a_total Things\n# TYPE a_total counter\na_total 5 1500\n"
    );
    let far = "a 5 1e300\n# EOF\n";
    assert_eq!(
        adopt(far, Format::OpenMetrics, Format::Text),
        Err(Malformed { line: 1 })
    );
    let plain = adopt("# TYPE a counter\na 5\n", Format::Text, Format::OpenMetrics).unwrap();
    assert_eq!(plain.text, "# TYPE a counter\na 5\n");
}

proptest! {
    #[test]
    fn no_text_makes_it_panic_and_what_is_adopted_is_adopted_again_unchanged(
        body in "([a-z_:#{}=\",\\\\ \t0-9.\n]|EOF|TYPE |HELP |postern_| counter){0,80}",
        format in prop_oneof![Just(Format::Text), Just(Format::OpenMetrics)],
    ) {
        for body in [body.clone(), format!("{body}\n# EOF\n"), format!("up{{a=\"{body}\"}} 1\n# EOF\n")] {
            if let Ok(first) = adopt(&body, format, format) {
                prop_assert!(!first.text.contains("\npostern_") && !first.text.starts_with("postern_"));
                let again = adopt(&format!("{}{}", first.text, format.end()), format, format).unwrap();
                prop_assert_eq!((again.text, again.dropped), (first.text, 0));
            }
        }
    }
}
