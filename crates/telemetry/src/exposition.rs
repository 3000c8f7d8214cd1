//! Metrics as text: OpenMetrics where the scraper accepts it, else Prometheus text 0.0.4.
//!
//! prometheus-client writes OpenMetrics only. The two formats differ where `promtool check metrics` looks: 0.0.4 has
//! HELP and TYPE under the sample's full name (`x_total`, `x_info`), no UNIT and no EOF line.

use std::fmt::Write as _;

use prometheus_client::registry::Registry;

/// `Content-Type` of OpenMetrics 1.0.
pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// `Content-Type` of Prometheus text 0.0.4.
pub const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The body and its content type for a scrape with this `Accept` header.
#[must_use]
pub fn render(registry: &Registry, accept: Option<&str>) -> (&'static str, String) {
    let mut open_metrics = String::with_capacity(16 * 1024);
    // Writing to a String does not fail; a metric that refuses to encode leaves the rest readable.
    let _ = prometheus_client::encoding::text::encode(&mut open_metrics, registry);
    if accept.is_some_and(|accept| accept.contains("application/openmetrics-text")) {
        (OPEN_METRICS, open_metrics)
    } else {
        (TEXT, to_text(&open_metrics))
    }
}

/// Rewrites OpenMetrics text as Prometheus text 0.0.4.
#[must_use]
pub fn to_text(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len() + 256);
    let mut pending_help: Option<(&str, &str)> = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            pending_help = rest.split_once(' ').or(Some((rest, "")));
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "unknown"));
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "stateset" => ("", "gauge"),
                "gaugehistogram" => ("", "histogram"),
                "unknown" => ("", "untyped"),
                plain => ("", plain),
            };
            if let Some((_, help)) = pending_help.take().filter(|(of, _)| *of == name) {
                let _ = writeln!(text, "# HELP {name}{suffix} {help}");
            }
            let _ = writeln!(text, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with("# UNIT ") && line != "# EOF" {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::histogram::Histogram;

    use super::*;

    fn registry() -> Registry {
        let mut registry = Registry::default();
        let counter = Counter::<u64>::default();
        counter.inc_by(3);
        registry.register("postern_requests", "Requests", counter);
        let histogram = Histogram::new([0.1, 1.0]);
        histogram.observe(0.5);
        registry.register("postern_latency_seconds", "Latency", histogram);
        registry
    }

    #[test]
    fn a_plain_scrape_gets_help_and_type_under_the_name_of_the_samples() {
        let (content_type, body) = render(&registry(), None);
        assert_eq!(content_type, TEXT);
        assert!(body.contains("# HELP postern_requests_total Requests.\n# TYPE postern_requests_total counter\n"));
        assert!(body.contains("\npostern_requests_total 3\n"));
        assert!(body.contains("# TYPE postern_latency_seconds histogram\n"));
        assert!(!body.contains("# EOF"));
    }

    #[test]
    fn open_metrics_is_given_to_whom_accepts_it() {
        let (content_type, body) = render(
            &registry(),
            Some("application/openmetrics-text;version=1.0.0,text/plain;q=0.5"),
        );
        assert_eq!(content_type, OPEN_METRICS);
        assert!(body.ends_with("# EOF\n"));
    }
}
